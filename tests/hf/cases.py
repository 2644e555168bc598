"""What a user of transformers calls, and what happens: ``test_cases.py`` runs it, docs/transformers.md shows it.

python -m tests.hf.cases   rewrites the table of the document
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from glm_int4.hf import ChatGLMForCausalLM
from glm_int4.quantization.linear import QuantizedLinear
from tests.hf.worlds import World
from tests.tolerances import ORACLE_ABSOLUTE

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "transformers.md"
PLAIN, INT4, ALL = ("1", "2", "3"), ("INT4",), ("1", "2", "3", "INT4")
TINY, TINY_INT4 = ("tiny 1", "tiny 2", "tiny 3"), ("tiny 1 INT4", "tiny 2 INT4", "tiny 3 INT4")
ADAPTER_ABSOLUTE = 2e-4  # of an adapter that is not merged, against one merged by hand
ANSWER = ("8", [("3加5等于几?", "8")])


@dataclass(frozen=True, kw_only=True)
class Case:
    """A call on some kinds of models.

    area: part of the table. call: an expression over the names of a ``World``. then: what the table says; of a refusal
    what the error says. check: of the result, with the world; None for a refusal. needs: packages that may be missing.
    """

    area: str
    call: str
    then: str
    on: tuple[str, ...]
    check: Callable[[Any, World], Any] | None = None
    needs: tuple[str, ...] = ()

    def run(self, world: World) -> None:
        """Run the call and check what comes of it."""
        names = world.names
        torch.manual_seed(0)
        if self.check is not None:
            result = eval(self.call, names)
            assert self.check(result, world), result
            return
        try:
            eval(self.call, names)
        except Exception as error:
            message = str(error)
            assert self.then in message, message
            assert "\n" not in message, message
        else:
            raise AssertionError("not refused")


def same(value: torch.Tensor, expected: torch.Tensor, tolerance: float = ORACLE_ABSOLUTE) -> bool:
    return value.shape == expected.shape and bool((value - expected).abs().max() <= tolerance)


def is_whole(model: Any, world: World) -> bool:
    """Whether a model is one of ours and computes what the world's does."""
    return type(model) is ChatGLMForCausalLM and torch.equal(world.logits(model), world.before)


def num_quantized(model: Any) -> int:
    return sum(isinstance(module, QuantizedLinear) for module in model.modules())


def answers_like_the_engine(result: Any, world: World) -> bool:
    text, history = result
    return text == world.engine_answer("你好") and history[-1] in (
        ("你好", text),
        {"role": "assistant", "metadata": "", "content": text},
    )


LOADING = [
    Case(
        area="loading",
        call="[auto.from_pretrained(folder) for auto in (AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM)]",
        then="the model, whichever class asks for it",
        on=ALL,
        check=lambda models, world: all(type(model) is ChatGLMForCausalLM for model in models),
    ),
    Case(
        area="loading",
        call="AutoModel.from_pretrained(folder, device_map='auto')",
        then="on CUDA where there is one, otherwise on the CPU",
        on=("1", "INT4"),
        check=lambda model, world: model.device.type == ("cuda" if torch.cuda.is_available() else "cpu"),
    ),
    *(
        Case(
            area="loading",
            call=f"AutoModel.from_pretrained(folder, device_map={place!r})",
            then=f"expected a CUDA device for device_map {place!r}, got none",
            on=("1",),
            needs=("no GPU",),
        )
        for place in ("cuda", 0)
    ),
    Case(
        area="loading",
        call="AutoModel.from_pretrained(folder, device_map='mps')",
        then="expected the device_map cpu, cuda or auto, got 'mps'",
        on=("1",),
    ),
    Case(
        area="loading",
        call="AutoModel.from_pretrained(folder, load_in_4bit=True)",
        then="expected options that this loader knows, got load_in_4bit",
        on=("1",),
    ),
    Case(
        area="loading",
        call="set(model.state_dict())",
        then="the official names of the official checkpoint, from `transformer.` on",
        on=TINY,
        check=lambda names, world: names == world.official_names(),
    ),
    Case(
        area="loading",
        call="model.transformer.layers[1].attention.query_key_value",
        then="the module, under the official name",
        on=("1", "INT4", "tiny 1"),
        check=lambda module, world: module.out_features == 3 * module.in_features,
    ),
    Case(
        area="loading",
        call="model.transformer.encoder.layers[1].self_attention.query_key_value",
        then="the module, under the official name",
        on=("2", "3"),
        check=lambda module, world: module.in_features == world.model.config.hidden_size,
    ),
]

