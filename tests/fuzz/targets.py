"""What is fuzzed: one file of a small checkpoint folder, read through the public entry points."""

import io
import json
import logging
import re
import resource
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save

import glm_int4
from glm_int4.checkpoint.build import resident_bytes
from glm_int4.checkpoint.formats import layout
from glm_int4.checkpoint.opening import open_checkpoint
from glm_int4.errors import GLMError
from glm_int4.generation.loading import choose_device, choose_setup
from glm_int4.models.config_file import parse_config
from glm_int4.text import load_tokenizer
from glm_int4.text.tokenizer_loading import has_tokenizer
from tests.conftest import MINI, train_bpe

MAX_SECONDS, MAX_GROWTH_BYTES, MAX_MORE_ADDRESSES = 3.0, 300 << 20, 3 << 30
PACKAGE = str(Path(glm_int4.__file__).parent)
TEXT = "你好, 3加5等于几?\n\t  <sop>[gMASK] x" + "\N{GRINNING FACE}" * 3

CONFIG = {
    "architectures": ["ChatGLMModel"], "model_type": "chatglm", "position_encoding_2d": True, "num_layers": 1,
    "hidden_size": 16, "inner_hidden_size": 32, "num_attention_heads": 2, "vocab_size": 352, "layernorm_epsilon": 1e-5,
    "max_sequence_length": 64, "bos_token_id": 8, "eos_token_id": 9, "mask_token_id": 4, "gmask_token_id": 5,
    "pad_token_id": 3, "torch_dtype": "float16",
}  # fmt: skip


CONFIG_V2 = {
    "architectures": ["ChatGLMModel"], "model_type": "chatglm", "num_layers": 1, "padded_vocab_size": 416,
    "hidden_size": 16, "ffn_hidden_size": 32, "kv_channels": 8, "num_attention_heads": 2, "seq_length": 64,
    "layernorm_epsilon": 1e-5, "rmsnorm": True, "apply_residual_connection_post_layernorm": False,
    "post_layer_norm": True, "add_bias_linear": False, "add_qkv_bias": True, "multi_query_attention": True,
    "multi_query_group_num": 1, "original_rope": True, "eos_token_id": 2, "pad_token_id": 0,
    "tie_word_embeddings": False, "torch_dtype": "float16",
}  # fmt: skip


def random_tensors(raw_config):
    """Tensors that a config describes, the same on every run."""
    config = parse_config(raw_config)
    shapes = layout.vectors(config)
    for name, matrix in layout.matrices(config).items():
        shapes[f"{name}.weight"] = (matrix.out_features, matrix.in_features)
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(shape, generator=generator).half() for name, shape in shapes.items()}


def quantized(source, output, **options):
    """The files of a folder once it is quantized."""
    glm_int4.quantize_checkpoint(source, output, group_size="channel", overwrite=True, **options)
    return {path.name: path.read_bytes() for path in output.iterdir()}


def seeds(work):
    """Folders by kind of input: the name of the fuzzed file, and every file's bytes."""
    tensors = random_tensors(CONFIG)
    names = sorted(tensors)
    shards = {f"model-0000{i + 1}-of-00002.safetensors": {n: tensors[n] for n in names[i::2]} for i in range(2)}
    index = {"metadata": {}, "weight_map": {n: file for file, part in shards.items() for n in part}}
    config_file = {"config.json": json.dumps(CONFIG).encode()}
    single = config_file | {"model.safetensors": save(tensors)}
    sharded = {file: save(part) for file, part in shards.items()} | config_file
    write_folder(work / "source", single)
    packed_files = quantized(work / "source", work / "packed")
    official = quantized(work / "source", work / "official", format="official")
    shard = "model-00001-of-00001.safetensors"
    second = {"config.json": json.dumps(CONFIG_V2).encode(), "model.safetensors": save(random_tensors(CONFIG_V2))}
    second["tokenizer.model"] = train_bpe(work / "bpe.model").read_bytes()
    pieces = {
        "ice_text.model": small_tokenizer(False),
        "tokenizer_config.json": b'{"num_image_tokens": 0, "do_lower": false}',
    }
    text = single | pieces
    return {
        "config": ("config.json", text),
        "index": (
            "model.safetensors.index.json",
            sharded | {"model.safetensors.index.json": json.dumps(index).encode()},
        ),
        "safetensors": ("model.safetensors", single),
        "bin": ("pytorch_model.bin", config_file | {"pytorch_model.bin": torch_file(tensors, True)}),
        "oldbin": ("pytorch_model.bin", config_file | {"pytorch_model.bin": torch_file(tensors, False)}),
        "packed": (shard, packed_files),
        "packedconfig": ("config.json", packed_files),
        "official": (shard, official),
        "officialconfig": ("config.json", official),
        "config2": ("config.json", second),
        "safetensors2": ("model.safetensors", second),
        "tokenizer2": ("tokenizer.model", second),
        "tokenizer": ("ice_text.model", text),
        "normalizer": ("ice_text.model", text | {"ice_text.model": small_tokenizer(True)}),
        "tokenizerconfig": ("tokenizer_config.json", text),
    }


