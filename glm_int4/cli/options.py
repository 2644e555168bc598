"""Options that several commands share, and how they become arguments of the Python interface."""

import inspect
import json
import os
import sys
import unicodedata
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from glm_int4.errors import GLMError, InputError
from glm_int4.text.chat.messages import is_blank
from glm_int4.text.chat.tools import Tool, check_tools
from glm_int4.text.chat.tools_v4 import is_own_tool
from glm_int4.text.text_file import check_encodable, conversion, marked_encoding, plain, read_text

if TYPE_CHECKING:
    from glm_int4.adapters.adapter_source import Adapters
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
ModelVersion = Annotated[str, typer.Option(help="auto, 1, 2, 3 or 4.")]
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
EmbeddingDevice = Annotated[
    str,
    typer.Option(
        help="Where a GPU's model keeps its embedding: cuda, cpu (versions 2 to 4), or auto, as memory allows."
    ),
]
Greedy = Annotated[bool, typer.Option("--greedy", help="Always take the most likely token.")]
Prefix = Annotated[
    Path | None,
    typer.Option(
        help="A P-Tuning prefix: the folder that ptune has written, or its file; "
        '"none" leaves out one that is stored with the model.'
    ),
]
Adapter = Annotated[
    list[str] | None,
    typer.Option(
        metavar="DIR[:SCALE]",
        help="A LoRA adapter or a prefix of peft: its folder or hub id; may be repeated, then all act together.",
    ),
]
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Loading:
    """The options of every command that loads a model."""

    device: Device = "auto"
    threads: Threads = None
    model_version: ModelVersion = "auto"
    max_length: MaxLength = None
    kv_bits: KVBits = 16
    prefix: Prefix = None
    embedding_device: EmbeddingDevice = "auto"
    adapter: Adapter = None

    def load(self, model: str | None) -> "Engine":
        """Load the model that the command line names."""
        from glm_int4.generation.loading import load

        return load(find_model(model), **asdict(self) | self.given_adapters())

    def given_adapters(self) -> "dict[str, Any]":
        """The adapters as ``load`` takes them."""
        return {"adapter": adapters(self.adapter)}


def adapters(given: list[str] | None) -> "Adapters | None":
    """Adapters of the command line as the Python interface takes them."""
    from glm_int4.adapters.adapter_source import parse_adapter

    return [parse_adapter(text) for text in given] if given else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """The options that say how tokens are picked."""

    greedy: Greedy = False
    temperature: Temperature = None
    top_p: TopP = None
    top_k: TopK = None
    repetition_penalty: RepetitionPenalty = 1.0
    seed: Seed = None
    stop: Stop = None
    prompt_lookup: PromptLookup = 0

    def params(self) -> "SamplingParams":
        """The options as the Python interface takes them."""
        from glm_int4.generation.sampling import SamplingParams

        if self.greedy and self.temperature:
            raise InputError(f"expected --greedy or --temperature, got both (temperature {self.temperature})")
        values = asdict(self) | {
            "temperature": 0.0 if self.greedy else self.temperature,
            "stop": tuple(self.stop or ()),
        }
        del values["greedy"]
        return SamplingParams(**values)


def spread(run: Callable[..., None]) -> Callable[..., None]:
    """A command with an option for every field of its parameters that are dataclasses; Typer knows none of those."""
    parameters: list[inspect.Parameter] = []
    groups: dict[str, type] = {}
    for parameter in inspect.signature(run).parameters.values():
        group = parameter.annotation
        if not is_dataclass(group):
            parameters.append(parameter)
            continue
        assert isinstance(group, type)
        groups[parameter.name] = group
        hints = get_type_hints(group, include_extras=True)
        parameters += [
            parameter.replace(name=field.name, annotation=hints[field.name], default=field.default)
            for field in fields(group)
        ]

    def command(**given: Any) -> None:
        made = {
            name: group(**{field.name: given.pop(field.name) for field in fields(group)})
            for name, group in groups.items()
        }
        try:
            run(**given, **made)
        except EOFError as error:  # which Typer would take for Ctrl-D
            raise GLMError(
                f"expected a whole file, got its end ({error}); run again with --debug to see where"
            ) from error

    command.__doc__, command.__module__ = run.__doc__, run.__module__
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    # Typer passes values by name, so that options without a default may stand behind others.
    parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return command


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
        encoding = marked_encoding(text)
        if encoding is not None:
            raise InputError(f"expected {what} in UTF-8, got {encoding}; {conversion(encoding)}") from error
        raise InputError(f"expected {what} in UTF-8, got other bytes at character {error.start}") from error


def check_text(text: str, what: str) -> str:
    """Return ``text`` if it is not empty and came in as UTF-8."""
    check_utf8(text, what)
    if is_blank(text):
        raise InputError(f"expected {what}, got an empty text")
    return text


def argument_text(text: str, what: str) -> str:
    """Return a text of the command line if it is not empty and came in as UTF-8.

    Where a shell has put a file's content there, it counts as ``read_text`` would read that file; the shell has taken
    away the last line feed.
    """
    return check_text(plain(text).removesuffix("\r"), what)


def read_tools(path: Path) -> list[Tool]:
    """Read a list of tool definitions from a JSON file."""
    text = read_text(path)
    try:
        tools: list[Tool] = json.loads(text)
        # What else must be true of the model's own tools, its version knows.
        check_tools([tool for tool in tools if not is_own_tool(tool)] if isinstance(tools, list) else tools)
        check_encodable(json.dumps(tools, ensure_ascii=False), "the tools", "write the character itself")
        return tools
    except (ValueError, RecursionError) as error:
        raise InputError(f"expected a JSON list of tools in {path}, got something else ({error})") from error
    except InputError as error:
        raise InputError(f"{error} (in {path})") from error
