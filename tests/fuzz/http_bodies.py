"""Bodies of requests, handed to the server's application without a socket; small models answer."""

import asyncio
import json

import httpx
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from glm_int4.server.app import Server
from glm_int4.server.settings import Settings
from tests.fuzz.mutations import Kind
from tests.fuzz.small_models import small_engine
from tests.fuzz.tools import FILES, WORDS

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
MAX_LENGTH = {"1": 256, "3": 1024}
QUESTION = {"role": "user", "content": "3加5等于几?"}
GOOD = {"messages": [QUESTION], "temperature": 0, "max_tokens": 3}
CALLS = [{"id": "a", "type": "function", "function": {"name": "track", "arguments": '{"symbol": "1"}'}}]
PARTS = [{"role": "system", "content": "简短"}, {"role": "user", "content": [{"type": "text", "text": "a"}]}]
CHATS = (
    GOOD | {"seed": 5, "stop": ["8", "\n"], "top_p": 0.5, "top_k": 3, "min_p": 0.1, "user": "a", "n": 1},
    {
        "messages": PARTS, "presence_penalty": 1, "frequency_penalty": -1.5, "repetition_penalty": 1.1, "store": False,
        "response_format": {"type": "text"}, "max_completion_tokens": 5, "ignore_eos": True, "model": "small",
        "stream_options": {"include_usage": True}, "metadata": {"a": "b"}, "logprobs": False, "logit_bias": {},
    },
    GOOD | {"response_format": {"type": "json_schema", "json_schema": {"schema": {"enum": [1, "a"]}, "strict": True}}},
    GOOD | {"guided_json": {"type": "array", "items": {"type": "string", "pattern": "a+"}, "maxItems": 2}},
    GOOD | {"guided_regex": "a{1,3}|b", "structured_outputs": None},
    GOOD | {"structured_outputs": {"grammar": "start: \"a\"+"}, "guided_choice": None},
)  # fmt: skip
TOOL_CHATS = (
    GOOD | {"tools": FILES[1], "tool_choice": "auto", "parallel_tool_calls": True},
    {
        "messages": [
            QUESTION,
            {"role": "assistant", "content": None, "tool_calls": CALLS},
            {"role": "tool", "tool_call_id": "a", "content": "5"},
        ],
        "tools": FILES[0],
    },
    GOOD | {"tools": FILES[1], "tool_choice": {"type": "function", "function": {"name": "track"}}, "max_tokens": 20},
    GOOD | {"functions": FILES[0], "function_call": {"name": "now"}, "parallel_tool_calls": True},
)
COMPLETIONS = (
    {"prompt": "3加5", "max_tokens": 5, "temperature": 1.5, "stop": "8", "echo": False, "best_of": 1, "suffix": ""},
    {"prompt": [5, 8, 190, 222], "ignore_eos": True, "seed": -1},
)
KINDS = {"chat1": ("1", CHAT, CHATS), "chat3": ("3", CHAT, CHATS + TOOL_CHATS), "text1": ("1", TEXT, COMPLETIONS)}
FIELDS = ({*CHATS[0], *CHATS[1], *TOOL_CHATS[0], *COMPLETIONS[0]}, {"tool_calls", "tool_call_id", "arguments", "id"})


class Target:
    """Asking, at once and as a stream; a well-formed request behind every other one is answered as before."""

    def __init__(self, work):
        self._runner = asyncio.Runner()
        self._clients = {
            version: self._serve(small_engine(work / version, version, MAX_LENGTH[version])) for version in "13"
        }
        self._expected = {version: self._answer_of(version) for version in "13"}
        words = (*WORDS, *sorted(set().union(*FIELDS)), '{"a": 1}')
        self.kinds = {
            kind: Kind(format="json", seeds=tuple(json.dumps(body).encode() for body in bodies), words=words)
            for kind, (_, _, bodies) in KINDS.items()
        }

    def _serve(self, engine):
        """A client of a server for an engine."""
        server = Server(engine, 2, Settings(model_name="small", max_new_tokens=6))

        async def start():
            server.worker.start()
            return httpx.AsyncClient(transport=httpx.ASGITransport(server.app), base_url="http://127.0.0.1")

        return self._runner.run(start())

    def use(self, kind, data):
        version, path, _ = KINDS[kind]
        whole, streamed = (check(path, self._post(version, path, body)) for body in (data, streaming(data)))
        assert self._answer_of(version) == self._expected[version]
        if whole.status_code == streamed.status_code == 200 and is_repeatable(data):
            assert text_of(whole) == text_of(streamed)
        return next((r.json()["error"]["message"] for r in (whole, streamed) if r.status_code != 200), "")

    def _post(self, version, path, body):
        headers = {"Content-Type": "application/json"}
        return self._runner.run(self._clients[version].post(path, content=body, headers=headers))

    def _answer_of(self, version):
        response = self._post(version, CHAT, json.dumps(GOOD).encode())
        assert response.status_code == 200
        return response.json()["choices"]


def streaming(data):
    """The same request as a stream, where it is an object."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return data
    return json.dumps(value | {"stream": True}).encode() if isinstance(value, dict) else data


def is_repeatable(data):
    """Whether a request has the same answer twice."""
    value = json.loads(data)
    return value.get("temperature") == 0 or value.get("seed") is not None


def check(path, response):
    """The answer, which is one in OpenAI's form, or an error in OpenAI's form that is no fault of the server."""
    assert response.status_code < 500, response.text
    if response.status_code != 200:
        check_error(response.json())
    elif not is_stream(response):
        (ChatCompletion if path == CHAT else Completion).model_validate_json(response.content)
    else:
        check_events(path, response)
    return response


def is_stream(response):
    return response.headers["content-type"].startswith("text/event-stream")


def check_events(path, response):
    """Chunks, then the end."""
    *events, end, empty = response.content.decode().split("\n\n")
    assert (end, empty) == ("data: [DONE]", "")
    for event in events:
        assert event.startswith("data: ")
        value = json.loads(event.removeprefix("data: "))
        if path == CHAT:
            ChatCompletionChunk.model_validate(value)
        else:  # their type of a completion knows no piece of one
            assert value["object"] == "text_completion"
            assert value.keys() >= {"id", "created", "model", "choices"}


def text_of(response):
    """The text of an answer, the pieces of a streamed one joined."""
    events = response.content.decode().split("\n\n")[:-2]
    values = (
        [json.loads(event.removeprefix("data: ")) for event in events] if is_stream(response) else [response.json()]
    )
    choices = [choice for value in values for choice in value["choices"]]
    parts = [choice.get("text") or choice.get("message", choice.get("delta", {})).get("content") for choice in choices]
    return "".join(filter(None, parts))


def check_error(answer):
    error = answer["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"].startswith("expected ")
    assert "\n" not in error["message"]
    assert len(error["message"]) <= 3000
