"""Fields of a request, read as they were meant: null is absent, 2048.0 is a whole number, -1 is no limit."""

import re
from collections.abc import Iterable
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ModelWrapValidatorHandler, PrivateAttr
from pydantic import model_validator as validator

IGNORED_HEADER = "X-Ignored-Fields"
_MOST_NAMED, _LONGEST_NAME = 16, 64


class Tolerant(BaseModel):
    """An object of a request. Its types are strict; what is null counts as absent.

    Attributes:
        ignored: names of its fields that nobody knows here, and of those of its parts: "part.name".
    """

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False, protected_namespaces=())
    _ignored: list[str] = PrivateAttr(default_factory=list)

    @property
    def ignored(self) -> list[str]:
        """Names of fields that have no effect."""
        return self._ignored

    @classmethod
    def names(cls) -> set[str]:
        """Names of its fields, as they are sent."""
        return {field.alias or name for name, field in cls.model_fields.items()}

    @validator(mode="wrap")
    @classmethod
    def _without_nulls(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(data, dict):
            return handler(data)
        given = {name: value for name, value in data.items() if value is not None}
        made = handler(given)
        names = [str(name) for name in given if name not in cls.names()]
        for field in cls.model_fields:
            value = getattr(made, field)
            for part in value if isinstance(value, list) else [value]:
                if isinstance(part, Tolerant):
                    names += [f"{field}.{name}" for name in part.ignored]
        made._ignored = list(dict.fromkeys(names))
        return made


def header_names(names: Iterable[str]) -> str:
    """Names as a header may hold them, whatever a client has sent."""
    tidy = (re.sub(r"[^\w.-]", "?", name[:_LONGEST_NAME], flags=re.ASCII) or "?" for name in names)
    return ", ".join(list(dict.fromkeys(tidy))[:_MOST_NAMED])


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _whole_or_none(value: Any) -> Any:
    return None if _whole(value) == -1 and not isinstance(value, bool) else _whole(value)


def _whole_or_all(value: Any) -> Any:
    return 0 if _whole(value) == -1 and not isinstance(value, bool) else _whole(value)


def _stop_texts(value: Any) -> Any:
    if isinstance(value, list):
        return [text for text in value if text not in ("", None)]
    return None if value == "" else value


_INT32, _INT64 = 2**31 - 1, 2**63 - 1

StopText = Annotated[str, Field(min_length=1, max_length=1000)]
StopTexts = Annotated[StopText | Annotated[list[StopText], Field(max_length=16)] | None, BeforeValidator(_stop_texts)]
Whole = Annotated[int, BeforeValidator(_whole)]
TokenLimit = Annotated[Annotated[int, Field(ge=1, le=_INT32)] | None, BeforeValidator(_whole_or_none)]
TokenLimitOrNone = Annotated[Annotated[int, Field(ge=0, le=_INT32)] | None, BeforeValidator(_whole_or_none)]
TopK = Annotated[Annotated[int, Field(ge=0, le=_INT32)] | None, BeforeValidator(_whole_or_all)]
Seed = Annotated[Annotated[int, Field(ge=-(2**63), le=_INT64)] | None, BeforeValidator(_whole)]
