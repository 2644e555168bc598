"""Reads the machine code of a kernel: how long its loop is, and what the operands of a product meet.

The loop is found in the code itself, since a disassembler takes as long as the compiler. What instructions do is read
as ``cuobjdump -sass`` prints it.
"""

import re
import struct
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

_LINE = re.compile(
    r"\s+/\*(?P<address>[0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?(?P<opcode>[A-Z][\w.]*)\s*(?P<operands>[^;]*);"
)
_BRANCH = re.compile(r"0x([0-9a-f]+)")
_REGISTER = re.compile(r"R(\d+)\b")
# Registers that hold a thread's part of the left operand of a product of fp16, 64 rows by 16 columns by 128 threads.
_LEFT_REGISTERS = 4
# What writes more than one register for each operand that it names.
_WIDTHS = (
    (re.compile(r"\.(128|M88\.4)\b|^HMMA\.16816\.F32"), 4),
    (re.compile(r"\.(64|M88\.2|WIDE)\b|^CS2R$|^HMMA\.\d+\.F16"), 2),
)


# Instructions have 16 bytes; the lowest 12 bits are the operation.
_SIZE, _BRA = 16, 0x947


def loop_length(cubin: bytes, architecture: int) -> int:
    """Instructions of the longest stretch that a branch goes back over, with that branch; see ``longest_loop``."""
    branches = (low for (low,) in struct.iter_unpack("<Q8x", _code(cubin)) if low & 0xFFF == _BRA)
    return max((-_branch_offset(low, architecture) for low in branches), default=0)


def _branch_offset(low: int, architecture: int) -> int:
    """How many instructions a branch goes on from the one behind it; ``low`` is the lower half of its bits."""
    if architecture < 90:  # in bytes
        return _signed(low >> 32, 32) // _SIZE
    return _signed(low >> 34, 30) << 6 | low >> 18 & 0x3F


def _signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> (bits - 1) else value


def _code(cubin: bytes) -> bytes:
    """The kernel of an ELF file: its section ``.text.NAME``."""
    (table,) = struct.unpack_from("<Q", cubin, 40)
    _, count, names = struct.unpack_from("<HHH", cubin, 58)
    sections = [struct.unpack_from("<I20xQQ", cubin, table + 64 * i) for i in range(count)]
    for name, offset, size in sections:
        if cubin.startswith(b".text.", sections[names][1] + name):
            return cubin[offset : offset + size]
    raise ValueError("expected a cubin with a section .text, got none")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction without its predicate."""

    address: int
    opcode: str
    operands: str

    @property
    def target(self) -> int | None:
        """Where a branch goes."""
        found = _BRANCH.search(self.operands) if self.opcode.split(".")[0] == "BRA" else None
        return int(found[1], 16) if found else None

    @property
    def written(self) -> range:
        """The registers that it writes; those of a product that is waited for later are left out."""
        first = self.operands.split(",")[0].strip()
        if self.opcode.startswith("SHFL"):  # a predicate comes first
            first = self.operands.split(",")[1].strip()
        match = _REGISTER.match(first)
        if match is None or self.opcode.startswith("HGMMA"):
            return range(0)
        width = next((number for pattern, number in _WIDTHS if pattern.search(self.opcode)), 1)
        return range(int(match[1]), int(match[1]) + width)


def instructions(code: str) -> list[Instruction]:
    """All instructions of a kernel by rising address."""
    found = (_LINE.match(line) for line in code.splitlines())
    return [Instruction(int(m["address"], 16), m["opcode"], m["operands"]) for m in found if m]


def longest_loop(kernel: list[Instruction]) -> list[Instruction]:
    """The longest stretch that a branch goes back over, with that branch."""
    longest: list[Instruction] = []
    for i, instruction in enumerate(kernel):
        target = instruction.target
        if target is not None and target < instruction.address:
            stretch = [each for each in kernel[: i + 1] if each.address >= target]
            longest = max(longest, stretch, key=len)
    return longest


def overwritten_operands(kernel: list[Instruction]) -> list[str]:
    """Registers that a product begun on sm_90 (``HGMMA``) reads still when something else writes to them.

    Such a product reads its left operand some time before ``WARPGROUP.DEPBAR`` has waited for it; the compiler of PTX
    has been seen to take its registers anew before (triton-lang/triton issue 9433). The longest loop is walked twice.
    """
    faults: list[str] = []
    begun: list[tuple[int, range]] = []
    groups: deque[list[tuple[int, range]]] = deque()
    for instruction in _walk(kernel):
        for address, operand in (*begun, *(each for group in groups for each in group)):
            if set(operand) & set(instruction.written):
                fault = f"{instruction.opcode} at {instruction.address:x} writes to an operand of HGMMA at {address:x}"
                faults += [fault] if fault not in faults else []
        if instruction.opcode.startswith("HGMMA"):
            left = _REGISTER.match(instruction.operands.split(",")[1].strip())
            if left:
                begun.append((instruction.address, range(int(left[1]), int(left[1]) + _LEFT_REGISTERS)))
            if "gsb0" in instruction.operands:
                groups.append(begun)
                begun = []
        elif instruction.opcode.startswith("WARPGROUP.DEPBAR"):
            most = int(instruction.operands.split(",")[1], 16)
            while len(groups) > most:
                groups.popleft()
    return faults


def _walk(kernel: list[Instruction]) -> Iterator[Instruction]:
    """The instructions in their order, those of the longest loop once more behind it."""
    loop = longest_loop(kernel)
    last = loop[-1].address if loop else -1
    for instruction in kernel:
        yield instruction
        if instruction.address == last:
            yield from loop
