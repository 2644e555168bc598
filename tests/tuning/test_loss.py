"""The loss and its gradients against the official code's; what has no gradient."""

import pytest
import torch
from safetensors.torch import load_file

import glm_int4
from glm_int4.checkpoint.prefix_file import read_prefix_encoder
from glm_int4.errors import InputError
from glm_int4.models.prefix_encoder import PrefixEncoder
from glm_int4.tuning import prefix_loss
from tests.conftest import FIXTURES
from tests.tolerances import GRADIENT_RELATIVE_RMS, ORACLE_ABSOLUTE, relative_rms


@pytest.fixture(scope="module", params=["1", "2", "3"], ids=lambda v: f"v{v}")
def version(request):
    return request.param


@pytest.fixture(scope="module")
def engine(version):
    return glm_int4.load(FIXTURES / f"v{version}_tiny", device="cpu", dtype=torch.float32, model_version=version)


@pytest.fixture(scope="module")
def sample(version):
    cases = load_file(FIXTURES / f"v{version}_tiny" / "cases.safetensors")
    case = "gmask_with_answer" if version == "1" else "prompt"
    return cases[f"{case}.input_ids"], cases[f"{case}.labels"]


@pytest.fixture(params=[0, 1], ids=["embedding", "projection"])
def kind(request):
    return f"prefix_proj{request.param}"


@pytest.fixture
def encoder(engine, version, kind):
    return read_prefix_encoder(FIXTURES / f"v{version}_tiny" / f"{kind}.safetensors", engine.config).requires_grad_()


def gradients(encoder):
    return {name: parameter.grad for name, parameter in encoder.named_parameters()}


@pytest.mark.parametrize("recompute", [False, True])
def test_loss_and_gradients_are_the_official_ones(engine, encoder, version, kind, sample, recompute):
    official = load_file(FIXTURES / f"v{version}_tiny" / "prefix_grads.safetensors")
    loss = prefix_loss(engine, encoder, *sample, recompute=recompute)
    torch.testing.assert_close(loss, official[f"{kind}.loss"][0], atol=ORACLE_ABSOLUTE, rtol=0)
    loss.backward()
    for name, grad in gradients(encoder).items():
        expected = official[f"{kind}.grad.transformer.prefix_encoder.{name}"]
        assert relative_rms(grad, expected) < GRADIENT_RELATIVE_RMS, name


def test_nothing_but_the_prefix_has_a_gradient_or_changes(engine, encoder, sample):
    before = {name: tensor.clone() for name, tensor in engine.model.state_dict().items()}
    prefix_loss(engine, encoder, *sample).backward()
    torch.optim.AdamW(encoder.parameters(), lr=0.1).step()
    assert all(parameter.grad is not None for parameter in encoder.parameters())
    assert all(p.grad is None and not p.requires_grad for p in engine.model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in engine.model.state_dict().items())


def test_padding_on_the_right_changes_nothing_and_a_batch_is_the_mean_over_its_labels(engine, encoder, sample):
    ids, labels = sample
    counts = [(labels[:, 1:] != -100).sum().item(), 2]
    short = torch.where(torch.arange(labels.shape[1]) < labels.shape[1] - counts[0] + 2, labels, -100)
    losses = [prefix_loss(engine, encoder, ids, x) for x in (labels, short)]
    pad = torch.full((2, 5), engine.config.pad_token_id)
    together = prefix_loss(
        engine,
        encoder,
        torch.cat([torch.cat([ids, ids]), pad], dim=1),
        torch.cat([torch.cat([labels, short]), torch.full_like(pad, -100)], dim=1),
    )
    count = (short[:, 1:] != -100).sum().item()
    expected = (losses[0] * counts[0] + losses[1] * count) / (counts[0] + count)
    torch.testing.assert_close(together, expected, atol=ORACLE_ABSOLUTE, rtol=0)


def test_a_step_lowers_the_loss(engine, kind, sample):
    torch.manual_seed(0)
    encoder = PrefixEncoder(engine.config, 4, kind.endswith("1"))
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=2e-2)
    losses = []
    for _ in range(10):
        loss = prefix_loss(engine, encoder, *sample)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_dropout_repeats_with_its_generator(engine, encoder, sample):
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    a, b = (prefix_loss(engine, encoder, *sample, dropout=0.5, generator=g) for g in generators)
    assert a == b != prefix_loss(engine, encoder, *sample)


def test_shapes_and_labels_that_make_no_sense_are_refused(engine, encoder, sample):
    ids, labels = sample
    with pytest.raises(InputError, match="of one shape"):
        prefix_loss(engine, encoder, ids, labels[:, 1:])
    with pytest.raises(InputError, match="at least one label"):
        prefix_loss(engine, encoder, ids, torch.full_like(labels, -100))
