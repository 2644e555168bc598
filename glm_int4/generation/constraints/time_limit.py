"""Whether a grammar can be compiled in good time: tried in a process that the system ends where it takes too much.

llguidance has limits of its own while an answer is followed, but none of time while it compiles, and cannot be
interrupted. Some schemas of a few thousand characters take minutes (enums that must meet, minProperties beside many
properties).
"""

import subprocess
import sys

from glm_int4.errors import InputError

PROCESSOR_SECONDS = 5
_WALL_SECONDS = 60  # where the processor has others to serve, or a system cannot count its time
_BYTES = 2 << 30
# Shorter ones cannot hold enough to take long; a process takes a tenth of a second.
_SHORT = 1000

_PROGRAM = """
import sys
sys.path[:] = sys.argv[3:]
try:
    import resource
except ImportError:
    pass
else:
    resource.setrlimit(resource.RLIMIT_CPU, (int(sys.argv[1]),) * 2)
    resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[2]),) * 2)
import llguidance
sys.stdout.write(llguidance.LLMatcher.validate_grammar(sys.stdin.read()))
"""


def check_time(grammars: str) -> None:
    """Raise InputError for grammars that take too much time or memory to compile."""
    if len(grammars) <= _SHORT:
        return
    limits = [str(PROCESSOR_SECONDS), str(_BYTES)]
    command = [sys.executable, "-I", "-c", _PROGRAM, *limits, *filter(None, sys.path)]
    try:
        ended_well = not subprocess.run(
            command,
            input=grammars.encode(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_WALL_SECONDS,
        ).returncode
    except subprocess.TimeoutExpired:
        ended_well = False
    if not ended_well:
        raise InputError(
            f"expected a constraint that compiles within {PROCESSOR_SECONDS} s and {_BYTES >> 30} GiB, "
            "got a harder one; make it simpler"
        )
