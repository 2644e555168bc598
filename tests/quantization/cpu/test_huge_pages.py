"""Memory in large pages is memory like any other."""

import pytest
import torch

from glm_int4.quantization.cpu import huge_pages

LARGE = (3, (2 << 20) + 5)


@pytest.mark.parametrize("shape", [(0,), (7, 3), LARGE], ids=str)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint32, torch.float16], ids=str)
def test_it_has_its_shape_and_holds_what_is_written(shape, dtype):
    x = huge_pages.empty(shape, dtype)
    assert (x.shape, x.dtype, x.is_contiguous()) == (torch.Size(shape), dtype, True)
    x.fill_(3)
    assert bool((x.view(torch.uint8) == torch.full(shape, 3, dtype=dtype).view(torch.uint8)).all())


def test_large_memory_begins_with_a_page_and_systems_without_them_do(monkeypatch):
    if huge_pages._madvise() is not None:
        assert huge_pages.empty(LARGE, torch.uint8).data_ptr() % (2 << 20) == 0
    monkeypatch.setattr(huge_pages, "_madvise", lambda: None)
    assert huge_pages.empty(LARGE, torch.uint8).shape == LARGE
