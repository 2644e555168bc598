"""Quantize an official checkpoint; the same as ``glm-int4 quantize``.

python tools/quantize.py --bits 4
"""

import sys

from glm_int4.cli.main import main

if __name__ == "__main__":
    sys.argv.insert(1, "quantize")
    main()
