"""The command ``glm-int4``: its subcommands, and how errors become one line and an exit code."""

import logging
import sys
import traceback
from collections.abc import Sequence
from io import TextIOWrapper
from typing import Annotated, NoReturn, TextIO

import typer

from glm_int4.cli import chat, generate, info, perplexity, quantize
from glm_int4.errors import GLMError
from glm_int4.version import __version__

# Recent releases of Typer carry their own copy of Click, older ones import it: find the class through Typer.
_UsageFault: type[Exception] = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")

app = typer.Typer(
    name="glm-int4",
    help="Run ChatGLM-6B with INT8 or INT4 weights on a small GPU or a CPU.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for module in (quantize, chat, generate, perplexity, info):
    app.command(module.NAME)(module.run)


def _show_version(value: bool) -> None:
    if value:
        print(f"glm-int4 {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True)] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and the log; anywhere on the line.")] = False,
) -> None:
    """Options of every command; ``main`` has already taken --debug."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command line and exit: 0, 2 for the user's mistakes, 1 for faults, 130 for Ctrl-C."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        _use_utf8(stream, "backslashreplace")
    _use_utf8(sys.stdin, "surrogateescape")  # so that other bytes become a clear error, not a decoder's
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"] or ["--help"]
    logging.basicConfig(level=logging.INFO if debug else logging.WARNING, format="%(message)s")
    try:
        sys.exit(app(words, prog_name="glm-int4", standalone_mode=False))
    except _UsageFault as error:
        _fail(error.format_message(), 2)  # type: ignore[attr-defined]
    except (typer.Abort, KeyboardInterrupt):
        _fail("interrupted", 130)
    except BrokenPipeError:
        sys.stderr.close()  # the reader left; nothing more to say
        sys.exit(1)
    except GLMError as error:
        if debug:
            traceback.print_exc()
        _fail(str(error), error.exit_code)
    except Exception as error:
        if debug:
            traceback.print_exc()
        _fail(f"{type(error).__name__}: {error} (unexpected; run again with --debug to see where)", 1)


def _use_utf8(stream: TextIO | None, errors: str) -> None:
    """Read or write UTF-8 on a standard stream, whatever the locale says."""
    if isinstance(stream, TextIOWrapper):
        stream.reconfigure(encoding="utf-8", errors=errors)


def _fail(message: str, exit_code: int) -> NoReturn:
    line = " ".join(message.split())
    print(f"error: {line}", file=sys.stderr)
    sys.exit(exit_code)
