"""From packed integers to fp16 in registers: the helpers that all kernels share.

An integer q becomes the fp16 number C + q by writing its bits under the exponent of C, with no conversion.
Two 16-bit words sit in a register, and one ``lop3`` takes the same nibble of both as a pair of fp16 numbers.
The plain variant computes the same numbers for the interpreter, which runs no assembly.
"""

import triton
import triton.language as tl

# (word & mask) | exponent: nibble 0 under 1024, nibble 1, which stands four bits higher, under 64.
SPLIT_WORDS = tl.constexpr("""{
    .reg .b32 low, high;
    mov.b32 low, $4;
    shr.b32 high, low, 8;
    lop3.b32 $0, low, 0x000F000F, 0x64006400, 0xEA;
    lop3.b32 $1, low, 0x00F000F0, 0x54005400, 0xEA;
    lop3.b32 $2, high, 0x000F000F, 0x64006400, 0xEA;
    lop3.b32 $3, high, 0x00F000F0, 0x54005400, 0xEA;
}""")
# Every byte gets 0x64 above it, which makes it 1024 + byte.
WIDEN_BYTES = tl.constexpr("""{
    .reg .b32 bytes;
    mov.b32 bytes, $2;
    prmt.b32 $0, bytes, 0x64646464, 0x4140;
    prmt.b32 $1, bytes, 0x64646464, 0x4342;
}""")


@triton.jit
def split_words(words, USE_ASM: tl.constexpr):
    """The nibbles 0 to 3 of int16 words as four fp16 tensors: 1024, 64, 1024 and 64 + nibble."""
    if USE_ASM:
        return tl.inline_asm_elementwise(
            SPLIT_WORDS,
            "=r,=r,=r,=r,r",
            [words],
            dtype=(tl.float16, tl.float16, tl.float16, tl.float16),
            is_pure=True,
            pack=2,
        )
    else:
        return (
            (words & 15).to(tl.float16) + 1024,
            ((words >> 4) & 15).to(tl.float16) + 64,
            ((words >> 8) & 15).to(tl.float16) + 1024,
            ((words >> 12) & 15).to(tl.float16) + 64,
        )


@triton.jit
def widen_bytes(values, USE_ASM: tl.constexpr):
    """Unsigned bytes as fp16: byte + 1024."""
    if USE_ASM:
        return tl.inline_asm_elementwise(WIDEN_BYTES, "=r,=r,r", [values], dtype=tl.float16, is_pure=True, pack=4)
    else:
        return values.to(tl.float16) + 1024