CONVERSING = [
    Case(
        area="chat",
        call="model.chat(tokenizer, '3加5等于几?', do_sample=False)",
        then=f"`{ANSWER!r}`",
        on=("1", "INT4"),
        check=lambda result, world: result == ANSWER,
    ),
    Case(
        area="chat",
        call="model.chat(tokenizer, '你好', history=[], do_sample=False, max_length=80)",
        then="answer and history; pairs of question and answer, in version 3 messages",
        on=PLAIN,
        check=answers_like_the_engine,
    ),
    Case(
        area="chat",
        call="model.chat(tokenizer, '你好', history, do_sample=False, max_length=80)",
        then="the same with a history, which stays as it is",
        on=PLAIN,
        check=lambda result, world: (
            result[1][: len(world.history)] == world.history
            and result[1][len(world.history) :]
            and world.history == world.new_history()
        ),
    ),
    Case(
        area="chat",
        call="list(model.stream_chat(tokenizer, '你好', history, do_sample=False, max_length=80))",
        then="the answer so far and its history, last what `chat` returns",
        on=ALL,
        check=lambda steps, world: (
            steps[-1] == world.model.chat(world.tokenizer, "你好", world.history, do_sample=False, max_length=80)
            and all(steps[-1][0].startswith(text) for text, *_ in steps)
        ),
    ),
    Case(
        area="chat",
        call="model.chat(tokenizer, '  ')",
        then="expected a question, got an empty prompt",
        on=PLAIN,
    ),
    Case(
        area="chat",
        call="tokenizer.build_prompt('你好', history)",
        then="the official text",
        on=("1", "2"),
        check=lambda text, world: tokens(world, text) == world.prompt_ids("你好"),
    ),
    Case(
        area="chat",
        call="tokenizer.build_prompt('你好')",
        then="expected version 1 or 2 for build_prompt, got 3",
        on=("3",),
    ),
    Case(
        area="chat",
        call="tokenizer.build_chat_input('你好', history=history, role='user')",
        then="the official inputs",
        on=("3",),
        check=lambda inputs, world: inputs["input_ids"].tolist() == [world.prompt_ids("你好")],
    ),
    Case(
        area="chat",
        call="tokenizer.build_chat_input('你好')",
        then="expected version 3 or 4 for build_chat_input",
        on=("1", "2"),
    ),
    Case(
        area="chat",
        call="model.generate(**inputs, guidance_scale=1.5, max_new_tokens=4, eos_token_id=1, do_sample=False)",
        then="four tokens, guided",
        on=ALL,
        check=lambda ids, world: ids[0, world.inputs["input_ids"].shape[1] :].tolist() == world.guided(1.5, 4),
    ),
    Case(
        area="chat",
        call="model(inputs_embeds=torch.zeros(1, 2, 64))",
        then="expected input_ids, got inputs_embeds or nothing",
        on=ALL,
    ),
]

