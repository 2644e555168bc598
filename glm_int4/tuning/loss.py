"""The loss of answers, and with it the gradient of what is trained: nothing else of a model has one."""

import torch
import torch.nn.functional as F
from torch import Tensor

from glm_int4.errors import InputError
from glm_int4.generation.engine import Engine
from glm_int4.generation.padded_batch import Batch
from glm_int4.models import Model
from glm_int4.models.past import Past
from glm_int4.models.prefix_encoder import PrefixEncoder, split_prefix

IGNORED = -100  # the official label of positions that are not learnt


def prefix_loss(
    engine: Engine,
    encoder: PrefixEncoder,
    input_ids: Tensor,
    labels: Tensor,
    *,
    dropout: float = 0.0,
    generator: torch.Generator | None = None,
    recompute: bool = False,
) -> Tensor:
    """The official loss: mean cross-entropy of all labels, each predicted from the position before it.

    Args:
        engine: the model, which stays as it is; a prefix that it was loaded with plays no part.
        encoder: the prefix; gradients of the loss reach its parameters alone.
        input_ids: (B, T) int64, padded on the right as officially.
        labels: (B, T), ``IGNORED`` where nothing is learnt.
        dropout: probability with which an element of the keys and values is dropped (officially 0.1).
        generator: of the dropout.
        recompute: trade time for memory: compute activations anew in the backward pass.
    Returns:
        A scalar in float32.
    Raises:
        InputError: shapes that differ, or no label.
    """
    states = encoder()
    if dropout > 0:
        kept = torch.rand(states.shape, generator=generator, device=states.device) >= dropout
        states = states * kept / (1 - dropout)
    prefix = split_prefix(states, recompute=recompute)
    return answer_loss(engine, input_ids, labels, prefix, prefix.length)


def answer_loss(engine: Engine, input_ids: Tensor, labels: Tensor, past: Past = None, prefix_length: int = 0) -> Tensor:
    """The loss of a model as it stands; arguments as of ``prefix_loss``.

    Args:
        past: what every row finds before its tokens, ``prefix_length`` columns.
    """
    input_ids, labels = torch.as_tensor(input_ids), torch.as_tensor(labels)
    if input_ids.dim() != 2 or input_ids.shape != labels.shape:
        raise InputError(
            f"expected input_ids and labels of one shape (B, T), got {tuple(input_ids.shape)} and {tuple(labels.shape)}"
        )
    rows, targets = _without_padding(engine.model, input_ids.tolist(), labels.tolist())
    if not rows:
        raise InputError(f"expected at least one label that is not {IGNORED}, got none")
    batch = Batch(engine.model, rows, engine.device, prefix_length)
    mask = batch.prefill_mask(engine.setup.stream_dtype)
    hidden = engine.model.last_hidden_state(batch.token_ids, batch.positions, mask, past)
    padded = [[IGNORED] * (batch.num_tokens - len(row)) + row for row in targets]
    expected = torch.tensor(padded, device=engine.device)[:, 1:]
    learnt = expected != IGNORED
    logits = engine.model.head(hidden[:, :-1][learnt])  # only these rows: (labels, V)
    return F.cross_entropy(logits.float(), expected[learnt])


def _without_padding(
    model: Model, input_ids: list[list[int]], labels: list[list[int]]
) -> tuple[list[list[int]], list[list[int]]]:
    """Rows that have labels, up to the last one: what follows it is seen by no position that counts."""
    rows, targets = [], []
    for ids, row_labels in zip(input_ids, labels, strict=True):
        learnt = [i for i, label in enumerate(row_labels) if label != IGNORED and i > 0]
        if learnt:
            stop = max(learnt[-1] + 1, model.context_length(ids))
            rows.append(ids[:stop])
            targets.append(row_labels[:stop])
    return rows, targets
