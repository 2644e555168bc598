"""The names that the calls of ``cases.py`` stand on, for one kind of model, and what is expected of it."""

import copy
import json
import pickle
import shutil
from importlib.util import find_spec

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from glm_int4.generation.sampling import SamplingParams
from glm_int4.quantization.linear import QuantizedLinear
from glm_int4.text import chat_format
from tests.conftest import FIXTURES, MINI

AUTO = {"AutoModel": AutoModel, "AutoModelForCausalLM": AutoModelForCausalLM}
AUTO |= {"AutoModelForSeq2SeqLM": AutoModelForSeq2SeqLM, "AutoTokenizer": AutoTokenizer}
MODULES = {"torch": torch, "pickle": pickle, "copy": copy}
PAIR = [{"role": "user", "content": "你好"}, {"role": "assistant", "metadata": "", "content": "你好"}]


class World:
    """A model of one kind, freshly loaded, and what belongs to it.

    Args:
        kind: a version with a tokenizer: "1" (the mini model), "2", "3" or "INT4" (the mini model); or an official
            tiny model without one, "tiny 1" or "tiny 1 INT4" and so on, on the exact path.
        folders: of versions 2 and 3 and of INT4.
        out: an empty folder.
        caplog: pytest's.
    """

    def __init__(self, kind, folders, out, caplog):
        self.kind, self.out, self._caplog = kind, out, caplog
        self.version = "1" if kind == "INT4" else kind.removeprefix("tiny ")[0]
        self.tiny = kind.startswith("tiny")
        self.options = {"device_map": "cpu"}
        if self.tiny:
            self.folder = FIXTURES / f"v{self.version}_tiny{'_int4' if 'INT4' in kind else ''}"
            self.options |= {"dtype": torch.float32, "model_version": self.version}
            self._official = load_file(FIXTURES / "lora" / f"v{self.version}" / "cases.safetensors")
            self.inputs = {"input_ids": self._official["input_ids"]}
        else:
            self.folder = MINI if kind == "1" else folders[kind]
            self.tokenizer = AutoTokenizer.from_pretrained(self.folder)
            self.inputs = dict(self.tokenizer("3加5等于几?", return_tensors="pt"))
        self.model = self.loaded(self.folder)
        self.before = self.logits()
        self.history = self.new_history()

    def loaded(self, folder, **options):
        return AutoModelForCausalLM.from_pretrained(folder, **self.options | options)

    def reloaded(self):
        """The model as it is saved, which the call may have done."""
        if not (self.out / "config.json").is_file():
            self.model.save_pretrained(self.out)
        return self.loaded(self.out)

    def logits(self, model=None):
        """Without a cache, which the fast path keeps in float16 and a Trainer turns off."""
        with torch.no_grad():
            return (self.model if model is None else model)(**self.inputs, use_cache=False).logits

    def said(self):
        return self._caplog.text

    @property
    def names(self):
        names = MODULES | AUTO | {"folder": self.folder, "model": self.model, "inputs": self.inputs, "out": self.out}
        if self.tiny:
            names |= self._adapters()
        else:
            names |= {"tokenizer": self.tokenizer, "history": self.history, "gradients": self.gradients}
        if find_spec("accelerate") and self.version == "1" and not self.tiny:
            names |= self._training()
        if find_spec("peft"):
            import peft

            names |= {name: getattr(peft, name) for name in dir(peft) if name[0].isupper() or name == "get_peft_model"}
        return names

    # --- conversations --------------------------------------------------------------------------------

    def new_history(self):
        return copy.deepcopy(PAIR) if self.version == "3" else [("你好", "你好")]

    def _messages(self, query, history=()):
        return [*history, {"role": "user", "content": query}]

    def prompt_ids(self, query):
        """Of a question that follows ``history``."""
        return chat_format(self.version).encode(self.tokenizer.inner, self._messages(query, PAIR))

    def engine_answer(self, query):
        """What the engine answers greedily to a question without a history."""
        ids = chat_format(self.version).encode(self.tokenizer.inner, self._messages(query))
        found = self.model.engine.generate(ids, 80 - len(ids), SamplingParams(temperature=0))
        return chat_format(self.version).parse_reply(self.tokenizer.inner.decode(found)).content

    def saved_tokenizer(self):
        self.tokenizer.save_pretrained(self.out)
        return AutoTokenizer.from_pretrained(self.out)

    def guided(self, scale, count):
        """Tokens of classifier-free guidance away from the prompt's last token, each from whole passes."""
        prompt = self.inputs["input_ids"][0].tolist()
        new = []
        for _ in range(count):
            rows = (prompt + new, prompt[-1:] + new)
            log_p, other = (self._last_log_p(row) for row in rows)
            new.append(int((scale * (log_p - other) + other).argmax()))
        return new

    def _last_log_p(self, row):
        with torch.no_grad():
            return self.model(torch.tensor([row])).logits[0, -1].log_softmax(-1)

    # --- tensors --------------------------------------------------------------------------------------

    def official_names(self):
        """Of the official file, without the rotary tables, which are no weights."""
        return {name for name in load_file(self.folder / "model.safetensors") if not name.endswith("inv_freq")}

    def num_parameters_of_rank(self, rank):
        """Of low-rank pairs for every linear layer."""
        linears = [module for name, module in self.model.named_modules() if name.endswith(("query_key_value", "dense"))]
        linears += [module for name, module in self.model.named_modules() if name.endswith(("4h", "4h_to_h"))]
        bases = [getattr(module, "base_layer", module) for module in linears]
        return sum(rank * (base.in_features + base.out_features) for base in bases)

    # --- training -------------------------------------------------------------------------------------

    def _training(self):
        from transformers import Trainer, TrainingArguments

        settings = {"max_steps": 1, "save_steps": 1, "per_device_train_batch_size": 1, "learning_rate": 1e-3}
        settings |= {"report_to": [], "use_cpu": True, "disable_tqdm": True}
        return {
            "Trainer": Trainer,
            "arguments": TrainingArguments(output_dir=str(self.out), **settings),
            "data": [self._example()],
        }

    def _example(self):
        ids = torch.tensor(self.tokenizer("3加5等于几?", "9")["input_ids"])
        labels = ids.clone()
        labels[:-2] = -100
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}

    def gradients(self, model):
        """Of an adapter's weights, after one step back; counts how often a layer runs."""
        self.num_layer_runs = 0
        hooks = [layer.register_forward_pre_hook(self._count) for layer in model.base_model.model.transformer.layers]
        model.train()
        torch.manual_seed(1)
        model(**{name: x[None] for name, x in self._example().items()}).loss.backward()
        for hook in hooks:
            hook.remove()
        return torch.cat([x.grad.flatten() for x in model.parameters() if x.grad is not None])

    def _count(self, *_):
        self.num_layer_runs += 1

    def plain_gradients(self, **settings):
        """The same of a fresh model that keeps its activations."""
        import peft

        model = self.loaded(self.folder)
        torch.manual_seed(0)
        return self.gradients(peft.get_peft_model(model, peft.LoraConfig(**settings)))

    # --- adapters -------------------------------------------------------------------------------------

    def _adapters(self):
        own = FIXTURES / "lora" / f"v{self.version}"
        return {
            "adapter": own / "official",
            "adapter_of_all_linears": own / "all_linear",
            "adapter_of_another_version": FIXTURES / "lora" / ("v2" if self.version == "1" else "v1") / "official",
            "half_an_adapter": self._half(own / "official"),
            "adapter_that_names_the_folder": self._naming(own / "official"),
            "peft_prefix": own / "peft_prefix",
        }

    def _half(self, adapter):
        """An adapter that lacks the last layer's tensors."""
        folder = self.out.parent / "half"
        shutil.copytree(adapter, folder, dirs_exist_ok=True)
        tensors = load_file(folder / "adapter_model.safetensors")
        save_file({k: x for k, x in tensors.items() if ".layers.0." in k}, folder / "adapter_model.safetensors")
        return folder

    def _naming(self, adapter):
        """An adapter whose configuration has the folder of its model."""
        folder = self.out.parent / "naming"
        shutil.copytree(adapter, folder, dirs_exist_ok=True)
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": str(self.folder)}))
        return folder

    def expected(self, name):
        """The logits of peft's own adapter, merged by hand."""
        return self._official[f"{name}.logits"]

    def expected_greedy(self, name):
        return self._official[f"{name}.greedy"].flatten().tolist()

    def greedy(self, model):
        ids = self.inputs["input_ids"]
        return model.generate(input_ids=ids, max_new_tokens=20, eos_token_id=-1)[0, ids.shape[1] :].tolist()

    @torch.no_grad()
    def logits_by_hand(self, name):
        """Of an adapter merged into the dequantized weights, in an unquantized model."""
        folder = FIXTURES / "lora" / f"v{self.version}" / name
        tensors = load_file(folder / "adapter_model.safetensors")
        settings = json.loads((folder / "adapter_config.json").read_text())
        dense = self.loaded(FIXTURES / f"v{self.version}_tiny")
        for path, module in self.loaded(self.folder).named_modules():
            if isinstance(module, QuantizedLinear):
                down, up = (tensors[f"base_model.model.{path}.lora_{side}.weight"] for side in "AB")
                delta = up @ down * settings["lora_alpha"] / settings["r"]
                dense.get_submodule(path).weight.copy_(module.matrix.dequantize(slice(None)) + delta)
        return self.logits(dense)
