"""Prompts, file names, pipes and output where the locale is not UTF-8: the bytes that were typed are what counts."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.conftest import EXAMPLES

QUESTION = "3加5等于几?"
ROOT = EXAMPLES.parent
LOCALES = ["C", "en_US.ISO-8859-1", "zh_CN.GB18030"]


@pytest.fixture(scope="session")
def locales(tmp_path_factory):
    """Environment variables for the locales, which are built where the system has none."""
    folder = tmp_path_factory.mktemp("locales")
    made = {"C"}
    for name in LOCALES:
        if name not in made and shutil.which("localedef"):
            language, encoding = name.split(".")
            command = ["localedef", "-i", language, "-f", encoding, str(folder / name)]
            if subprocess.run(command, capture_output=True).returncode <= 1 and (folder / name / "LC_CTYPE").exists():
                made.add(name)
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("LC_", "LANG", "PYTHON"))}
    fixed = {"LOCPATH": str(folder), "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT)}
    return {name: inherited | fixed | {"LC_ALL": name} for name in made}


@pytest.fixture(params=LOCALES)
def run(request, locales):
    """Run glm-int4 in a locale; words are bytes, as a shell would pass them."""
    if request.param not in locales:
        pytest.skip(f"the system cannot make the locale {request.param} (package locales)")

    def run(*words, stdin=b""):
        program = ["tools/quantize.py"] if words[0] == "tools/quantize.py" else ["-m", "glm_int4", words[0]]
        command = [word if isinstance(word, bytes) else os.fsencode(word) for word in (*program, *words[1:])]
        command.insert(0, os.fsencode(sys.executable))
        return subprocess.run(command, env=locales[request.param], input=stdin, capture_output=True, cwd=ROOT)

    return run


def test_locale_does_not_change_a_prompt(run, mini_int4):
    result = run("generate", mini_int4, "--prompt", QUESTION.encode(), "--json")
    assert result.returncode == 0, result.stderr
    assert b'"8"' in result.stdout


def test_locale_does_not_change_a_pipe_or_the_output(run, mini_int4):
    result = run("chat", mini_int4, "--greedy", stdin="法国的首都是哪里?\n".encode())
    assert result.returncode == 0, result.stderr
    assert "巴黎" in result.stdout.decode("utf-8").splitlines()


@pytest.mark.parametrize("name", ["模型".encode(), "模型".encode("gbk")])
def test_locale_does_not_hide_a_folder_whatever_its_name(run, mini_int4, tmp_path, name):
    folder = os.fsencode(tmp_path) + b"/" + name
    os.symlink(os.fsencode(mini_int4), folder)
    result = run("generate", folder, "--prompt", QUESTION.encode())
    assert result.stdout.split() == [b"8"], result.stderr


@pytest.mark.parametrize(("command", "encoding"), [("quantize", "gbk"), ("tools/quantize.py", "utf-8")])
def test_locale_does_not_change_the_folder_that_quantize_writes_and_names(run, tmp_path, command, encoding):
    name = "模型".encode(encoding)
    output = os.fsencode(tmp_path) + b"/" + name
    result = run(command, "--model", EXAMPLES / "mini-chatglm", "--output", output)
    assert result.returncode == 0, result.stderr
    assert os.listdir(os.fsencode(tmp_path)) == [name]
    assert encoding == "gbk" or output in result.stdout


def test_locale_or_not_bytes_that_are_no_utf8_are_refused_by_name(run, mini_int4):
    result = run("generate", mini_int4, "--prompt", QUESTION.encode("gbk"))
    assert result.returncode == 2
    assert result.stderr.startswith(b"error: expected a prompt in UTF-8, got other bytes")
    assert result.stderr.count(b"\n") == 1
