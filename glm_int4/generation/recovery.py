"""When memory runs out or numbers are no numbers in the middle of an answer."""

import gc
import traceback

import torch
from torch import Tensor, nn

from glm_int4.generation.padded_batch import Batch
from glm_int4.models import Model
from glm_int4.models.past import AttentionMask, Prefix
from glm_int4.system import trim_heap


def release_memory(error: BaseException, device: torch.device) -> None:
    """Free what the frames of an exception hold, and give it back to the system or the GPU."""
    traceback.clear_frames(error.__traceback__)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    else:
        trim_heap()


@torch.inference_mode()
def find_first_not_finite(model: Model, token_ids: list[int], mask_dtype: torch.dtype, prefix: Prefix | None) -> str:
    """Where nan or inf come up first when some ids run through a model: "layer 3 of 28, counted from 0", say."""
    layers = list(model.layers)
    places: dict[nn.Module, str] = {model.embedding: "the embedding"}
    places |= {layer: f"layer {i} of {len(layers)}, counted from 0" for i, layer in enumerate(layers)}
    found: list[str] = []

    def look(module: nn.Module, arguments: object, output: Tensor) -> None:
        if not found and not bool(torch.isfinite(output).all()):
            found.append(places[module])

    hooks = [module.register_forward_hook(look) for module in places]
    try:
        batch = Batch(model, [token_ids], _device_of(model), prefix.length if prefix else 0)
        mask: AttentionMask = batch.prefill_mask(mask_dtype)
        model.last_hidden_state(batch.token_ids, batch.positions, mask, prefix)
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else "the final norm or the head"


def _device_of(model: Model) -> torch.device:
    return next(tensor.device for tensor in (*model.parameters(), *model.buffers()))
