"""What a fault is: something found, what follows from it, and the cure."""

from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """check: the part of the report that it belongs to. is_note: whether everything works all the same."""

    check: str
    fault: str
    consequence: str
    cure: str
    is_note: bool = False

    def line(self) -> str:
        """All of it for people."""
        return f"{self.fault}, so {self.consequence}; {self.cure}"

    def to_json(self) -> dict[str, str]:
        """All of it for programs; faults and notes stand in lists of their own."""
        return {key: value for key, value in asdict(self).items() if key != "is_note"}


def first_line(error: BaseException) -> str:
    """An exception in one line."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
