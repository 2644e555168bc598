"""What clients send, and what comes of it: every case is tried by test_cases.py and is a row of docs/serving.md."""

import json
from dataclasses import dataclass, field
from typing import Any

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
_LONGEST_CELL = 280
_LINE_BREAK = "⏎"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One request and its answer.

    Attributes:
        group: heading of its table. note: what the table says of it, where the request does not say it all.
        send: fields of the body, beside a question where the path is CHAT and there are no messages; or a body as it
            is.
        version: of the model. strict: whether the server was started with --strict.
        says: a part of the answer's text. becomes: the prompt, special tokens as marks, line breaks as "⏎", the end of
            ChatGLM2's prompt, where the beginning of an answer follows it, as "‖".
        ignored: what the header X-Ignored-Fields says. answers: headers that the answer has.
    """

    group: str
    send: dict[str, Any] | bytes | None = None
    note: str = ""
    method: str = "POST"
    path: str = CHAT
    headers: dict[str, str] = field(default_factory=dict)
    version: str = "1"
    strict: bool = False
    status: int = 200
    says: str = ""
    becomes: str = ""
    ignored: str = ""
    answers: dict[str, str] = field(default_factory=dict)

    @property
    def body(self) -> bytes | None:
        """What goes over the wire."""
        if not isinstance(self.send, dict):
            return self.send
        fields: dict[str, Any] = {"temperature": 0, "max_tokens": 1} if self.path in (CHAT, COMPLETIONS) else {}
        if self.path == CHAT:
            fields["messages"] = [{"role": "user", "content": "你好"}]
        return json.dumps(fields | self.send).encode()

    def row(self) -> str:
        """The line of the table."""
        sent = [] if self.path == CHAT else [f"`{self.method} {self.path}`"]
        sent += [f"`{name}: {value}`" for name, value in self.headers.items()]
        sent += [self.note] if self.note else []
        if isinstance(self.send, dict) and self.send:
            text = json.dumps(self.send, ensure_ascii=False)
            sent += [_code(text) if len(text) <= _LONGEST_CELL else ""]
        got = [] if self.status == 200 else [str(self.status)]
        got += [_code(self.becomes)] if self.becomes else []
        got += [f"“{self.says}”"] if self.says else []
        got += [f"`X-Ignored-Fields: {self.ignored}`"] if self.ignored else []
        got += [f"`{name}: {value}`" for name, value in self.answers.items()]
        who = f"ChatGLM{'' if self.version == '1' else self.version}" + (", `--strict`" if self.strict else "")
        cells = [who, " ".join(filter(None, sent)), ", ".join(got)]
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", _LINE_BREAK) for cell in cells) + " |"


def _code(text: str) -> str:
    return f"```` {text} ````" if "`" in text else f"`{text}`"


def table(group: str) -> str:
    """The cases of a group as a table."""
    return "\n".join(["| model | sent | answer |", "|---|---|---|", *(c.row() for c in CASES if c.group == group)])


def _say(*turns: str, **more: Any) -> dict[str, Any]:
    """Messages written as "role: content"."""
    pairs = [turn.partition(": ")[::2] for turn in turns]
    return {"messages": [{"role": role, "content": content} for role, content in pairs], **more}


_TURN = {"role": "user", "content": "a"}
_CALL = {"id": "a", "type": "function", "function": {"name": "track", "arguments": {"symbol": "1"}}}
_CALLED = {"role": "assistant", "content": None, "tool_calls": [_CALL]}
_TOOL = {"type": "function", "function": {"name": "track", "description": None, "parameters": {}}}
_MARKED = {  # turns and what each version reads
    ("user: a", "user: b"): (
        "a⏎b[gMASK]<sop>",
        "[Round 1]⏎⏎问：a⏎b⏎⏎答：",
        "<|user|>⏎a⏎b<|assistant|>",
    ),
    ("user: a", "assistant: ", "user: b"): (
        "a⏎b[gMASK]<sop>",
        "[Round 1]⏎⏎问：a⏎b⏎⏎答：",
        "<|user|>⏎a⏎b<|assistant|>",
    ),
    ("user: a", "assistant: b", "system: c", "user: d"): (
        "c⏎[Round 0]⏎问：a⏎答：b⏎[Round 1]⏎问：d⏎答：[gMASK]<sop>",
        "c⏎[Round 1]⏎⏎问：a⏎⏎答：b⏎⏎[Round 2]⏎⏎问：d⏎⏎答：",
        "<|user|>⏎a<|assistant|>⏎b<|system|>⏎c<|user|>⏎d<|assistant|>",
    ),
    ("user: a", "system: b"): (
        "b⏎a[gMASK]<sop>",
        "b⏎[Round 1]⏎⏎问：a⏎⏎答：",
        "<|user|>⏎a<|system|>⏎b<|assistant|>",
    ),
    ("system: a",): (
        "a[gMASK]<sop>",
        "[Round 1]⏎⏎问：a⏎⏎答：",
        "<|system|>⏎a<|assistant|>",
    ),
    ("developer: a", "system: b", "user: c"): (
        "a⏎b⏎c[gMASK]<sop>",
        "a⏎b⏎[Round 1]⏎⏎问：c⏎⏎答：",
        "<|system|>⏎a⏎b<|user|>⏎c<|assistant|>",
    ),
    ("assistant: a", "user: b"): (
        "[Round 0]⏎问：⏎答：a⏎[Round 1]⏎问：b⏎答：[gMASK]<sop>",
        "[Round 1]⏎⏎问：⏎⏎答：a⏎⏎[Round 2]⏎⏎问：b⏎⏎答：",
        "<|assistant|>⏎a<|user|>⏎b<|assistant|>",
    ),
    ("user: a", "assistant: b"): (
        "a[gMASK]<sop>b",
        "[Round 1]⏎⏎问：a⏎⏎答：‖b",
        "<|user|>⏎a<|assistant|>⏎b",
    ),
    ("user: a", "tool: b"): (
        "a⏎b[gMASK]<sop>",
        "[Round 1]⏎⏎问：a⏎b⏎⏎答：",
        "<|user|>⏎a<|observation|>⏎b<|assistant|>",
    ),
}

_ORDERS = [
    Case(group="roles", send=_say(*turns), version=version, becomes=prompts[int(version) - 1])
    for turns, prompts in _MARKED.items()
    for version in "123"
]

_ROLES = [
    *_ORDERS,
    Case(
        group="roles",
        send={"messages": [{"role": "user", "content": None}, {"role": "user", "content": "a"}]},
        version="3",
        becomes="<|user|>⏎a<|assistant|>",
    ),
    Case(
        group="roles",
        send={"messages": [{"role": "user", "content": ["a", {"type": "text", "text": "b"}]}]},
        becomes="ab[gMASK]<sop>",
    ),
    Case(
        group="roles",
        note="a call that nobody has answered:",
        send={"messages": [{"role": "user", "content": "a"}, _CALLED, {"role": "user", "content": "b"}]},
        version="3",
        becomes="<|user|>⏎a<|assistant|>track⏎ ```python⏎tool_call(symbol='1')⏎```<|user|>⏎b<|assistant|>",
    ),
    Case(
        group="roles",
        note="a call and its result:",
        send={"messages": [{"role": "user", "content": "a"}, _CALLED, {"role": "tool", "content": "b"}]},
        version="1",
        becomes='[Round 0]⏎问：a⏎答：track({"symbol": "1"})⏎[Round 1]⏎问：b⏎答：[gMASK]<sop>',
    ),
    Case(group="roles", send=_say("user: a", "user:  "), status=400, says="expected a question, got an empty prompt"),
    Case(
        group="roles", send={"messages": [{"role": "assistant", "content": ""}]}, status=400, says="got an empty prompt"
    ),
    Case(group="roles", send=_say("robot: a"), status=400, says="another value at messages.0.role"),
]

_FIELDS = [
    *(
        Case(group="fields", send=send)
        for send in (
            {"stop": None, "tools": None, "seed": None, "stream_options": None, "n": None, "response_format": None},
            {"max_tokens": -1, "ignore_eos": False},
            {"max_tokens": 2048.0},
            {"top_k": -1},
            {"top_k": 5.0, "seed": 3.0},
            {"stop": ""},
            {"stop": ["", None, "a"]},
            {"model": "gpt-4o-mini"},
            {"model": ""},
            {"user": "a", "metadata": {}, "store": False, "service_tier": "auto"},
            {"stream_options": {"include_usage": True}},
            {"n": 2, "seed": 1},
        )
    ),
    *(
        Case(group="fields", send=send, ignored=ignored)
        for send, ignored in (
            ({"reasoning_effort": "low"}, "reasoning_effort"),
            (
                {"chat_template_kwargs": {"enable_thinking": False}, "keep_alive": "5m"},
                "chat_template_kwargs, keep_alive",
            ),
            ({"repeat_penalty": 1.1, "typical_p": 1, "mirostat": 0}, "repeat_penalty, typical_p, mirostat"),
            ({"a|b\r\n": 1}, "a?b??"),
            ({"a": 1, "": 1}, "a, ?"),
            ({"stream_options": {"include_usage": True, "another": 1}}, "stream_options.another"),
            (
                {"messages": [{"role": "user", "content": "a", "timestamp": 1, "id": "b"}, _TURN | {"id": "c"}]},
                "messages.timestamp, messages.id",
            ),
            (
                {"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {}}]}]},
                "messages.content.cache_control",
            ),
            ({"messages": [_TURN | {"name": "b", "refusal": None}]}, ""),
            ({"messages": [_TURN, {"role": "assistant", "content": "b", "annotations": [], "audio": None}]}, ""),
            ({"messages": [_TURN | {"a": None, "b c": 1}], "d": 1}, "d, messages.b?c"),
        )
    ),
    Case(
        group="fields",
        strict=True,
        send={"keep_alive": 5},
        status=400,
        says="expected fields that have an effect, got keep_alive",
    ),
    *(
        Case(group="fields", strict=True, send={"messages": [message]}, status=400, says=f"got {name}; leave it out")
        for message, name in (
            (_TURN | {"id": "b"}, "messages.id"),
            ({"role": "user", "content": [{"type": "text", "text": "a", "b": 1}]}, "messages.content.b"),
        )
    ),
    Case(
        group="fields",
        strict=True,
        send={"model": "gpt-4o-mini"},
        status=404,
        says="expected the model mini, got another",
    ),
    *(
        Case(group="fields", send=send, status=400, says=f"another value at {name}")
        for name, send in (
            ("max_tokens", {"max_tokens": 0}),
            ("max_tokens", {"max_tokens": 1.5}),
            ("max_tokens", {"max_tokens": "5"}),
            ("max_tokens", {"max_tokens": True}),
            ("top_k", {"top_k": -2}),
            ("temperature", {"temperature": 3}),
            ("stream", {"stream": "yes"}),
            ("n", {"n": 0}),
        )
    ),
]

_COMPLETIONS = [
    *(
        Case(group="completions", path=COMPLETIONS, send=send, says=says)
        for send, says in (
            ({"prompt": "3加5等于几?"}, '"index":0'),
            ({"prompt": ["3加5等于几?", "你好"]}, '"index":1'),
            ({"prompt": [5, 6, 7]}, '"prompt_tokens":3'),
            ({"prompt": [[5, 6, 7], [8]]}, '"prompt_tokens":4'),
            ({"prompt": ["你好", "我叫小明。"], "n": 2}, '"index":3'),
            ({"prompt": "你好", "echo": True}, '"text":"你好'),
            ({"prompt": "你好", "echo": True, "max_tokens": 0}, '"text":"你好"'),
            ({"prompt": "你好", "max_tokens": 0}, '"completion_tokens":0'),
            ({"prompt": ["你好"], "best_of": 1}, '"index":0'),
        )
    ),
    Case(group="completions", path=COMPLETIONS, send={"prompt": []}, status=400, says="another value at prompt"),
    Case(group="completions", path=COMPLETIONS, send={"prompt": ["a", 5]}, status=400, says="another value at prompt"),
    Case(
        group="completions",
        path=COMPLETIONS,
        send={"prompt": ["a"] * 129},
        note="129 prompts",
        status=400,
        says="expected at most 128 answers to a request, got 129",
    ),
]

_LENIENT: list[dict[str, Any]] = [
    {"parameters": {}},
    {"parameters": None, "description": None, "strict": None},
    {"parameters": {"properties": {"a": True, "b": {}}}},
    {"parameters": {"type": "object", "properties": {"a": False}, "required": ["b"]}},
    {"parameters": {"type": "object", "additionalProperties": False}},
]

_CHOSEN = {"name": "f", "parameters": {"properties": {"a": {"enum": ["x"]}}, "required": ["a"]}}
_CALLED_F, _LONG = r"""{"name":"f","arguments":"{\"a\": \"x\"}"}""", {"max_tokens": 64}


def _named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def _allowed(mode: str, *names: str) -> dict[str, Any]:
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [_named(name) for name in names]}}


def _calling(choice: Any, parameter: Any = True) -> dict[str, Any]:
    """A tool with one parameter, and what is chosen."""
    tool = _CHOSEN if parameter is True else {"name": "f", "parameters": {"properties": {"a": parameter}}}
    return {"tools": [tool], "tool_choice": choice}


_TOOL_CHOICES = [
    *(
        Case(group="tools", version="3", send=_calling(choice) | _LONG, says=_CALLED_F)
        for choice in ("required", "any", _named("f"), {"name": "f"}, _allowed("required", "f"))
    ),
    Case(
        group="tools",
        version="3",
        send={"functions": [_CHOSEN], "function_call": {"name": "f"}} | _LONG,
        says='"finish_reason":"function_call"',
    ),
    Case(group="tools", version="3", send=_calling("required"), says='"finish_reason":"length"'),
    Case(group="tools", version="3", send=_calling(_allowed("auto", "f"))),
    Case(group="tools", version="1", send=_calling(_named("f")), ignored="tools, tool_choice"),
    *(
        Case(group="tools", version="3", send=_calling(choice), status=400, says=says)
        for choice, says in (
            (_named("g"), "expected tool_choice to name a tool of f, got 'g'"),
            ({"type": "function"}, "got no name"),
            ({"type": "allowed_tools"}, "expected allowed_tools in tool_choice, got none"),
            ("f", "another value at tool_choice"),
        )
    ),
    Case(
        group="tools",
        version="3",
        send={"tool_choice": "required"},
        status=400,
        says="expected tools beside a choice of one, got none",
    ),
    *(
        Case(group="tools", version="3", send=_calling("required", schema), status=400, says=says)
        for schema, says in (
            ({"not": {}}, "expected parameters of tool 'f' that a call can be held to, got not: {}; leave it out"),
            ({"type": "string", "pattern": "(?=a)"}, "got pattern: '(?=a)' with a group of another kind than (?:...)"),
        )
    ),
]

_TOOLS = [
    *(
        Case(group="tools", version="3", send={"tools": [{"type": "function", "function": {"name": "f"} | given}]})
        for given in _LENIENT
    ),
    Case(group="tools", version="3", send={"tools": []}),
    Case(group="tools", version="3", send={"tools": [{"function": {"name": "f"}}], "tool_choice": "auto"}),
    Case(group="tools", version="3", send={"functions": [{"name": "f"}], "function_call": "auto"}),
    Case(group="tools", version="3", send={"functions": [{"name": "f"}], "function_call": "none"}),
    Case(group="tools", version="3", note="a call whose arguments are an object", send={"messages": [_CALLED]}),
    *(
        Case(group="tools", version="3", send={"tools": [tool]}, ignored=ignored)
        for tool, ignored in (
            ({"type": "function", "function": {"name": "f", "strict": True}}, ""),
            (
                {"function": {"name": "f", "returns": {}}, "cache_control": {}},
                "tools.cache_control, tools.function.returns",
            ),
            ({"name": "f", "input_schema": {}, "meta": None}, "tools.input_schema"),
        )
    ),
    Case(group="tools", version="3", send={"functions": [{"name": "f", "a": 1}]}, ignored="functions.a"),
    Case(
        group="tools",
        version="3",
        send={"messages": [_CALLED | {"tool_calls": [_CALL | {"index": 0, "a": 1}]}]},
        ignored="messages.tool_calls.a",
    ),
    Case(group="tools", version="1", send={"tools": [_TOOL]}, ignored="tools"),
    Case(group="tools", version="2", send={"functions": [{"name": "f"}]}, ignored="functions"),
    Case(group="tools", version="1", strict=True, send={"tools": [_TOOL]}, status=400, says="got tools; leave it out"),
    *(
        Case(group="tools", version="3", send={"tools": [tool]}, status=400, says=says)
        for tool, says in (
            ({"type": "web_search"}, "expected tool 0 of type 'function', got 'web_search'"),
            ({"type": "function", "function": {}}, "expected tool 0 to have a name of one line, got None"),
            ({"name": "f", "parameters": {"type": "array"}}, "expected the parameters of tool 'f' to have"),
        )
    ),
    Case(group="tools", version="3", send={"tools": "f"}, status=400, says="another value at tools"),
]

_PATHS = [
    *(
        Case(group="paths", method=method, path=path, says=says)
        for method, path, says in (
            ("GET", "/v1/models", '"id":"mini"'),
            ("GET", "/v1/models/", '"id":"mini"'),
            ("GET", "//v1/models", '"id":"mini"'),
            ("GET", "/v1/models/mini", '"max_model_len":512'),
            ("GET", "/health", '"status":"ok"'),
            ("GET", "/ping", '"status":"ok"'),
            ("GET", "/version", '"version":'),
            ("HEAD", "/health", ""),
            ("HEAD", "/", ""),
        )
    ),
    Case(group="paths", path="/v1/chat/completions/", send=_say("user: a")),
    *(
        Case(group="paths", path=path, send=send, says=says)
        for path, send, says in (
            ("/tokenize", {"prompt": "你好"}, '"max_model_len":512'),
            ("/tokenize", {"prompt": "你好", "add_special_tokens": False}, '"count":1'),
            ("/tokenize", {"content": "你好"}, '"count":1'),
            ("/detokenize", {"tokens": []}, '"prompt":""'),
        )
    ),
    *(
        Case(group="paths", method=method, path=path, status=404, says=says)
        for method, path, says in (
            ("GET", "/v1/models/gpt-4o", "expected the model mini, got another"),
            ("POST", "/v1/embeddings", "got one for embeddings, which ChatGLM does not make"),
            ("POST", "/v1/responses", "choose Chat Completions in the client"),
            ("POST", "/v1/messages", "got one for Anthropic's protocol"),
            ("GET", "/api/tags", "got one for Ollama's protocol"),
            ("POST", "/chat/completions", "did you mean /v1/chat/completions?"),
            ("POST", "/v1/v1/chat/completions", "did you mean /v1/chat/completions?"),
            ("GET", "/models", "did you mean /v1/models?"),
            ("GET", "/nothing", "expected a path of /openapi.json, got /nothing; see /openapi.json"),
        )
    ),
    Case(group="paths", method="GET", path=CHAT, status=405, says="expected POST for /v1/chat/completions, got GET"),
    Case(group="paths", path="/tokenize", send={}, status=400, says="expected a text as prompt, got none"),
    Case(group="paths", path="/detokenize", send={"tokens": [10**6]}, status=400, says="expected token ids below"),
]

_BODIES = [
    Case(
        group="bodies", send=b'\xef\xbb\xbf{"messages": [{"role": "user", "content": "a"}]}', note="a byte order mark"
    ),
    Case(
        group="bodies",
        send='{"messages": [{"role": "user", "content": "a"}]}'.encode("utf-16"),
        note="UTF-16 with its mark",
    ),
    *(
        Case(group="bodies", note=note, send=body, headers=headers, status=400, says=says)
        for note, body, headers, says in (
            ("no Content-Type", b"{}", {"Content-Type": ""}, "expected Content-Type: application/json, got none; send"),
            ("", b"{}", {"Content-Type": "text/plain"}, "expected Content-Type: application/json, got text/plain"),
            (
                "GBK",
                '{"prompt": "你好"}'.encode("gbk"),
                {},
                "expected JSON in UTF-8, got bytes that may be GBK at byte 12",
            ),
            ("half a character", b'{"prompt": "\xe4"}', {}, "expected JSON in UTF-8, got other bytes at byte 12"),
            ("", b"\x1f\x8b", {"Content-Encoding": "gzip"}, "expected a body as it is, got Content-Encoding: gzip"),
            ("an empty body", b"", {}, "expected a JSON body, got none"),
            ("`{'a': 1}`", b"{'a': 1}", {}, "expected JSON, got something else at character 1"),
            ("`[]`", b"[]", {}, "expected another value at the top"),
        )
    ),
    Case(group="bodies", send={"messages": None}, status=400, says="expected the field messages, got none"),
    Case(
        group="bodies",
        send={"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a"}}]}]},
        status=400,
        says="expected texts in a message, got a part of type 'image_url'; this model reads text alone",
    ),
    Case(
        group="bodies",
        send=_say("user: " + "好 " * 600),
        note="a prompt of 1200 tokens",
        status=400,
        says="This model's maximum context length is 512 tokens",
    ),
    Case(
        group="bodies",
        headers={"Host": "evil.example"},
        send={},
        status=403,
        says="expected a request for 127.0.0.1, got one for evil.example; the server's --allow-host",
    ),
]

_SCORES = [
    *(
        Case(group="scores", send=send, says=says)
        for send, says in (
            ({"logprobs": True}, '"top_logprobs":[]'),
            ({"logprobs": True, "top_logprobs": 1}, '"logprob":'),
            ({"logprobs": False, "top_logprobs": 0}, '"logprobs":null'),
            ({"logit_bias": {"5": -100, "7": 1.5}}, ""),
            ({"logit_bias": {}}, ""),
        )
    ),
    *(
        Case(group="scores", path=COMPLETIONS, send={"prompt": "你好"} | send, says=says)
        for send, says in (
            ({"logprobs": 1}, '"text_offset":[0]'),
            ({"logprobs": 1, "echo": True, "max_tokens": 0}, '"token_logprobs":[null,-'),
            ({"logprobs": 1, "echo": True, "prompt": ["a", "b"]}, '"index":1'),
            ({"n": 1, "best_of": 3}, '"completion_tokens":3'),
        )
    ),
    *(
        Case(group="scores", path=path, send=send, status=400, says=says)
        for path, send, says in (
            (CHAT, {"top_logprobs": 2}, "expected logprobs: true beside top_logprobs, got none"),
            (CHAT, {"logprobs": True, "top_logprobs": 21}, "another value at top_logprobs"),
            (CHAT, {"logit_bias": {"a": 1}}, "as keys of logit_bias, got another"),
            (CHAT, {"logit_bias": {"5": 101}}, "another value at logit_bias"),
            (COMPLETIONS, {"prompt": "a", "n": 2, "best_of": 1}, "expected best_of of at least n, got 1 for 2"),
            (COMPLETIONS, {"prompt": "a", "best_of": 2, "stream": True}, "expected best_of without stream, got both"),
            (
                COMPLETIONS,
                {"prompt": [5, 6, 7], "echo": True, "logprobs": 1},
                "(<sop>), where log-probabilities of a prompt are wanted, got none",
            ),
        )
    ),
]

_IS = {"type": "object", "properties": {"a": {"const": "是,b"}}, "required": ["a"]}
_AS_SCHEMA = {"response_format": {"type": "json_schema", "json_schema": {"name": "b", "strict": True, "schema": _IS}}}
_IS_TEXT = r"{\"a\": \"是,b\"}"
_STOPPED = '"finish_reason":"stop"'

_FORMS = [
    *(Case(group="forms", version=version, send=_AS_SCHEMA | {"max_tokens": 40}, says=_IS_TEXT) for version in "123"),
    *(
        Case(group="forms", send=send | {"max_tokens": 40}, says=says)
        for send, says in (
            (_AS_SCHEMA | {"stream": True}, _STOPPED),
            (_AS_SCHEMA | {"n": 2, "logprobs": True}, _IS_TEXT),
            (_say("user: a", "assistant: b", guided_choice=["是,否"]), '"content":"是,否"'),
            ({"response_format": {"type": "json_object", "schema": _IS}}, _IS_TEXT),
            ({"guided_json": _IS}, _IS_TEXT),
            ({"guided_json": json.dumps(_IS)}, _IS_TEXT),
            ({"guided_regex": "a{3}/"}, '"content":"aaa/"'),
            ({"guided_choice": ["是,否"]}, '"content":"是,否"'),
            ({"guided_grammar": 'start: "a" b\nb: "b" | "c" b'}, '"content":"a'),
            ({"structured_outputs": {"json": _IS}}, _IS_TEXT),
            ({"structured_outputs": {"regex": "a{3}"}}, '"content":"aaa"'),
            ({"structured_outputs": {"choice": ["a"], "json_object": False}}, '"content":"a"'),
            ({"structured_outputs": {"grammar": 'start: "a"'}}, '"content":"a"'),
        )
    ),
    Case(group="forms", send={"response_format": {"type": "text"}}),
    Case(group="forms", send={"response_format": {"type": "json_object"}}, says='"finish_reason":"length"'),
    Case(
        group="forms",
        send={"structured_outputs": {"json_object": True, "whitespace_pattern": "a"}},
        says='"finish_reason":"length"',
        ignored="structured_outputs.whitespace_pattern",
    ),
    Case(
        group="forms",
        path=COMPLETIONS,
        send={"prompt": "你好", "guided_choice": ["是,否"], "max_tokens": 40},
        says='"text":"是,否"',
    ),
    Case(
        group="forms",
        version="3",
        send={"tools": [_TOOL], "guided_choice": ["a"]},
        note="no tool is called",
        says='"content":"a"',
    ),
    *(
        Case(group="forms", send=send, status=400, says=says)
        for send, says in (
            (
                {"guided_json": {"type": "array", "items": {"uniqueItems": True}}},
                "expected keywords of docs/structured-output.md, got uniqueItems in items of the schema; leave it out",
            ),
            ({"guided_json": {"type": "string", "format": "html"}}, "expected a format in the schema of date-time, "),
            ({"guided_json": {"type": "string", "pattern": "(?=a)"}}, "look-ahead and look-behind, is not supported"),
            (
                {"guided_json": {"type": "integer", "minimum": 2, "maximum": 1}},
                "minimum (2) is greater than maximum (1)",
            ),
            ({"guided_json": "{"}, "expected a JSON schema, got something else"),
            ({"guided_json": {"maxLength": 10**6}}, "maxLength in the schema to be from 0 to 10000, got 1000000"),
            ({"guided_regex": "*"}, "expected a constraint that can be kept, got "),
            ({"guided_regex": ""}, "expected regex to be a text that is not empty, got ''"),
            ({"guided_choice": []}, "expected choices to be a list of texts, got []"),
            ({"guided_grammar": "a"}, "expected a constraint that can be kept, got "),
            (
                {"guided_regex": "a", "response_format": {"type": "json_object"}},
                "expected one form for an answer, got guided_regex and response_format",
            ),
            ({"response_format": {"type": "json_schema"}}, "expected response_format.json_schema.schema beside"),
            ({"response_format": {"type": "xml"}}, "another value at response_format.type"),
            ({"structured_outputs": {"structural_tag": {}}}, "got a structural_tag; write it as a grammar"),
        )
    ),
    Case(
        group="forms",
        note="a schema of 70,000 characters",
        send={"guided_json": {"const": "a" * 70_000}},
        status=400,
        says="expected a JSON schema of at most 65536 characters, got",
    ),
]

CASES = [*_ROLES, *_FIELDS, *_COMPLETIONS, *_TOOLS, *_TOOL_CHOICES, *_FORMS, *_PATHS, *_BODIES, *_SCORES]
GROUPS = tuple(dict.fromkeys(case.group for case in CASES))
