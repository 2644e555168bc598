"""Packaging of glm-int4."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "glm_int4" / "version.py").read_text(encoding="utf-8"))[1]

SERVE = ["fastapi", "uvicorn", "prometheus-client"]
# What evaluating and plotting a P-Tuning run need.
PTUNE = ["jieba", "rouge-chinese", "nltk", "matplotlib"]

setup(
    name="glm-int4",
    version=VERSION,
    description="ChatGLM-6B with INT8 or INT4 weights on a 6-8 GB GPU, or on a CPU alone",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    package_data={"": ["py.typed", "*.html", "*.css", "*.js", "*.svg"]},
    packages=find_packages(include=["glm_int4", "glm_int4.*", "triton_kernels", "triton_kernels.*"]),
    install_requires=[
        "torch>=2.11",
        "numpy",
        "numba",
        "safetensors",
        "sentencepiece",
        "huggingface_hub",
        "transformers>=5",  # for glm_int4.hf alone
        "typer",
        "rich",
        "prompt_toolkit",
        "markdown-it-py",
    ],
    extras_require={
        "serve": SERVE,
        "ptune": PTUNE,
        "peers": ["llama-cpp-python", "gguf"],
        "dev": [
            "pytest",
            "pytest-benchmark",
            "pytest-xdist",
            "hypothesis",
            "ruff",
            "mypy",
            "compressed-tensors",
            *SERVE,
            "httpx",
            "openai",
            "langchain-openai",
            "schemathesis",
            "selenium",
            "setuptools>=77",
            *PTUNE,
            "triton; sys_platform == 'linux'",  # CPU builds of torch bring none
        ],
    },
    entry_points={"console_scripts": ["glm-int4 = glm_int4.cli.main:main"]},
)
