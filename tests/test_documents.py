"""What the documents name exists: files, headings, commands and their options."""

import re
import subprocess

import pytest
import typer

from glm_int4.cli.main import app
from tests.conftest import EXAMPLES
from tests.markdown_text import anchors, links, mentioned_commands

ROOT = EXAMPLES.parent
DOCUMENTS = sorted(
    path
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("triton_kernels/*.md")]
    if path.name != "CHANGELOG.md"
)
THEIRS = {
    "zero_to_fp32.py",
    "modeling_chatglm.py",
    "tokenization_chatglm.py",
    "configuration_chatglm.py",
    "main.py",
}  # official files
COMMANDS = typer.main.get_command(app).commands


def read(path):
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module", params=DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def document(request):
    return request.param


def test_no_table_is_empty(document):
    assert not re.search(r"<!-- table: \S+ -->\s*<!-- end -->", read(document))


def test_links_lead_to_files_and_headings_that_exist(document):
    for link in links(read(document)):
        if link.startswith(("https://", "http://")):
            continue
        name, _, anchor = link.partition("#")
        target = (document.parent / name).resolve() if name else document
        assert target.exists(), f"{document} links to {link}"
        if anchor:
            assert anchor in anchors(read(target)), f"{document} links to {link}"


def test_files_that_are_named_exist(document):
    places = r"(?:tools|benchmarks|examples|tests|docs)/[\w/.-]*\w\.(?:py|md|jsonl?|txt)"
    for name in re.findall(places, read(document)):
        assert "NAME" in name or (ROOT / name).exists(), f"{document} names {name}"


def test_python_files_that_documents_and_comments_name_exist():
    """By their own name, which is unique, and by as much of their path as is given."""
    ours = [
        path for room in ("glm_int4", "triton_kernels", "benchmarks", "tools") for path in (ROOT / room).rglob("*.py")
    ]
    others = [path for room in ("tests", "examples") for path in (ROOT / room).rglob("*.py")]
    files = [path.relative_to(ROOT).as_posix() for path in [ROOT / "setup.py", *ours, *others]]
    for path in [*DOCUMENTS, *ours]:
        for name in set(re.findall(r"(?<![-/\w])(?:\w+/)*\w+\.py\b", read(path))) - THEIRS:
            assert any(file == name or file.endswith(f"/{name}") for file in files), f"{path} names {name}"


def test_commands_and_options_exist(document):
    for words in mentioned_commands(read(document)):
        if words[1].startswith("-") or not words[1].isalpha() or words[1] in ("says",):
            continue
        assert words[1] in COMMANDS, f"{document}: {' '.join(words)}"
        options = {name for parameter in COMMANDS[words[1]].params for name in parameter.opts} | {"--help", "--debug"}
        unknown = {word for word in words if re.fullmatch(r"--[a-z][\w-]*", word)} - options
        assert not unknown, f"{document}: {' '.join(words)}"


def test_every_page_is_reached_from_the_readme():
    linked = {(ROOT / link.partition("#")[0]).resolve() for link in links(read(ROOT / "README.md"))}
    assert {path for path in DOCUMENTS if path.parent.name == "docs"} <= linked


def test_no_document_tells_of_a_place_on_one_machine(document):
    assert not re.search(r"/(?:home|work|root)/\w", read(document))


def test_the_makefiles_targets_are_those_that_are_named(document):
    rules = re.findall(r"^([\w -]+):(?!=)", read(ROOT / "Makefile"), re.MULTILINE)
    targets = {target for rule in rules for target in rule.split()}
    for target in re.findall(r"`make ([\w-]+)", read(document)):
        assert target in targets, f"{document}: make {target}"
    assert subprocess.run(["make", "-n", "demo"], cwd=ROOT, capture_output=True).returncode == 0
