"""What runs between ``Engine.chat`` and the first matrix product: every function of the package, in order.

    python tools/trace_chat.py examples/mini-chatglm

Loops are compiled before, by another copy of the model. A comprehension counts with the function it stands in, and a
generator once, however often it is resumed.
"""

import argparse
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import glm_int4
from glm_int4.quantization.linear import DenseLinear, QuantizedLinear

PACKAGE = Path(glm_int4.__file__).parent
PRODUCTS = {QuantizedLinear.forward.__code__, DenseLinear.forward.__code__}
COMPREHENSIONS = {"<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>"}


class Reached(BaseException):
    """Ends an answer at its first product."""


def trace(model: str, question: str, **options: Any) -> list[tuple[str, str]]:
    """File and name of every function that an answer enters up to its first product; options as of ``load``."""
    chat = [{"role": "user", "content": question}]
    glm_int4.load(model, **options).chat(chat, max_new_tokens=2)
    engine = glm_int4.load(model, **options)
    entered: list[FrameType] = []

    def note(frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        ours = code.co_filename.startswith(str(PACKAGE)) and code.co_name not in COMPREHENSIONS
        if event == "call" and ours and frame not in entered:
            entered.append(frame)
            if code in PRODUCTS:
                raise Reached

    sys.setprofile(note)
    try:
        engine.chat(chat, max_new_tokens=2)
    except Reached:
        pass
    finally:
        sys.setprofile(None)
    codes = [frame.f_code for frame in entered]
    return [(str(Path(code.co_filename).relative_to(PACKAGE)), code.co_qualname) for code in codes]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a checkpoint")
    parser.add_argument("--question", default="3加5等于几?")
    arguments = parser.parse_args()
    calls = trace(arguments.model, arguments.question, device="cpu")
    for file, name in calls:
        print(f"{file:40} {name}")
    print(f"{len(calls)} calls of {len(set(calls))} functions in {len({file for file, _ in calls})} files")


if __name__ == "__main__":
    main()
