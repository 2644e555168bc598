"""litellm with `glm-int4 serve`: a chat, a stream, a completion.

pip install litellm
python examples/clients/with_litellm.py http://127.0.0.1:8000/v1

Without an address, OPENAI_BASE_URL names it; OPENAI_API_KEY is the server's key, if it has one.
"""

import argparse
import os

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # prices of others, which litellm would download

import litellm

MODEL = "openai/chatglm"  # OpenAI's protocol; a server of one model takes any name
MESSAGES = [{"role": "user", "content": "3加5等于几?"}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base_url", nargs="?", default=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"))
    base_url = parser.parse_args().base_url
    fields = {"api_base": base_url, "api_key": os.environ.get("OPENAI_API_KEY", "none"), "temperature": 0}

    reply = litellm.completion(model=MODEL, messages=MESSAGES, **fields)
    print("chat:", reply.choices[0].message.content)

    stream = litellm.completion(model=MODEL, messages=MESSAGES, stream=True, **fields)
    print("stream:", "".join(chunk.choices[0].delta.content or "" for chunk in stream))

    completion = litellm.text_completion(
        model="text-completion-openai/chatglm", prompt="3加5等于几?", max_tokens=64, **fields
    )
    print("completion:", completion.choices[0].text.strip())


if __name__ == "__main__":
    main()
