"""The local search: shapes that spend a budget, moves that are given up, and fixed schedules that no plan loses to."""

import numpy as np
import pytest
import torch

import tokengraph as tg
from tokengraph.evaluate.costs import Anatomy, anatomy
from tokengraph.evaluate.progress import Progress
from tokengraph.planning import refine as local
from tokengraph.planning.bench import Bench, score_of
from tokengraph.planning.explore import Explorer
from tokengraph.planning.facts import Target
from tokengraph.planning.family import families
from tokengraph.planning.record import Plan
from tokengraph.planning.shapes import published
from tokengraph.planning.space import Budget, Space
from tokengraph.testing import tiny_vit


def images(count, seed):
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def explorer():
    model = tiny_vit()
    depth = len(model.blocks)
    target = Target("tiny", depth, model.embed_dim, 4, 16)
    bench = Bench(model, list(images(6, 0).split(2)), "features", anatomy(model))
    return Explorer(bench, Space(bench.body, target, Budget("cost", 0.7)), Progress(1, "plan", False))


def test_shaped_spends_the_budget_in_the_given_shape(explorer):
    family, depth = families("tome")[0], explorer.space.target.depth
    tokens = explorer.space.shaped(family, 4, np.ones(depth))
    removed = -np.diff(tokens)
    assert explorer.space.fits(tokens, family) and removed.max() - removed.min() <= 1
    last = np.zeros(depth)
    last[0] = 1.0
    once = explorer.space.shaped(family, 4, last)
    assert once[0] > once[1] == once[-1] and explorer.space.fits(once, family)


def test_shaped_returns_none_where_no_scale_fits(explorer):
    family, depth = families("tome")[0], explorer.space.target.depth
    explorer.space.budget = Budget("cost", 0.01)
    assert explorer.space.shaped(family, 4, np.ones(depth)) is None
    explorer.space.budget = Budget("cost", 0.7)
    assert explorer.space.shaped(family, 4, np.zeros(depth)) is None


def test_shaped_meets_a_number_of_tokens(explorer):
    explorer.space.budget = Budget("tokens", 5, 5)
    assert explorer.space.shaped(families("tome")[0], 4, np.ones(explorer.space.target.depth))[-1] == 5


def test_score_counts_the_worst_images_too():
    assert score_of(np.array([0.0, 0.0, 0.3])) == pytest.approx(0.1 + 0.1 * 0.3)


def test_race_gives_up_a_plan_that_falls_behind(explorer):
    bench, target = explorer.bench, explorer.space.target
    family, depth = families("tome")[0], target.depth
    gentle, hard = [16] + [15] * depth, [16, *range(8, 8 - depth, -1)]
    plans = [Plan(family.setting(tokens, None), tuple(tokens), target) for tokens in (gentle, hard)]
    best = bench.run(plans[0])
    assert best.whole and len(best.each) == 6
    found = bench.race(plans[1], best)
    assert not found.whole and len(found.each) == 2
    assert found.loss == pytest.approx(found.each.mean() * best.loss / best.each[:2].mean())
    assert bench.race(plans[0], best, first=True).whole  # the memory has all of it
    assert bench.race(plans[1], None).whole and bench.memory[plans[1].setting.key].whole
    assert bench.race(plans[0], best).score == pytest.approx(best.score)


def test_best_runs_a_schedule_again_that_was_given_up_for_one_beyond_the_budget(explorer):
    family, depth = families("tome")[0], explorer.space.target.depth
    explorer._base[4] = 0.0
    first = explorer.measure(family, 4, [16] + [14] * depth)
    explorer.space.budget = Budget("cost", 0.95)
    hard = explorer.measure(family, 4, [16, *range(8, 8 - depth, -1)])
    assert explorer.best() is first and not hard.measured.whole
    explorer.space.budget = Budget("cost", 0.55)  # as when a clock turns out slower
    best = explorer.best()
    assert best.tokens == hard.tokens and best.measured.whole and len(best.measured.each) == 6
    assert explorer.measure(family, 4, hard.tokens) is best


@pytest.mark.parametrize("cost", [0.6, 0.8])
def test_plan_is_no_worse_on_its_images_than_published_schedules(cost):
    model, ours, held = tiny_vit(), images(6, 1), images(3, 2)
    memory = {}
    plan = tg.plan(model, ours, held_out=held, cost=cost, preserve="features", strategies=["tome", "dpc-knn"],
                   resolution=False, memory=memory, progress=False)  # fmt: skip
    target, body = plan.target, anatomy(model)
    bench = Bench(model, [ours], "features", body)
    space = Space(body, target, Budget("cost", cost))
    mine = bench.run(plan).score
    for family in families(["tome", "dpc-knn"]):
        for tokens in published(space, family, 4):
            fixed = Plan(family.setting(tokens, None), tuple(tokens), target)
            assert mine <= bench.run(fixed).score + 1e-6


def test_refine_keeps_what_helps_and_stays_within_the_budget(explorer, monkeypatch):
    family, depth = families("tome")[0], explorer.space.target.depth
    late = np.zeros(depth)
    late[-2:] = 1.0
    start = explorer.measure(family, 4, explorer.space.shaped(family, 4, late + 0.1))
    explorer.sides, explorer._base[4] = [4], 0.0
    local.refine(explorer)
    best = explorer.best()
    assert best.measured.score <= start.measured.score and best.measured.cost <= 0.702
    monkeypatch.setattr(local, "MOVES", 0)
    count = len(explorer.trials)
    local.refine(explorer)
    assert len(explorer.trials) == count


def test_published_schedules_are_equal_falling_and_three_cuts_by_one_share():
    target, body = Target("large", 12, 384, 16, 256), Anatomy(12, 384, 1536, 1, 6)
    space = Space(body, target, Budget("cost", 0.65))
    equal, falling, cuts = published(space, families("dpc-knn")[0], 16)
    assert np.ptp(np.diff(equal)) <= 1 and np.all(np.diff(falling, 2) >= -1) and falling[-2] - falling[-1] <= 1
    assert np.flatnonzero(np.diff(cuts)).tolist() == [3, 6, 9]
    shares = [cuts[i + 1] / cuts[i] for i in (3, 6, 9)]
    assert max(shares) - min(shares) < 0.05
    for tokens in (equal, falling, cuts):
        assert 0.64 < space.share(tokens, families("dpc-knn")[0]) <= 0.6515
    once = published(space, families("ailurus")[0], 16)
    assert [int(np.flatnonzero(np.diff(tokens))[0]) for tokens in once] == [1, 2, 3, 4, 5]
