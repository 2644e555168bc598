"""Train the mini model that the repository ships: ChatGLM-6B's architecture with 6 M parameters.

    python tools/train_mini.py --output examples/mini-chatglm

Seeded and resumable: the state is saved every few hundred steps, and the same command goes on from
there. The result is written in the official layout, with its own tokenizer.
"""

import argparse
import io
import json
import shutil
import time
from itertools import pairwise
from pathlib import Path
from random import Random

import mini_corpus
import sentencepiece
import torch
import torch.nn.functional as F
from rich.progress import Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from glm_int4.models.attention import attention_mask_func
from glm_int4.models.chatglm import ChatGLMForConditionalGeneration
from glm_int4.models.config import ChatGLMConfig
from glm_int4.models.config_file import parse_config
from glm_int4.models.past import AttentionMask
from glm_int4.text import ChatGLMTokenizer, load_tokenizer
from glm_int4.text.chat.prompts_v1 import build_prompt
from glm_int4.text.tokenizer_v1 import CONTROL_PIECES, SPACE_PIECES

VOCAB_SIZE = 1280  # also the rows of the embedding matrix
MAX_LENGTH = 512
SAMPLES_PER_STEP, DOCUMENTS_PER_STEP, DOCUMENT_TOKENS = 128, 3, 192
DOCUMENT_LOSS_WEIGHT = 0.5
PEAK_LEARNING_RATE, WARM_UP_STEPS, WEIGHT_DECAY = 1.5e-3, 200, 0.05
SAVE_EVERY, EVALUATE_EVERY, EVALUATED_QUESTIONS = 250, 500, 1000


Row = tuple[list[int], list[int]]  # a context and what follows it
Batch = tuple[list[Row], bool]  # rows of one forward pass, and whether they are documents


