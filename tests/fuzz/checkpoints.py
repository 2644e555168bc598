"""One file of a small checkpoint folder, read through the public entry points."""

import io
import json

import torch
from safetensors.torch import save

import glm_int4
from glm_int4.checkpoint.build import resident_bytes
from glm_int4.checkpoint.formats import layout
from glm_int4.checkpoint.opening import open_checkpoint
from glm_int4.generation.loading import choose_device, choose_setup
from glm_int4.text import load_tokenizer
from glm_int4.text.tokenizer_loading import has_tokenizer
from tests.fuzz.mutations import Kind
from tests.fuzz.small_models import CONFIG, CONFIG_V2, bpe_tokenizer, random_tensors, small_tokenizer, write_folder

TEXT = "你好, 3加5等于几?\n\t  <sop>[gMASK] x" + "\N{GRINNING FACE}" * 3
WORDS = (
    "chatglm", "F16", "I64", "F8_E4M3", "model-00001-of-00002.safetensors", "config.json", "pack-quantized", "channel",
    "lm_head.weight", "__metadata__", "quantization_config",
)  # fmt: skip


class Target:
    """Opening, describing, loading and computing with a folder of which one file is the input."""

    def __init__(self, work):
        self._files, self._folder = {}, work
        self.kinds = {}
        for kind, (name, files) in folders(work / "made").items():
            self._files[kind] = name
            self.kinds[kind] = Kind(format=_format(kind, name), seeds=(files[name],), words=WORDS)
            write_folder(work / kind, files)

    def use(self, kind, data):
        folder = self._folder / kind
        (folder / self._files[kind]).write_bytes(data)
        use_folder(folder)


def _format(kind, name):
    if kind == "bin":
        return "archive"
    return {"json": "json", "safetensors": "safetensors"}.get(name.rpartition(".")[2], "bytes")


def quantized(source, output, **options):
    """The files of a folder once it is quantized."""
    glm_int4.quantize_checkpoint(source, output, group_size="channel", overwrite=True, **options)
    return {path.name: path.read_bytes() for path in output.iterdir()}


def folders(work):
    """By kind of input: the name of the fuzzed file, and every file's bytes."""
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
    second["tokenizer.model"] = bpe_tokenizer(work)
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


def torch_file(tensors, as_zip):
    file = io.BytesIO()
    torch.save(tensors, file, _use_new_zipfile_serialization=as_zip)
    return file.getvalue()


def use_folder(folder):
    """Do with a folder what commands do: open, describe, load, compute; and the same with its tokenizer."""
    if has_tokenizer(folder, "2"):
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
