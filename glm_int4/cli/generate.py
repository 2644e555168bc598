"""``glm-int4 generate``: continue a text, without a conversation around it."""

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from glm_int4.cli import options
from glm_int4.errors import InputError
from glm_int4.text.text_file import read_text

NAME = "generate"


def run(
    model: options.Model = None,
    prompt: Annotated[str | None, typer.Option(help="The text.")] = None,
    prompt_file: Annotated[Path | None, typer.Option(help="A UTF-8 file with the text.")] = None,
    greedy: options.Greedy = False,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    repetition_penalty: options.RepetitionPenalty = 1.0,
    max_new_tokens: options.MaxNewTokens = None,
    max_length: options.MaxLength = None,
    kv_bits: options.KVBits = 16,
    prefix: options.Prefix = None,
    seed: options.Seed = None,
    stop: options.Stop = None,
    prompt_lookup: options.PromptLookup = 0,
    device: options.Device = "auto",
    threads: options.Threads = None,
    model_version: options.ModelVersion = "auto",
    as_json: options.Json = False,
) -> None:
    """Answer a bare prompt, without the conversation template."""
    if (prompt is None) == (prompt_file is None):
        raise InputError("expected either --prompt or --prompt-file, got " + ("none" if prompt is None else "both"))
    text = read_text(prompt_file) if prompt_file else options.check_text(prompt or "", "a prompt")
    sampling = options.sampling_params(
        greedy=greedy,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=stop,
        prompt_lookup=prompt_lookup,
    )
    from glm_int4.generation.records import StreamRecord

    started = time.perf_counter()
    glm = options.load_engine(
        model,
        device=device,
        threads=threads,
        model_version=model_version,
        max_length=max_length,
        kv_bits=kv_bits,
        prefix=prefix,
    )
    loaded = time.perf_counter()
    prompt_ids = glm.tokenizer.encode_prompt(text)
    if not as_json:
        for piece in glm.stream_text(prompt_ids, max_new_tokens, sampling):
            print(options.printable(piece), end="", flush=True)
        print()
        return
    record = StreamRecord()
    pieces, first = [], None
    for piece in glm.stream_text(prompt_ids, max_new_tokens, sampling, record):
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
