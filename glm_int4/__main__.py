"""``python -m glm_int4`` is the command ``glm-int4``."""

from glm_int4.cli.main import main

main()
