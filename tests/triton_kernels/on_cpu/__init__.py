"""Tests of the kernels on CPU tensors: interpreted by Triton, or as compiled for the architecture of ``$EMULATED_SM``.

``test_interpreter.py`` and ``test_emulator.py`` run them, in processes of their own.
"""

import os

# Without an emulator, the launches of every architecture are run.
ARCHITECTURE = int(os.environ.get("EMULATED_SM", "90"))
# A sample of the groups.
QUICK = "QUICK" in os.environ
