"""No strategy multiplies by subnormal weights, which a CPU handles many times slower than other numbers."""

import pytest
import torch

import tokengraph as tg
from tokengraph.flat.faint import FAINT, drop_faint
from tokengraph.flat.segment import TINY
from tokengraph.select.expedite.cluster import token_clustering
from tokengraph.select.expedite.reconstruct import reconstruction_edges
from tokengraph.select.token_transforming import token_transforming
from tokengraph.select.tokens import Tokens
from tokengraph.select.toma import toma

# Two tokens at 0 and two at 1: the other cluster's weight is exp(-95) = 5.5e-42.
PAIRS = torch.tensor([[[0.0], [0.0], [1.0], [1.0]]])
SHARP = 95.0


def subnormal(weight):
    return int(((weight != 0) & (weight.abs() < TINY)).sum())


def test_drop_faint_zeroes_what_a_sum_does_not_show_and_nothing_else():
    weight = torch.tensor([5e-42, FAINT, 2 * FAINT, 0.0, 1.0])
    assert drop_faint(weight).tolist() == torch.tensor([0.0, 0.0, 2 * FAINT, 0.0, 1.0]).tolist()
    assert drop_faint(torch.tensor([torch.nan])).isnan().all()


@pytest.mark.parametrize("form", ["dense", "edges", "tiles"])
@pytest.mark.parametrize("t", [SHARP, torch.tensor([[[SHARP]]])], ids=["number", "tensor"])
def test_token_clustering_has_no_subnormal_weights(form, t):
    *_, weight = token_clustering(PAIRS, (1, 4), (1, 2), inv_temperature=t, form=form)
    assert subnormal((-torch.tensor(SHARP)).exp()) == 1  # the plain formula has
    assert subnormal(weight) == 0 and weight.sum() == 4


@pytest.mark.parametrize("normalize", ["softmax", "l2"])
def test_reconstruction_has_no_subnormal_weights(normalize):
    centers = torch.tensor([[[0.0], [1.0]]])
    *_, weight = reconstruction_edges(PAIRS, centers, inv_temperature=SHARP, normalize=normalize)
    assert sorted(weight.tolist()) == [0.0] * 4 + [1.0] * 4


@pytest.mark.parametrize(("grid", "tiles"), [(None, None), ((2, 2), (2, 2))], ids=["all", "tiles"])
def test_toma_has_no_subnormal_weights(grid, tiles):
    x = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]])  # cosines 0 and 1
    weight = toma(x, 2, scale=SHARP, grid=grid, tiles=tiles).weight
    assert sorted(weight.tolist()) == [0.0] * 4 + [1.0] * 4


def test_token_transforming_has_no_subnormal_weights():
    x = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]])
    weight = token_transforming(x, torch.tensor([[4.0, 3.0, 2.0, 1.0]]), 2, scale=SHARP).weight
    assert sorted(weight.tolist()) == [0.0] * 4 + [1.0] * 4


def test_a_composed_strategy_has_no_subnormal_weights():
    x = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]])
    select = tg.compose(choose="facility", reduce="soft", knob=SHARP)
    assert subnormal(select(Tokens(x, grid=(2, 2)), 2).weight) == 0
