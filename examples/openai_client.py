"""Talk to `glm-int4 serve` through OpenAI's Python client (pip install openai).

glm-int4 serve chatglm-6b-int4                       # in one terminal
python examples/openai_client.py "你好"               # in another

OPENAI_BASE_URL and OPENAI_API_KEY name another server and its key.
"""

import argparse
import os
import sys

from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", nargs="*", default=["你好"])
    question = " ".join(parser.parse_args().question)

    client = OpenAI(
        base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
        api_key=os.environ.get("OPENAI_API_KEY", "none"),
    )
    model = client.models.list().data[0].id
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": question}]

    print(f"{model}, as it comes:")
    for chunk in client.chat.completions.create(model=model, messages=messages, temperature=0, stream=True):
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()

    print("and at once:")
    reply = client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=256)
    print(reply.choices[0].message.content)
    if reply.usage:
        print(f"{reply.usage.prompt_tokens} tokens in, {reply.usage.completion_tokens} out", file=sys.stderr)


if __name__ == "__main__":
    main()