WEIGHTS = [
    Case(
        area="weights",
        call="model.quantize(4)",
        then="rounds the linear layers to INT4 in memory, not embedding and head, and says so",
        on=PLAIN,
        check=lambda model, world: (
            model is world.model
            and num_quantized(model) == 4 * model.config.num_layers
            and "rounded the linear layers to INT4" in world.said()
            and (world.kind != "1" or model.chat(world.tokenizer, "3加5等于几?", do_sample=False) == ANSWER)
        ),
    ),
    Case(
        area="weights",
        call="model.quantize(4)",
        then="nothing, and says so: the weights are quantized already",
        on=INT4,
        check=lambda model, world: model is world.model and "quantized already" in world.said(),
    ),
    Case(
        area="weights",
        call="model.quantize(3)",
        then="expected bits to be 4 or 8, got 3",
        on=("1",),
    ),
    Case(
        area="weights",
        call="model.dequantize()",
        then="expected weights to stay packed, got dequantize(); load the unquantized checkpoint",
        on=INT4,
    ),
    Case(
        area="weights",
        call="model.float()",
        then="the same model, which computes in float32 on a CPU",
        on=ALL,
        check=is_whole,
    ),
    *(
        Case(
            area="weights",
            call=f"model.{change}",
            then="; pass dtype to from_pretrained, weights stay packed",
            on=ALL,
        )
        for change in ("half()", "bfloat16()", "double()", "type(torch.float16)", "to(torch.float64)")
    ),
    Case(
        area="weights",
        call="torch.nn.Sequential(model).half()",
        then="expected the model to stay torch.float32 on cpu, got a change to torch.float16",
        on=ALL,
    ),
    Case(
        area="weights",
        call="model.resize_token_embeddings(len(tokenizer))",
        then="rows that the vocabulary's matrices have",
        on=PLAIN,
    ),
    Case(
        area="weights",
        call="tokenizer.add_tokens(['<new>']), tokenizer('a<new>b')",
        then="one id, behind those that there are; it is saved with the tokenizer",
        on=PLAIN,
        check=lambda result, world: (
            result[0] == 1
            and result[1]["input_ids"].count(world.tokenizer.convert_tokens_to_ids("<new>")) == 1
            and world.tokenizer.decode(result[1]["input_ids"], skip_special_tokens=True) == "a<new>b"
            and world.saved_tokenizer()("a<new>b")["input_ids"] == result[1]["input_ids"]
        ),
    ),
    Case(
        area="weights",
        call="tokenizer.add_tokens(['<eop>'])",
        then="expected a token of your own, got '<eop>', which another version has",
        on=("2", "3"),
    ),
    Case(
        area="weights",
        call="pickle.loads(pickle.dumps(model))",
        then="the same model",
        on=ALL,
        check=is_whole,
    ),
    Case(
        area="weights",
        call="copy.deepcopy(model)",
        then="the same model",
        on=ALL,
        check=is_whole,
    ),
]

SAVING = [
    Case(
        area="saving",
        call="model.save_pretrained(out), AutoModel.from_pretrained(out)",
        then="the same model, quantized as it was; without the tokenizer, as in transformers",
        on=(*ALL, "tiny 1 INT4", "tiny 2 INT4"),
        check=lambda result, world: (
            torch.equal(world.logits(world.reloaded()), world.before)
            and num_quantized(result[1]) == num_quantized(world.model)
        ),
    ),
    Case(
        area="saving",
        call="model.save_pretrained(out, max_shard_size='100KB'), AutoModel.from_pretrained(out)",
        then="the same in several files",
        on=("1", "INT4"),
        check=lambda result, world: is_whole(result[1], world) and len(list(world.out.glob("model-*-of-*"))) > 2,
    ),
    Case(
        area="saving",
        call="model.quantize(4).save_pretrained(out)",
        then="expected weights from a folder, got what quantize() rounded in memory; run glm-int4 quantize",
        on=PLAIN,
    ),
]

