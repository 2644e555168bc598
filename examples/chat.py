"""A chat of a few lines: every answer is printed as it comes, and the next question knows the ones before.

python examples/chat.py chatglm-6b-int4            # any folder that glm-int4 quantize has written, or a model's own

An empty line, Ctrl-D or the end of a pipe leaves.
"""

import argparse

import glm_int4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a checkpoint")
    arguments = parser.parse_args()

    glm = glm_int4.load(arguments.model)
    messages: list[dict[str, str]] = []
    while question := read("> "):
        messages.append({"role": "user", "content": question})
        answer = ""
        for piece in glm.stream_chat(messages, max_new_tokens=512):
            print(piece, end="", flush=True)
            answer += piece
        print()
        messages.append({"role": "assistant", "content": answer})


def read(prompt: str) -> str:
    try:
        return input(prompt)
    except EOFError:
        return ""


if __name__ == "__main__":
    main()
