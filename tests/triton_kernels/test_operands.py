"""Arguments of a quantized linear that do not agree are named, with what was expected."""

import pytest
import torch

from triton_kernels import int4_linear, int8_linear, packing, reference

# (M, N, K) = (2, 48, 256), groups of 32.
ARGUMENTS = {
    "x": torch.zeros(2, 256),
    "qweight": torch.zeros(48, 256, dtype=torch.uint8),
    "scales": torch.zeros(8, 48),
    "zero_points": torch.zeros(8, 48, dtype=torch.uint8),
    "bias": torch.zeros(48),
    "group_size": 32,
}


@pytest.mark.parametrize("linear", [int8_linear, reference.int8_linear], ids=["fastest", "reference"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 255)}, r"x must be floating point \(..., 256\), got torch.float32 \(2, 255\)"),
        ({"x": torch.zeros(2, 256, dtype=torch.int64)}, "x must be floating point"),
        ({"x": torch.tensor(1.0)}, "x must be floating point"),
        ({"x": torch.zeros(256, 2).T}, r"x must be contiguous in its last dimension, got strides \(1, 2\)"),
        ({"x": torch.zeros(2, 256, device="meta")}, "qweight must be on meta as x is, got cpu"),
        ({"qweight": torch.zeros(48, 64, dtype=torch.int16)}, "qweight must be torch.uint8 with 2 dimensions"),
        ({"qweight": torch.zeros(256, 48, dtype=torch.uint8).T}, "qweight must be contiguous"),
        ({"group_size": 48}, "group_size must divide 256, got 48"),
        ({"group_size": 0}, "group_size must divide 256, got 0"),
        ({"scales": torch.zeros(4, 48)}, r"scales must be floating point \(8, 48\) for group_size=32"),
        ({"scales": torch.zeros(8, 48, dtype=torch.int32)}, "scales must be floating point"),
        ({"scales": torch.zeros(48, 8).T}, "scales must be contiguous"),
        ({"zero_points": torch.zeros(8, 48)}, r"zero_points must be uint8 \(8, 48\), got torch.float32"),
        ({"bias": torch.zeros(47)}, r"bias must be floating point \(48,\)"),
        ({"activation": "relu"}, "activation must be one of .*, got 'relu'"),
        ({"out_dtype": torch.int32}, "out_dtype must be floating point or None, got torch.int32"),
        ({"residual": torch.zeros(2, 24)}, r"residual must be floating point \(2, 48\)"),
        ({"residual": torch.zeros(2, 48), "activation": "swiglu"}, r"residual must be floating point \(2, 24\)"),
    ],
)
def test_arguments_that_do_not_agree_are_named(linear, change, message):
    with pytest.raises(ValueError, match=message):
        linear(**(ARGUMENTS | change))


def test_swiglu_needs_two_halves():
    arguments = {"qweight": torch.zeros(3, 64, dtype=torch.uint8), "scales": torch.zeros(2, 3), "group_size": 32}
    with pytest.raises(ValueError, match="even number of columns, got 3"):
        int8_linear(torch.zeros(1, 64), **arguments, activation="swiglu")


@pytest.mark.parametrize("shape", [(0, 256), (3, 0, 256), (2, 0, 5, 256)], ids=str)
def test_no_rows_give_no_rows(shape):
    x = torch.zeros(shape, dtype=torch.float16)
    arguments = ARGUMENTS | {"x": x}
    assert int8_linear(**arguments).shape == (*shape[:-1], 48)
    assert int8_linear(**arguments, activation="swiglu").shape == (*shape[:-1], 24)
    arguments |= {"qweight": packing.to_planar(torch.zeros(48, 128, dtype=torch.uint8))}
    out = int4_linear(**arguments | {"x": x.requires_grad_()})
    assert (out.shape, out.dtype) == ((*shape[:-1], 48), torch.float16)