TRAINING = [
    Case(
        area="training",
        call="Trainer(get_peft_model(model, LoraConfig(r=4)), arguments, train_dataset=data).train()",
        then="trains an adapter, on packed weights too; its checkpoint is peft's",
        on=("1", "INT4"),
        needs=("peft", "accelerate"),
        check=lambda result, world: (world.out / "checkpoint-1" / "adapter_model.safetensors").is_file(),
    ),
    Case(
        area="training",
        call="Trainer(model.requires_grad_(True), arguments, train_dataset=data).train()",
        then="trains all weights; its checkpoint loads",
        on=("1",),
        needs=("accelerate",),
        check=lambda result, world: same(world.logits(world.loaded(world.out / "checkpoint-1")), world.logits()),
    ),
    Case(
        area="training",
        call="Trainer(model, arguments, train_dataset=data).train()",
        then="expected something to train, got frozen weights alone; add an adapter",
        on=("1",),
        needs=("accelerate",),
    ),
    Case(
        area="training",
        call="Trainer(model, arguments, train_dataset=data).train()",
        then="Please attach trainable adapters on top",
        on=INT4,
        needs=("accelerate",),
    ),
    Case(
        area="training",
        call="model.gradient_checkpointing_enable(), gradients(get_peft_model(model, LoraConfig(lora_dropout=0.3)))",
        then="the same gradients, layers computed twice",
        on=("1", "INT4"),
        needs=("peft",),
        check=lambda result, world: (
            world.num_layer_runs == 2 * world.model.config.num_layers
            and torch.equal(result[1], world.plain_gradients(lora_dropout=0.3))
        ),
    ),
]

ADAPTERS = [
    Case(
        area="adapters",
        call="PeftModel.from_pretrained(model, adapter)",
        then="applied: the logits of peft's own adapters for the official model",
        on=TINY,
        needs=("peft",),
        check=lambda model, world: same(world.logits(model), world.expected("official"), ADAPTER_ABSOLUTE),
    ),
    Case(
        area="adapters",
        call="PeftModel.from_pretrained(model, adapter_of_all_linears)",
        then="applied",
        on=TINY,
        needs=("peft",),
        check=lambda model, world: same(world.logits(model), world.expected("all_linear"), ADAPTER_ABSOLUTE),
    ),
    Case(
        area="adapters",
        call="PeftModel.from_pretrained(model, adapter_of_all_linears)",
        then="applied on top of the packed weights",
        on=TINY_INT4,
        needs=("peft",),
        check=lambda model, world: (
            same(world.logits(model), world.logits_by_hand("all_linear"), ADAPTER_ABSOLUTE)
            and not same(world.logits(model), world.before, 1.0)
        ),
    ),
    Case(
        area="adapters",
        call="model.load_adapter(adapter)",
        then="applied",
        on=TINY,
        needs=("peft",),
        check=lambda _, world: same(world.logits(), world.expected("official"), ADAPTER_ABSOLUTE),
    ),
    Case(
        area="adapters",
        call="AutoModel.from_pretrained(adapter_that_names_the_folder, dtype=torch.float32)",
        then="its model, with the adapter applied",
        on=("tiny 1",),
        needs=("peft",),
        check=lambda model, world: same(world.logits(model), world.expected("official"), ADAPTER_ABSOLUTE),
    ),
    Case(
        area="adapters",
        call="PeftModel.from_pretrained(model, adapter).merge_and_unload()",
        then="merged; it can be saved",
        on=TINY,
        needs=("peft",),
        check=lambda model, world: (
            same(world.logits(model), world.expected("official"), ADAPTER_ABSOLUTE)
            and torch.equal(world.logits(world.reloaded()), world.logits())
        ),
    ),
    Case(
        area="adapters",
        call="PeftModel.from_pretrained(model, adapter).merge_and_unload()",
        then="whose weights cannot be merged",
        on=TINY_INT4,
        needs=("peft",),
    ),
    *(
        Case(
            area="adapters",
            call=f"{call}",
            then="expected a place in this model for every tensor of the adapter",
            on=("tiny 1", "tiny 2", "tiny 1 INT4"),
            needs=("peft",),
        )
        for call in (
            "PeftModel.from_pretrained(model, adapter_of_another_version)",
            "model.load_adapter(adapter_of_another_version)",
        )
    ),
    *(
        Case(
            area="adapters",
            call=f"{call}",
            then="expected all tensors of the adapter",
            on=("tiny 1", "tiny 3"),
            needs=("peft",),
        )
        for call in ("PeftModel.from_pretrained(model, half_an_adapter)", "model.load_adapter(half_an_adapter)")
    ),
    Case(
        area="adapters",
        call="get_peft_model(model, LoraConfig(target_modules='all-linear')).get_nb_trainable_parameters()[0]",
        then="takes the four linear layers of every layer, packed ones too",
        on=("1", "2", "INT4"),
        needs=("peft",),
        check=lambda number, world: number == world.num_parameters_of_rank(8),
    ),
    Case(
        area="adapters",
        call="get_peft_model(model, LoraConfig(use_dora=True))",
        then="whose weights cannot be merged, trained or scaled by their norms",
        on=INT4,
        needs=("peft",),
    ),
    Case(
        area="adapters",
        call="get_peft_model(model, LoraConfig(bias='lora_only'))",
        then="whose bias stays as it is; leave biases out of adapters",
        on=INT4,
        needs=("peft",),
    ),
    Case(
        area="adapters",
        call="PeftModel.from_pretrained(model, peft_prefix)",
        then="applied; real tokens count from behind the prefix, as peft does by now",
        on=("tiny 3",),
        needs=("peft",),
        check=lambda model, world: (
            same(world.logits(model), world.expected("peft_prefix"), ADAPTER_ABSOLUTE)
            and world.greedy(model) == world.expected_greedy("peft_prefix")
        ),
    ),
    Case(
        area="adapters",
        call="get_peft_model(model, PrefixTuningConfig(task_type='CAUSAL_LM', num_virtual_tokens=4))(**inputs)",
        then="expected ChatGLM-6B's context in one piece",
        on=("1", "INT4"),
        needs=("peft",),
    ),
    Case(
        area="adapters",
        call="get_peft_model(model, PromptTuningConfig(task_type='CAUSAL_LM', num_virtual_tokens=4))(**inputs)",
        then="expected input_ids, got inputs_embeds or nothing",
        on=PLAIN,
        needs=("peft",),
    ),
    Case(
        area="adapters",
        call="PeftModel.from_pretrained(model, adapter).half()",
        then="expected the model to stay torch.float32 on cpu, got a change to torch.float16",
        on=(*TINY, "tiny 1 INT4"),
        needs=("peft",),
    ),
    Case(
        area="adapters",
        call="PeftModel.from_pretrained(model, adapter).engine",
        then="expected a model without an adapter to run in the engine",
        on=(*TINY, "tiny 1 INT4"),
        needs=("peft",),
    ),
    Case(
        area="adapters",
        call="PeftModel.from_pretrained(model, adapter).base_model.model.quantize(4)",
        then="expected a model without an adapter to quantize, got one with it; merge it first",
        on=TINY,
        needs=("peft",),
    ),
]