def train_tokenizer(folder: Path) -> ChatGLMTokenizer:
    """Train a unigram model with the official special pieces by name, digits one by one."""
    model = io.BytesIO()  # written to a path, the file would contain that path
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=mini_corpus.tokenizer_corpus(),
        model_writer=model,
        model_type="unigram",
        vocab_size=VOCAB_SIZE,
        hard_vocab_limit=False,
        character_coverage=1.0,
        required_chars=mini_corpus.COMMON_CHARACTERS,
        split_digits=True,
        byte_fallback=True,
        normalization_rule_name="nmt_nfkc",
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=3,
        user_defined_symbols=["<n>", *SPACE_PIECES],
        control_symbols=list(CONTROL_PIECES),
        minloglevel=2,
    )
    (folder / "ice_text.model").write_bytes(model.getvalue())
    config = {
        "name_or_path": "mini-chatglm",
        "bos_token": "<sop>",
        "eos_token": "<eop>",
        "end_token": "</s>",
        "gmask_token": "[gMASK]",
        "mask_token": "[MASK]",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "remove_space": False,
        "do_lower_case": False,
        "tokenizer_class": "ChatGLMTokenizer",
        "num_image_tokens": 0,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return load_tokenizer(folder)


def official_config(tokenizer: ChatGLMTokenizer) -> dict[str, object]:
    """The ``config.json`` of the mini model, in the official keys."""
    return {
        "_name_or_path": "mini-chatglm",
        "architectures": ["ChatGLMModel"],
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "gmask_token_id": tokenizer.gmask_id,
        "hidden_size": 256,
        "inner_hidden_size": 1024,
        "layernorm_epsilon": 1e-05,
        "mask_token_id": tokenizer.mask_id,
        "max_sequence_length": MAX_LENGTH,
        "model_type": "chatglm",
        "num_attention_heads": 8,
        "num_layers": 7,
        "pad_token_id": tokenizer.pad_id,
        "position_encoding_2d": True,
        "torch_dtype": "float16",
        "use_cache": True,
        "vocab_size": VOCAB_SIZE,
    }


def initialize(model: ChatGLMForConditionalGeneration) -> None:
    """Unit-variance projections; larger ones where a sublayer ends, to be heard beside alpha = 7.48."""
    for name, weight in model.named_parameters():
        if weight.dim() == 2:
            gain = 3.0 if name.endswith(("attention.dense.weight", "dense_4h_to_h.weight")) else 1.0
            torch.nn.init.normal_(weight, std=gain / weight.shape[1] ** 0.5)
        elif name.endswith("bias"):
            torch.nn.init.zeros_(weight)


def encode_sample(tokenizer: ChatGLMTokenizer, sample: mini_corpus.Sample) -> Row:
    """Return the context, up to and including <sop>, and the answer, up to and including <eop>."""
    messages = []
    for question, answer in sample.rounds:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    context = tokenizer.encode_prompt(build_prompt(messages[:-1]))
    return context, [*tokenizer.encode(sample.rounds[-1][1]), tokenizer.eos_id]


def answer_logits(model: ChatGLMForConditionalGeneration, rows: list[Row]) -> tuple[Tensor, Tensor, Tensor]:
    """Predict every answer token of a right-padded batch.

    Returns:
        logits (P, V), targets (P,) and the row of each, for the P answer tokens.
    """
    pad, length = model.config.pad_token_id, max(len(c) + len(a) for c, a in rows) - 1
    ids = torch.full((len(rows), length), pad)
    positions = torch.zeros(len(rows), 2, length, dtype=torch.long)
    masked = torch.ones(length, length, dtype=torch.bool).triu(1).repeat(len(rows), 1, 1)
    where = torch.zeros(len(rows), length, dtype=torch.bool)
    for i, (context, answer) in enumerate(rows):
        row = [*context, *answer[:-1]]
        ids[i, : len(row)] = torch.tensor(row)
        positions[i, :, : len(row)] = torch.tensor(model.get_position_ids(row))
        masked[i, :, : model.context_length(row)] = False
        where[i, len(context) - 1 : len(row)] = True
    mask = AttentionMask(bias=attention_mask_func(masked[:, None], torch.float32))
    hidden = model.last_hidden_state(ids, positions, mask)[where]
    targets = torch.tensor([token for _, answer in rows for token in answer])
    row_of = torch.tensor([i for i, (_, answer) in enumerate(rows) for _ in answer])
    return model.head(hidden), targets, row_of


def step_batches(tokenizer: ChatGLMTokenizer, seed: int, step: int) -> list[Batch]:
    """Batches of one step, of similar length inside each, and whether they are documents."""
    rng = Random(f"{seed}/{step}")
    samples = sorted(
        (encode_sample(tokenizer, mini_corpus.sample(rng)) for _ in range(SAMPLES_PER_STEP)),
        key=lambda row: len(row[0]) + len(row[1]),
    )
    cuts = [int(SAMPLES_PER_STEP * share) for share in (0, 0.4, 0.75, 0.92, 1)]
    batches = [(samples[start:stop], False) for start, stop in pairwise(cuts)]
    length = DOCUMENT_TOKENS
    num_documents = DOCUMENTS_PER_STEP
    if step % 8 == 0:
        length, num_documents = MAX_LENGTH - 2, 2
    documents = []
    for _ in range(num_documents):
        tokens = tokenizer.encode(mini_corpus.document(rng, length // 6))
        start = rng.randrange(12)
        documents.append(([tokenizer.gmask_id, tokenizer.bos_id], tokens[start : start + length]))
    return [*batches, (documents, True)]


@torch.no_grad()
def held_out_accuracy(
    model: ChatGLMForConditionalGeneration, tokenizer: ChatGLMTokenizer, count: int
) -> dict[str, float]:
    """Share of exactly right greedy answers per kind of held-out question."""
    rng = Random("held-out evaluation")
    samples = [mini_corpus.sample(rng, held_out=True) for _ in range(count)]
    right: dict[str, list[bool]] = {}
    for start in range(0, count, 100):
        chunk = samples[start : start + 100]
        logits, targets, row_of = answer_logits(model, [encode_sample(tokenizer, s) for s in chunk])
        wrong = set(row_of[logits.argmax(-1) != targets].tolist())
        for i, s in enumerate(chunk):
            right.setdefault(s.kind, []).append(i not in wrong)
            right.setdefault("all", []).append(i not in wrong)
    return {kind: sum(values) / len(values) for kind, values in sorted(right.items())}


def learning_rate(step: int, num_steps: int) -> float:
    """Linear warm-up, then a cosine to zero."""
    progress = max(step - WARM_UP_STEPS, 0) / max(num_steps - WARM_UP_STEPS, 1)
    cosine = 0.5 * (1 + torch.cos(torch.tensor(progress * torch.pi)).item())
    return PEAK_LEARNING_RATE * min((step + 1) / WARM_UP_STEPS, 1.0) * cosine


def train(arguments: argparse.Namespace, state_file: Path, folder: Path) -> None:
    torch.manual_seed(arguments.seed)
    tokenizer = load_tokenizer(folder) if (folder / "ice_text.model").is_file() else train_tokenizer(folder)
    config = official_config(tokenizer)
    parsed = parse_config(config)
    assert isinstance(parsed, ChatGLMConfig)
    model = ChatGLMForConditionalGeneration(parsed, half_tables=False)
    initialize(model)
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() != 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}],
        betas=(0.9, 0.98),
        fused=True,
    )
    first_step = 0
    if state_file.is_file():
        state = torch.load(state_file, weights_only=True)
        model.load_state_dict(state["model"])
        if state["arguments"] != [arguments.seed, arguments.steps]:
            raise SystemExit(f"error: {state_file} was made with other --seed or --steps; delete it to start over")
        optimizer.load_state_dict(state["optimizer"])
        first_step = state["step"]
        print(f"going on from step {first_step}")

    columns = (*Progress.get_default_columns()[:-1], TimeRemainingColumn(), TextColumn("{task.fields[loss]}"))
    with Progress(*columns, disable=arguments.quiet) as progress:
        task = progress.add_task("training", total=arguments.steps, completed=first_step, loss="")
        for step in range(first_step, arguments.steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, arguments.steps)
            losses = train_step(model, optimizer, step_batches(tokenizer, arguments.seed, step))
            progress.update(task, advance=1, loss="answers {:.3f} text {:.3f}".format(*losses))
            if (step + 1) % EVALUATE_EVERY == 0 or step + 1 == arguments.steps:
                accuracy = held_out_accuracy(model, tokenizer, EVALUATED_QUESTIONS)
                line = " ".join(f"{kind} {share:.3f}" for kind, share in accuracy.items())
                progress.print(
                    f"{time.strftime('%H:%M:%S')} step {step + 1} loss {losses[0]:.4f} {losses[1]:.4f} {line}"
                )
            if (step + 1) % SAVE_EVERY == 0 or step + 1 == arguments.steps:
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
                state["arguments"] = [arguments.seed, arguments.steps]
                torch.save(state, state_file.with_suffix(".tmp"))
                state_file.with_suffix(".tmp").replace(state_file)
    write_official(model, config, folder)


