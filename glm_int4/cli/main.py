"""The command ``glm-int4``: its subcommands, and how errors become one line and an exit code."""

import errno
import itertools
import logging
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from glm_int4.cli import bench, chat, doctor, generate, info, perplexity, quantize, serve, usage
from glm_int4.cli.examples import epilog
from glm_int4.cli.options import spread
from glm_int4.cli.training import finetune, ptune
from glm_int4.errors import GLMError, is_out_of_memory
from glm_int4.system import name_a_temporary_folder
from glm_int4.version import __version__

_MEMORY_ADVICE = "close other programs, choose a smaller model or a smaller --max-length"

# Recent releases of Typer carry their own copy of Click, older ones import it: find the class through Typer.
_UsageFault: type[Exception] = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")

_COMPLETION, _SHELLS = ("--show-completion", "--install-completion"), ("bash", "zsh", "fish", "powershell", "pwsh")

app = typer.Typer(
    name="glm-int4",
    help="Run ChatGLM-6B, ChatGLM2-6B, ChatGLM3-6B and GLM-4-9B with INT8 or INT4 weights on a small GPU or a CPU.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=epilog("glm-int4"),
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for module in (quantize, chat, serve, generate, perplexity, info, bench, finetune, ptune, doctor):
    summary = (module.run.__doc__ or "").split("\n")[0]
    context = getattr(module, "CONTEXT", None)
    app.command(module.NAME, short_help=summary, epilog=epilog(module.NAME), context_settings=context)(
        spread(module.run)
    )


def _show_version(value: bool) -> None:
    if value:
        print(f"glm-int4 {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and the log; anywhere on the line.")] = False,
) -> None:
    """Options of every command; ``main`` has already taken --debug."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command line and exit: 0, 2 for the user's mistakes, 1 for faults, 130 for Ctrl-C."""
    if arguments is None:
        _run_in_utf8()
    words = list(sys.argv[1:] if arguments is None else arguments)
    _use_utf8()
    if any(pair[0] in _COMPLETION and pair[1] in _SHELLS for pair in itertools.pairwise(words)):
        os.environ["_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION"] = "1"  # the shell is named: no need to guess it
    # Numba would have colorama, where that is installed, write an escape sequence to every terminal in the end.
    os.environ.setdefault("NUMBA_DISABLE_ERROR_MESSAGE_HIGHLIGHTING", "1")
    name_a_temporary_folder()
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"] or ["--help"]
    logging.basicConfig(level=logging.INFO if debug else logging.WARNING, format="%(message)s")
    try:
        code = app(words, prog_name="glm-int4", standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()  # so that a full disk or a reader that left is noticed here
        sys.exit(code)
    except _UsageFault as error:
        _fail(usage.explain(error, words), 2)
    except (typer.Abort, KeyboardInterrupt):
        _fail("interrupted", 130)
    except BrokenPipeError:
        _discard_output()  # the reader left; nothing more to say
        sys.exit(1)
    except GLMError as error:
        if debug:
            traceback.print_exc()
        _fail(str(error), error.exit_code)
    except Exception as error:
        if debug:
            traceback.print_exc()
        if is_out_of_memory(error):
            _fail(f"expected enough memory for this, got too little ({error or 'MemoryError'}); {_MEMORY_ADVICE}", 1)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EIO) and not error.filename:
            _discard_output()
            _fail(f"expected an output that can be written, got {error.strerror}; make room or write elsewhere", 1)
        _fail(f"{type(error).__name__}: {error} (unexpected; run again with --debug to see where)", 1)
    finally:
        if arguments is None:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # one more Ctrl-C would kill what is leaving already


def _run_in_utf8() -> None:
    """Start again in Python's UTF-8 mode where the locale has another encoding.

    There the bytes of a prompt would become other letters, and a Chinese folder's name one that does not exist.
    """
    if os.name != "posix" or sys.getfilesystemencoding() == "utf-8":
        return
    try:
        words = Path("/proc/self/cmdline").read_bytes().split(b"\0")[1:-1]  # before Python decoded them
    except OSError:
        words = [os.fsencode(word) for word in sys.orig_argv[1:]]
    if sys.executable:
        os.execv(sys.executable, [os.fsencode(sys.executable), b"-X", b"utf8", *words])


def _use_utf8() -> None:
    """Read and write UTF-8 on the standard streams, whatever the locale says."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    if isinstance(sys.stdin, TextIOWrapper):
        # Other bytes become a clear error, not a decoder's; a CR alone ends no line.
        sys.stdin.reconfigure(encoding="utf-8-sig", errors="surrogateescape", newline="\n")


def _discard_output() -> None:
    """Send what is still in stdout's buffer nowhere, so that the interpreter ends without another error."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, exit_code: int) -> NoReturn:
    line = " ".join(message.split())
    print(f"error: {line}", file=sys.stderr)
    sys.exit(exit_code)
