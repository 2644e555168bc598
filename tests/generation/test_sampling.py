"""Sampling: order and meaning of its steps."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from glm_int4.errors import InputError, NotFiniteError
from glm_int4.generation import sampling
from glm_int4.generation.sampling import Sampler, SamplingParams

LOGITS = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]]))
OPEN = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}


def probabilities(**params):
    return Sampler(SamplingParams(**(OPEN | params)), "1").probabilities(LOGITS)[0]


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({}, [0.5, 0.3, 0.15, 0.05]),
        ({"top_k": 2}, [0.625, 0.375, 0, 0]),
        ({"top_p": 0.5}, [1, 0, 0, 0]),
        ({"top_p": 0.51}, [0.625, 0.375, 0, 0]),
        ({"top_p": 0.01}, [1, 0, 0, 0]),
        ({"temperature": 0.5}, [0.6849, 0.2466, 0.0616, 0.0068]),
        # Temperature comes before top-p: sharpened, the first token alone has more than 0.6.
        ({"temperature": 0.5, "top_p": 0.6}, [1, 0, 0, 0]),
        ({"min_p": 0.5}, [0.5, 0.3, 0, 0]),
    ],
)
def test_probabilities(params, expected):
    torch.testing.assert_close(probabilities(**params), torch.tensor(expected, dtype=torch.float32), atol=1e-4, rtol=0)


def _by_sorting_everything(logits, top_k, top_p):
    logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -torch.inf)
    ordered, order = logits.softmax(-1).sort(-1, descending=True)
    dropped = ordered.cumsum(-1) - ordered >= top_p
    return logits.masked_fill(dropped.scatter(-1, order, dropped), -torch.inf).softmax(-1)


@pytest.mark.parametrize("top_k", [1, 7, 50])
@pytest.mark.parametrize("top_p", [0.01, 0.7, 0.999])
def test_sorting_the_most_likely_alone_gives_the_same_probabilities(top_k, top_p):
    logits = 2 * torch.randn(5, 3000, generator=torch.Generator().manual_seed(top_k))
    sampler = Sampler(SamplingParams(temperature=1.0, top_k=top_k, top_p=top_p), "1")
    assert torch.equal(sampler.probabilities(logits), _by_sorting_everything(logits, top_k, top_p))


@pytest.mark.parametrize(("size", "top_p", "expected"), [(10, 0.5, 5), (60, 0.5, 30), (500, 0.1, 50), (500, 1.0, 500)])
def test_equal_values_beyond_top_k_are_cut_by_top_p(size, top_p, expected):
    sampler = Sampler(SamplingParams(temperature=1.0, top_k=2, top_p=top_p), "1")
    probabilities = sampler.probabilities(torch.zeros(2, size))
    assert (probabilities > 0).sum(-1).tolist() == [expected] * 2  # top-k keeps all, which are equal


def test_none_means_the_official_defaults_of_the_version():
    official = Sampler(SamplingParams(), "1")
    spelled_out = Sampler(SamplingParams(temperature=0.95, top_p=0.7, top_k=50), "1")
    logits = torch.randn(3, 200)
    assert torch.equal(official.probabilities(logits), spelled_out.probabilities(logits))


def test_temperature_zero_takes_the_largest():
    assert Sampler(SamplingParams(temperature=0), "1").choose(LOGITS, [[]]).tolist() == [0]


@pytest.mark.parametrize("params", [{"temperature": 1e-4}, {"temperature": 1e-40}, {"top_p": 0}], ids=str)
def test_a_temperature_or_top_p_that_leaves_one_token_is_greedy(params):
    sampler = Sampler(SamplingParams(**{"temperature": 1.0} | params), "1")
    assert {sampler.choose(LOGITS, [[]]).item() for _ in range(20)} == {0}


def test_a_seed_repeats_and_another_differs():
    logits = torch.zeros(1, 1000)

    def draws(seed):
        sampler = Sampler(SamplingParams(seed=seed, **OPEN), "1")
        return [sampler.choose(logits, [[]]).item() for _ in range(20)]

    assert draws(1) == draws(1) != draws(2)


def test_frequencies_follow_the_probabilities():
    sampler = Sampler(SamplingParams(seed=0, **OPEN), "1")
    draws = sampler.choose(LOGITS.expand(20000, -1), [[]] * 20000)
    # Four standard errors of a share of 20000 draws are at most 4 * 0.5 / sqrt(20000).
    torch.testing.assert_close(draws.bincount() / 20000, LOGITS.exp()[0], atol=0.0142, rtol=0)


def test_repetition_penalty_lowers_what_has_occurred():
    sampler = Sampler(SamplingParams(temperature=0, repetition_penalty=2.0), "1")
    assert sampler.choose(torch.tensor([[3.0, 2.0, -1.0]]), [[0]]).tolist() == [1]
    assert sampler.choose(torch.tensor([[-1.0, -1.5, -9.0]]), [[0]]).tolist() == [1]


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": -1},
        {"top_p": -0.1},
        {"top_p": 1.5},
        {"top_k": -1},
        {"min_p": 2},
        {"repetition_penalty": 0},
        {"seed": 2**64},
        {"stop": ("",)},
    ],
)
def test_values_that_make_no_sense_are_refused(params):
    with pytest.raises(InputError, match="expected a"):
        SamplingParams(**params)


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": "hot"},
        {"temperature": True},
        {"top_p": [0.5]},
        {"top_k": 1.5},
        {"min_p": None},
        {"repetition_penalty": "1"},
        {"seed": "1"},
        {"stop": 3},
        {"stop": [1]},
    ],
)
def test_values_of_another_type_are_refused_in_one_line(params):
    (name,) = params
    with pytest.raises(InputError, match=f"expected {name if name != 'stop' else '.*stop'}"):
        SamplingParams(**params)


def test_numbers_of_numpy_are_numbers():
    assert SamplingParams(temperature=np.float32(0.5), top_k=np.int64(3)).top_k == 3


def test_draws_are_those_of_torch_and_wait_for_no_check():
    sampler = Sampler(SamplingParams(seed=0, temperature=1.0, top_p=0.9, top_k=0), "1")
    expected = sampler.probabilities(LOGITS)
    draws = sampler.choose(LOGITS.expand(20000, -1), [[]] * 20000)
    assert (draws.bincount(minlength=4) / 20000 - expected[0]).abs().max() < 4 * 0.5 / 20000**0.5
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(draws, torch.multinomial(expected.expand(20000, -1), 1, generator=generator).flatten())


TOGETHER = [
    {"temperature": 0},
    {},
    {"temperature": 1.3, "top_k": 0, "top_p": 0.9, "min_p": 0.02},
    {"repetition_penalty": 1.3, "presence_penalty": 0.4, "frequency_penalty": -0.3},
    {"temperature": 2.0, "top_k": 0, "top_p": 1.0},
]


def steps(size, num_rows, params, together, count=4):
    """Tokens (count, B) of rows that are sampled together or alone, each by a sampler with a seed of its own."""
    generator = torch.Generator().manual_seed(size)
    samplers = [Sampler(SamplingParams(**params, seed=row), "2") for row in range(num_rows)]
    seen, out = [list(range(row + 1)) for row in range(num_rows)], []
    for _ in range(count):
        logits = (4 * torch.randn(num_rows, size, generator=generator)).round(decimals=1)  # many are equal
        if together:
            tokens = sampling.choose_together(samplers, logits, seen).tolist()
        else:
            alone = zip(samplers, logits, seen, strict=True)
            tokens = [sampler.choose(row[None], [ids]).item() for sampler, row, ids in alone]
        for sampler, ids, token in zip(samplers, seen, tokens, strict=True):
            sampler.accept([token])
            ids.append(token)
        out.append(tokens)
    return out


@pytest.mark.parametrize("params", TOGETHER, ids=str)
@pytest.mark.parametrize(("size", "num_rows"), [(4097, 16), (65024, 3)])
def test_rows_that_are_sampled_together_have_the_tokens_of_the_rows_alone(size, num_rows, params):
    found = steps(size, num_rows, params, together=True)
    assert found == steps(size, num_rows, params, together=False)
    assert len(set(found[0])) > 1


class Operations(TorchDispatchMode):
    """Counts what is launched: everything but views."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("params", TOGETHER, ids=str)
