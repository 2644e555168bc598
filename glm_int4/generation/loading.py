"""``load``: from a folder or hub id to an engine, with the choices of device and precision."""

import functools
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from glm_int4.adapters.adapter_source import Adapters, check_name, find_adapters
from glm_int4.adapters.applying import adapter_bytes, apply_loras
from glm_int4.adapters.lora_tensors import Lora
from glm_int4.adapters.named_adapters import NamedAdapters, check_named, named_bytes
from glm_int4.adapters.reading import read_adapters
from glm_int4.checkpoint.build import ComputeSetup, build_model
from glm_int4.checkpoint.files.folder import read_config, resolve_folder, unfinished_in
from glm_int4.checkpoint.files.reader import CheckpointReader
from glm_int4.checkpoint.files.steady import read_steadily
from glm_int4.checkpoint.formats import layout
from glm_int4.checkpoint.opening import CheckpointInfo, open_checkpoint
from glm_int4.checkpoint.prefix_file import NO_PREFIX, SAFETENSORS_FILE, load_prefix
from glm_int4.checkpoint.tokenizer_check import load_checked_tokenizer
from glm_int4.downloads import shown
from glm_int4.errors import CheckpointError, InputError, check_whole_number
from glm_int4.generation.engine import Engine
from glm_int4.generation.gpu.probed_matrices import probed_matrices
from glm_int4.generation.gpu.warm_up import warm_up
from glm_int4.generation.memory_plan import fits, plan_memory, size_pieces
from glm_int4.models.config import Config
from glm_int4.models.past import Prefix
from glm_int4.quantization.cpu.instructions import choose_backend
from glm_int4.quantization.gpu.cuda_device import cuda_fault, has_bfloat16
from glm_int4.quantization.gpu.gpu_probe import ProbedMatrix, choose_gpu_backend, kernel_fault
from glm_int4.system import total_bytes
from glm_int4.text import Tokenizer
from glm_int4.versions import UNDECIDED

logger = logging.getLogger(__name__)

# Unquantized models compute in float32 on a CPU while that takes at most this share of the memory.
_FLOAT32_MEMORY_SHARE = 0.5


def load(
    model: str | Path,
    device: str = "auto",
    dtype: torch.dtype | None = None,
    prefix: str | Path | None = None,
    kv_bits: int = 16,
    max_length: int | None = None,
    model_version: str = "auto",
    threads: int | None = None,
    embedding_device: str = "auto",
    adapter: Adapters | None = None,
    adapters: Mapping[str, Adapters] | None = None,
) -> Engine:
    """Load a checkpoint: official half precision, or quantized by this package.

    Args:
        model: folder or hub id.
        device: "auto" (CUDA where there is one, and where its kernels run if the model is quantized), "cuda" or "cpu".
        dtype: None for the device's fast path. On a GPU torch.bfloat16 or float32 for a model that float16 is too
            narrow for: the residual stream, norms, attention and the cache are in it, quantized products in float16 of
            rows that are scaled. Otherwise what everything computes in on plain torch, float32 exactly.
        prefix: a P-Tuning v2 prefix: the folder that ptuning has written, or a ``.bin`` or
            ``.safetensors`` file. It does not count in ``max_length``. None takes one that is stored with the model,
            "none" leaves that out.
        kv_bits: of the key/value cache: 16, or 8 for half the memory.
        max_length: most tokens of a sequence; None for what the model was made for and the memory holds.
        model_version: "auto", "1", "2", "3" or "4".
        threads: CPU threads; None leaves torch's choice.
        embedding_device: where the embedding of a model on a GPU is kept: "cuda", "cpu" for the host's memory, from
            where the GPU reads the rows it needs (versions 2 to 4), or "auto": there if it does not fit otherwise.
        adapter: what peft has written: a folder or hub id, ``(folder, scale)``, or a list of these, which act together.
            LoRA stays beside the weights, a prefix counts as ``prefix``.
        adapters: LoRA by name, each as ``adapter``; ``generate`` and the like take one of the names, and then it acts
            beside ``adapter``.
    Raises:
        UserError: what is wrong with the checkpoint or the arguments, in one line.
    """
    if not isinstance(model, str | os.PathLike):
        raise InputError(f"expected a folder or a hub id as model, got {model!r}")
    if threads is not None:
        torch.set_num_threads(check_threads(threads))
    choose_device(device)  # before anything is downloaded or read
    folder, sources = resolve_folder(model), find_adapters(adapter)
    named = {name: find_adapters(each) for name, each in _checked_names(adapters).items()}

    def read() -> _Opened:
        reader, info = open_checkpoint(folder, model_version)
        _check_finished(folder, info)
        check_max_length(max_length, info.config)
        tokenizer = load_checked_tokenizer(folder, info.config)
        place = choose_device(device, probed_matrices(info) if dtype is None else ())
        setup = choose_setup(info, place, dtype, kv_bits)
        names = (str(read_config(folder).get("_name_or_path") or ""), str(model), folder.name)
        own = read_adapters(sources, info.config, setup, names)
        if own.prefix is not None and prefix not in (None, NO_PREFIX):
            raise InputError(f"expected one prefix, got {prefix} and an adapter of PREFIX_TUNING; leave one out")
        found = own.prefix or _read_prefix(folder, prefix, reader, info, setup)
        others = {}
        for name, given in named.items():
            each = read_adapters(given, info.config, setup, names)
            check_named(name, each, own.loras, info.config)
            others[name] = each.loras
        return _Opened(reader, info, tokenizer, setup, own.loras, others, found, names)

    opened = read_steadily(folder, read)
    reader, info, setup, found = opened.reader, opened.info, opened.setup, opened.prefix
    beside = adapter_bytes(opened.own, setup) + named_bytes(opened.named, opened.own, setup)
    wanted = (max_length, found.length if found else 0, beside)
    setup = place_embedding(info, setup, embedding_device, *wanted)
    setup = size_pieces(info, setup, *wanted)
    memory = plan_memory(info, setup, *wanted)
    network = build_model(reader, info, setup)
    apply_loras(network, opened.own, setup)
    chosen = NamedAdapters(network, setup, opened.own, opened.model_names)
    for name, loras in opened.named.items():
        chosen.add(name, chosen.make_parts(loras))
    logger.info("loaded %s on %s: %s linears, %s stream", folder, setup.device, setup.backend, setup.stream_dtype)
    engine = Engine(network, info, setup, opened.tokenizer, memory.max_length, found, chosen)
    warm_up(engine)
    return engine


