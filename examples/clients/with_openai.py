"""OpenAI's Python client with `glm-int4 serve`: a chat, a stream, a completion, ids.

pip install openai
python examples/clients/with_openai.py http://127.0.0.1:8000/v1

Without an address, OPENAI_BASE_URL names it; OPENAI_API_KEY is the server's key, if it has one.
"""

import argparse
import os

from openai import OpenAI

QUESTION = "3加5等于几?"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base_url", nargs="?", default=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"))
    base_url = parser.parse_args().base_url
    client = OpenAI(base_url=base_url, api_key=os.environ.get("OPENAI_API_KEY", "none"))
    model = client.models.list().data[0].id

    reply = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": QUESTION}], temperature=0, max_tokens=64
    )
    print("chat:", reply.choices[0].message.content)

    stream = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": QUESTION}], temperature=0, max_tokens=64, stream=True
    )
    print("stream:", "".join(chunk.choices[0].delta.content or "" for chunk in stream))

    completion = client.completions.create(model=model, prompt=QUESTION, temperature=0, max_tokens=64)
    print("completion:", completion.choices[0].text.strip())


if __name__ == "__main__":
    main()
