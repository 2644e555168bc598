"""Fixtures that several rooms share."""

import base64
import hashlib
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import sentencepiece
import torch
from safetensors.torch import load_file, save_file

import glm_int4
from glm_int4.text.byte_pairs import name_of
from glm_int4.text.sample_text import SAMPLE_TEXT

try:
    import hypothesis
except ImportError:  # a machine with a GPU, for the tests of the kernels
    pass
else:
    hypothesis.settings.register_profile("any machine", deadline=None)  # a busy one takes its time
    hypothesis.settings.load_profile("any machine")

TESTS = Path(__file__).parent
FIXTURES = TESTS / "fixtures"
TINY = FIXTURES / "v1_tiny"
EXAMPLES = TESTS.parent / "examples"
MINI = EXAMPLES / "mini-chatglm"
WORDS = "你好 世界 晚上 睡不着 应该 怎么办 Hello world the weather track tool call python symbol price 12 345"

# Files that take half a minute or more: begun first, so that no process is left alone with one in the end.
LONG = (
    "test_emulator.py",
    "test_interpreter.py",
    "test_commands.py",
    "test_doctor.py",
    "test_chat_terminal.py",
    "test_versions.py",
    "test_ptune.py",
    "test_finetune.py",
    "test_calibrated.py",
    "test_training.py",
    "test_killed_runs.py",
    "test_readme.py",
    "test_corpus.py",
)


SMALL = {"padded_vocab_size": 512, "hidden_size": 128, "ffn_hidden_size": 384, "kv_channels": 32, "seq_length": 256}


def pytest_addoption(parser):
    parser.addoption("--sample-of", metavar="COMMIT", help="of the slow tests, some that this commit's hash chooses")
    parser.addoption("--sample-seconds", type=float, default=180, help="how long they may take, by their marks")


def pytest_configure():
    """Programs under test heed signals though ``nohup`` or ``&`` has pytest ignore them: handlers are not inherited."""
    for number in (signal.SIGINT, getattr(signal, "SIGHUP", signal.SIGINT)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else lambda *_: None)


def pytest_collection_modifyitems(config, items):
    items.sort(key=lambda item: item.path.name not in LONG)
    if commit := config.getoption("--sample-of"):
        chosen = choose_sample(items, commit, config.getoption("--sample-seconds"))
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = [item for item in items if item in chosen]


def choose_sample(items, commit, seconds):
    """Slow tests in an order that every commit shuffles anew, as long as they fit into the time."""
    slow = {item: item.get_closest_marker("slow").args[0] for item in items if item.get_closest_marker("slow")}
    chosen = set()
    for item in sorted(slow, key=lambda item: hashlib.sha256(f"{commit} {item.nodeid}".encode()).digest()):
        if slow[item] <= seconds:
            seconds -= slow[item]
            chosen.add(item)
    return chosen


@pytest.fixture(scope="session")
def cases():
    """Inputs and outputs of the official code on the tiny model."""
    return load_file(TINY / "cases.safetensors")


@pytest.fixture(scope="session")
def tiny():
    """The tiny model on the exact path."""
    return glm_int4.load(TINY, device="cpu", dtype=torch.float32)


@pytest.fixture(scope="session")
def mini():
    """The mini model on the exact path."""
    return glm_int4.load(MINI, device="cpu", dtype=torch.float32)


@pytest.fixture(scope="session")
def mini_int4(tmp_path_factory):
    """Folder of the mini model in INT4."""
    folder = tmp_path_factory.mktemp("mini") / "int4"
    glm_int4.quantize_checkpoint(MINI, folder, bits=4)
    return folder


@pytest.fixture
def tiny_folder(tmp_path):
    """A copy of the tiny checkpoint that a test may damage."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(TINY / name, folder / name)
    return folder


@pytest.fixture
def edit_config(tiny_folder):
    """Change keys of the copy's config; None removes a key."""

    def edit(**changes):
        path = tiny_folder / "config.json"
        config = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
        return tiny_folder

    return edit


@pytest.fixture
def edit_tensors(tiny_folder):
    """Apply a function to the copy's tensors, in place."""

    def edit(change):
        path = tiny_folder / "model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file({k: v.contiguous() for k, v in tensors.items()}, path)
        return tiny_folder

    return edit


@pytest.fixture(scope="session")
def official_tokenizers():
    """Folder of the official tokenizer models, which this repository does not ship."""
    places = [os.environ.get("GLM_INT4_TOKENIZERS"), TESTS.parent.parent / "shared" / "tokenizers"]
    for place in places:
        if place and (Path(place) / "v1" / "ice_text.model").is_file():
            return Path(place)
    pytest.skip("needs the official tokenizer models: set GLM_INT4_TOKENIZERS to a folder with v1/ice_text.model")


