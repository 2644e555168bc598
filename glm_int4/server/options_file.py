"""Options of ``glm-int4 serve`` from a TOML file: a key for each, spelled as on the command line."""

import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Any

from glm_int4.downloads import found_instead, shown_name
from glm_int4.errors import InputError


def read_options(path: Path, names: Collection[str]) -> dict[str, Any]:
    """Values by the names of parameters (``max_length`` for ``--max-length``).

    Args:
        names: what there is.
    Raises:
        InputError: no TOML, an option that does not exist, or a value that no option can have.
    """
    if fault := found_instead(path):
        raise InputError(f"expected a TOML file at {path}, got {fault}")
    try:
        with path.open("rb") as file:
            given = tomllib.load(file)
    except (OSError, ValueError) as error:
        raise InputError(f"expected TOML in {path}, got something else ({error})") from error
    options = {}
    for key, value in given.items():
        name = key.replace("-", "_")
        if name not in names:
            raise InputError(f"expected options of glm-int4 serve in {path}, got {shown_name(key)}; see serve --help")
        if not isinstance(value, str | int | float | list):
            raise InputError(
                f"expected a text, a number, true or false for {key} in {path}, got a {type(value).__name__}"
            )
        options[name] = value
    return options
