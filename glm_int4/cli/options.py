"""Options that several commands share, and how they become arguments of the Python interface."""

import json
import os
import sys
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from glm_int4.errors import InputError
from glm_int4.text.messages import is_blank
from glm_int4.text.text_file import read_text
from glm_int4.text.tools import Tool, check_tools

if TYPE_CHECKING:
    from glm_int4.generation.engine import Engine
    from glm_int4.generation.sampling import SamplingParams

DEFAULT_MODEL = "chatglm-6b-int4"

Model = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL", help="Checkpoint folder or hub id. Default: $GLM_INT4_MODEL, or ./chatglm-6b-int4."
    ),
]
Device = Annotated[str, typer.Option(help="auto, cuda or cpu.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads.")]
ModelVersion = Annotated[str, typer.Option(help="auto, 1, 2 or 3.")]
MaxLength = Annotated[int | None, typer.Option(help="Most tokens of a conversation, prompt included.")]
MaxNewTokens = Annotated[int | None, typer.Option(help="Most tokens of an answer.")]
Temperature = Annotated[float | None, typer.Option(help="Default: the model's official value; 0 is greedy.")]
TopP = Annotated[float | None, typer.Option(help="Probability mass to sample from.")]
TopK = Annotated[int | None, typer.Option(help="Most likely tokens to sample from; 0 for all.")]
RepetitionPenalty = Annotated[float, typer.Option(help="Above 1 avoids tokens that have occurred.")]
Seed = Annotated[int | None, typer.Option(help="Makes sampling repeatable.")]
Stop = Annotated[list[str] | None, typer.Option(metavar="TEXT", help="Text that ends an answer; may be repeated.")]
PromptLookup = Annotated[
    int, typer.Option(metavar="N", help="Guess up to N tokens at once from what was said before; same answer, faster.")
]
KVBits = Annotated[int, typer.Option(help="Bits of the key/value cache: 16, or 8 for half the memory.")]
Greedy = Annotated[bool, typer.Option("--greedy", help="Always take the most likely token.")]
Prefix = Annotated[Path | None, typer.Option(help="A P-Tuning prefix: the folder that ptune has written, or its file.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


def find_model(model: str | None) -> str:
    """The model to use where none was named: $GLM_INT4_MODEL, then ./chatglm-6b-int4."""
    if model is not None:
        return model
    if named := os.environ.get("GLM_INT4_MODEL"):
        return named
    if Path(DEFAULT_MODEL).is_dir():
        return DEFAULT_MODEL
    raise InputError(
        f"expected a MODEL, $GLM_INT4_MODEL or the folder ./{DEFAULT_MODEL}, got none; "
        "make one with: glm-int4 quantize --bits 4"
    )


def load_engine(
    model: str | None,
    *,
    device: str = "auto",
    threads: int | None = None,
    model_version: str = "auto",
    max_length: int | None = None,
    kv_bits: int = 16,
    prefix: Path | None = None,
) -> "Engine":
    """Load the model that the options name."""
    from glm_int4.generation.loading import load

    return load(
        find_model(model),
        device=device,
        prefix=prefix,
        threads=threads,
        model_version=model_version,
        max_length=max_length,
        kv_bits=kv_bits,
    )


def sampling_params(
    *,
    greedy: bool,
    temperature: float | None,
    top_p: float | None,
    top_k: int | None,
    repetition_penalty: float,
    seed: int | None,
    stop: list[str] | None,
    prompt_lookup: int = 0,
) -> "SamplingParams":
    """Sampling options as the Python interface takes them."""
    from glm_int4.generation.sampling import SamplingParams

    if greedy and temperature:
        raise InputError(f"expected --greedy or --temperature, got both (temperature {temperature})")
    return SamplingParams(
        temperature=0.0 if greedy else temperature,
        top_p=top_p,
        top_k=top_k,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=tuple(stop or ()),
        prompt_lookup=prompt_lookup,
    )


def printable(text: str) -> str:
    """``text`` without the control characters that could change a terminal; unchanged for a pipe."""
    if sys.stdout is None or not sys.stdout.isatty():
        return text
    return harmless(text)


def harmless(text: str) -> str:
    """``text`` without the control characters that could change a terminal."""
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc")


def check_utf8(text: str, what: str) -> None:
    """Raise InputError if ``text`` came in as other bytes than UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"expected {what} in UTF-8, got other bytes at character {error.start}") from error


def check_text(text: str, what: str) -> str:
    """Return ``text`` if it is not empty and came in as UTF-8."""
    check_utf8(text, what)
    if is_blank(text):
        raise InputError(f"expected {what}, got an empty text")
    return text


def read_tools(path: Path) -> list[Tool]:
    """Read a list of tool definitions from a JSON file."""
    text = read_text(path)
    try:
        return list(check_tools(json.loads(text)))
    except (ValueError, RecursionError) as error:
        raise InputError(f"expected a JSON list of tools in {path}, got something else ({error})") from error
    except InputError as error:
        raise InputError(f"{error} (in {path})") from error
