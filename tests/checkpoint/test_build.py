"""From files to a model in memory: where the work is done."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

import glm_int4
from glm_int4.checkpoint.build import ComputeSetup, build_model
from glm_int4.checkpoint.formats import layout
from glm_int4.checkpoint.opening import open_checkpoint
from tests.conftest import FIXTURES, MINI

# Stands for a GPU; see ``Elsewhere``.
DEVICE = torch.device("meta")


class Elsewhere(TorchDispatchMode):
    """Keeps tensors that are sent to the device here, and counts the elements that are worked on elsewhere.

    elements: of the largest tensor of every operation on tensors that were never sent; views and sending are none.
    """

    def __init__(self):
        super().__init__()
        self.elements, self._sent = 0, WeakIdKeyDictionary()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        sent = kwargs.get("device") == DEVICE
        if sent:
            kwargs["device"] = torch.device("cpu")
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        there = sent or any(tensor in self._sent for tensor in given)
        out = func(*args, **kwargs)
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        if there:
            for tensor in made:
                self._sent[tensor] = True
        elif not func.is_view and func.overloadpacket not in (torch.ops.aten.empty, torch.ops.aten.detach):
            self.elements += max((tensor.numel() for tensor in (*given, *made)), default=0)
        return out


@pytest.fixture(scope="module", params=["int4", "int8", "official int4", "official int4 with embeddings"])
def folder(request, tmp_path_factory):
    if request.param.startswith("official"):
        return FIXTURES / ("v1_tiny_int4_qe" if "embeddings" in request.param else "v2_tiny_int4")
    output = tmp_path_factory.mktemp("model") / "q"
    glm_int4.quantize_checkpoint(MINI, output, bits=int(request.param[-1]))
    return output


def test_what_is_stored_is_repacked_on_the_device(folder):
    reader, info = open_checkpoint(folder)
    half = dict.fromkeys(("dense_dtype", "stream_dtype", "kv_dtype"), torch.float16)
    setups = [ComputeSetup(device=d, backend="triton", half_tables=True, **half) for d in (torch.device("cpu"), DEVICE)]
    expected = build_model(reader, info, setups[0])
    with Elsewhere() as mode:
        model = build_model(reader, info, setups[1])
    quantized = sum(
        m.out_features * m.in_features for m in layout.matrices(info.config).values() if info.schemes[m.name]
    )
    unquantized = layout.num_parameters(info.config) - quantized
    assert mode.elements <= unquantized + quantized / 4
    for name, tensor in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
