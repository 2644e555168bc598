"""The house's floors: a module imports from its own layer or a lower one (CONTRIBUTING.md)."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Rooms and what they may import, beside themselves.
LOW = {"triton_kernels"}
FILES = {"glm_int4.errors", "glm_int4.downloads", "glm_int4.versions", "glm_int4.system"}
QUANTIZATION = {*LOW, "glm_int4.errors", "glm_int4.version", "glm_int4.quantization"}
MODELS = {*QUANTIZATION, *FILES, "glm_int4.models"}
TEXT = {*FILES, "glm_int4.text"}
CHECKPOINT = {*MODELS, *TEXT, "glm_int4.checkpoint"}
GENERATION = {*CHECKPOINT, "glm_int4.generation"}
CONVERSION = {*CHECKPOINT, "glm_int4.version", "glm_int4.conversion"}
MEASURING = {*GENERATION, *CONVERSION, "glm_int4.measuring"}
TUNING = {*GENERATION, "glm_int4.tuning"}
SERVER = {*GENERATION, "glm_int4.version", "glm_int4.server"}
ALLOWED = {
    "triton_kernels": LOW,
    "glm_int4/errors.py": set(),
    "glm_int4/downloads.py": {"glm_int4.errors"},
    "glm_int4/versions.py": set(),
    "glm_int4/system.py": {"glm_int4.errors"},
    "glm_int4/quantization": QUANTIZATION,
    "glm_int4/models": MODELS,
    "glm_int4/text": TEXT,
    "glm_int4/checkpoint": CHECKPOINT,
    "glm_int4/generation": GENERATION,
    "glm_int4/conversion": CONVERSION,
    "glm_int4/measuring": MEASURING,
    "glm_int4/tuning": TUNING,
    "glm_int4/server": SERVER,
    "glm_int4/hf": {*GENERATION, "glm_int4.hf"},
    "glm_int4/cli": {*TUNING, *MEASURING, *SERVER, "glm_int4.cli"},
}
PRINTING_ROOMS = ("glm_int4/cli", "glm_int4/server")


def modules(room):
    path = ROOT / room
    return [path] if path.suffix == ".py" else sorted(path.rglob("*.py"))


def imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from ([f"{node.module}.{a.name}" for a in node.names] if node.module == "glm_int4" else [node.module])


@pytest.mark.parametrize("room", ALLOWED)
def test_a_room_imports_from_its_own_floor_or_below(room):
    allowed = ALLOWED[room]
    for path in modules(room):
        for name in imports(path):
            if name.split(".")[0] in ("glm_int4", "triton_kernels"):
                assert any(name == a or name.startswith(f"{a}.") for a in allowed), f"{path} imports {name}"


def test_every_module_has_a_room_and_nobody_imports_the_programs():
    lobby = {"glm_int4/__init__.py", "glm_int4/__main__.py", "glm_int4/version.py"}
    housed = {path for room in ALLOWED for path in modules(room)} | {ROOT / name for name in lobby}
    assert set(modules("glm_int4")) <= housed
    for path in modules("glm_int4") + modules("triton_kernels"):
        assert not {name.split(".")[0] for name in imports(path)} & {"tools", "benchmarks", "tests"}, path


def test_the_kernels_know_torch_and_triton_only():
    for path in modules("triton_kernels"):
        foreign = {name.split(".")[0] for name in imports(path)} - {"triton_kernels", "torch", "triton"}
        assert foreign <= {"collections", "math", "dataclasses", "typing", "functools", "importlib", "types", "time"}, (
            f"{path}: {foreign}"
        )


def test_the_text_room_imports_no_torch():
    for path in modules("glm_int4/text"):
        assert "torch" not in {name.split(".")[0] for name in imports(path)}, path


def test_one_place_imports_the_kernels():
    users = {path for path in modules("glm_int4") if any(n.startswith("triton_kernels") for n in imports(path))}
    assert users == {ROOT / "glm_int4/quantization/kernels.py"}


def test_one_room_imports_transformers():
    for path in modules("glm_int4") + modules("triton_kernels"):
        if not path.is_relative_to(ROOT / "glm_int4" / "hf"):
            assert "transformers" not in {name.split(".")[0] for name in imports(path)}, path


def test_only_the_command_line_and_the_server_print_or_exit():
    for path in modules("glm_int4") + modules("triton_kernels"):
        if any(path.is_relative_to(ROOT / room) for room in PRINTING_ROOMS):
            continue
        calls = {
            node.func.id if isinstance(node.func, ast.Name) else node.func.attr
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute)
        }
        assert not calls & {"print", "exit", "_exit"}, path
