"""Several questions in one batch: the weights are read once for a token of every answer, not once for each.

python examples/batch.py chatglm-6b-int4 "你好" "What is 3 plus 5?" "法国的首都是哪里?"
"""

import argparse

import glm_int4
from glm_int4.text.chat.chat_format import chat_format


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a checkpoint")
    parser.add_argument("questions", nargs="+")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    arguments = parser.parse_args()

    glm = glm_int4.load(arguments.model)
    chat = chat_format(glm.config.version)
    prompts = [chat.encode(glm.tokenizer, [{"role": "user", "content": text}]) for text in arguments.questions]
    answers = glm.generate(prompts, arguments.max_new_tokens, glm_int4.SamplingParams(temperature=0))
    for question, ids in zip(arguments.questions, answers, strict=True):
        text = glm.tokenizer.decode(ids)  # type: ignore[arg-type]  # rows in, rows out
        print(f"{question}\n    {chat.parse_reply(text).content.strip()}")


if __name__ == "__main__":
    main()
