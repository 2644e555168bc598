"""PTX text, as Triton's compiler writes it, as a list of instructions."""

import re
from dataclasses import dataclass

_PARAMETER = re.compile(r"\.param\s+\.(\w+).*?(\w+_param_\d+)")
_REGISTERS = re.compile(r"\.reg\s+\.(\w+)\s+(.*)")
_STATEMENT = re.compile(r"(?:@(!?)(\S+)\s+)?([a-z]\w*(?:\.[\w:]+)*)\s*(.*)")
_OPERAND = re.compile(r"\{[^}]*\}|\[[^]]*\]|[^,\s]+")


@dataclass(frozen=True, slots=True)
class Address:
    """``[register + offset]``, or the name of a parameter."""

    base: str
    offset: int


Operand = str | int | Address | tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Instruction:
    """``@guard name.modifiers operands``, with the line of its text."""

    name: str
    modifiers: tuple[str, ...]
    operands: tuple[Operand, ...]
    guard: str | None
    negated: bool
    text: str


@dataclass(frozen=True, slots=True)
class Program:
    """One kernel. registers: type by name, ``%r`` for all of ``%r<9>``; labels: the instruction behind each."""

    parameters: tuple[tuple[str, str], ...]
    num_threads: int
    registers: dict[str, str]
    instructions: tuple[Instruction, ...]
    labels: dict[str, int]

    def register_type(self, name: str) -> str:
        """b16, b32, b64 or pred."""
        return self.registers[name] if name in self.registers else self.registers[name.rstrip("0123456789")]


def parse(text: str) -> Program:
    """The one kernel of a PTX module.

    Raises:
        ValueError: a line that is no statement.
    """
    text = re.sub(r"//.*", "", text)
    header, body = text[text.index(".entry") :].split("\n{", 1)
    size = re.search(r"\.(?:req|max)ntid\s+(\d+)", header)
    if size is None:
        raise ValueError("expected a kernel that says how many threads a block has")
    registers: dict[str, str] = {}
    labels: dict[str, int] = {}
    instructions: list[Instruction] = []
    for line in body.partition("$L__func_end0:")[0].splitlines():
        line = line.strip()
        if line in ("", "{", "}"):
            continue
        if line.endswith(":"):
            labels[line[:-1]] = len(instructions)
        elif match := _REGISTERS.match(line):
            for name in match[2].rstrip(";").split(","):
                registers[re.sub(r"<\d+>", "", name.strip())] = match[1]
        elif not line.startswith("."):
            instructions.append(_instruction(line))
    return Program(
        parameters=tuple((m[2], m[1]) for m in _PARAMETER.finditer(header)),
        num_threads=int(size[1]),
        registers=registers,
        instructions=tuple(instructions),
        labels=labels,
    )


def _instruction(line: str) -> Instruction:
    match = _STATEMENT.fullmatch(line[:-1].strip())
    if match is None or line.find(";") != len(line) - 1:
        raise ValueError(f"expected a statement of PTX, got {line!r}")
    name, *modifiers = match[3].split(".")
    operands = tuple(_operand(text) for text in _OPERAND.findall(match[4]))
    return Instruction(name, tuple(modifiers), operands, match[2], match[1] == "!", line)


def _operand(text: str) -> Operand:
    if text.startswith("{"):
        return tuple(_value(part.strip()) for part in text[1:-1].split(","))
    if text.startswith("["):
        base, _, offset = text[1:-1].partition("+")
        return Address(base.strip(), int(offset or 0))
    return _value(text)


def _value(text: str) -> str | int:
    """A register, or an integer; floats, written as the hexadecimal digits of their bits, become that integer."""
    if re.fullmatch(r"0f[0-9A-Fa-f]{8}", text):
        return int(text[2:], 16)
    if re.fullmatch(r"-?(0x[0-9A-Fa-f]+|\d+)U?", text):
        return int(text.rstrip("U"), 0)
    return text
