"""Several adapters beside one model: whoever else is in the batch, a row gets what its own adapter makes of it."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

import glm_int4
from glm_int4.adapters.adapter_source import parse_named_adapter
from glm_int4.errors import InputError
from glm_int4.generation import loading
from glm_int4.generation.continuous import Batcher
from glm_int4.generation.cuda_graphs import GraphStepper
from glm_int4.generation.decoding import Decoder
from glm_int4.models.cpu_step import FusedLayers
from glm_int4.quantization.adapted import AdaptedLinear, ChosenLinear
from glm_int4.quantization.cpu.instructions import instruction_set
from tests.adapters.test_applying import GREEDY, IDS, LORA, adapter, load, random
from tests.adapters.test_lora_logits import ADAPTERS, expected
from tests.conftest import FIXTURES, TINY
from tests.generation.test_cuda_graphs import Capture
from tests.tolerances import ADAPTER_ABSOLUTE
from triton_kernels import reference

FAST = pytest.mark.skipif(instruction_set() is None, reason="needs a CPU with AVX2, and Numba")


def named(version):
    """All LoRA of a version by name: the prefix is none."""
    names = [name for v, name in ADAPTERS if v == version and name != "peft_prefix"]
    return {name: LORA / f"v{version}" / name for name in names}


def run(batcher, sequences):
    for sequence in sequences:
        batcher.add(sequence)
    while batcher.num_running or batcher.num_waiting:
        assert not [event.error for event in batcher.step() if event.error]
    return [sequence.ids for sequence in sequences]


def of(glm, batcher, name, ids, limit=20):
    return batcher.sequence(list(ids), limit, GREEDY, frozenset(), False, glm.adapters.find(name))


# --- what comes out -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["1", "2", "3", "4"])
def test_every_adapter_by_its_name_gives_the_merged_models_logits_and_tokens(version):
    glm, plain = load(version, adapters=named(version)), load(version)
    assert glm.adapters.names == list(named(version))
    for name in glm.adapters.names:
        for ids, logits, greedy in expected(version, name).values():
            assert (glm.logits(ids[0].tolist(), adapter=name) - logits).abs().max() < ADAPTER_ABSOLUTE
            assert glm.generate(ids[0].tolist(), 20, GREEDY, [], name) == greedy[0].tolist()
    ids = IDS["1" if version == "1" else "2"]
    assert torch.equal(glm.logits(ids), plain.logits(ids))


@pytest.mark.parametrize("version", ["1", "2", "3", "4"])
def test_all_adapters_in_one_batch_say_what_each_says_alone(version):
    glm = load(version, adapters=named(version))
    batcher, cases = Batcher(glm, 16), []
    for name in glm.adapters.names:
        cases += [(name, ids[0].tolist(), greedy[0].tolist()) for ids, _, greedy in expected(version, name).values()]
    ids = cases[0][1]
    cases += [(None, ids, load(version).generate(ids, 20, GREEDY, []))]
    found = run(batcher, [of(glm, batcher, name, ids) for name, ids, _ in cases])
    assert found == [greedy for *_, greedy in cases]
    assert len({tuple(answer) for answer in found}) > len(named(version)) / 2  # they do differ


@pytest.fixture(scope="module")
def int4(tmp_path_factory):
    """Version 1 with an INT8 head: nothing but the adapters is multiplied by torch."""
    output = tmp_path_factory.mktemp("tiny") / "int4"
    glm_int4.quantize_checkpoint(TINY, output, group_size=32)
    return output


def rows_together_and_alone(glm, names):
    """Logits of a step of several rows, and of the same rows one by one."""
    batcher = Batcher(glm, len(names))
    ids = IDS["1" if glm.config.version == "1" else "2"]
    sequences = [of(glm, batcher, name, ids[i % 3 :]) for i, name in enumerate(names)]
    for sequence in sequences:
        batcher.add(sequence)
        batcher._begin(batcher._waiting.popleft())
        batcher._read(sequence)
    together = batcher._forward(sequences)
    for sequence in sequences:
        sequence.cache.length -= 1
    return together, torch.cat([batcher._forward([sequence]) for sequence in sequences])


NAMES = ["lora", None, "dora", "bias", "lora", "all_linear", None, "dora"]


@FAST
@pytest.mark.parametrize("own", [None, "official"])
def test_a_row_of_the_fused_step_has_the_bits_that_it_has_alone(int4, own):
    own = own and LORA / "v1" / own
    glm = glm_int4.load(int4, device="cpu", adapter=own, adapters=named("1"))
    together, alone = rows_together_and_alone(glm, NAMES)
    assert len(glm.model._fused_layers._adapters) == 1 + len(named("1"))
    assert torch.equal(together, alone)
    for row, name in enumerate(NAMES):
        given = [each for each in (own, name and LORA / "v1" / name) if each]
        single = glm_int4.load(int4, device="cpu", adapter=given or None)
        assert torch.equal(rows_together_and_alone(single, [None] * len(NAMES))[1][row], together[row])
    assert not torch.equal(together[0], together[3])


@FAST
@pytest.mark.parametrize("own", [None, "official"])
def test_a_row_in_plain_torch_has_the_bits_that_it_has_alone(int4, own, monkeypatch):
    """Layer by layer, where there is no fused step."""
    monkeypatch.setattr(FusedLayers, "fit", staticmethod(lambda layers: False))
    glm = glm_int4.load(int4, device="cpu", adapter=own and LORA / "v1" / own, adapters=named("1"))
    together, alone = rows_together_and_alone(glm, NAMES)
    assert glm.model._fused_layers is None
    assert torch.equal(together, alone)
    single = glm_int4.load(int4, device="cpu", adapter=own and LORA / "v1" / own)
    together, alone = rows_together_and_alone(single, [None] * len(NAMES))
    assert torch.equal(together, alone)


def test_the_base_is_multiplied_once_for_all_rows():
    glm = load("2", adapters=named("2"))
    layer = glm.model.get_submodule("transformer.encoder.layers.0.self_attention.query_key_value")
    assert isinstance(layer, ChosenLinear)
    x, widths = torch.randn(4, 1, 64), []
    base = layer.own(x)
    layer.own.register_forward_hook(lambda module, inputs, out: widths.append(len(inputs[0])))
    with glm.model.choice.of([0, 1, 1, 2]):
        out = layer(x)
    assert widths == [4]
    for row, number in enumerate([0, 1, 1, 2]):
        rows, expected = slice(row, row + 1), base[row : row + 1].clone()
        if number:
            expected = layer.named[str(number)].add(expected, x[rows])
        assert torch.equal(out[rows], expected)


def test_a_named_adapter_acts_beside_the_models_own_as_a_list_of_both_does():
    own, other = LORA / "v2" / "lora", LORA / "v2" / "dora"
    glm, both = load("2", own, adapters={"b": other}), load("2", [own, other])
    assert torch.equal(glm.logits(IDS["2"], adapter="b"), both.logits(IDS["2"]))
    assert torch.equal(glm.logits(IDS["2"]), load("2", own).logits(IDS["2"]))


def test_a_name_may_stand_for_several_adapters_with_scales():
    given = [(LORA / "v2" / "lora", 0.5), LORA / "v2" / "official"]
    glm = load("2", adapters={"two": given})
    assert torch.equal(glm.logits(IDS["2"], adapter="two"), load("2", given).logits(IDS["2"]))


def test_rows_of_a_batch_of_ids_share_an_adapter():
    glm = load("2", adapters={"a": LORA / "v2" / "lora"})
    rows = [IDS["2"], IDS["2"][:3]]
    assert glm.generate(rows, 8, GREEDY, [], adapter="a") == load("2", LORA / "v2" / "lora").generate(
        rows, 8, GREEDY, []
    )


def test_the_head_that_an_adapter_saved_is_for_its_rows_alone():
    glm = load("3", adapters={"saved": LORA / "v3" / "saved_head"})
    x = torch.randn(3, 1, 64)
    own = glm.model.head(x)
    with glm.model.choice.of([0, 1, 0]):
        mixed = glm.model.head(x)
    assert torch.equal(mixed[[0, 2]], own[[0, 2]])
    saved = load_file(LORA / "v3" / "saved_head" / "adapter_model.safetensors")
    (weight,) = (tensor for name, tensor in saved.items() if "output_layer" in name)
    assert torch.allclose(mixed[1], x[1] @ weight.T, atol=1e-4)
    assert not torch.allclose(mixed[1], own[1])


def test_streams_of_several_adapters_take_turns():
    glm, ids = load("2", adapters=named("2")), IDS["2"]
    names = ["lora", None, "dora"]
    streams = [glm.stream_ids(ids, 12, GREEDY, [], name) for name in names]
    together = list(zip(*streams, strict=True))
    for name, found in zip(names, zip(*together, strict=True), strict=True):
        assert list(found) == load("2", name and named("2")[name]).generate(ids, 12, GREEDY, [])
    stopped = glm.stream_ids(ids, 12, GREEDY, [], "lora")
    next(stopped)
    assert torch.equal(glm.hidden_states(ids), load("2").hidden_states(ids))


# --- keys and values ----------------------------------------------------------------------------------------


def test_a_conversation_that_goes_on_under_another_name_is_read_anew():
    glm, ids = load("2", adapters=named("2")), IDS["2"]
    for before, name in [(None, "lora"), ("lora", "dora"), ("dora", None)]:
        glm.generate(ids, 4, GREEDY, [], adapter=before)
        found = glm.generate([*ids, 9, 8], 8, GREEDY, [], adapter=name)
        assert glm._decoder.num_reused == 0
        assert found == load("2", name and named("2")[name]).generate([*ids, 9, 8], 8, GREEDY, [])
        glm.generate([*ids, 9, 8], 2, GREEDY, [], adapter=name)
        assert glm._decoder.num_reused > 0


def test_a_slot_keeps_what_it_has_read_for_the_same_adapter_alone(monkeypatch):
    glm = load("2", adapters=named("2"))
    glm.setup = replace(glm.setup, prompt_rows=4)
    glm._decoder = Decoder(glm.model, glm.setup, glm.max_length)
    batcher, reused, answers = Batcher(glm, 1), [], {}
    prefill = batcher._prefill
    monkeypatch.setattr(batcher, "_prefill", lambda s, kept: reused.append(kept) or prefill(s, kept))
    prompt = list(range(20, 32))
    for name in ["lora", "lora", "dora", None, None, "lora"]:
        (ids,) = run(batcher, [of(glm, batcher, name, prompt, 8)])
        assert answers.setdefault(name, ids) == ids
    assert reused == [0, 8, 0, 0, 8, 0]
    assert len(set(map(tuple, answers.values()))) == 3


def test_a_later_adapter_of_the_same_name_finds_nothing_kept():
    """Neither in the engine's own cache nor in a slot; it has the same number too."""
    glm, ids = load("2", adapters={"a": LORA / "v2" / "lora"}), IDS["2"]
    batcher = Batcher(glm, 1)
    glm.generate(ids, 4, GREEDY, [], adapter="a")
    run(batcher, [of(glm, batcher, "a", ids)])
    number = glm.adapters.find("a").number
    glm.adapters.unload("a")
    assert glm.adapters.load("a", LORA / "v2" / "dora").number == number
    alone = load("2", LORA / "v2" / "dora").generate(ids, 20, GREEDY, [])
    assert glm.generate(ids, 20, GREEDY, [], adapter="a") == alone
    assert run(batcher, [of(glm, batcher, "a", ids)]) == [alone]


