"""Runs command lines that another process hands it, so that two such programs begin theirs at the same moment.

A line in: a command line as a JSON list. A line out: its exit code and what it said on stderr, as JSON.
"""

import contextlib
import io
import json
import sys

from glm_int4.cli.main import main


def run(words):
    errors, code = io.StringIO(), None
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        try:
            main(words)
        except SystemExit as end:
            code = end.code or 0
    return code, errors.getvalue()


if __name__ == "__main__":
    commands, sys.stdin = sys.stdin, None
    import glm_int4.conversion.quantizing  # noqa: F401 (which takes seconds, and not while they race)

    print("ready", flush=True)
    for line in commands:
        print(json.dumps(run(json.loads(line))), flush=True)
