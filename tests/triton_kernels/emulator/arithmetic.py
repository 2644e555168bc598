"""Instructions that compute one register from others; PTX ISA, section 9.7.

Every function takes the modifiers (``rn``, ``f32``), and what reads an operand as a type of PTX.
"""

from collections.abc import Callable

import numpy as np

from tests.triton_kernels.emulator.ptx import Operand

Read = Callable[[Operand, str], np.ndarray]
Operation = Callable[[tuple[str, ...], tuple[Operand, ...], Read], np.ndarray]

DTYPES = {
    "pred": np.dtype(bool),
    **{f"{kind}{bits}": np.dtype(f"u{bits // 8}") for kind in "bu" for bits in (8, 16, 32, 64)},
    **{f"s{bits}": np.dtype(f"i{bits // 8}") for bits in (8, 16, 32, 64)},
    "bf16": np.dtype("u2"),  # its bits, since NumPy has no such number
    "bf16x2": np.dtype("u4"),
    "f16": np.dtype(np.float16),
    "f16x2": np.dtype(np.uint32),
    "f32": np.dtype(np.float32),
    "f32x2": np.dtype(np.uint64),
}
_ELEMENTS = {"f16x2": np.dtype(np.float16), "f32x2": np.dtype(np.float32)}
_WIDER = {"s32": np.int64, "u32": np.uint64, "s16": np.int32, "u16": np.uint32}
_COMPARISONS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    """Float32 of the bits of bfloat16 numbers."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """The bits of float32 numbers, rounded to the nearest bfloat16, ties to even."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(values), 0x7FFF, rounded).astype(np.uint16)


def unpacked(registers: np.ndarray, kind: str) -> np.ndarray:
    """(n,) registers that hold a number, or (n, 2) where they hold two, the lower half first; float32 of bf16."""
    if kind in ("bf16", "bf16x2"):
        halves = np.ascontiguousarray(registers).view(np.uint16)
        return from_bfloat16(halves.reshape(-1, 2) if kind == "bf16x2" else halves)
    if kind not in _ELEMENTS:
        return registers
    return np.ascontiguousarray(registers).view(_ELEMENTS[kind]).reshape(-1, 2)


def packed(values: np.ndarray, kind: str) -> np.ndarray:
    """The inverse of ``unpacked``, rounded to the type."""
    if kind in ("bf16", "bf16x2"):
        return np.ascontiguousarray(to_bfloat16(values)).view(DTYPES[kind]).reshape(len(values))
    if kind not in _ELEMENTS:
        return values.astype(DTYPES[kind], copy=False)
    return np.ascontiguousarray(values, dtype=_ELEMENTS[kind]).view(DTYPES[kind])[:, 0]


def elementwise(function: Callable[..., np.ndarray], count: int) -> Operation:
    """An operation on ``count`` operands of one type; with two types, the first operand has the second one."""

    def run(modifiers: tuple[str, ...], operands: tuple[Operand, ...], read: Read) -> np.ndarray:
        kind = modifiers[0]
        if modifiers == ("f32", "f16") and count == 2:
            return function(read(operands[0], "f16").astype(np.float32), read(operands[1], kind))
        if len(modifiers) > 1:
            raise NotImplementedError(modifiers)
        return packed(function(*(unpacked(read(operand, kind), kind) for operand in operands[:count])), kind)

    return run


def multiply(modifiers: tuple[str, ...], operands: tuple[Operand, ...], read: Read) -> np.ndarray:
    """``mul``, and the sum of ``mad`` and ``fma``, which are rounded once."""
    kind = modifiers[-1]
    if kind[0] == "f":
        result = modifiers[0]  # of the sum too, where the factors have another type
        a, b = (unpacked(read(operand, kind), kind).astype(np.float64) for operand in operands[:2])
        product = a * b
        return packed(product + unpacked(read(operands[2], result), result) if operands[2:] else product, result)
    dtype = DTYPES[kind]
    if "wide" in modifiers:
        dtype = np.dtype(_WIDER[kind])
    elif "lo" not in modifiers:
        raise NotImplementedError(modifiers)
    product = read(operands[0], kind).astype(dtype) * read(operands[1], kind).astype(dtype)
    if len(operands) == 2:
        return product
    wide = {v: k for k, v in DTYPES.items() if k[0] == kind[0]}[dtype]
    return product + read(operands[2], wide)


def divide(modifiers: tuple[str, ...], operands: tuple[Operand, ...], read: Read) -> np.ndarray:
    kind = modifiers[-1]
    a, b = read(operands[0], kind), read(operands[1], kind)
    if kind == "f32":
        return a / b
    quotient = np.abs(a.astype(np.int64)) // np.abs(b.astype(np.int64))
    return np.where((a < 0) != (b < 0), -quotient, quotient).astype(DTYPES[kind])


def shift(left: bool) -> Operation:
    """A count of the register's width or more shifts everything out."""

    def run(modifiers: tuple[str, ...], operands: tuple[Operand, ...], read: Read) -> np.ndarray:
        kind = modifiers[-1]
        value, count = read(operands[0], kind), read(operands[1], "u32").astype(np.int64)
        width = 8 * value.itemsize
        inside = np.minimum(count, width - 1).astype(value.dtype)
        out = value << inside if left else value >> inside
        return out if kind[0] == "s" and not left else np.where(count < width, out, 0).astype(value.dtype)

    return run