CASES = [*LOADING, *CONVERSING, *WEIGHTS, *SAVING, *TRAINING, *ADAPTERS]


def tokens(world: World, text: str) -> list[int]:
    return world.tokenizer(text)["input_ids"]


def _models(on: tuple[str, ...]) -> str:
    """What the table calls kinds of models."""
    names = dict.fromkeys(kind.removeprefix("tiny ") for kind in on)
    versions = [name for name in names if not name.endswith("INT4")]
    packed = ["INT4"] if len(versions) < len(names) else []
    return ", ".join([*versions, *packed])


def _excerpt(message: str) -> str:
    """A part of an error's line, as a part."""
    return f"{message}…" if message.startswith("expected") else f"…{message.lstrip('; ')}…"


def table() -> str:
    """The cases as a table of the document."""
    lines = ["| | you call | version | what happens |", "|---|---|---|---|"]
    area = ""
    for case in CASES:
        then = case.then if case.check is not None else f"**refused**: {_excerpt(case.then)}"
        cells = (case.area if case.area != area else "", f"`{case.call}`", _models(case.on), then)
        lines.append("| " + " | ".join(cells) + " |")
        area = case.area
    return "\n".join(lines)


def render(document: str) -> str:
    """The document with the table of these cases."""
    part = re.compile(r"(<!-- table: cases -->\n).*?(\n<!-- end -->)", re.DOTALL)
    return part.sub(lambda match: f"{match[1]}{table()}{match[2]}", document)


if __name__ == "__main__":
    DOCUMENT.write_text(render(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
