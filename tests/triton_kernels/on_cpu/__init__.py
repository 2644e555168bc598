"""Tests of the kernels on CPU tensors: interpreted by Triton, or as compiled for the architecture of ``$EMULATED_SM``.

``test_interpreter.py`` and ``test_emulator.py`` run them, in processes of their own.
"""

import os

import torch

# Without an emulator, the launches of every architecture are run.
ARCHITECTURE = int(os.environ.get("EMULATED_SM", "90"))
# A sample of the groups.
QUICK = "QUICK" in os.environ
# What a stream may be in beside float16. The interpreter computes something else in bfloat16, and sm_75 nothing.
WIDER = [torch.float32]
if "EMULATED_SM" in os.environ and ARCHITECTURE >= 80:
    WIDER = [torch.bfloat16] if QUICK else [torch.bfloat16, torch.float32]
