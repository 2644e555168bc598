"""``glm-int4 info``: what a checkpoint holds, and what of it fits in how much memory."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from glm_int4.cli import console, options

if TYPE_CHECKING:
    from glm_int4.checkpoint.loading import CheckpointInfo, ComputePlan

NAME = "info"

_MEMORY_SIZES_GB = (4, 6, 8, 12, 24)


def run(
    model: Annotated[str | None, typer.Argument(metavar="[MODEL_OR_DIR]", help="Checkpoint folder or hub id.")] = None,
    device: options.Device = "auto",
    model_version: options.ModelVersion = "auto",
    as_json: options.Json = False,
) -> None:
    """Show version, bits per weight as stored, sizes, and what fits in memory."""
    from glm_int4.checkpoint.folder import resolve_folder
    from glm_int4.checkpoint.loading import open_checkpoint
    from glm_int4.generation.loading import choose_device, make_plan

    name = options.find_model(model)
    place = choose_device(device)
    _, checkpoint = open_checkpoint(resolve_folder(name), model_version)
    result = _describe(name, checkpoint, make_plan(checkpoint, place, None))
    if as_json:
        print(json.dumps(result, indent=2))
        return
    plan = result["plan"]
    group = "" if result["bits"] == 16 else f", group size {result['group_size']}"
    print(f"model              {result['model']}")
    print(f"version            ChatGLM-6B v{result['version']}")
    print(f"linear layers      {result['bits']} bits{group}")
    print(f"bits per weight    {result['bits_per_weight']:.3f} as stored")
    print(f"weights            {console.size(result['weight_bytes'])} as stored")
    print(f"key/value cache    {console.size(result['kv_bytes_per_token'])} a token on {plan['device']}")
    weights, cache, total = (console.size(plan[key]) for key in ("weight_bytes", "kv_bytes", "total_bytes"))
    print(f"memory on {plan['device']:<8} {weights} weights + {cache} cache for {plan['max_length']} tokens = {total}")
    for size, tokens in plan["tokens_in_memory"].items():
        print(f"  in {size:>5}         {f'{tokens} tokens' if tokens else 'does not fit'}")


def _describe(name: str, checkpoint: "CheckpointInfo", plan: "ComputePlan") -> dict[str, Any]:
    from glm_int4.checkpoint.loading import resident_bytes

    config, scheme = checkpoint.config, checkpoint.linear_scheme
    kv_bytes = 2 * config.num_layers * config.num_kv_heads * config.head_dim * plan.stream_dtype.itemsize
    weight_bytes = resident_bytes(checkpoint, plan)
    max_length = config.max_sequence_length
    tokens = {
        f"{size} GB": max(min(int((size * 1e9 - weight_bytes) // kv_bytes), max_length), 0) for size in _MEMORY_SIZES_GB
    }
    return {
        "model": name,
        "version": config.version,
        "bits": scheme.bits if scheme else 16,
        "group_size": ("channel" if scheme.group_size is None else scheme.group_size) if scheme else None,
        "bits_per_weight": checkpoint.bits_per_weight,
        "weight_bytes": checkpoint.weight_bytes,
        "kv_bytes_per_token": kv_bytes,
        "plan": {
            "device": str(plan.device),
            "backend": plan.backend,
            "max_length": max_length,
            "weight_bytes": weight_bytes,
            "kv_bytes": kv_bytes * max_length,
            "total_bytes": weight_bytes + kv_bytes * max_length,
            "tokens_in_memory": tokens,
        },
    }
