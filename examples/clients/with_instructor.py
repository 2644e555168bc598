"""instructor with `glm-int4 serve`: an answer as an object, which the server holds to the class's JSON schema.

pip install -r examples/clients/requirements.txt    # it takes openai 2, in a virtual environment of its own
python examples/clients/with_instructor.py http://127.0.0.1:8000/v1

Without an address, OPENAI_BASE_URL names it; OPENAI_API_KEY is the server's key, if it has one.
"""

import argparse
import os
from typing import Literal

import instructor
from openai import OpenAI
from pydantic import BaseModel


class Comparison(BaseModel):
    larger: Literal["3", "5"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base_url", nargs="?", default=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"))
    base_url = parser.parse_args().base_url
    openai = OpenAI(base_url=base_url, api_key=os.environ.get("OPENAI_API_KEY", "none"))
    client = instructor.from_openai(openai, mode=instructor.Mode.JSON_SCHEMA)
    comparison = client.chat.completions.create(
        model="chatglm",  # a server of one model takes any name
        messages=[{"role": "user", "content": "3和5哪个大?"}],
        response_model=Comparison,
        temperature=0,
        max_tokens=64,
    )
    print("object:", comparison.larger)


if __name__ == "__main__":
    main()