# --- coming and going ---------------------------------------------------------------------------------------


def test_adapters_come_and_go_and_leave_the_model_as_it_was():
    glm, ids = load("2"), IDS["2"]
    modules = {name: type(module) for name, module in glm.model.named_modules()}
    before = glm.logits(ids)
    first = glm.adapters.load("first", LORA / "v2" / "lora")
    glm.adapters.load("second", LORA / "v2" / "all_linear")
    glm.adapters.unload("first")
    assert glm.adapters.names == ["second"]
    assert not first.is_loaded
    assert torch.equal(glm.logits(ids, adapter="second"), load("2", LORA / "v2" / "all_linear").logits(ids))
    glm.adapters.unload("second")
    assert {name: type(module) for name, module in glm.model.named_modules()} == modules
    assert torch.equal(glm.logits(ids), before)
    assert glm.model.choice.count == 1


@FAST
def test_a_fused_step_sees_adapters_that_came_while_others_ran():
    glm = load("1", None, "tiny_int4", dtype=None, adapters={"a": LORA / "v1" / "lora"})
    alone = {
        name: load("1", name and LORA / "v1" / name, "tiny_int4", dtype=None).generate(IDS["1"], 20, GREEDY, [])
        for name in (None, "lora", "dora")
    }
    batcher = Batcher(glm, 3)
    early = [of(glm, batcher, name, IDS["1"]) for name in ("a", None)]
    for sequence in early:
        batcher.add(sequence)
    for _ in range(6):
        batcher.step()
    glm.adapters.load("late", LORA / "v1" / "dora")
    late = of(glm, batcher, "late", IDS["1"])
    run(batcher, [late])
    assert [sequence.ids for sequence in (*early, late)] == [alone["lora"], alone[None], alone["dora"]]


