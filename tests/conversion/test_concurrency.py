"""Several processes at one output: two quantizers, and a quantizer beside a loader."""

import json
import shutil
import subprocess
import sys

import pytest
import torch

import glm_int4
from glm_int4.checkpoint.writing import output_folder
from glm_int4.errors import OutputError, UserError
from tests.conftest import EXAMPLES, TINY

pytestmark = pytest.mark.concurrency

IDS = [3, 1, 4, 1, 5]


class Racer:
    """A process that runs one command line after another."""

    def __init__(self):
        command = [sys.executable, "-m", "tests.conversion.racing_runs"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, cwd=EXAMPLES.parent
        )
        assert self.process.stdout.readline() == "ready\n"

    def start(self, *words):
        self.process.stdin.write(json.dumps([str(word) for word in words]) + "\n")
        self.process.stdin.flush()

    def result(self):
        """Exit code, and the lines on stderr."""
        code, errors = json.loads(self.process.stdout.readline())
        return code, errors.splitlines()


@pytest.fixture(scope="module")
def racers():
    """Two processes."""
    running = [Racer(), Racer()]
    yield running
    for racer in running:
        racer.process.stdin.close()
        racer.process.wait(timeout=60)
        racer.process.stdout.close()


def quantize(output, *options):
    return ("quantize", "--model", TINY, "--output", output, "--group-size", 32, *options)


def tensors(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


@pytest.mark.parametrize("rounds", [4, pytest.param(60, marks=pytest.mark.slow(60))])
def test_of_two_quantizers_at_the_same_moment_one_wins_and_the_other_says_why_not(tmp_path, racers, rounds):
    glm_int4.quantize_checkpoint(TINY, tmp_path / "whole", group_size=32)
    expected, refusals = tensors(tmp_path / "whole"), set()
    for number in range(rounds):
        for options in ((), ("--resume",), ("--overwrite",)):
            output = tmp_path / "new" / "parents" / "out"
            for racer in racers:
                racer.start(*quantize(output, *options))
            results = sorted(racer.result() for racer in racers)
            (won, _), (lost, lines) = results
            assert won == 0, results
            if lost:
                assert lost == 2, results
                assert len(lines) == 1, results
                refusals.add("another run" if "another run that is writing it" in lines[0] else lines[0])
            else:  # it came when the first had ended
                assert options, results
            assert tensors(output) == expected, (number, options)
            assert [path.name for path in output.parent.iterdir()] == ["out"]
            glm_int4.load(output, device="cpu")
            shutil.rmtree(tmp_path / "new")
    refusals = {line for line in refusals if "which exists; pass --overwrite" not in line}
    assert refusals <= {"another run"}, refusals


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_is_refused_leaves_the_folder_that_another_has_just_made(tmp_path, monkeypatch, resume):
    real, refused = output_folder.put_back, []

    def start_another(output):
        """Between the lock of the first run and its first file."""
        monkeypatch.setattr(output_folder, "put_back", real)
        with pytest.raises(OutputError, match="another run that is writing it") as caught:
            glm_int4.quantize_checkpoint(TINY, output, group_size=32, resume=resume)
        refused.append(str(caught.value))
        real(output)

    monkeypatch.setattr(output_folder, "put_back", start_another)
    glm_int4.quantize_checkpoint(TINY, tmp_path / "a" / "out", group_size=32, resume=resume)
    assert len(refused) == 1
    glm_int4.load(tmp_path / "a" / "out", device="cpu")


def test_a_run_whose_folder_is_put_in_place_by_another_meanwhile_is_refused(tmp_path, monkeypatch):
    real = output_folder.lock_folder

    def late(folder):
        monkeypatch.setattr(output_folder, "lock_folder", real)
        glm_int4.quantize_checkpoint(TINY, tmp_path / "out", group_size=32)
        return real(folder)

    monkeypatch.setattr(output_folder, "lock_folder", late)
    with pytest.raises(OutputError, match="another run that is writing it"):
        glm_int4.quantize_checkpoint(TINY, tmp_path / "out", group_size=32)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    glm_int4.load(tmp_path / "out", device="cpu")


@pytest.mark.parametrize("rounds", [8, pytest.param(150, marks=pytest.mark.slow(60))])
def test_a_loader_beside_a_quantizer_sees_whole_models_or_one_line(tmp_path, racers, rounds):
    output, methods = tmp_path / "out", ("rtn", "hqq")
    models = []
    for method in methods:
        glm_int4.quantize_checkpoint(TINY, tmp_path / method, group_size=32, method=method)
        models.append(glm_int4.load(tmp_path / method, device="cpu").logits(IDS))
    shutil.copytree(tmp_path / "hqq", output)
    seen, faults, writer = {0: 0, 1: 0}, [], racers[0]
    for number in range(rounds):
        writer.start(*quantize(output, "--overwrite", "--method", methods[number % 2]))
        loads = 0
        while loads < 3 or not _is_new(output, methods[number % 2]):
            loads += 1
            try:
                found = glm_int4.load(output, device="cpu").logits(IDS)
            except UserError as error:
                faults.append(str(error))
                continue
            (which,) = [i for i, expected in enumerate(models) if torch.equal(found, expected)]
            seen[which] += 1
        assert writer.result() == (0, [])
    assert all(seen.values()), seen
    assert all(fault.isprintable() for fault in faults), faults


def _is_new(output, method):
    """Whether a method's model has come; also where it is being exchanged at this moment."""
    try:
        return json.loads((output / "quantization_report.json").read_bytes())["method"] == method
    except OSError:
        return False
