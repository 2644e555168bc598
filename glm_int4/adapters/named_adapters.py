"""Adapters by name beside one model: every row of what runs may have another of them, or none."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from glm_int4.adapters.adapter_source import Adapters, check_name, find_adapters
from glm_int4.adapters.applying import adapter_bytes, check_together, dense_head, make_additions, vectors_of_norms
from glm_int4.adapters.lora_tensors import Lora
from glm_int4.adapters.reading import ReadAdapters, read_adapters
from glm_int4.checkpoint.build import ComputeSetup
from glm_int4.checkpoint.formats import layout
from glm_int4.downloads import shown
from glm_int4.errors import InputError
from glm_int4.models import Model
from glm_int4.models.config import Config
from glm_int4.quantization.adapted import ChosenLinear
from glm_int4.system import free_bytes, gb_text, trim_heap

_REST = "load it without a name, for all answers, or merge it into its model"


@dataclass(slots=True, eq=False)
class NamedAdapter:
    """An adapter that rows may have; another one of the same name is another object.

    number: of its parts in the model's layers. is_loaded: whether they are there.
    """

    name: str
    number: int
    is_loaded: bool = True


class NamedAdapters:
    """The adapters of one model.

    ``prepare`` leaves the model alone, so that it may run meanwhile; ``add`` and ``remove`` must not meet a step.

    Args:
        own: adapters that the model was loaded with; they act under every name.
        model_names: what the model is called, as of ``read_adapters``.
    """

    def __init__(
        self, model: Model, setup: ComputeSetup, own: Sequence[Lora] = (), model_names: Sequence[str] = ()
    ) -> None:
        self._model, self._setup, self._own, self._model_names = model, setup, own, model_names
        self._found: dict[str, NamedAdapter] = {}
        self._numbers: set[int] = set()  # those of adapters that nobody finds any more among them

    @property
    def names(self) -> list[str]:
        """Of all that can be found, in the order in which they came."""
        return list(self._found)

    def get(self, name: str) -> NamedAdapter | None:
        """The adapter of a name, None for others."""
        return self._found.get(name)

    def find(self, name: str | None) -> NamedAdapter | None:
        """The adapter of a name; None for None.

        Raises:
            InputError: there is none.
        """
        if name is None:
            return None
        if (found := self.get(name)) is None:
            there = ", ".join(self._found) or "none"
            raise InputError(f"expected the name of an adapter ({there} here), got {shown(name)}; load it first")
        return found

    def load(self, name: str, adapter: Adapters) -> NamedAdapter:
        """Read an adapter and add it; ``adapter`` is as of ``glm_int4.load``.

        Raises:
            UserError: it cannot be used, or the name is taken.
        """
        self.check_free(name)
        return self.add(name, self.prepare(name, adapter))

    def prepare(self, name: str, adapter: Adapters) -> dict[str, nn.Module]:
        """Read an adapter and make its parts, for ``add``.

        Raises:
            UserError: it cannot be used, or there is no memory for it.
        """
        read = read_adapters(find_adapters(adapter), self._model.config, self._setup, self._model_names)
        check_named(name, read, self._own, self._model.config)
        needed, free = adapter_bytes(read.loras, self._setup), free_bytes(self._setup.device)
        if free is not None and needed > free:
            raise InputError(
                f"expected enough memory for the adapter {name}, which takes {gb_text(needed)}, got {gb_text(free)}; "
                "unload another one"
            )
        return self.make_parts(read.loras)

    def make_parts(self, loras: Sequence[Lora]) -> dict[str, nn.Module]:
        """What some adapters together, and the model's own, put beside its matrices."""
        touched = {name for lora in loras for name in lora.deltas}
        touched |= {name.removesuffix(".bias") for lora in loras for name in lora.vectors}
        parts: dict[str, nn.Module] = dict(make_additions(self._model, [*self._own, *loras], self._setup, touched))
        for lora in loras:
            for name, tensor in lora.whole.items():
                setup = self._setup
                parts[name] = dense_head(tensor.to(device=setup.device, dtype=setup.dense_dtype, copy=True))
        return parts

    def add(self, name: str, parts: Mapping[str, nn.Module]) -> NamedAdapter:
        """Let rows have an adapter.

        Raises:
            InputError: the name is taken, or none.
        """
        self.check_free(name)
        number = next(n for n in range(1, len(self._numbers) + 2) if n not in self._numbers)
        self._numbers.add(number)
        model = self._model
        for path, part in parts.items():
            layer = model.get_submodule(path)
            if not isinstance(layer, ChosenLinear):
                layer = ChosenLinear(layer, model.choice)
                model.set_submodule(path, layer)
            layer.named[str(number)] = part
        self._note_change()
        self._found[name] = adapter = NamedAdapter(name, number)
        return adapter

    def take_away(self, name: str) -> NamedAdapter:
        """Let nobody find an adapter any more; its parts stay until ``remove``.

        Raises:
            InputError: there is none of that name.
        """
        adapter = self.find(name)
        assert adapter is not None
        del self._found[name]
        return adapter

    def remove(self, adapter: NamedAdapter) -> None:
        """Free an adapter's parts, which no row has any more."""
        if self._found.get(adapter.name) is adapter:
            del self._found[adapter.name]
        adapter.is_loaded = False
        self._numbers.discard(adapter.number)
        for path, layer in list(self._model.named_modules()):
            if isinstance(layer, ChosenLinear) and str(adapter.number) in layer.named:
                del layer.named[str(adapter.number)]
                if not layer.named:
                    self._model.set_submodule(path, layer.own)
        self._note_change()
        trim_heap()

    def unload(self, name: str) -> None:
        """Remove an adapter, which no row has; raises as ``take_away``."""
        self.remove(self.take_away(name))

    def check_free(self, name: str) -> None:
        """Raise InputError for what is no name, or one that is taken."""
        check_name(name)
        if name in self._found:
            raise InputError(f"expected another name than {name}, which an adapter has already; unload that one first")

    def _note_change(self) -> None:
        self._model.choice.count = max(self._numbers, default=0) + 1
        self._model.forget_fused()


def check_named(name: str, read: ReadAdapters, own: Sequence[Lora], config: Config) -> None:
    """Raise InputError for adapters that cannot be those of single rows."""
    if read.prefix is not None:
        raise InputError(
            f"expected LoRA as the adapter {name}, got a prefix, which stands in front of all rows; {_REST}"
        )
    check_together([*own, *read.loras])
    head = layout.vocabulary(config)[-1]
    others = [*vectors_of_norms(read.loras, config)]
    others += [path for lora in read.loras for path in lora.whole if head.kind != "head" or path != head.name]
    if others:
        raise InputError(
            f"expected an adapter of linear layers as {name}, got one that replaces {others[0]}, which all rows share; "
            f"{_REST}"
        )


def named_bytes(named: Mapping[str, Iterable[Lora]], own: Sequence[Lora], setup: ComputeSetup) -> int:
    """Bytes that adapters take in memory: where one changes a matrix, its part holds what the model's own adds too."""
    return sum(adapter_bytes([*own, *loras], setup) for loras in named.values())
