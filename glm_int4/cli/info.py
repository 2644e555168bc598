"""``glm-int4 info``: what a checkpoint holds, and what of it fits in how much memory."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from glm_int4.cli import options
from glm_int4.system import size_text

if TYPE_CHECKING:
    from glm_int4.checkpoint.build import ComputeSetup
    from glm_int4.checkpoint.opening import CheckpointInfo

NAME = "info"

_NAMES = {"1": "ChatGLM-6B", "2": "ChatGLM2-6B", "3": "ChatGLM3-6B", "4": "GLM-4-9B"}
_MEMORY_SIZES_GB = (4, 5, 6, 8, 12, 16, 24)
_KV_BITS = (16, 8)

# What a process holds beside weights and cache. CPU: Python, torch, Numba and scratch took 0.41 GB in a short chat
# with ChatGLM-6B and 0.6 GB while it read 512 tokens. CUDA: an estimate, not measured.
_OVERHEAD_BYTES = {"cpu": 600_000_000, "cuda": 800_000_000}


def run(
    model: Annotated[str | None, typer.Argument(metavar="MODEL_OR_DIR", help="Checkpoint folder or hub id.")] = None,
    device: Annotated[
        str, typer.Option(help="auto, cuda or cpu: what to plan for; it need not be in this machine.")
    ] = "auto",
    max_length: options.MaxLength = None,
    kv_bits: options.KVBits = 16,
    model_version: options.ModelVersion = "auto",
    as_json: options.Json = False,
) -> None:
    """Show version, bits per weight as stored, sizes, and what fits in memory."""
    import torch

    from glm_int4.checkpoint.files.folder import resolve_folder
    from glm_int4.checkpoint.opening import open_checkpoint
    from glm_int4.generation.gpu.probed_matrices import probed_matrices
    from glm_int4.generation.loading import choose_device, choose_setup

    name = options.find_model(model)
    if device != "cuda":
        choose_device(device)
    _, checkpoint = open_checkpoint(resolve_folder(name), model_version)
    place = torch.device("cuda") if device == "cuda" else choose_device(device, probed_matrices(checkpoint))
    plans = {bits: choose_setup(checkpoint, place, kv_bits=bits) for bits in {*_KV_BITS, kv_bits}}
    result = _describe(name, checkpoint, plans)
    result["plan"]["here"] = _plan_here(checkpoint, plans[kv_bits], max_length)
    if as_json:
        print(json.dumps(result, indent=2))
    else:
        _print(result)


def _plan_here(checkpoint: "CheckpointInfo", plan: "ComputeSetup", max_length: int | None) -> dict[str, Any] | None:
    """What loading would take here and now; None for a device that is not in this machine.

    Raises:
        InputError: an explicit max length that does not fit.
    """
    from glm_int4.errors import InputError
    from glm_int4.generation.loading import check_max_length, place_embedding
    from glm_int4.generation.memory_plan import plan_memory, size_pieces
    from glm_int4.quantization.gpu.cuda_device import cuda_fault
    from glm_int4.system import free_bytes

    check_max_length(max_length, checkpoint.config)
    if plan.device.type == "cuda" and cuda_fault() is not None:
        return None
    plan = size_pieces(checkpoint, place_embedding(checkpoint, plan, "auto", max_length), max_length)
    try:
        memory = plan_memory(checkpoint, plan, max_length)
    except InputError as error:
        if max_length is not None:
            raise
        return {"fits": False, "free_bytes": free_bytes(plan.device), "refusal": str(error)}
    names = ("free_bytes", "weight_bytes", "kv_bytes", "scratch_bytes", "total_bytes", "max_length")
    where = "cpu" if plan.host_embedding else plan.device.type
    return {"fits": True, "embedding_device": where} | {name: getattr(memory, name) for name in names}


def _describe(name: str, checkpoint: "CheckpointInfo", plans: "dict[int, ComputeSetup]") -> dict[str, Any]:
    from glm_int4.checkpoint.build import resident_bytes
    from glm_int4.models.kv_cache import kv_bytes_per_token

    config, scheme = checkpoint.config, checkpoint.linear_scheme
    kv_bytes = {
        bits: kv_bytes_per_token(config.num_layers, config.num_kv_heads, config.head_dim, plan.kv_dtype)
        for bits, plan in plans.items()
    }
    plan = plans[16]
    weight_bytes, overhead = resident_bytes(checkpoint, plan), _OVERHEAD_BYTES[plan.device.type]
    max_length = config.max_sequence_length

    def fitting(memory: float, bits: int) -> int:
        tokens = int((memory - weight_bytes - overhead) // kv_bytes[bits])
        return max(min(tokens, max_length), 0)

    mixed = len(checkpoint.linear_counts) > 1
    group_size = ("channel" if scheme.group_size is None else scheme.group_size) if scheme else None
    return {
        "model": name,
        "version": config.version,
        "version_from": checkpoint.version_from,
        "version_evidence": [f"{what}: version {version}" for version, what in checkpoint.evidence],
        "bits": "mixed" if mixed else scheme.bits if scheme else 16,
        "group_size": "mixed" if mixed else group_size,
        "linear_layers": checkpoint.linear_counts,
        "bits_per_weight": checkpoint.bits_per_weight,
        "weight_bytes": checkpoint.weight_bytes,
        "kv_bytes_per_token": kv_bytes[16],
        "plan": {
            "device": str(plan.device),
            "backend": plan.backend,
            "max_length": max_length,
            "weight_bytes": weight_bytes,
            "overhead_bytes": overhead,
            "kv_bytes": kv_bytes[16] * max_length,
            "kv_bytes_int8": kv_bytes[8] * max_length,
            "total_bytes": weight_bytes + overhead + kv_bytes[16] * max_length,
            "tokens_in_memory": {
                f"{size} GB": {str(bits): fitting(size * 1e9, bits) for bits in _KV_BITS} for size in _MEMORY_SIZES_GB
            },
        },
    }


def _print(result: dict[str, Any]) -> None:
    plan = result["plan"]
    linears = f"{result['bits']} bits" + ("" if result["bits"] == 16 else f", group size {result['group_size']}")
    if result["bits"] == "mixed":
        linears = ", ".join(f"{count} x {scheme}" for scheme, count in sorted(result["linear_layers"].items()))
    where = plan["device"].upper()
    facts = {
        "model": result["model"],
        "version": f"{_NAMES[result['version']]} (decided by {result['version_from']})",
        "evidence": "; ".join(result["version_evidence"]) or "the keys of config.json",
        "linear layers": linears,
        "bits per weight": f"{result['bits_per_weight']:.3f} as stored",
        "weights": f"{size_text(result['weight_bytes'])} on disk, {size_text(plan['weight_bytes'])} on {where}",
        "key/value cache": f"{size_text(result['kv_bytes_per_token'])} a token, "
        f"{size_text(plan['kv_bytes'])} for {plan['max_length']} tokens "
        f"({size_text(plan['kv_bytes_int8'])} with --kv-bits 8)",
        "program": f"{size_text(plan['overhead_bytes'])} beside them" + (" (an estimate)" if where == "CUDA" else ""),
        "in all": f"{size_text(plan['total_bytes'])} for a full context",
    }
    if here := plan["here"]:
        free = "" if here["free_bytes"] is None else f", {size_text(here['free_bytes'])} are free"
        facts["here"] = here.get("refusal") or (
            f"{size_text(here['total_bytes'])} for {here['max_length']} tokens: weights "
            f"{size_text(here['weight_bytes'])}, cache {size_text(here['kv_bytes'])}, scratch "
            f"{size_text(here['scratch_bytes'])}{free}"
        )
    for label, value in facts.items():
        print(f"{label:<16} {value}")
    table = Table(f"memory on {where}", "longest context", "with --kv-bits 8", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for size, tokens in plan["tokens_in_memory"].items():
        table.add_row(size, *(f"{tokens[str(b)]} tokens" if tokens[str(b)] else "does not fit" for b in _KV_BITS))
    print()
    Console().print(table)
