"""What it costs to hold an answer to a JSON schema: llguidance, and xgrammar where it is installed.

python -m benchmarks.speed.answer_forms --tokenizer DIR --json benchmarks/results/answer_forms.json

Times are the processor's, of one thread. Every byte of the text is fed as a token of its own: every state is met.
"""

import json
import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmarks.machine import facts, parser, write
from glm_int4.generation.constraints.compiler import ConstraintCompiler
from glm_int4.generation.constraints.constraint import read_constraint
from glm_int4.generation.constraints.vocabulary import Vocabulary
from glm_int4.text import load_tokenizer

VOCABULARIES = {"1": 130528, "2": 65024}
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 10}, "maxItems": 5},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
MANY = {f"field {i}": {"type": "string", "pattern": "^[a-z]{1,20}$"} for i in range(100)}
CASES: dict[str, tuple[dict[str, Any], str]] = {
    "person": (PERSON, '{"name": "张三 said hi", "age": 42, "tags": ["a", "b c"]}'),
    "100 properties": (
        {"type": "object", "properties": MANY, "required": [*MANY], "additionalProperties": False},
        json.dumps(dict.fromkeys(MANY, "abc")),
    ),
    "enum of 3000": ({"enum": [f"value number {i}" for i in range(3000)]}, '"value number 2999"'),
}


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Milliseconds of a call, and what it returns."""
    started = time.thread_time()
    result = function()
    return 1e3 * (time.thread_time() - started), result


def row(library: str, compile_ms: float, masks_ms: list[float]) -> dict[str, Any]:
    """Figures of a schema."""
    return {
        "library": library,
        "compile_ms": compile_ms,
        "mask_median_ms": statistics.median(masks_ms),
        "mask_mean_ms": statistics.fmean(masks_ms),
        "mask_max_ms": max(masks_ms),
    }


def with_llguidance(compiler: ConstraintCompiler, schema: dict[str, Any], text: str) -> dict[str, Any]:
    """As the engine does it, the conversion to a mask of torch included."""
    ids, constraint = byte_ids(compiler.prepare()), read_constraint(json_schema=schema)
    assert constraint is not None
    compile_ms, matcher = timed(lambda: compiler.matcher(constraint, frozenset(), at_start=False))
    masks_ms = []
    for byte in text.encode():
        mask_ms, mask = timed(matcher.mask)
        masks_ms.append(mask_ms)
        assert mask[ids[byte]], text
        matcher.accept(ids[byte])
    assert matcher.is_complete
    return row("llguidance", compile_ms, masks_ms)


def with_xgrammar(vocabulary: Vocabulary, eos_id: int) -> Callable[[dict[str, Any], str], dict[str, Any]] | None:
    """The other library by itself, its masks as bits; None where it is not installed."""
    try:
        import xgrammar
    except ImportError:
        return None
    known = xgrammar.TokenizerInfo(
        vocabulary.pieces, xgrammar.VocabType.RAW, vocab_size=vocabulary.size, stop_token_ids=[eos_id]
    )
    compiler = xgrammar.GrammarCompiler(known, max_threads=1, cache_enabled=False)
    bits, ids = xgrammar.allocate_token_bitmask(1, vocabulary.size), byte_ids(vocabulary)

    def measure(schema: dict[str, Any], text: str) -> dict[str, Any]:
        compile_ms, compiled = timed(lambda: compiler.compile_json_schema(json.dumps(schema), any_whitespace=False))
        matcher, masks_ms = xgrammar.GrammarMatcher(compiled), []
        for byte in text.encode():
            masks_ms.append(timed(lambda: matcher.fill_next_token_bitmask(bits))[0])
            assert matcher.accept_token(ids[byte]), text
        return row("xgrammar", compile_ms, masks_ms)

    return measure


def byte_ids(vocabulary: Vocabulary) -> dict[int, int]:
    """The id of every byte."""
    return {piece[0]: token for token, piece in enumerate(vocabulary.pieces) if len(piece) == 1}


def main() -> None:
    """Measure both libraries with both official vocabularies."""
    arguments_of = parser(__doc__)
    arguments_of.add_argument("--tokenizer", required=True, metavar="DIR", help="holds v1/ and v2/")
    arguments = arguments_of.parse_args()
    results = []
    for version, size in VOCABULARIES.items():
        tokenizer = load_tokenizer(f"{arguments.tokenizer}/v{version}", version)
        compiler = ConstraintCompiler(tokenizer, size)
        prepare_ms, vocabulary = timed(compiler.prepare)
        other = with_xgrammar(vocabulary, tokenizer.eos_id)
        for name, (schema, text) in CASES.items():
            rows = [with_llguidance(compiler, schema, text), *([other(schema, text)] if other else [])]
            results += [{"version": version, "case": name, "prepare_ms": prepare_ms} | one for one in rows]
            for one in results[-len(rows) :]:
                print(", ".join(f"{k} {v:.2f}" if isinstance(v, float) else str(v) for k, v in one.items()), flush=True)
    write(
        {"command": "python -m benchmarks.speed.answer_forms --tokenizer DIR", "rows": results} | facts(),
        arguments.json,
    )


if __name__ == "__main__":
    main()
