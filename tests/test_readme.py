"""The README's tables are what the results say, and what it shows runs."""

import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest

import glm_int4
from tests.conftest import EXAMPLES, MINI
from tests.markdown_text import code, commands, headings, links, tables

ROOT = EXAMPLES.parent
README, CHINESE = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh.md"))

# Commands that are not run here: they download, install, wait for a user or serve until they are stopped.
ELSEWHERE = (
    ["make"],
    ["pip"],
    ["python3", "-m", "venv"],
    ["python", "tools/quantize.py", "--bits", "4"],
    ["glm-int4", "chat", "chatglm-6b-int4"],
    ["glm-int4", "serve"],
    ["curl"],
)
# Python that talks to a running server is run by the server's tests.
NEEDS_SERVER = ("OpenAI(", "openai_client")
STEPS = ("--max-steps", "2")  # instead of the hundreds that learn something


def test_the_tables_are_generated_from_the_committed_results():
    result = subprocess.run([sys.executable, "-m", "benchmarks.report.tables", "--check"], cwd=ROOT)
    assert result.returncode == 0, "run python -m benchmarks.report.tables"


def test_both_readmes_have_the_same_sections_commands_code_tables_and_links():
    assert [level for level, _ in headings(CHINESE)] == [level for level, _ in headings(README)]
    assert commands(CHINESE) == commands(README)
    assert code(CHINESE, "python") == code(README, "python")
    assert tables(CHINESE) == tables(README)
    elsewhere, chinese_elsewhere = ({link for link in links(text) if link[0] != "#"} for text in (README, CHINESE))
    assert sorted(chinese_elsewhere - {"README.md"}) == sorted(elsewhere - {"README.zh.md"})
    rows, chinese_rows = (re.findall(r"^\| `(glm-int4 [^`]+)`", text, re.MULTILINE) for text in (README, CHINESE))
    assert chinese_rows == rows


def test_the_chinese_readme_is_in_chinese():
    text = re.sub(r"```.*?```|`[^`]*`|\]\([^)]*\)", "", CHINESE, flags=re.DOTALL)
    sentences = re.findall(r"[a-z]{2,} [a-z]{2,} [a-z]{2,}", text)
    assert not sentences, "translate these: text by hand, tables in benchmarks/report/texts.py"


def is_elsewhere(words):
    return any(words[: len(begin)] == begin for begin in ELSEWHERE)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder that looks like the repository to a command that reads from it."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("tools", "benchmarks"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "examples").mkdir()
    for path in (ROOT / "examples").iterdir():
        (folder / "examples" / path.name).symlink_to(path)
    shorten(folder / "examples" / "heldout.txt")
    shorten(folder / "examples" / "train_sample.txt", 100)
    return folder


def shorten(file, num_lines=16):
    """Keep the first lines of a text: they take the same way as all of them."""
    lines = file.read_text(encoding="utf-8").splitlines()[:num_lines]
    file.unlink()
    file.write_text("\n".join(lines), encoding="utf-8")


def run(words, place):
    if "--max-steps" in words:
        index = words.index("--max-steps")
        words = [*words[:index], *STEPS, *words[index + 2 :]]
    programs = {"python": [sys.executable], "glm-int4": [sys.executable, "-m", "glm_int4"]}
    assert words[0] in programs, f"the README shows {words}: run it here, or name it in ELSEWHERE"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [*programs[words[0]], *words[1:]]
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)


@pytest.mark.slow(36)
def test_the_commands_run_in_the_order_in_which_they_stand(place):
    pytest.importorskip("jieba", reason="needs the extra ptune: pip install -e '.[ptune]'")
    shown = [words for words in commands(README) if not is_elsewhere(words)]
    assert len(shown) >= 4
    for words in shown:
        result = run(words, place)
        assert result.returncode == 0, f"{words}: {result.stderr}"
        for file in place.glob("data/*.jsonl"):
            shorten(file)
    assert result.stdout.strip()


def test_the_python_runs(tmp_path, monkeypatch, small_checkpoints, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(MINI, tmp_path / "mini")
    question = [{"role": "user", "content": "你好"}]
    names = {"messages": question}
    for block in code(README, "python"):
        if any(mark in block for mark in NEEDS_SERVER):
            continue
        needs_version_3 = "tools=" in block
        if needs_version_3:
            names, before = {"glm": glm_int4.load(small_checkpoints["3"]), "messages": [*question]}, names
        exec(block.replace("zai-org/chatglm-6b", "mini"), names)
        if needs_version_3:
            names = before
    assert capsys.readouterr().out.strip()


@pytest.mark.slow(15)
def test_the_demo_of_the_makefile_prints_the_table_that_the_readme_shows(place):
    """Sizes and names in full; perplexity and accuracy are those of fewer lines here."""
    assert ["make", "demo"] in commands(README)
    shorten(place / "examples" / "heldout.jsonl")
    plan = subprocess.run(["make", "-n", "demo", f"DEMO={place}"], cwd=ROOT, capture_output=True, text=True).stdout
    lines = [line for line in plan.replace("\\\n", " ").splitlines() if " tools/" in line]
    for line in lines:
        printed = run(["python", *shlex.split(line)[1:]], place)
        assert printed.returncode == 0, printed.stderr
    asked = re.search(r"--ask \"(.+?)\"", lines[-1])[1]
    assert f"is asked {asked} and answers 8" in " ".join(printed.stdout.split())
    header, *rows = (re.split(r" {2,}", line.strip()) for line in printed.stdout.splitlines() if "  " in line)
    shown, _, *shown_rows = ([cell.strip() for cell in row.strip("| ").split("|")] for row in mini_table())
    assert [name.replace("/weight", " per weight") for name in header] == shown
    assert [row[:3] for row in rows] == [row[:3] for row in shown_rows]


def mini_table():
    return re.search(r"<!-- table: mini -->\n((?:\|.*\n)+)", README)[1].splitlines()
