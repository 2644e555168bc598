"""These tests run kernels on CPU tensors; Triton must be told before it is imported (test_interpreter.py does)."""

import os

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]
