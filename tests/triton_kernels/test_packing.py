"""Packing is exact over every byte value."""

import pytest
import torch

from triton_kernels import packing


def every_byte(rows=4):
    """(rows, 256) bytes, each value once a row, in a different order each."""
    return torch.stack([torch.arange(256).roll(17 * row) for row in range(rows)]).to(torch.uint8)


def test_the_low_nibble_is_the_even_index():
    packed = packing.pack_int4(torch.tensor([[1, 2, 15, 0]], dtype=torch.uint8))
    assert packed.tolist() == [[0x21, 0x0F]]


def test_unpacking_undoes_packing_for_every_byte():
    assert torch.equal(packing.pack_int4(packing.unpack_int4(every_byte())), every_byte())


@pytest.mark.parametrize("rows_at_once", [1, 3, 4])
def test_planar_words_go_back_to_every_byte(rows_at_once, monkeypatch):
    monkeypatch.setattr(packing, "_PIECE_WEIGHTS", rows_at_once * 512)
    words = packing.to_planar(every_byte())
    assert (words.dtype, words.shape) == (torch.int16, (4, 128))
    assert torch.equal(packing.from_planar(words), every_byte())


@pytest.mark.parametrize("in_features", [256, 64])
def test_planes_follow_the_documented_order(in_features):
    q = torch.randint(0, 16, (1, in_features), dtype=torch.uint8)
    words = packing.to_planar(packing.pack_int4(q))
    run = min(in_features, 128)
    for start in range(0, in_features, run):
        for j in (0, 5, run // 4 - 1):
            nibbles = [int(words[0, start // 4 + j]) >> (4 * i) & 15 for i in range(4)]
            assert nibbles == [int(q[0, start + j + i * run // 4]) for i in range(4)]


@pytest.mark.parametrize(("in_features", "expected"), [(4096, 128), (13696, 128), (176, 16), (64, 64)])
def test_runs_divide_the_row(in_features, expected):
    assert packing.run_size(in_features) == expected


def test_a_matrix_without_rows_packs_to_none():
    assert packing.to_planar(torch.empty(0, 64, dtype=torch.uint8)).shape == (0, 32)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="uint8 with an even"):
        packing.pack_int4(torch.zeros(2, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match="0 to 15, got 16"):
        packing.pack_int4(torch.full((1, 2), 16, dtype=torch.uint8))
    with pytest.raises(ValueError, match="must be uint8"):
        packing.unpack_int4(torch.zeros(2, 2))
    with pytest.raises(ValueError, match="must be int16"):
        packing.unpack_planar(torch.zeros(2, 2))
    with pytest.raises(ValueError, match="multiple of 4"):
        packing.to_planar(torch.zeros(2, 3, dtype=torch.uint8))