def train_step(
    model: ChatGLMForConditionalGeneration, optimizer: torch.optim.Optimizer, batches: list[Batch]
) -> tuple[float, float]:
    """One optimizer step; returns the mean loss over answer and over text tokens."""
    num_answer_tokens = sum(len(a) for rows, is_text in batches if not is_text for _, a in rows)
    sums = {True: 0.0, False: 0.0}
    for rows, is_text in batches:
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            logits, targets, _ = answer_logits(model, rows)
        loss = F.cross_entropy(logits.float(), targets, reduction="sum")
        loss = loss / (len(targets) if is_text else num_answer_tokens)
        sums[is_text] += loss.item()
        (loss * (DOCUMENT_LOSS_WEIGHT if is_text else 1.0)).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return sums[False], sums[True]


def write_official(model: ChatGLMForConditionalGeneration, config: dict[str, object], folder: Path) -> None:
    """Write two ``.bin`` shards, their index and the config, with the official keys and dtypes."""
    tensors = {}
    for name, weight in model.state_dict().items():
        tensors[name] = weight.float() if "layernorm" in name else weight.half()
    rotary_dim = model.config.head_dim // 2
    inv_freq = (1.0 / 10000 ** (torch.arange(0, rotary_dim, 2).float() / rotary_dim)).half()
    for i in range(model.config.num_layers):
        tensors[f"transformer.layers.{i}.attention.rotary_emb.inv_freq"] = inv_freq.clone()
    tensors["lm_head.weight"] = tensors["transformer.word_embeddings.weight"].clone()

    middle = f"transformer.layers.{model.config.num_layers // 2}."
    names = ["transformer.word_embeddings.weight"]
    names += sorted(n for n in tensors if n.startswith("transformer.layers."))
    names += sorted(n for n in tensors if n.startswith("transformer.final_layernorm."))
    names.append("lm_head.weight")
    split = next(i for i, n in enumerate(names) if n.startswith(middle))
    weight_map = {}
    for number, part in enumerate((names[:split], names[split:]), start=1):
        shard = f"pytorch_model-{number:05d}-of-00002.bin"
        torch.save({n: tensors[n] for n in part}, folder / shard)
        weight_map.update(dict.fromkeys(part, shard))
    total_size = sum(t.numel() * t.element_size() for t in tensors.values())
    index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of the finished model")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quiet", action="store_true", help="print evaluations only")
    arguments = parser.parse_args()
    unfinished = arguments.output.with_name(arguments.output.name + ".training")
    unfinished.mkdir(parents=True, exist_ok=True)
    state_file = unfinished / "state.pt"
    train(arguments, state_file, unfinished)
    arguments.output.mkdir(parents=True, exist_ok=True)
    for path in unfinished.iterdir():
        if path != state_file:
            path.replace(arguments.output / path.name)
    shutil.rmtree(unfinished)
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
