"""The inline assembly, run instruction by instruction in NumPy over every word and byte."""

import re

import numpy as np
import pytest

unpacking = pytest.importorskip("triton_kernels.unpacking")


def run_ptx(text, num_outputs, operand):
    """Execute mov, shr, lop3 and prmt on an array of 32-bit registers; returns the output registers."""
    registers = {f"${num_outputs}": operand}

    def value(name):
        return registers[name] if name in registers else np.uint32(int(name, 0))

    for line in text.strip().strip("{}").split(";"):
        words = re.findall(r"[^\s,]+", line)
        if not words or words[0] == ".reg":
            continue
        opcode, target, sources = words[0].split(".")[0], words[1], [value(name) for name in words[2:]]
        if opcode == "mov":
            result = sources[0]
        elif opcode == "shr":
            result = sources[0] >> sources[1]
        elif opcode == "lop3":
            result = lop3(*sources)
        elif opcode == "prmt":
            result = prmt(*sources)
        else:
            raise AssertionError(f"unknown instruction {line}")
        registers[target] = result
    return [registers[f"${i}"] for i in range(num_outputs)]


def lop3(a, b, c, table):
    """Bit i of the result is bit (a_i, b_i, c_i) of the truth table."""
    result = np.zeros_like(a)
    for index in range(8):
        if int(table) >> index & 1:
            terms = [x if index >> shift & 1 else ~x for x, shift in ((a, 2), (b, 1), (c, 0))]
            result |= terms[0] & terms[1] & terms[2]
    return result


def prmt(a, b, selector):
    """Byte i of the result is the byte of (b, a) that nibble i of the selector names."""
    both = a.astype(np.uint64) | np.uint64(b) << np.uint64(32)
    result = np.zeros_like(a)
    for i in range(4):
        byte = both >> np.uint64(8 * (int(selector) >> (4 * i) & 7)) & np.uint64(255)
        result |= byte.astype(np.uint32) << np.uint32(8 * i)
    return result


def halves(register):
    """The two fp16 numbers of every register."""
    return register.view(np.float16).reshape(-1, 2).T


def test_a_word_splits_into_its_nibbles_for_every_word():
    words = np.arange(1 << 16, dtype=np.uint32)
    other = words[::-1].copy()
    outputs = run_ptx(unpacking.SPLIT_WORDS.value, 4, words | other << np.uint32(16))
    for i, (output, offset) in enumerate(zip(outputs, (1024, 64, 1024, 64), strict=True)):
        first, second = halves(output)
        assert np.array_equal(first, (words >> (4 * i) & 15) + offset)
        assert np.array_equal(second, (other >> (4 * i) & 15) + offset)


def test_bytes_widen_for_every_pair_of_bytes():
    pairs = np.arange(1 << 16, dtype=np.uint32)
    outputs = run_ptx(unpacking.WIDEN_BYTES.value, 2, pairs | pairs[::-1] << np.uint32(16))
    for output, source in zip(outputs, (pairs, pairs[::-1]), strict=True):
        first, second = halves(output)
        assert np.array_equal(first, (source & 255) + 1024)
        assert np.array_equal(second, (source >> 8) + 1024)


def test_zero_points_are_subtracted_exactly():
    q, zero = np.meshgrid(np.arange(256), np.arange(256))
    for offset, values in ((1024, 256), (64, 16)):
        some = (q < values) & (zero < values)
        difference = (q + offset).astype(np.float16) - (zero + offset).astype(np.float16)
        assert np.array_equal(difference[some], (q - zero)[some])
