"""Some rows at a time give the bits of all at once."""

import pytest
import torch

from glm_int4.models import chatglm, chatglm2
from glm_int4.models.config import ChatGLM2Config
from glm_int4.models.layer import by_chunks, turn_heads
from glm_int4.quantization.embedding import QuantizedEmbedding
from glm_int4.quantization.scheme import QuantizationScheme, QuantizedWeight

CONFIG = ChatGLM2Config(
    version="2", num_layers=1, hidden_size=256, num_heads=4, num_kv_heads=2, head_dim=64, ffn_size=384, vocab_size=512,
    max_sequence_length=512, layernorm_epsilon=1e-5, eos_token_id=2, pad_token_id=0,
)  # fmt: skip


def version_1(positions):
    cos, sin = chatglm.RotaryEmbedding(32, half_tables=True)(torch.stack((positions, positions // 2), -1)[:, :, None])
    return chatglm.apply_rotary_pos_emb_index, (cos, sin)


def version_2(positions):
    return chatglm2.apply_rotary_pos_emb, chatglm2.RotaryEmbedding(CONFIG, half_tables=True)(positions[..., None])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("version", [version_1, version_2])
def test_heads_turn_alike_and_stay_what_they_were_on_a_cpu(version, dtype):
    rotate, rotary = version(torch.arange(300)[None])
    x = torch.randn(1, 300, 4, 64).to(dtype)
    before = x.clone()
    out = turn_heads(rotate, x, rotary, dtype)
    assert out.dtype == dtype
    assert torch.equal(out, rotate(x, *rotary).to(dtype))
    assert torch.equal(x, before)


def test_a_result_may_take_the_place_of_what_it_is_made_from():
    x, y = torch.randn(2, 300, 8), torch.randn(2, 300, 8)
    expected, view = x * y + 1, torch.cat((x, x), -1)[..., :8]
    assert torch.equal(by_chunks(lambda a, b: a * b + 1, x, y), expected)
    assert by_chunks(lambda a, b: a * b + 1, view, y, in_place=True, rows=128) is view
    assert torch.equal(view, expected)
    x.requires_grad_()
    by_chunks(lambda a, b: a * b + 1, x, y, rows=7).sum().backward()
    assert torch.equal(x.grad, y)


def test_many_rows_of_an_embedding_are_those_of_each_alone():
    scheme = QuantizationScheme(bits=8, group_size=None, symmetric=True)
    packed, scales = torch.randint(0, 256, (50, 64), dtype=torch.uint8), torch.rand(50, 1).half()
    weight = QuantizedWeight(scheme=scheme, packed=packed, scales=scales, zero_points=None)
    embedding = QuantizedEmbedding(weight, "reference", torch.float16)
    ids = torch.randint(50, (2, 150))
    rows = embedding(ids)
    assert rows.shape == (2, 150, 64)
    assert torch.equal(rows[1, 149], embedding(ids[1, 149:])[0])
    assert torch.equal(rows.flatten(0, 1), torch.cat([embedding(part) for part in ids.flatten().split(1)]))
