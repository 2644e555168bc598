"""Definitions of tools as a file or a request brings them, and what a model answers that may call them."""

import json

from glm_int4.cli.options import read_tools
from glm_int4.cli.terminal.conversation import _asked, _said
from glm_int4.server.answers import ChatAnswer
from glm_int4.server.openai_messages import read_calls, read_messages, write_calls
from glm_int4.server.schemas import ChatMessage
from glm_int4.text import chat_format
from glm_int4.text.chat.prompts_v3 import ASSISTANT, process_response
from glm_int4.text.chat.replies import INTERPRETER
from glm_int4.text.chat.tools import check_tools, parameter_names
from glm_int4.text.tokenizer_v2 import ChatGLM2Tokenizer
from tests.fuzz.mutations import Kind
from tests.fuzz.small_models import bpe_tokenizer, write_folder

V3 = chat_format("3")
QUESTION = {"role": "user", "content": "你好"}
TRACK = {
    "name": "track",
    "description": "追踪指定股票的实时价格",
    "parameters": {
        "type": "object",
        "properties": {"symbol": {"type": "string", "description": "代码"}, "n": {"enum": [1, 2]}},
        "required": ["symbol"],
    },
}
FILES = ([TRACK, {"name": "now"}], [{"type": "function", "function": TRACK}])
ANSWERS = (
    "\n 你好[[训练时间]]",
    "track\n ```python\ntool_call(symbol='10111', n=[1, None, {'a': -2.5}])\n```",
    f"\n see{ASSISTANT}track\n ```\ntool_call('a')\n```{ASSISTANT}interpreter\n ```python\nprint(1)\n```",
    "Here:\n```python\n1\n```",
)
WORDS = (
    *("name", "description", "parameters", "properties", "required", "type", "object", "function", "interpreter"),
    *(
        "symbol",
        "track",
        "tool_call(",
        "tool_call(**{})",
        "```",
        "```python\n",
        "\n",
        ASSISTANT,
        "[[训练时间]]",
        "(" * 50,
    ),
    *("symbol=", "lambda: 0", "1e999", "-" * 90, "f'{1}'", "b''", "'\\ud800'", "'\\N{DASH}'", "1" * 5000, "...", "{1}"),
)


class Target:
    """Reading definitions, writing prompts with them; reading answers at once and as a stream, and answering back."""

    def __init__(self, work):
        self._path = work / "tools.json"
        write_folder(work, {"tokenizer.model": bpe_tokenizer(work)})
        self._tokenizer = ChatGLM2Tokenizer(work / "tokenizer.model", "3")
        answers = [{"tools": FILES[i % 2], "text": text} for i, text in enumerate(ANSWERS)]
        self.kinds = {
            "file": Kind(format="json", seeds=tuple(json.dumps(tools).encode() for tools in FILES), words=WORDS),
            "answer": Kind(format="json", seeds=tuple(json.dumps(answer).encode() for answer in answers), words=WORDS),
        }

    def use(self, kind, data):
        if kind == "file":
            self._path.write_bytes(data)
            use_tools(self._tokenizer, read_tools(self._path))
            return
        try:
            given = json.loads(data)
            text, tools = given["text"].encode("utf-8", "replace").decode(), given["tools"]
        except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
            return  # no pair of definitions and an answer
        use_tools(self._tokenizer, tools)
        use_answer(self._tokenizer, text, tools)


def use_tools(tokenizer, tools):
    """Write a prompt with definitions, and read a call of each."""
    ids = V3.encode(tokenizer, [QUESTION], tools)
    known = check_tools(tools)
    if known:
        assert V3.encode(tokenizer, [{"role": "system", "content": "", "tools": tools}, QUESTION])
        assert json.dumps(known, indent=4, ensure_ascii=False) in tokenizer.decode(ids).replace("\u2581", " ") or any(
            "\u2581" in json.dumps(tool, ensure_ascii=False) for tool in known
        )
    for tool in known[:20]:
        names = parameter_names(known, tool["name"])
        reply = V3.parse_reply(f"{tool['name']}\n ```python\ntool_call()\n```", tools)
        assert reply.metadata.strip() == tool["name"]
        assert reply.tool_call is not None or tool["parameters"].get("required")
        assert names is not None


def use_answer(tokenizer, text, tools):
    """Read an answer; what comes of it can be sent back, by the chat and through the server."""
    reply = V3.parse_reply(text, tools)
    assert streamed(V3.response_stream(), text) == process_response(text)
    shown = process_response(text)
    said = [QUESTION, *_said(reply, shown)]
    V3.encode(tokenizer, [*said, _asked(said, "?")], tools)
    for part in (*reply.earlier, reply):
        assert part.tool_call is None or part.fault is None
        if part.tool_call is not None:
            check_call(part.tool_call, tools)
        assert part.metadata.strip() or not (part.tool_call or part.code)
        assert part.code is None or part.metadata.strip() == INTERPRETER
    answer = ChatAnswer(V3, tokenizer, (), check_tools(tools))
    pieces = [answer.push(token) for token in tokenizer.encode(text)]
    rest, calls = answer.finish()
    if not tools:
        assert "".join([*pieces, rest]) == process_response(tokenizer.decode(tokenizer.encode(text)))
    if calls:
        sent_back(tokenizer, calls, tools)
    assert len(read_calls(reply)[0]) <= 1 + len(reply.earlier)


def streamed(stream, text):
    return "".join([*(stream.push(text[i : i + 5]) for i in range(0, len(text), 5)), stream.finish()])


def check_call(call, tools):
    """A call reads back as it was written, and is JSON."""
    json.dumps(call.arguments, allow_nan=False).encode()
    message = call.as_message()
    again = V3.parse_reply(f"{message['metadata']}\n{message['content']}", tools)
    assert again.tool_call == call, (again, call)


def sent_back(tokenizer, calls, tools):
    """Calls as the server's client gives them back, each with a result."""
    written = json.loads(json.dumps(write_calls(calls)))
    messages = [QUESTION, {"role": "assistant", "content": None, "tool_calls": written}]
    messages += [{"role": "tool", "tool_call_id": call["id"], "content": "5"} for call in written]
    V3.encode(tokenizer, read_messages([ChatMessage.model_validate(message) for message in messages], V3), tools)
