"""The examples at the end of each command's help."""

_EXAMPLES = {
    "glm-int4": ("glm-int4 quantize --bits 4", "glm-int4 chat chatglm-6b-int4"),
    "quantize": (
        "glm-int4 quantize --model zai-org/chatglm-6b --bits 4",
        "glm-int4 quantize --model ./chatglm2-6b --output ./chatglm2-6b-int8 --bits 8",
        "glm-int4 quantize --model ./chatglm3-6b --format official --output ./chatglm3-6b-official-int4",
    ),
    "chat": (
        "glm-int4 chat chatglm-6b-int4",
        "glm-int4 chat chatglm-6b-int4 --prompt 你好 --greedy",
        "glm-int4 chat chatglm-6b-int4 --prefix ptuned",
        "glm-int4 chat chatglm-6b-int4 < questions.txt > answers.txt",
        "glm-int4 chat chatglm3-6b-int4 --tools tools.json",
    ),
    "generate": (
        "glm-int4 generate chatglm-6b-int4 --prompt 你好 --max-new-tokens 32",
        "glm-int4 generate chatglm-6b-int4 --prompt-file prompt.txt --json",
    ),
    "serve": (
        "glm-int4 serve chatglm-6b-int4",
        "glm-int4 serve chatglm3-6b-int4 --host 0.0.0.0 --api-key KEY --parallel 4",
    ),
    "perplexity": ("glm-int4 perplexity chatglm-6b-int4 --text examples/heldout.txt --window 1024",),
    "finetune": (
        "glm-int4 finetune --model chatglm3-6b-int4 --train-file train.jsonl --output my-lora",
        "glm-int4 finetune --model chatglm3-6b-int4 --train-file train.jsonl --output my-lora --r 16 "
        "--target-modules all-linear",
        "glm-int4 finetune --method ptuning --model chatglm-6b-int4 --train-file train.json --output ptuned",
    ),
    "ptune": (
        "glm-int4 ptune --model chatglm-6b-int4 --train-file train.json --output ptuned",
        "glm-int4 ptune --model chatglm-6b-int4 --train-file train.json --output ptuned --resume --eval-file dev.json",
    ),
    "bench": (
        "glm-int4 bench chatglm-6b --bits 4 --device cpu --threads 2 --json",
        "glm-int4 bench chatglm-6b-int4 --batch 1 --context 128",
    ),
    "doctor": ("glm-int4 doctor", "glm-int4 doctor --json"),
    "info": ("glm-int4 info chatglm-6b-int4", "glm-int4 info zai-org/chatglm-6b --json"),
}


def epilog(command: str) -> str | None:
    """The examples of a command as Typer takes them; the \\b keeps their lines apart."""
    lines = _EXAMPLES.get(command)
    if not lines:
        return None
    return "\n".join(["\b", "Examples:" if len(lines) > 1 else "Example:", *(f"  {line}" for line in lines)])