def test_an_adapter_that_is_unloaded_stays_until_its_answers_have_ended():
    glm = load("2", adapters=named("2"))
    alone = load("2", LORA / "v2" / "lora").generate(IDS["2"], 20, GREEDY, [])
    batcher = Batcher(glm, 1)
    runs, waits = (of(glm, batcher, "lora", IDS["2"]) for _ in range(2))
    late = of(glm, batcher, "lora", IDS["2"])
    for sequence in (runs, waits):
        batcher.add(sequence)
    for _ in range(4):
        batcher.step()
    leaving = glm.adapters.take_away("lora")
    batcher.retire(leaving)
    assert leaving.is_loaded
    with pytest.raises(InputError, match="got 'lora'"):
        glm.adapters.find("lora")
    run(batcher, [])
    assert [runs.ids, waits.ids] == [alone, alone]
    assert not leaving.is_loaded
    with pytest.raises(InputError, match="expected an adapter that is loaded, got lora, which is no more"):
        batcher.add(late)


def test_graphs_read_every_rows_adapter_anew_and_go_with_the_layers():
    """On a CPU, with replays that run again."""
    half = {
        "dtype": torch.float16,
        "adapters": {n: p for n, p in named("2").items() if n in ("lora", "dora", "saved_head")},
    }
    glm, ids = load("2", **half), IDS["2"]
    batcher = Batcher(glm, 4)
    batcher._stepper = GraphStepper(glm.model, reference, capture := Capture())
    names = [None, "lora", "dora", "saved_head", "lora", None]
    single = {name: load("2", name and named("2")[name], dtype=torch.float16) for name in set(names)}
    alone = [single[name].generate(ids, 12, GREEDY, []) for name in names]
    assert run(batcher, [of(glm, batcher, name, ids, 12) for name in names]) == alone
    assert capture.replayed > 0
    before = capture.captured
    glm.adapters.load("bias", named("2")["bias"])
    (found,) = run(batcher, [of(glm, batcher, "bias", ids, 12)])
    assert found == load("2", named("2")["bias"], dtype=torch.float16).generate(ids, 12, GREEDY, [])
    assert capture.captured > before