@dataclass(frozen=True, slots=True)
class _Opened:
    """What was read of a checkpoint and its adapters before the weights are."""

    reader: CheckpointReader
    info: CheckpointInfo
    tokenizer: Tokenizer | None
    setup: ComputeSetup
    own: list[Lora]
    named: dict[str, list[Lora]]
    prefix: Prefix | None
    model_names: tuple[str, ...]


def _checked_names(adapters: Mapping[str, Adapters] | None) -> Mapping[str, Adapters]:
    """Adapters by name; raises InputError for what is none."""
    if adapters is not None and not isinstance(adapters, Mapping):
        raise InputError(f"expected adapters by name, got {shown(adapters)}; an adapter without a name is adapter=")
    for name in adapters or {}:
        check_name(name)
    return adapters or {}


def _check_finished(folder: Path, info: CheckpointInfo) -> None:
    """Say what the files do not tell; raise CheckpointError where a download that goes on may bring it."""
    unfinished = unfinished_in(folder)
    if info.version_from == UNDECIDED:
        if unfinished:
            raise CheckpointError(
                f"expected files that tell ChatGLM3 from ChatGLM2 in {folder}, got none yet{unfinished}; "
                "or say which it is with --model-version"
            )
        logger.warning("taking this for ChatGLM2: in its files there is %s", UNDECIDED)
    if unfinished:
        logger.warning("loading %s as it is now%s", folder, unfinished)


def _read_prefix(
    folder: Path, prefix: str | Path | None, reader: CheckpointReader, info: CheckpointInfo, setup: ComputeSetup
) -> Prefix | None:
    """The prefix that was asked for, or one that is stored with the model."""
    beside = folder / SAFETENSORS_FILE
    if prefix is not None:
        return None if str(prefix) == NO_PREFIX else load_prefix(prefix, info.config, setup.device, setup.prefix_dtype)
    if info.has_prefix or beside.is_file():
        source = reader if info.has_prefix else None
        found = load_prefix(folder if source else beside, info.config, setup.device, setup.prefix_dtype, source)
        logger.warning("using the P-Tuning prefix of %s columns that is stored with %s", found.length, folder)
        return found
    if trained := read_config(folder).get("pre_seq_len"):
        logger.warning("config.json has pre_seq_len %s: the prefix itself is loaded with --prefix", shown(trained))
    return None


def check_max_length(max_length: int | None, config: Config) -> None:
    """Raise InputError unless a max length is None or what a model was made for."""
    if max_length is None:
        return
    check_whole_number("max_length", max_length)
    limit = config.max_sequence_length
    if not 2 <= max_length <= limit:
        raise InputError(
            f"expected a max length from 2 to {limit} tokens, which the model was made for, got {max_length}"
        )


def check_threads(threads: int) -> int:
    """Return a number of CPU threads that makes sense, or raise InputError."""
    check_whole_number("threads", threads)
    most = 4 * (os.cpu_count() or 1)
    if not 1 <= threads <= most:
        raise InputError(f"expected from 1 to {most} threads on this machine, got {threads}")
    return threads


