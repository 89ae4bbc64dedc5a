"""What attached models give depends on neither torch's default dtype nor its default device."""

from contextlib import contextmanager

import pytest
import torch
from needs import library
from strategies import CLASS, STRATEGIES

import tokengraph as tg
from tokengraph.testing import tiny_vit

library("timm")


@contextmanager
def default(kind):
    if kind == "meta":
        with torch.device(kind):
            yield
        return
    before = torch.get_default_dtype()
    torch.set_default_dtype(kind)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("setting", (STRATEGIES | CLASS).values(), ids=STRATEGIES | CLASS)
@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16, "meta"])
def test_defaults_do_not_matter(setting, kind):
    model, select = tiny_vit(img_size=(24, 40)), setting
    images = torch.randn(2, 3, 24, 40, generator=torch.Generator().manual_seed(2))
    with tg.attach(model, *select) as handle, torch.no_grad():
        with default(kind):  # first, so that tables of this grid are built in it
            got, sizes = model(images), handle.trace.size()
        assert torch.equal(got, model(images)) and got.dtype == sizes.dtype == torch.float32
        assert torch.equal(sizes, handle.trace.size())
