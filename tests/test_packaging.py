"""The wheel: what it holds, and that it works away from the repository."""

import subprocess
import sys
import zipfile

import pytest

from tests.conftest import EXAMPLES, MINI

ROOT = EXAMPLES.parent
PACKAGES = ("glm_int4", "triton_kernels")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel of a copy of the tracked files, built with the setuptools that is installed."""
    source, folder = (tmp_path_factory.mktemp(name) for name in ("source", "wheel"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", *PACKAGES):
        path = ROOT / name
        for file in [path] if path.is_file() else (f for f in path.rglob("*") if f.is_file()):
            if "__pycache__" not in file.parts:
                target = source / file.relative_to(ROOT)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(file.read_bytes())
    command = [sys.executable, "-c", "import setuptools.build_meta as b, sys; b.build_wheel(sys.argv[1])", folder]
    result = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return next(folder.glob("*.whl"))


def test_it_holds_both_packages_whole_and_nothing_else(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {
        str(file.relative_to(ROOT))
        for package in PACKAGES
        for file in (ROOT / package).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts and file.suffix != ".md"
    }
    assert names == expected
    assert {"glm_int4/py.typed", "triton_kernels/py.typed"} <= names


def test_it_names_its_licence_requirements_and_command(wheel):
    archive = zipfile.ZipFile(wheel)
    info = {name.rpartition("/")[2]: name for name in archive.namelist() if ".dist-info/" in name}
    metadata = archive.read(info["METADATA"]).decode()
    assert "LICENSE" in info
    assert "Requires-Python: >=3.11" in metadata
    assert "Requires-Dist: torch>=2.11" in metadata
    assert "Requires-Dist: triton\n" not in metadata  # torch brings its own
    assert "glm-int4 = glm_int4.cli.main:main" in archive.read(info["entry_points.txt"]).decode()


def test_it_works_away_from_the_repository(wheel, tmp_path):
    place = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(place)
    script = (
        "import sys; sys.path.insert(0, sys.argv.pop(1))\n"
        "sys.modules['numba'] = None  # in a new place, compiling its loops takes half a minute\n"
        "import glm_int4, triton_kernels\n"
        "assert all(package.__file__.startswith(sys.path[0]) for package in (glm_int4, triton_kernels))\n"
        "from glm_int4.cli.main import main; main()\n"
    )

    def run(*arguments):
        command = [sys.executable, "-P", "-c", script, place, *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    result = run("quantize", "--model", MINI, "--bits", "4", "--output", tmp_path / "int4")
    assert result.returncode == 0, result.stderr
    result = run("chat", tmp_path / "int4", "--prompt", "3加5等于几?", "--greedy")
    assert result.stdout.strip() == "8", result.stderr
