"""One round with a tool: ChatGLM3-6B asks for a call, this program makes it, the model answers with what came back.

python examples/tools.py chatglm3-6b-int4 "What is the price of stock 10111?"
"""

import argparse
import json

import glm_int4

TOOL = {
    "name": "track",
    "description": "Looks up the price of a stock.",
    "parameters": {"type": "object", "properties": {"symbol": {"description": "number of the stock"}}},
}
PRICES = {"10111": 12412}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a ChatGLM3 checkpoint")
    parser.add_argument("question")
    arguments = parser.parse_args()

    glm = glm_int4.load(arguments.model)
    messages = [{"role": "user", "content": arguments.question}]
    reply = glm.reply(messages, max_new_tokens=128, tools=[TOOL])
    if reply.tool_call:
        print(f"it calls {reply.tool_call.name} with {reply.tool_call.arguments}")
        price = PRICES.get(str(reply.tool_call.arguments.get("symbol")))
        messages += [*reply.as_messages(), {"role": "observation", "content": json.dumps({"price": price})}]
        reply = glm.reply(messages, max_new_tokens=128, tools=[TOOL])
    print(reply.content)


if __name__ == "__main__":
    main()
