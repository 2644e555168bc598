"""What a GPU launches for a token, counted on tensors without values."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from glm_int4.generation.decoding import Decoder
from glm_int4.models.gpu_step import DecodeStep
from tests.fake_gpu import META, SETUP, fake_gpu, fake_model

# A layer whose four products are all split, which those of ChatGLM-6B are on 132 multiprocessors.
LAYER = Counter(add_norm_kernel=2, dot_kernel=4, finish_kernel=4, rotary_kernel=1, attend_kernel=1, merge_kernel=1)


def layer_launches(preset, dtype, kv_dtype, architecture, multiprocessors):
    """Of a step of one row, those that a second layer adds."""
    from triton_kernels import decode

    counts = []
    for num_layers in (1, 2):
        with fake_gpu(architecture, multiprocessors) as (memory, _):
            model = fake_model(preset, num_layers, dtype=dtype)
            setup = replace(SETUP, stream_dtype=dtype, kv_dtype=kv_dtype)
            step = DecodeStep(model, Decoder(model, setup, 512).new_cache(1, 512), decode)
            numbers = torch.zeros(1, dtype=torch.int64, device=META)
            positions = torch.zeros(1, model.config.position_kinds, dtype=torch.int64, device=META)
            memory.launches.clear()
            step(numbers, positions, numbers, numbers, numbers, prefix_length=0, max_columns=256)
            counts.append(Counter(memory.launches))
    return counts[1] - counts[0]


@pytest.mark.parametrize("kv_dtype", [torch.float16, torch.int8], ids=str)
def test_a_layer_is_thirteen_kernels_and_nothing_of_torch(kv_dtype):
    assert layer_launches("chatglm-6b", torch.float16, kv_dtype, 90, 132) == LAYER
    few = layer_launches("chatglm3-6b", torch.float16, kv_dtype, 80, 28)  # products of few splits
    assert few.keys() == LAYER.keys()
    assert few.total() <= LAYER.total()


@pytest.mark.parametrize(
    ("dtype", "architecture", "scaled"),
    [(torch.bfloat16, 80, 4), (torch.float32, 90, 4), (torch.float32, 75, 0)],
    ids=str,
)
@pytest.mark.parametrize("preset", ["chatglm-6b", "chatglm3-6b"])
def test_a_wider_stream_scales_the_rows_of_products_on_tensor_cores(preset, dtype, architecture, scaled):
    half = layer_launches(preset, torch.float16, torch.float16, architecture, 132)
    assert layer_launches(preset, dtype, dtype, architecture, 132) == half + Counter(scale_rows_kernel=scaled)
