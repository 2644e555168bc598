"""The launch table: which kernel serves what."""

import pytest

from triton_kernels import launch

ARCHITECTURES = (75, 80, 86, 87, 89, 90, 100, 103, 110, 120, 121)
# (K, N) of the linears of ChatGLM-6B, and of ChatGLM2-6B and ChatGLM3-6B.
SHAPES = [
    (4096, 12288),
    (4096, 4096),
    (4096, 16384),
    (16384, 4096),
    (4096, 130528),
    (4096, 4608),
    (4096, 27392),
    (13696, 4096),
    (4096, 65024),
]


@pytest.mark.parametrize("bits", [4, 8])
def test_tensor_cores_are_used_from_sm80_on_and_never_before(bits):
    for architecture in ARCHITECTURES:
        kernels = {row.kernel for m in range(1, 300) if (row := launch.choose(bits, architecture, m))}
        assert kernels == ({"dot"} if architecture >= 80 else {"gemv"})


def test_old_gpus_and_many_rows_dequantize():
    assert launch.choose(4, 70, 1) is None
    assert launch.choose(4, 75, 9) is None
    assert launch.choose(8, 90, 257) is None


@pytest.mark.parametrize("bits", [4, 8])
def test_where_wide_kernels_are_bad_the_table_dequantizes_from_9_rows_on(bits):
    for architecture in (100, 103, 110):
        assert launch.choose(bits, architecture, 8).block_m == 8
        assert launch.choose(bits, architecture, 9) is None
    for architecture in (120, 121):
        assert launch.choose(bits, architecture, 256).block_m == 64


@pytest.mark.parametrize("bits", [4, 8])
def test_sums_of_a_turn_are_their_own_on_sm90(bits):
    """Others are begun while those before them still read their operands."""
    for group_size in (32, 64, 128, None):
        assert all(row.constants(bits, group_size)["SCALE_AFTER"] for row in launch.launches(bits, 90))
        wide = launch.choose(bits, 80, 256).constants(bits, group_size)
        assert not wide["SCALE_AFTER"]


def test_rows_of_the_table_ascend_and_say_where_they_come_from():
    for rows in launch.TABLE.values():
        assert [row.max_rows for row in rows] == sorted({row.max_rows for row in rows})
        assert all(row.source and row.switch_source for row in rows)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("num_multiprocessors", [30, 132])
def test_splits_get_whole_blocks_and_fill_the_gpu(shape, num_multiprocessors):
    in_features, out_features = shape
    for rows in launch.TABLE.values():
        for row in rows:
            splits = launch.num_splits(row, in_features, out_features, num_multiprocessors)
            tiles = -(-out_features // row.block_n)
            assert 1 <= splits <= in_features // 128 // 4
            assert splits * tiles <= max(row.programs_per_sm * num_multiprocessors, tiles)


@pytest.mark.parametrize(("bits", "group_size", "plane"), [(4, 32, 32), (4, None, 32), (8, 32, 32), (8, 128, 64)])
def test_a_product_never_crosses_a_group(bits, group_size, plane):
    assert launch.plane(bits, group_size) == plane


@pytest.mark.parametrize("num_multiprocessors", [28, 82, 132, 148])
@pytest.mark.parametrize("num_rows", [9, 300, 512, 2048, 8192])
def test_pieces_of_dequantized_weights_fill_the_gpu(num_rows, num_multiprocessors):
    rows = launch.piece_rows(num_rows, num_multiprocessors)
    tiles = -(-num_rows // 128) * (rows // 256)
    waves = -(-tiles // num_multiprocessors)
    assert rows % 256 == 0
    assert rows >= 1024
    assert tiles >= 0.75 * waves * num_multiprocessors
    assert launch.piece_rows(num_rows, 1) >= 1024
