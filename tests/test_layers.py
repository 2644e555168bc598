"""The house's floors: a module imports from its own layer or a lower one (CONTRIBUTING.md)."""

import ast
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Rooms and what they may import, beside themselves.
LOW = {"triton_kernels"}
FILES = {"glm_int4.errors", "glm_int4.downloads", "glm_int4.versions", "glm_int4.system"}
QUANTIZATION = {*LOW, "glm_int4.errors", "glm_int4.system", "glm_int4.version", "glm_int4.quantization"}
MODELS = {*QUANTIZATION, *FILES, "glm_int4.models"}
TEXT = {*FILES, "glm_int4.text"}
CHECKPOINT = {*MODELS, *TEXT, "glm_int4.checkpoint"}
ADAPTERS = {*CHECKPOINT, "glm_int4.adapters"}
GENERATION = {*ADAPTERS, "glm_int4.generation"}
CONVERSION = {*ADAPTERS, "glm_int4.version", "glm_int4.conversion"}
MEASURING = {*GENERATION, *CONVERSION, "glm_int4.measuring"}
TUNING = {*GENERATION, "glm_int4.tuning"}
DIAGNOSIS = {*GENERATION, "glm_int4.version", "glm_int4.diagnosis"}
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
    "glm_int4/adapters": ADAPTERS,
    "glm_int4/generation": GENERATION,
    "glm_int4/conversion": CONVERSION,
    "glm_int4/measuring": MEASURING,
    "glm_int4/tuning": TUNING,
    "glm_int4/diagnosis": DIAGNOSIS,
    "glm_int4/server": SERVER,
    "glm_int4/hf": {*GENERATION, "glm_int4.hf"},
    "glm_int4/cli": {*TUNING, *MEASURING, *DIAGNOSIS, *SERVER, "glm_int4.cli"},
}
PRINTING_ROOMS = ("glm_int4/cli", "glm_int4/server")


def modules(room):
    path = ROOT / room
    return [path] if path.suffix == ".py" else sorted(path.rglob("*.py"))


def imports(path):
    """The modules that a file imports; ``from package import module`` imports the module, not the package."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            folder = ROOT / node.module.replace(".", "/")
            for alias in node.names:
                is_module = (folder / f"{alias.name}.py").is_file() or (folder / alias.name).is_dir()
                yield f"{node.module}.{alias.name}" if is_module else node.module


PRODUCT = modules("glm_int4") + modules("triton_kernels")


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
    for path in PRODUCT:
        assert not {name.split(".")[0] for name in imports(path)} & {"tools", "benchmarks", "tests"}, path


def test_no_files_import_each_other_in_a_circle():
    """Wherever the import stands: at the top, in a function, or for types alone."""
    paths = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in PRODUCT}
    paths = {name.removesuffix(".__init__"): path for name, path in paths.items()}
    below = {name: {other for other in imports(path) if other in paths} - {name} for name, path in paths.items()}
    below["glm_int4"] = set()  # it hands names on when they are asked for
    while free := {name for name, others in below.items() if not others & below.keys()}:
        below = {name: others for name, others in below.items() if name not in free}
    assert not below, f"these import each other: {sorted(below)}"


def test_a_files_name_tells_which_file_it_is_and_no_room_is_crowded():
    names = Counter(path.name for path in PRODUCT if path.name not in ("__init__.py", "__main__.py"))
    assert max(names.values()) == 1, names.most_common(3)
    rooms = Counter(path.parent for path in PRODUCT if path.parent.name != "triton_kernels")
    assert max(rooms.values()) <= 15, rooms.most_common(3)


def test_the_kernels_know_torch_and_triton_only():
    for path in modules("triton_kernels"):
        foreign = {name.split(".")[0] for name in imports(path)} - {"triton_kernels", "torch", "triton"}
        library = {
            "collections",
            "contextlib",
            "dataclasses",
            "functools",
            "importlib",
            "math",
            "time",
            "types",
            "typing",
        }
        assert foreign <= library, f"{path}: {foreign}"


def test_the_text_room_imports_no_torch():
    for path in modules("glm_int4/text"):
        assert "torch" not in {name.split(".")[0] for name in imports(path)}, path


def test_one_place_imports_the_kernels():
    users = {path for path in modules("glm_int4") if any(n.startswith("triton_kernels") for n in imports(path))}
    assert users == {ROOT / "glm_int4/quantization/kernels.py"}


def test_one_room_imports_transformers():
    for path in PRODUCT:
        if not path.is_relative_to(ROOT / "glm_int4" / "hf"):
            assert "transformers" not in {name.split(".")[0] for name in imports(path)}, path


def test_only_the_command_line_and_the_server_print_or_exit():
    for path in PRODUCT:
        if any(path.is_relative_to(ROOT / room) for room in PRINTING_ROOMS):
            continue
        calls = {
            node.func.id if isinstance(node.func, ast.Name) else node.func.attr
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute)
        }
        assert not calls & {"print", "exit", "_exit"}, path
