"""The search's parts: dynamic programming against brute force, and curves against schedules that follow them."""

import itertools

import numpy as np
import pytest

from tokengraph.planning.curves import Curve, Row
from tokengraph.planning.search import allowed, filled, levels_of, solve, solve_once


def problem(seed, depth=3, count=5):
    rng = np.random.default_rng(seed)
    levels = levels_of(count)
    share = np.clip(1 - levels[None, :] / levels[:, None], 0, None)
    losses = rng.uniform(0.5, 2, depth)[:, None, None] * share**1.5
    costs = np.broadcast_to(levels[:, None] + 0.5 * levels[None, :], (depth, count, count)).astype(float)
    can = np.broadcast_to(allowed(levels, lambda n: (n + 1) // 2), losses.shape)
    return losses, costs, can


def total(table, path):
    return sum(table[i][a, b] for i, (a, b) in enumerate(itertools.pairwise(path)))


@pytest.mark.parametrize("seed", range(5))
def test_solve_finds_the_best_path_of_its_cost(seed):
    losses, costs, can = problem(seed)
    paths = [(0, *p) for p in itertools.product(range(5), repeat=3)]
    paths = [p for p in paths if all(can[i][a, b] for i, (a, b) in enumerate(itertools.pairwise(p)))]
    for limit in (14.0, 17.0, 20.0):
        found = solve(losses, costs, limit, can)
        assert found is not None and total(costs, found) <= limit
        best = min((total(losses, p) for p in paths if total(costs, p) <= total(costs, found)), default=None)
        assert total(losses, found) == pytest.approx(best)


def test_solve_says_when_a_budget_cannot_be_met():
    losses, costs, can = problem(0)
    assert solve(losses, costs, 1.0, can) is None


def test_solve_reaches_the_last_level():
    losses, costs, can = problem(0)
    found = solve(losses, costs, np.inf, can, last=3)
    assert found is not None and found[-1] == 3


def test_solve_once_makes_one_step():
    losses, costs, can = problem(1)
    found = solve_once(losses, costs, 17.0, can)
    assert found is not None and len(set(found)) <= 2 and total(costs, found) <= 17.0


def test_allowed_respects_the_fewest_tokens_of_a_step():
    assert allowed(np.array([4, 3, 2, 1]), lambda n: n // 2)[0].tolist() == [True, True, True, False]


def test_filled_spends_the_budget_without_passing_it():
    found = filled([10, 6, 2], lambda t: sum(t), 24, lambda layer, n: 1)
    assert sum(found) <= 24 and sum(found) >= 23 and found[0] == 10


def test_curve_recovers_losses_that_follow_it():
    truth = Curve(np.array([0.4, 0.2, 0.1, 0.05]), 100, power=1.5, density=0.5)
    cuts = {layer: [100] * layer + [50] * (5 - layer) for layer in (1, 2, 3, 4)}
    curve = Curve.of_cuts({k: Row(tuple(t), truth.predict(t), 0.0) for k, t in cuts.items()}, 4, 100)
    for tokens in ((100, 90, 80, 70, 60), (100, 80, 60, 50, 40), (100, 100, 70, 40, 20), (100, 95, 70, 60, 30)):
        curve.add(Row(tokens, truth.predict(tokens), 0.0))
    for tokens in ((100, 85, 75, 55, 45), (100, 95, 85, 50, 25)):
        assert curve.predict(tokens) == pytest.approx(truth.predict(tokens), rel=0.05)


def test_curve_of_nothing_removed_is_zero():
    assert Curve(np.ones(3), 16).predict([16, 16, 16, 16]) == 0.0


def test_curve_survives_a_schedule_that_loses_less_than_its_input_size_alone():
    curve = Curve(np.array([0.4, 0.2, 0.1]), 100)
    for tokens in ((100, 80, 60, 50), (100, 90, 70, 40)):
        curve.add(Row(tokens, curve.predict(tokens), 0.0))
    before = curve.predict((100, 85, 65, 45))
    curve.add(Row((81, 70, 60, 50), 0.05, 0.06))
    assert 0.3 * before < curve.predict((100, 85, 65, 45)) < 3 * before
