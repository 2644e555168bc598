"""LlamaIndex with `glm-int4 serve`: a chat, a stream, a completion.

pip install -r examples/clients/requirements.txt    # it takes openai 2, in a virtual environment of its own
python examples/clients/with_llama_index.py http://127.0.0.1:8000/v1

Without an address, OPENAI_BASE_URL names it; OPENAI_API_KEY is the server's key, if it has one.
"""

import argparse
import os

from llama_index.core.base.llms.types import ChatMessage
from llama_index.llms.openai_like import OpenAILike

QUESTION = "3加5等于几?"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base_url", nargs="?", default=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"))
    base_url = parser.parse_args().base_url
    fields = {
        "model": "chatglm",  # a server of one model takes any name
        "api_base": base_url,
        "api_key": os.environ.get("OPENAI_API_KEY", "none"),
        "context_window": 2048,
        "max_tokens": 64,
        "temperature": 0,
    }
    chat = OpenAILike(is_chat_model=True, **fields)
    print("chat:", chat.chat([ChatMessage(role="user", content=QUESTION)]).message.content)
    print("stream:", "".join(piece.delta or "" for piece in chat.stream_chat([ChatMessage(content=QUESTION)])))

    completion = OpenAILike(is_chat_model=False, **fields)
    print("completion:", completion.complete(QUESTION).text.strip())


if __name__ == "__main__":
    main()