def test_a_further_row_costs_one_operation(params):
    def count(num_rows):
        samplers = [Sampler(SamplingParams(**params), "2") for _ in range(num_rows)]
        with Operations() as mode:
            sampling.choose_together(samplers, torch.randn(num_rows, 500), [[1, 2]] * num_rows)
        return mode.count

    assert count(16) - count(1) <= 15


def test_what_top_p_keeps_does_not_depend_on_the_order_of_a_sum(monkeypatch):
    """A GPU adds up one long row otherwise than many rows; here first to last, and last to first."""
    cumsum = torch.Tensor.cumsum

    def backwards(x, dim):
        return x.sum(dim, keepdim=True) - cumsum(x.flip(dim), dim).flip(dim) + x

    differing = 0
    for row in 3 * torch.randn(20, 1, 900, generator=torch.Generator().manual_seed(1)):
        mass = row.softmax(-1).sort(descending=True).values
        differing += cumsum(mass, -1)[0, 40] != backwards(mass, -1)[0, 40]
        sampler = Sampler(SamplingParams(temperature=1.0, top_k=0, top_p=cumsum(mass, -1)[0, 40].item()), "2")
        plain = sampler.probabilities(row)
        monkeypatch.setattr(torch.Tensor, "cumsum", backwards)
        assert torch.equal(sampler.probabilities(row), plain)
        monkeypatch.undo()
    assert differing


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_row_that_is_not_finite_has_no_token(value, temperature):
    logits = torch.cat((LOGITS, LOGITS))
    logits[1, 2] = value
    sampler = Sampler(SamplingParams(temperature=temperature, top_k=1), "1")
    assert sampler.choose(logits, [[], []]).tolist() == [0, -1]
    with pytest.raises(NotFiniteError, match="got nan or inf"):
        sampler.accept([0, -1])


def test_the_smallest_top_p_keeps_the_first_token():
    sampler = Sampler(SamplingParams(top_p=6e-154, top_k=0, temperature=1.0), "1")
    assert sampler.probabilities(LOGITS)[0].tolist() == [1.0] + [0.0] * (LOGITS.shape[1] - 1)


def test_parameters_come_back_from_a_dict():
    for params in (SamplingParams(top_k=7), SamplingParams(regex="a+")):
        again = SamplingParams(**dataclasses.asdict(params))
        assert (again, again.constraint) == (params, params.constraint)
