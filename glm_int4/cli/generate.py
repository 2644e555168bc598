"""``glm-int4 generate``: continue a text, without a conversation around it."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from glm_int4.cli import options
from glm_int4.errors import InputError
from glm_int4.text.text_file import read_text

NAME = "generate"


def run(
    model: options.Model = None,
    *,
    prompt: Annotated[str | None, typer.Option(help="The text.")] = None,
    prompt_file: Annotated[Path | None, typer.Option(help="A UTF-8 file with the text.")] = None,
    sampling: options.Sampling,
    max_new_tokens: options.MaxNewTokens = None,
    json_schema: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Answer in JSON that this schema describes.")
    ] = None,
    loading: options.Loading,
    as_json: options.Json = False,
) -> None:
    """Answer a bare prompt, without the conversation template."""
    if (prompt is None) == (prompt_file is None):
        raise InputError("expected either --prompt or --prompt-file, got " + ("none" if prompt is None else "both"))
    text = read_text(prompt_file) if prompt_file else options.argument_text(prompt or "", "a prompt")
    params = sampling.params()
    if json_schema is not None:
        schema = read_text(json_schema, "JSON schema")
        try:
            params = replace(params, json_schema=schema)
        except InputError as error:
            raise InputError(f"{error} (in {json_schema})") from error
    from glm_int4.generation.records import StreamRecord

    started = time.perf_counter()
    glm = loading.load(model)
    loaded = time.perf_counter()
    prompt_ids = glm.tokenizer.encode_prompt(text)
    glm.matchers(params, frozenset())  # a schema that cannot be kept is said before anything is printed
    if not as_json:
        for piece in glm.stream_text(prompt_ids, max_new_tokens, params):
            print(options.printable(piece), end="", flush=True)
        print()
        return
    record = StreamRecord()
    pieces, first = [], None
    for piece in glm.stream_text(prompt_ids, max_new_tokens, params, record):
        first = first or time.perf_counter()
        pieces.append(piece)
    ended = time.perf_counter()
    ids = record.ids
    prefill_s = (first or ended) - loaded
    decode_s = ended - loaded - prefill_s
    result = {
        "text": "".join(pieces),
        "prompt_ids": prompt_ids,
        "ids": ids,
        "finish_reason": "length" if record.cut else "stop",
        "prompt_lookup": {
            "drafted": record.drafted,
            "accepted": record.accepted,
            "acceptance_rate": record.acceptance_rate,
        },
        "load_s": loaded - started,
        "prefill_s": prefill_s,
        "decode_s": decode_s,
        "tokens_per_s": (len(ids) - 1) / decode_s if len(ids) > 1 and decode_s > 0 else None,
    }
    print(json.dumps(result, ensure_ascii=False, indent=2))
