"""Fixed budgets read no values, so that a device never waits for the host: runs of models that have no values."""

from contextlib import nullcontext

import pytest
import torch
from needs import library
from strategies import CLASS, STRATEGIES

import tokengraph as tg
from tokengraph.flat.tables import counting, equal_ptr
from tokengraph.testing import tiny_vit

library("timm")

# Their number of clusters depends on values, or their rounds do.
READ = {"mpm", "g2tm", "algm", "atc", "atc-single", "atc-complete", "svit", "adavit", "avit", "ats"}
READ |= {"gtp", "gtp-sparse"}  # exact kNN looks for rows that products do not decide
ALL = STRATEGIES | CLASS | {"gtp-spatial": (tg.GTP(graph="spatial"), 3)}


@pytest.fixture
def no_values(monkeypatch):
    """A model and images on the device ``meta``, where reading a value raises; autocast knows no such device."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())
    return tiny_vit().to("meta"), torch.randn(2, 3, 32, 32, device="meta")


@pytest.mark.parametrize("name", sorted(set(ALL) - READ))
def test_fixed_budgets_read_no_values(name, no_values):
    model, images = no_values
    with tg.attach(model, *ALL[name]) as coarse, torch.no_grad():
        for _ in range(2):
            assert model(images).shape == (2, 5)
        assert coarse.trace.counts[0] == 16


@pytest.mark.parametrize("name", sorted(READ))
def test_the_others_do(name, no_values):
    model, images = no_values
    with tg.attach(model, *ALL[name]), torch.no_grad():
        with pytest.raises((RuntimeError, NotImplementedError), match=r"item\(\)|no data|aten::equal"):
            model(images)


def test_constants_keep_their_addresses():
    assert counting(7, "cpu").data_ptr() == counting(7, "cpu").data_ptr()
    assert equal_ptr(2, 5, "cpu").data_ptr() == equal_ptr(2, 5, "cpu").data_ptr()