@pytest.mark.parametrize("num_rows", [0, 2])
@pytest.mark.parametrize("learned", [False, True])
def test_the_result_may_have_another_dtype(learned, num_rows):
    x = torch.zeros(num_rows, 256, dtype=torch.float16, requires_grad=learned)
    assert int8_linear(**ARGUMENTS | {"x": x}, out_dtype=torch.float32).dtype == torch.float32


def integers(*values, device="cpu"):
    return torch.tensor(values, device=device)


# Two rows of four heads, in three slots of ten columns, two key heads of 16 elements.
CACHE = {
    "k_cache": torch.zeros(3, 2, 10, 16),
    "v_cache": torch.zeros(3, 2, 10, 16),
    "k_scales": torch.zeros(3, 2, 0).half(),
    "v_scales": torch.zeros(3, 2, 0).half(),
}
ROTARY = CACHE | {
    "qkv": torch.zeros(2, 8 * 16),
    "cos": torch.zeros(20, 4),
    "sin": torch.zeros(20, 4),
    "positions": integers([3], [4]),
    "slots": integers(2, 0),
    "columns": integers(5, 9),
    "num_heads": 4,
    "two_dimensional": False,
}
ATTENTION = CACHE | {
    "q": torch.zeros(2, 4, 16),
    "slots": integers(2, 0),
    "lengths": integers(6, 10),
    "padding": integers(0, 0),
    "max_columns": 10,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qkv": torch.zeros(2, 100)}, r"qkv must be contiguous \(2, 128\), got torch.float32 \(2, 100\)"),
        ({"positions": integers([3, 4], [5, 6])}, r"positions must be contiguous int64 \(2, 1\)"),
        ({"slots": integers(2)}, r"slots must be contiguous int64 \(2,\) on cpu, got torch.int64 \(1,\)"),
        ({"slots": integers(2, 0, device="meta")}, r"slots must be contiguous int64 \(2,\) on cpu, got .* on meta"),
        ({"columns": integers(5, 9).int()}, r"columns must be contiguous int64 \(2,\) on cpu, got torch.int32"),
        ({"columns": integers(5, 0, 9, 0)[::2]}, r"columns must be contiguous int64 \(2,\)"),
        ({"two_dimensional": True}, "two-dimensional positions need a key head for each of 4 heads, got 2"),
        ({"v_cache": torch.zeros(3, 2, 9, 16)}, "v_cache must be as k_cache is"),
        ({"k_cache": torch.zeros(3, 2, 10, 16).int()}, r"k_cache must be contiguous \(slots, Hkv, S, D\)"),
    ],
)
def test_rows_and_caches_of_a_step_that_do_not_agree_are_named(change, message):
    assert reference.rotary_to_cache(**ROTARY).shape == (2, 4, 16)
    with pytest.raises(ValueError, match=message):
        reference.rotary_to_cache(**ROTARY | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(2, 4, 8)}, r"q must be contiguous \(B, heads, 16\), got torch.float32 \(2, 4, 8\)"),
        ({"slots": integers(2)}, r"slots must be contiguous int64 \(2,\) on cpu, got torch.int64 \(1,\)"),
        ({"lengths": integers(6, 10).float()}, r"lengths must be contiguous int64 \(2,\) on cpu, got torch.float32"),
        (
            {"lengths": integers(6, 10, device="meta")},
            r"lengths must be contiguous int64 \(2,\) on cpu, got .* on meta",
        ),
        ({"padding": integers(0, 0, 0)}, r"padding must be contiguous int64 \(2,\)"),
        ({"max_columns": 11}, "max_columns must be from 1 to 10, got 11"),
        ({"max_columns": 0}, "max_columns must be from 1 to 10, got 0"),
    ],
)
def test_arguments_of_attention_that_do_not_agree_are_named(change, message):
    assert reference.one_token_attention(**ATTENTION).shape == (2, 64)
    with pytest.raises(ValueError, match=message):
        reference.one_token_attention(**ATTENTION | change)
