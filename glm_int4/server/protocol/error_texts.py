"""What errors say where a program or a person looks for certain words."""

import difflib
import re
from collections.abc import Sequence

from glm_int4.downloads import shown_name
from glm_int4.errors import PromptTooLongError
from glm_int4.server.api_errors import ApiError

_MOST_NAMED = 8
_OTHERS = {  # what paths of other services have in them, and what to do instead
    "embeddings": "embeddings, which ChatGLM does not make; use a server with a model for them",
    "rerank": "a ranking, which ChatGLM does not make; use a server with a model for it",
    "images": "images, which ChatGLM does not make; it reads and writes text",
    "audio": "sound, which ChatGLM does not take; it reads and writes text",
    "responses": "OpenAI's Responses; choose Chat Completions in the client",
    "messages": "Anthropic's protocol; choose OpenAI's in the client, with /v1 at the end of the base URL",
    "api": "Ollama's protocol; choose OpenAI's in the client, with /v1 at the end of the base URL",
}


def too_long(error: PromptTooLongError) -> str:
    """As OpenAI says it: clients look for "maximum context length" to shorten a prompt."""
    limit = f"This model's maximum context length is {error.limit} tokens"
    return f"expected a shorter prompt, got {error.got}: {limit}, of which the answer takes 1 or more; shorten it"


def unknown_model(served: Sequence[str]) -> ApiError:
    """The answer to a name that none of the models has."""
    expected = f"the model {served[0]}" if len(served) == 1 else f"one of the models {', '.join(served[:_MOST_NAMED])}"
    return ApiError(404, f"expected {expected}, got another", code="model_not_found", param="model")


def unknown_path(path: str, known: Sequence[str]) -> str:
    """What was probably meant by a path that does not exist."""
    parts = path.lower().strip("/").split("/")
    for part, text in _OTHERS.items():
        if part in parts:
            return f"expected a path of /openapi.json, got one for {text}"
    wanted = "/" + "/".join(part for part in parts if not re.fullmatch(r"v\d+", part))
    without_version = {name.removeprefix("/v1"): name for name in known}
    close = difflib.get_close_matches(wanted, without_version, n=1, cutoff=0.7)
    advice = f"did you mean {without_version[close[0]]}?" if close else "see /openapi.json"
    return f"expected a path of /openapi.json, got {shown_name(path)}; {advice}"
