"""Files that no tool writes: impossible headers, bombs, odd JSON, odd names, and things that are no files."""

import errno
import json
import os
import shutil
import struct
import time
import zipfile

import pytest
import torch

import glm_int4
from glm_int4.checkpoint.opening import open_checkpoint
from glm_int4.errors import CheckpointError, ConfigError, UserError
from glm_int4.text import load_tokenizer
from tests.checkpoint.files.test_downloads import fault_of
from tests.checkpoint.files.test_reader import TENSORS
from tests.conftest import MINI


@pytest.fixture
def mini_folder(tmp_path):
    """A copy of the mini checkpoint that a test may damage."""
    return shutil.copytree(MINI, tmp_path / "mini")


def write_safetensors(path, header, data=b"", length=None):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)


def entry(start, stop, dtype="F16", shape=None):
    return {"dtype": dtype, "shape": [(stop - start) // 2] if shape is None else shape, "data_offsets": [start, stop]}


@pytest.mark.parametrize(
    ("header", "length", "message"),
    [
        ({"a": entry(0, 64)}, 2**63, "expected a safetensors header"),
        ({"a": entry(0, 64)}, 2**64 - 1, "expected a safetensors header"),
        ({"a": entry(0, 40), "b": entry(20, 64)}, None, "overlaps another, or follows a gap"),
        ({"a": entry(0, 20), "b": entry(40, 64)}, None, "tensor b overlaps another, or follows a gap"),
        ({"a": entry(0, 60)}, None, "expected .* bytes in .* got .* damaged, download it again"),
        ({"a": entry(0, 2**50)}, None, "truncated, download it again"),
        ({"a": entry(0, 64, shape=[10**4000] * 1000)}, None, "expected a safetensors header"),
        ({"a": entry(0, 64, shape=[1] * 9 + [32])}, None, "expected a safetensors header"),
        ({"a": entry(0, 64, dtype="F8_E4M3\n")}, None, "got 'F8_E4M3"),
        (b'{"a": {}, "a": {}}', None, "expected a safetensors header"),
        (b"[" * 100_000, None, "expected a safetensors header"),
    ],
)
def test_impossible_safetensors_headers_are_refused_at_once(tiny_folder, header, length, message):
    write_safetensors(tiny_folder / "model.safetensors", header, b"\0" * 64, length)
    started = time.monotonic()
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(tiny_folder)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - started < 2


def test_tensors_may_lie_in_another_order_than_their_names(tiny_folder):
    tensors = {name: t.contiguous().view(torch.uint8).flatten() for name, t in TENSORS.items()}
    offset, header = sum(len(t) for t in tensors.values()), {}
    data = b""
    for name, tensor in reversed(tensors.items()):
        data = data + tensor.numpy().tobytes()
        header = {name: entry(len(data) - len(tensor), len(data), shape=list(TENSORS[name].shape))} | header
        header[name]["dtype"] = "F16" if TENSORS[name].dtype == torch.float16 else "F32"
    assert len(data) == offset
    write_safetensors(tiny_folder / "model.safetensors", header, data)
    reader, _ = open_checkpoint(tiny_folder)
    assert all(torch.equal(reader[name], tensor) for name, tensor in TENSORS.items())


def test_a_header_of_100000_entries_is_answered_in_little_more_than_it_takes_to_parse(tiny_folder):
    header = {f"bogus.{i}": entry(8 * i, 8 * i + 8) for i in range(100_000)}
    write_safetensors(tiny_folder / "model.safetensors", header, b"\0" * 800_000)
    text, started = json.dumps(header), time.process_time()
    json.loads(text, object_pairs_hook=dict)
    parsed = time.process_time()
    with pytest.raises(CheckpointError, match=r"expected at most 50000 tensors in .* got 100000"):
        open_checkpoint(tiny_folder)
    assert time.process_time() - parsed < 3 * (parsed - started) + 0.5


def test_a_torch_file_that_would_unpack_to_much_more_is_refused(tiny_folder):
    (tiny_folder / "model.safetensors").unlink()
    with zipfile.ZipFile(tiny_folder / "pytorch_model.bin", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(100 << 20))
    assert (tiny_folder / "pytorch_model.bin").stat().st_size < 1 << 20
    assert "expected uncompressed records" in fault_of(open_checkpoint, tiny_folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": ' * 40 + "1" + "}" * 40, "nested deeper than 32 levels"),
        ("[" * 100_000, "expected JSON in"),
        ('{"num_layers": 2, "num_layers": 28}', "the key num_layers stands there twice"),
        ('{"num_layers": ' + "9" * 5000 + "}", "an integer of 5000 digits"),
        ('{"a": "' + "x" * (8 << 20) + '"}', "expected at most 8388608 bytes of JSON"),
        ("\0", "expected JSON"),
    ],
)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json", "tokenizer_config.json"])
def test_json_that_no_tool_writes_is_refused(tiny_folder, name, text, message):
    shutil.copy(MINI / "ice_text.model", tiny_folder)
    (tiny_folder / name).write_text(text)
    for name_of_single in ["model.safetensors"] if "index" in name else []:
        (tiny_folder / name_of_single).unlink()
    use = load_tokenizer if name == "tokenizer_config.json" else open_checkpoint
    with pytest.raises(UserError, match=message) as caught:
        use(tiny_folder)
    assert name in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "file",
    [
        "a\0.bin",
        "../a.bin",
        "..",
        ".",
        "",
        "/etc/passwd",
        "C:\\a.bin",
        "a/b.bin",
        "a\n.bin",
        "\ud800.bin",
        "a.txt",
        "x" * 300,
    ],
)
def test_file_names_that_are_not_plain_are_refused(tiny_folder, file):
    (tiny_folder / "model.safetensors").unlink()
    (tiny_folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": file}}))
    message = fault_of(open_checkpoint, tiny_folder)
    assert "expected names of .safetensors or .bin files in" in message
    assert message.isprintable()


def make_folder(path):
    path.mkdir()


def make_loop(path):
    path.symlink_to(path.name)


ODD_FILES = {"folder": make_folder, "loop": make_loop, "fifo": os.mkfifo}
ODD_FAULTS = {
    "folder": "got a folder",
    "loop": "got a link to nowhere",
    "fifo": "got something that is not a regular file",
}


@pytest.mark.parametrize("kind", ODD_FILES)
@pytest.mark.parametrize("name", [path.name for path in sorted(MINI.iterdir())])
def test_folders_links_and_pipes_in_place_of_files_are_named(mini_folder, name, kind):
    (mini_folder / name).unlink()
    ODD_FILES[kind](mini_folder / name)
    message = fault_of(glm_int4.load, mini_folder)
    assert name in message
    assert ODD_FAULTS[kind] in message


@pytest.mark.parametrize("name", [path.name for path in sorted(MINI.iterdir())])
def test_files_that_may_not_be_read_are_named(mini_folder, monkeypatch, name):
    real = os.stat

    def stat(path, *args, **kwargs):
        if str(path).endswith(name):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "stat", stat)
    message = fault_of(glm_int4.load, mini_folder)
    assert name in message
    assert "Permission denied; make it readable" in message


def test_a_folder_that_may_not_be_read_is_named(tiny_folder, monkeypatch):
    def glob(self, pattern):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    (tiny_folder / "model.safetensors").unlink()
    monkeypatch.setattr("pathlib.Path.glob", glob)
    assert "expected a readable folder" in fault_of(open_checkpoint, tiny_folder)


def test_the_config_is_asked_before_memory_is_taken(edit_config):
    folder = edit_config(num_layers=1000, hidden_size=2**17, inner_hidden_size=2**20, vocab_size=2**24)
    started = time.monotonic()
    assert "missing" in fault_of(glm_int4.load, folder)
    assert time.monotonic() - started < 2
    with pytest.raises(ConfigError, match="vocab_size"):
        open_checkpoint(edit_config(vocab_size=10**12))
