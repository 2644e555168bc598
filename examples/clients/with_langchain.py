"""LangChain with `glm-int4 serve`: its chat model, alone, in a chain and streamed, and its completion model.

pip install langchain-openai
python examples/clients/with_langchain.py http://127.0.0.1:8000/v1

Without an address, OPENAI_BASE_URL names it; OPENAI_API_KEY is the server's key, if it has one.
"""

import argparse
import os

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import SecretStr

MODEL = "chatglm"  # a server of one model takes any name
NUMBERS = {"a": 3, "b": 5}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base_url", nargs="?", default=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"))
    base_url = parser.parse_args().base_url
    key = SecretStr(os.environ.get("OPENAI_API_KEY", "none"))
    question = ChatPromptTemplate.from_messages([("user", "{a}加{b}等于几?")])
    chat = ChatOpenAI(base_url=base_url, api_key=key, model=MODEL, temperature=0)

    print("chat:", chat.invoke(question.invoke(NUMBERS)).content)
    chain = question | chat | StrOutputParser()
    print("chain:", chain.invoke(NUMBERS))
    print("stream:", "".join(chain.stream(NUMBERS)))

    completion = OpenAI(base_url=base_url, api_key=key, model=MODEL, temperature=0, max_tokens=64)
    print("completion:", completion.invoke("3加5等于几?").strip())


if __name__ == "__main__":
    main()
