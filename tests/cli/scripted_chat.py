"""The command line with a model that says what a file holds; run as a program by the tests.

    python -m tests.cli.scripted_chat SCRIPT chat MODEL ...

SCRIPT is JSON: {"answer": text, "delay": seconds between characters, "fail": "memory" | "torch" | null}.
An answer fails behind its text.
"""

import json
import sys
import time
from pathlib import Path

from glm_int4.cli.main import main
from glm_int4.generation.engine import Engine

FAULTS = {
    "memory": MemoryError(),
    "torch": RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: not enough memory: you tried ..."),
}


def stream_chat(engine, messages, max_new_tokens=None, sampling=None, record=None, tools=None):
    script = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    for character in script["answer"]:
        time.sleep(script.get("delay", 0))
        record.ids.append(0)
        record.text += character
        yield character
    if fault := script.get("fail"):
        raise FAULTS[fault]


if __name__ == "__main__":
    Engine.stream_chat = stream_chat
    main(sys.argv[2:])