def choose_device(device: str, matrices: tuple[ProbedMatrix, ...] = ()) -> torch.device:
    """The torch device of "auto", "cuda" or "cpu".

    Args:
        matrices: quantized ones, for which "auto" takes a GPU only where Triton's kernels run: without them it
            dequantizes all weights for every token, which is slower than a CPU that reads them packed. What keeps them
            from it is said.
    Raises:
        InputError: another name, or CUDA where there is none that torch computes on.
    """
    if isinstance(device, str) and device.startswith("cuda:") and device != "cuda:0":
        raise InputError(f"expected the first CUDA device, got {device}; choose another with CUDA_VISIBLE_DEVICES")
    if device not in ("auto", "cuda", "cuda:0", "cpu"):
        raise InputError(f"expected the device auto, cuda or cpu, got {device!r}")
    if device == "auto":
        return torch.device("cuda" if _gpu_is_usable(matrices) else "cpu")
    if device != "cpu" and (fault := cuda_fault()):
        raise InputError(str(fault))
    return torch.device(device.partition(":")[0])


def _gpu_is_usable(matrices: tuple[ProbedMatrix, ...]) -> bool:
    """Whether "auto" takes the GPU; one that is here but of no use is named."""
    if fault := cuda_fault():
        if fault.is_here:
            _warn_once(f"the CPU computes: {fault.fault}; {fault.cure}")
        return False
    if matrices and (no_kernels := kernel_fault(torch.device("cuda"), matrices)):
        _warn_once(
            f"the CPU computes, because the GPU runs no kernels: {no_kernels}; or pass --device cuda, which "
            "dequantizes all weights for every token"
        )
        return False
    return True


@functools.cache
def _warn_once(line: str) -> None:
    logger.warning(line)


def place_embedding(
    info: CheckpointInfo,
    setup: ComputeSetup,
    device: str,
    max_length: int | None = None,
    prefix_length: int = 0,
    adapter_bytes: int = 0,
) -> ComputeSetup:
    """The setup with the embedding on "cuda", in the host's memory ("cpu"), or there if it does not fit ("auto").

    Raises:
        InputError: another device, or one where this model's embedding cannot be.
    """
    if device not in ("auto", "cuda", "cpu"):
        raise InputError(f"expected the embedding device auto, cuda or cpu, got {device!r}")
    if setup.device.type == "cpu":
        if device == "cuda":
            raise InputError(
                "expected a model on a GPU for the embedding device cuda, got one on the CPU; leave it out"
            )
        return setup
    if info.config.has_tied_head:
        if device == "cpu":
            raise InputError(
                "expected ChatGLM2-6B, ChatGLM3-6B or GLM-4-9B for the embedding device cpu, got "
                f"{info.config.model_name}, which multiplies with its embedding for every token; leave it out"
            )
        return setup
    on_host = replace(setup, host_embedding=True)
    if device == "auto":
        if fits(info, setup, max_length, prefix_length, adapter_bytes):
            return setup
        logger.info("the embedding stays in the host's memory, because memory on %s is short", setup.device)
    return setup if device == "cuda" else on_host


def choose_setup(
    info: CheckpointInfo, device: torch.device, dtype: torch.dtype | None = None, kv_bits: int = 16
) -> ComputeSetup:
    """Choose backend and dtypes.

    An explicit ``dtype`` is taken everywhere, without packed operations; but where it is wider than float16 on a GPU,
    that multiplies quantized matrices as it does without one. Before sm_80 float32 takes the place of bfloat16.

    Raises:
        InputError: another dtype, or ``kv_bits`` that are neither 16 nor 8.
    """
    if kv_bits not in (16, 8):
        raise InputError(f"expected kv_bits 16 or 8, got {kv_bits!r}")
    kv_dtype = torch.float16 if kv_bits == 16 else torch.int8
    quantized = any(info.schemes.values())
    if dtype is not None:
        if dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise InputError(f"expected dtype float32, float16, bfloat16 or None, got {dtype!r}")
        on_kernels = quantized and device.type == "cuda" and dtype != torch.float16
        stream = dtype
        if device.type == "cuda" and dtype == torch.bfloat16 and not has_bfloat16(device):
            stream = torch.float32
            logger.info("%s takes the place of %s, in which this GPU does not compute", stream, dtype)
        return ComputeSetup(
            device=device,
            backend=choose_gpu_backend(device) if on_kernels else "reference",
            dense_dtype=stream,
            stream_dtype=stream,
            kv_dtype=stream if kv_bits == 16 else kv_dtype,
            half_tables=dtype != torch.float32,
        )
    if device.type == "cuda":
        return ComputeSetup(
            device=device,
            backend=choose_gpu_backend(device, probed_matrices(info)) if quantized else "reference",
            dense_dtype=torch.float16,
            stream_dtype=torch.float16,
            kv_dtype=kv_dtype,
            half_tables=True,
        )
    fits = 4 * layout.num_parameters(info.config) <= _FLOAT32_MEMORY_SHARE * total_bytes()
    return ComputeSetup(
        device=device,
        backend=choose_backend() if quantized else "reference",
        dense_dtype=torch.float32 if fits or quantized else torch.bfloat16,
        stream_dtype=torch.float32,
        kv_dtype=kv_dtype,
        half_tables=True,
    )