def funnel_shift(modifiers: tuple[str, ...], operands: tuple[Operand, ...], read: Read) -> np.ndarray:
    low, high, count = (read(operand, "u32").astype(np.uint64) for operand in operands)
    count = count & 31 if "wrap" in modifiers else np.minimum(count, 32)
    both = high << 32 | low
    return ((both << count) >> 32 if "l" in modifiers else both >> count).astype(np.uint32)


def bit_field(modifiers: tuple[str, ...], operands: tuple[Operand, ...], read: Read) -> np.ndarray:
    value = read(operands[0], "u32").astype(np.int64)
    start, length = (read(operand, "u32").astype(np.int64) & 255 for operand in operands[1:])
    field = value >> start & (1 << length) - 1
    if modifiers[-1] == "s32":
        field = np.where(field >> np.maximum(length - 1, 0) & 1, field - (1 << length), field)
    return field.astype(DTYPES[modifiers[-1]])


def three_input_logic(modifiers: tuple[str, ...], operands: tuple[Operand, ...], read: Read) -> np.ndarray:
    a, b, c = (read(operand, "b32") for operand in operands[:3])
    out = np.zeros_like(a)
    for row in range(8):
        if int(operands[3]) >> row & 1:
            out |= (a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c)
    return out


def permute_bytes(modifiers: tuple[str, ...], operands: tuple[Operand, ...], read: Read) -> np.ndarray:
    a, b, selector = (read(operand, "b32") for operand in operands)
    both = b.astype(np.uint64) << 32 | a
    out = np.zeros_like(a)
    for place in range(4):
        choice = (selector >> 4 * place & 15).astype(np.uint64)
        byte = (both >> 8 * (choice & 7) & 255).astype(np.uint32)
        out |= np.where(choice & 8, 255 * (byte >> 7), byte).astype(np.uint32) << 8 * place
    return out


def select(modifiers: tuple[str, ...], operands: tuple[Operand, ...], read: Read) -> np.ndarray:
    kind = modifiers[-1]
    return np.where(read(operands[2], "pred"), read(operands[0], kind), read(operands[1], kind))


def compare(modifiers: tuple[str, ...], operands: tuple[Operand, ...], read: Read) -> np.ndarray:
    comparison, kind = modifiers
    a, b = read(operands[0], kind), read(operands[1], kind)
    if comparison in _COMPARISONS:  # false where one is not a number, "ne" too
        ordered = ~(np.isnan(a) | np.isnan(b)) if kind[0] == "f" else True
        return _COMPARISONS[comparison](a, b) & ordered
    if kind[0] == "f" and comparison[:-1] in _COMPARISONS and comparison[-1] == "u":
        return _COMPARISONS[comparison[:-1]](a, b) | np.isnan(a) | np.isnan(b)
    raise NotImplementedError(modifiers)


def convert(modifiers: tuple[str, ...], operands: tuple[Operand, ...], read: Read) -> np.ndarray:
    *how, target, source = modifiers
    if "bf16" in source:
        value = from_bfloat16(read(operands[0], source))
        return value if target == "f32" else convert((*how, target, "f32"), operands, lambda *_: value)
    if target == "bf16":
        return to_bfloat16(read(operands[0], source))
    if target == "bf16x2":
        upper, lower = (to_bfloat16(read(operand, source)).astype(np.uint32) for operand in operands)
        return upper << 16 | lower
    if target == "f16x2":
        upper, lower = (read(operand, source) for operand in operands)
        return packed(np.stack((lower, upper), axis=-1), target)
    value = read(operands[0], source)
    if target[0] != "f" and source[0] == "f":
        limits = np.iinfo(DTYPES[target])
        whole = {"rzi": np.trunc, "rni": np.rint, "rmi": np.floor, "rpi": np.ceil}[how[0]](value.astype(np.float64))
        value = np.clip(np.nan_to_num(whole, nan=0), limits.min, limits.max)
    elif how and how[0] != "rn":
        raise NotImplementedError(modifiers)
    return value.astype(DTYPES[target])


def approximate(function: Callable[[np.ndarray], np.ndarray]) -> Operation:
    """A function of the special unit, here computed in float64."""

    def run(modifiers: tuple[str, ...], operands: tuple[Operand, ...], read: Read) -> np.ndarray:
        return function(read(operands[0], "f32").astype(np.float64)).astype(np.float32)

    return run


OPERATIONS: dict[str, Operation] = {
    "abs": elementwise(np.abs, 1),
    "add": elementwise(np.add, 2),
    "and": elementwise(np.bitwise_and, 2),
    "bfe": bit_field,
    "cvt": convert,
    "div": divide,
    "ex2": approximate(np.exp2),
    "fma": multiply,
    "lop3": three_input_logic,
    "mad": multiply,
    "max": elementwise(np.fmax, 2),
    "min": elementwise(np.fmin, 2),
    "mul": multiply,
    "neg": elementwise(np.negative, 1),
    "not": elementwise(np.invert, 1),
    "or": elementwise(np.bitwise_or, 2),
    "prmt": permute_bytes,
    "rcp": approximate(np.reciprocal),
    "rsqrt": approximate(lambda x: 1 / np.sqrt(x)),
    "selp": select,
    "setp": compare,
    "shf": funnel_shift,
    "shl": shift(left=True),
    "shr": shift(left=False),
    "sqrt": approximate(np.sqrt),
    "sub": elementwise(np.subtract, 2),
    "xor": elementwise(np.bitwise_xor, 2),
}
