"""Staged: strategies take turns by depth, each with its own reduction."""

import pytest
import torch

import tokengraph as tg
from tokengraph.evaluate.costs import anatomy, multiply_adds
from tokengraph.evaluate.settings import read_setting
from tokengraph.select.staged import Staged
from tokengraph.testing import tiny_vit

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def features(select, schedule):
    model = tiny_vit(depth=4)
    with tg.attach(model, select, schedule):
        return model.forward_features(IMAGES)


def test_one_strategy_in_two_stages_is_that_strategy():
    schedule = {1: 12, 2: 10, 3: 6, 4: 5}
    assert torch.equal(features(Staged({1: "tome", 3: "tome"}), schedule), features("tome", schedule))


@pytest.mark.parametrize("later", ["tome", "pitome", "dpc-knn"])
def test_stage_before_its_first_step_changes_nothing(later):
    staged = Staged({1: "ailurus", 3: later})
    assert torch.equal(features(staged, {2: 9}), features("ailurus", {2: 9}))
    assert torch.equal(features(staged, {3: 9}), features(later, {3: 9}))


def test_stages_keep_their_reduction():
    mlerp, mean = (read_setting(f"dpc-knn,reduce={kind}").select() for kind in ("mlerp", "mean"))
    first = features(Staged({1: mlerp, 3: "tome"}), {2: 8, 3: 6})
    assert not torch.equal(first, features(Staged({1: mean, 3: "tome"}), {2: 8, 3: 6}))


def test_grid_strategies_act_first_only():
    with pytest.raises(ValueError, match="Expected AiluRus to act on the full grid only .got it at layer 3, after"):
        tg.attach(tiny_vit(depth=4), Staged({1: "tome", 3: "ailurus"}), {1: 12, 3: 8})


def test_stages_refuse_what_cannot_take_turns():
    with pytest.raises(ValueError, match="at least one stage"):
        Staged({})
    with pytest.raises(ValueError, match="numbers of at least 1 .got 0"):
        Staged({0: "tome"})
    with pytest.raises(ValueError, match="Expected stages that choose by a schedule alone"):
        Staged({1: "tome", 3: tg.DynamicViT(0.5)})


def test_cost_counts_each_stage_by_its_own_strategy():
    body, counts = anatomy(tiny_vit(depth=4)), [16, 16, 12, 12, 8]
    assert body is not None
    tome, dpc = tg.ToMe(), tg.DPCKNN()
    whole = multiply_adds(body, counts, Staged({1: dpc, 3: tome}))[0]
    parts = [multiply_adds(body, c, s)[0] for c, s in (([16, 16, 12], dpc), ([12, 12, 8], tome))]
    assert whole == pytest.approx(sum(parts))