# --- memory and mistakes ------------------------------------------------------------------------------------


def test_named_adapters_stand_in_the_memory_plan(monkeypatch):
    plans = []
    plan = loading.plan_memory
    monkeypatch.setattr(loading, "plan_memory", lambda *given: plans.append(plan(*given)) or plans[-1])
    glm = load("1", adapters=named("1"))
    load("1")
    parts = [part for layer in glm.model.modules() if isinstance(layer, ChosenLinear) for part in layer.named.values()]
    held = sum(tensor.nbytes for part in parts for name, tensor in part.named_buffers() if name in ("down", "up"))
    assert held <= plans[0].weight_bytes - plans[1].weight_bytes <= 1.1 * held


def test_an_adapter_for_which_there_is_no_memory_is_refused(monkeypatch):
    glm = load("1")
    monkeypatch.setattr("glm_int4.adapters.named_adapters.free_bytes", lambda device: 1000)
    with pytest.raises(
        InputError, match=r"expected enough memory for the adapter a, which takes 0.000 GB, got 0.000 GB"
    ):
        glm.adapters.load("a", LORA / "v1" / "lora")
    assert glm.adapters.names == []


@pytest.mark.parametrize("name", ["", "a/b", "..", ".a", "a b", "-a", "a" * 129, 5, None])
def test_what_is_no_name_is_refused(name):
    with pytest.raises(InputError, match="expected letters, digits"):
        load("1", adapters={name: LORA / "v1" / "lora"})