@pytest.fixture(scope="session")
def official_glm4(official_tokenizers):
    """GLM-4's ``tokenizer.model``."""
    path = official_tokenizers / "glm4" / "tokenizer.model"
    if not path.is_file():
        pytest.skip("needs GLM-4's tokenizer model: put glm4/tokenizer.model into the folder of GLM_INT4_TOKENIZERS")
    return path


def train_ranks(path, size=400):
    """Write a file of lines of tokens and ranks, as GLM-4's: every byte, then pairs of a few words."""
    import tokenizers

    trained = tokenizers.Tokenizer(tokenizers.models.BPE())
    trained.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator([WORDS] * 4 + SAMPLE_TEXT.splitlines(), trainer)
    by_name = {name_of(bytes([byte])): bytes([byte]) for byte in range(256)}
    names = sorted(trained.get_vocab(), key=trained.get_vocab().__getitem__)
    tokens = [b"".join(map(by_name.__getitem__, name)) for name in names]
    path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens)))
    return path


@pytest.fixture(scope="session")
def small_ranks(tmp_path_factory):
    """A file of 400 tokens and their ranks, trained on the spot."""
    return train_ranks(tmp_path_factory.mktemp("ranks") / "tokenizer.model")


def train_bpe(path, **changes):
    """Train a BPE model of 400 pieces with the official settings, or some changed."""
    text = [" ".join(WORDS.split()[i:] + WORDS.split()[:i]) for i in range(16)]
    settings = dict(
        model_type="bpe",
        vocab_size=400,
        character_coverage=1.0,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
    )
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text * 4), model_prefix=str(path.with_suffix("")), **settings | changes
    )
    return path


@pytest.fixture(scope="session")
def small_bpe(tmp_path_factory):
    """A BPE model of 400 pieces, trained on the spot."""
    return train_bpe(tmp_path_factory.mktemp("bpe") / "tokenizer.model")


def random_tensors(raw, dtype):
    """Random tensors of the checkpoint that a config describes."""
    from glm_int4.checkpoint.formats import layout
    from glm_int4.models.config_file import parse_config

    generator, config = torch.Generator().manual_seed(0), parse_config(raw)
    shapes = layout.vectors(config) | {
        f"{m.name}.weight": (m.out_features, m.in_features) for m in layout.matrices(config).values()
    }
    return {name: torch.randn(shape, generator=generator).mul(0.3).to(dtype) for name, shape in shapes.items()}


@pytest.fixture(scope="session")
def small_checkpoints(tmp_path_factory, small_bpe):
    """Random ChatGLM2 and ChatGLM3 checkpoints by version, with a tokenizer of their own."""
    raw = json.loads((FIXTURES / "v2_tiny" / "config.json").read_text()) | SMALL
    tensors = random_tensors(raw, torch.float16)
    folders = {}
    for version in ("2", "3"):
        folder = folders[version] = tmp_path_factory.mktemp(f"small-v{version}")
        named = raw | {"_name_or_path": f"chatglm{version}-6b-small"}
        (folder / "config.json").write_text(json.dumps(named))
        save_file(tensors, folder / "model.safetensors")
        shutil.copy(small_bpe, folder / "tokenizer.model")
    return folders


@pytest.fixture(scope="session")
def small_glm4(tmp_path_factory, small_ranks):
    """Folder of a random GLM-4 with room for the definitions of tools, and with a tokenizer of its own."""
    folder = tmp_path_factory.mktemp("small-v4")
    raw = json.loads((FIXTURES / "glm4_tiny" / "config.json").read_text()) | SMALL
    raw |= {"seq_length": 4096, "eos_token_id": [400, 407, 409], "pad_token_id": 400}
    (folder / "config.json").write_text(json.dumps(raw))
    save_file(random_tensors(raw, torch.bfloat16), folder / "model.safetensors")
    shutil.copy(small_ranks, folder / "tokenizer.model")
    return folder


@pytest.fixture(scope="session")
def v2_engine(small_checkpoints):
    """A small random ChatGLM2, whose answers go on until a limit."""
    return glm_int4.load(small_checkpoints["2"], device="cpu")


@pytest.fixture(scope="session")
def v3_engine(small_checkpoints, tmp_path_factory):
    """A small random ChatGLM3 with room for the definitions of tools."""
    folder = tmp_path_factory.mktemp("v3") / "long"
    shutil.copytree(small_checkpoints["3"], folder)
    config = json.loads((folder / "config.json").read_text()) | {"seq_length": 2048}
    (folder / "config.json").write_text(json.dumps(config))
    return glm_int4.load(folder, device="cpu")


@pytest.fixture(scope="session")
def v4_engine(small_glm4):
    """A small random GLM-4."""
    return glm_int4.load(small_glm4, device="cpu")