def write_folder(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)


def torch_file(tensors, as_zip):
    file = io.BytesIO()
    torch.save(tensors, file, _use_new_zipfile_serialization=as_zip)
    return file.getvalue()


def small_tokenizer(with_normalizer):
    """The mini model's tokenizer with its first pieces and the bytes; its normalizer's table has 240 KB."""
    data = (MINI / "ice_text.model").read_bytes()
    out, position, num_pieces = b"", 0, 0
    while position < len(data):
        start = position
        tag, position = varint(data, position)
        size, position = varint(data, position)
        assert tag & 7 == 2, "every top-level field of the message has a length"
        position += size
        num_pieces += tag >> 3 == 1
        is_piece, is_normalizer = tag >> 3 == 1, tag >> 3 == 3
        wanted = (
            num_pieces <= 300 or b"<0x" in data[start:position] if is_piece else with_normalizer or not is_normalizer
        )
        if wanted:
            out += data[start:position]
    return out


def varint(data, position):
    value = shift = 0
    while True:
        value |= (data[position] & 127) << shift
        shift, position = shift + 7, position + 1
        if data[position - 1] < 128:
            return value, position


def use(folder):
    """Do with a folder what commands do: open, describe, load, compute; and the same with its tokenizer."""
    if has_tokenizer(folder):
        tokenizer = load_tokenizer(folder)
        tokenizer.decode(tokenizer.encode(TEXT))
        tokenizer.decode(range(-5, 2000))
    reader, info = open_checkpoint(folder)
    resident_bytes(info, choose_setup(info, choose_device("cpu"), None))
    for name in info.stored_bytes:
        if name in reader:
            reader[name].float().sum()
    if layout.num_parameters(info.config) < 10**6:  # the fuzzed file may be a correct one of another size
        glm_int4.load(folder, device="cpu", dtype=torch.float32).logits([5, 8])


def limit_memory():
    """Let allocations fail beyond a few GB, so that a blow-up ends as an error and not as a dead machine.

    What is mapped already does not count: a CUDA build of torch takes 3 GB of addresses for itself.
    """
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MAX_MORE_ADDRESSES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)


def outcome(folder):
    """Use a folder; returns what is wrong with what happened, or None, and the kind of message that came."""
    before, started = peak_bytes(), time.process_time()
    message = "no error"
    fault = None
    try:
        use(folder)
    except GLMError as error:
        message = str(error)
        if "\n" in message or len(message) > 3000:
            fault = "the message is not one line of at most 3000 characters"
    except Exception as error:
        fault = f"{type(error).__name__} at {last_line(error.__traceback__)}"
        message = fault
    seconds, growth = time.process_time() - started, peak_bytes() - before
    if seconds > MAX_SECONDS:
        fault = fault or f"it took more than {MAX_SECONDS} s of processor time"
    if growth > MAX_GROWTH_BYTES:
        fault = fault or f"it took more than {MAX_GROWTH_BYTES} bytes of memory"
    return fault, " ".join(word for word in message.split() if re.fullmatch(r"[a-z,;:]+", word))[:100]


def last_line(trace):
    """File and line of our code that an exception passed last."""
    place = "elsewhere"
    while trace is not None:
        if trace.tb_frame.f_code.co_filename.startswith(PACKAGE):
            place = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place


def peak_bytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Lines:
    """Lines of the package that have run, through ``sys.settrace``."""

    def __init__(self):
        self.seen = set()

    def __enter__(self):
        sys.settrace(self._enter)
        return self

    def __exit__(self, *error):
        sys.settrace(None)

    def _enter(self, frame, event, argument):
        return self._line if frame.f_code.co_filename.startswith(PACKAGE) else None

    def _line(self, frame, event, argument):
        if event == "line":
            self.seen.add((frame.f_code.co_filename, frame.f_lineno))
        return self._line