def test_a_name_that_is_taken_or_unknown_is_refused():
    glm = load("1", adapters={"a": LORA / "v1" / "lora"})
    with pytest.raises(InputError, match="expected another name than a, which an adapter has already"):
        glm.adapters.load("a", LORA / "v1" / "dora")
    for call in (glm.logits, glm.generate, lambda ids, adapter: next(glm.stream_ids(ids, adapter=adapter))):
        for name in ("b", ""):
            with pytest.raises(InputError, match=rf"expected the name of an adapter \(a here\), got '{name}'"):
                call(IDS["1"], adapter=name)
    with pytest.raises(InputError, match="expected adapters by name, got "):
        load("1", adapters=[LORA / "v1" / "lora"])


def test_what_rows_of_a_batch_share_is_refused_under_a_name(tmp_path):
    with pytest.raises(InputError, match=r"expected LoRA as the adapter p, got a prefix"):
        load("3", adapters={"p": LORA / "v3" / "peft_prefix"})
    tensors = {
        f"base_model.model.transformer.layers.{i}.input_layernorm.{p}": random(64)
        for i in (0, 1)
        for p in ("weight", "bias")
    }
    tensors |= {
        f"base_model.model.transformer.layers.{i}.attention.query_key_value.lora_{p}.weight": random(*shape)
        for i in (0, 1)
        for p, shape in (("A", (2, 64)), ("B", (192, 2)))
    }
    folder = adapter(tmp_path / "norms", tensors, modules_to_save=["input_layernorm"])
    assert load("1", folder)
    with pytest.raises(InputError, match=r"as n, got one that replaces transformer.layers.0.input_layernorm"):
        load("1", adapters={"n": folder})
    path = shutil.copytree(LORA / "v1" / "lora", tmp_path / "embedding")
    stored = load_file(path / "adapter_model.safetensors")
    stored["base_model.model.transformer.word_embeddings.weight"] = random(160, 64)
    save_file(stored, path / "adapter_model.safetensors")
    config = path / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"modules_to_save": ["word_embeddings"]}))
    assert load("1", path)
    with pytest.raises(InputError, match=r"as e, got one that replaces transformer.word_embeddings"):
        load("1", adapters={"e": path})


def test_adapters_that_change_the_same_as_the_models_own_are_refused():
    with pytest.raises(InputError, match="which both replace"):
        load("1", LORA / "v1" / "bias", adapters={"b": LORA / "v1" / "bias"})


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("a=dir", ("a", "dir")),
        ("a=dir:0.5", ("a", ("dir", 0.5))),
        ("a=owner/name:2", ("a", ("owner/name", 2.0))),
        ("a=C:\\dir", ("a", "C:\\dir")),
        ("dir", (None, "dir")),
        ("dir:0.5", (None, ("dir", 0.5))),
        ("./lr=1", (None, "./lr=1")),
        ("runs/lr=1:2", (None, ("runs/lr=1", 2.0))),
        ("a=b=c", ("a", "b=c")),
    ],
)
def test_a_name_stands_in_front_of_the_first_equals_sign(text, means):
    assert parse_named_adapter(text) == means


def test_the_count_of_adapted_layers_is_that_of_the_adapters():
    glm = load("1", LORA / "v1" / "official", adapters={"a": LORA / "v1" / "lora"})
    kinds = [type(module) for module in glm.model.modules()]
    assert kinds.count(ChosenLinear) == 2 * glm.config.num_layers
    assert kinds.count(AdaptedLinear) == glm.config.num_layers
    assert glm_int4.load(FIXTURES / "v1_tiny", device="cpu").adapters.names == []
