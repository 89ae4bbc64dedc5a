"""Schedules at a wanted cost, and the tables of settings made from them."""

import re
from functools import cache

import pytest
from quick import quick_only
from truth.chosen import best, frontier, headline, moved, nearest_resolution, published, settled
from truth.curves import ONE, curves
from truth.plans import FAR, after, at_cost, clusters, constant, cost_of, linear, thirds
from truth.tables import COSTS, Body, Candidate, has_centers, learns, search, strategies, variants
from truth.thresholds import COUNTS, LAYERS, SHAPE

from tokengraph.evaluate.costs import Anatomy
from tokengraph.evaluate.settings import read_setting
from tokengraph.select.base import registry

BODY = Body(Anatomy(depth=12, channels=384, hidden=1536, prefix=1, heads=6), side=16, patch=14)
SMALL = Body(Anatomy(depth=8, channels=128, hidden=384, prefix=1, heads=4), side=7, patch=4)


@pytest.mark.parametrize("share", COSTS)
@pytest.mark.parametrize(
    ("strategy", "shape"),
    [
        ("tome", constant()),
        ("tome", linear()),
        ("evit", thirds(12)),
        ("ailurus", after(3)),
        ("expedite", clusters(3, 12)),
    ],
)
def test_at_cost_finds_a_schedule_of_that_cost(strategy, shape, share):
    text = at_cost(strategy, shape, share, BODY.anatomy, 256, BODY.whole)
    assert text is not None
    assert cost_of(read_setting(text), BODY.anatomy, 256) / BODY.whole == pytest.approx(share, abs=FAR)


def test_at_cost_gives_nothing_where_a_cut_comes_too_late():
    assert at_cost("ailurus", after(8), 0.35, BODY.anatomy, 256, BODY.whole) is None


def test_at_cost_gives_nothing_where_a_strategy_cannot_remove_so_much_at_once():
    assert at_cost("tome", after(4), 0.35, BODY.anatomy, 256, BODY.whole) is None  # half at most: 0.66
    assert at_cost("tome", after(4), 0.8, BODY.anatomy, 256, BODY.whole) is not None


def test_at_cost_counts_the_smaller_image():
    text = at_cost("tome", constant(), 0.5, BODY.anatomy, 196, BODY.whole)
    whole = at_cost("tome", constant(), 0.5, BODY.anatomy, 256, BODY.whole)
    assert int(text.split(":")[1]) < int(whole.split(":")[1])


def test_thirds_cut_at_the_published_places():
    assert thirds(12).text(70) == ":relative({4: 0.7, 7: 0.7, 10: 0.7})"


@pytest.mark.parametrize("body", quick_only([SMALL], [BODY, SMALL]))
def test_search_tries_every_strategy_that_needs_no_training_at_every_cost(body):
    found = list(search(body, [0.5, 0.8]))
    assert len({c.setting for c in found}) == len(found)
    tried = {(c.strategy, c.cost) for c in found}
    for name, kind in registry().items():
        if learns(kind) or not kind.__module__.startswith("tokengraph.select"):
            continue
        assert any(strategy == name for strategy, _ in tried), name
    assert {(name, cost) for name in ("tome", "random", "grid-pool") for cost in (0.5, 0.8)} <= tried
    assert {read_setting(c.setting).name for c in found} == {c.setting for c in found}


@pytest.mark.parametrize("body", quick_only([SMALL], [BODY, SMALL]))
def test_search_and_frontier_have_strategies_by_threshold_with_their_own_layers(body):
    depth = body.anatomy.depth
    found = [c for c in search(body, [0.5]) if c.shape == "own"]
    own = {name for name, kind in registry().items() if kind.ragged and not learns(kind)}
    assert {c.strategy for c in found} == own <= {*LAYERS, *COUNTS}
    assert {c.strategy for c in frontier(body, []) if c.shape == SHAPE} == own  # the published one of each
    for candidate in found:
        setting = read_setting(candidate.setting)
        assert setting.schedule is None and setting.select().bind(64, depth)[1]  # layers that the model has
    if depth == 12:
        settings = [c.setting for c in found]
        assert {"mpm,layers=(2, 5)", "g2tm,tau=0.94,layer=2", "algm,tau=0.88,layers=(1, 5)"} < set(settings)
    score = {c.setting: 1.0 for c in found}
    assert best(found, score) == []  # none was made for a cost


def test_strategies_leave_out_what_has_to_learn():
    assert "dynamicvit" not in strategies() and {"tome", "evit", "expedite"} <= set(strategies())


def test_published_has_no_options_and_a_family_for_each():
    found = published(BODY, [0.5])
    assert {c.setting for c in found} >= {"tome:20", "evit:relative({4: 0.52, 7: 0.52, 10: 0.52})"}
    assert all(c.options == "" for c in found if c.shape != SHAPE)


@cache
def made_up():
    found = list(search(BODY, [0.5]))
    return found, {c.setting: (i * 37 % 101) / 101 for i, c in enumerate(found)}


def test_best_takes_one_setting_of_each_strategy_and_none_that_failed():
    found, score = made_up()
    failed = best(found, score)[0]
    score = {setting: value for setting, value in score.items() if setting != failed.setting}
    picked = best(found, score)
    assert failed not in picked
    assert len({c.strategy.split("+")[0] for c in picked}) == len(picked)
    for candidate in picked:
        rivals = [c for c in found if c.strategy == candidate.strategy and c.setting in score]
        assert score[candidate.setting] == max(score[c.setting] for c in rivals)


def test_frontier_holds_the_picked_the_published_and_smaller_images():
    found, score = made_up()
    settings = [c.setting for c in frontier(BODY, best(found, score))]
    assert len(set(settings)) == len(settings)
    assert {c.setting for c in best(found, score)} | {"tome:20", "resolution:168"} <= set(settings)


def test_headline_has_controls_at_each_cost():
    found, score = made_up()
    settings = headline(BODY, best(found, score), score)
    at_half = [c for c in settings if c.cost == 0.5]
    assert {"resolution", "random"} <= {c.strategy for c in at_half} and any("+" in c.strategy for c in at_half)


def test_nearest_resolution_costs_what_it_should():
    assert nearest_resolution(BODY, 0.5).setting == "resolution:168"
    assert nearest_resolution(BODY, 0.35).setting == "resolution:140"


def test_moved_works_schedules_out_for_the_other_grid():
    found, score = made_up()
    large = Body(BODY.anatomy, side=21, patch=14)
    picked, scored = moved(best(found, score), score, BODY, large)
    assert [c.shape for c in picked] == [c.shape for c in best(found, score)]
    assert set(scored) == {c.setting for c in picked}
    for candidate in picked:
        if "+" not in candidate.strategy:
            cost = cost_of(read_setting(candidate.setting), large.anatomy, 441) / large.whole
            assert cost == pytest.approx(0.5, abs=FAR)


def test_curves_name_settings_that_exist_each_once():
    found = [c.setting for c in curves(BODY)]
    assert len(set(found)) == len(found)
    for setting in found:
        assert read_setting(setting).select() is not None  # an unknown option or word raises


def test_curves_vary_what_a_default_hangs_on():
    found = {(c.strategy, c.shape) for c in curves(BODY)}
    assert {("expedite", "inv_temperature"), ("tome", "prop_attn"), ("ailurus", "reduce")} <= found
    assert {(strategy, parameter) for strategy, of in ONE.items() for parameter in of} <= found
    layers = {int(layer) for c in curves(SMALL) for layer in re.findall(r"[{ ](\d+): ", c.setting)}
    assert max(layers) == SMALL.anatomy.depth  # where Expedite reconstructs; no layer is outside of a smaller model


def test_settled_gives_thresholds_the_share_that_they_cost():
    found = [Candidate(f"g2tm:{{2: 1}},tau={tau}", "g2tm", SHAPE, 0.0) for tau in (0.6, 0.8, 0.9)]
    other = Candidate("tome:13", "tome", "constant", 0.65)
    lines = [{"setting": c.setting, "cost": cost} for c, cost in zip(found, (0.36, 0.58, 0.79), strict=True)]
    kept = settled([*found, other], [*lines, {"setting": other.setting, "cost": 0.36}])
    assert [c.cost for c in kept] == [0.35, 0.0, 0.8, 0.65]  # the last one has the cost it was made for


def test_moved_keeps_thresholds_as_they_are():
    one = Candidate("g2tm:{2: 1},tau=0.8", "g2tm", SHAPE, 0.5)
    assert moved([one], {one.setting: 0.9}, BODY, SMALL) == ([one], {one.setting: 0.9})


def test_search_tries_the_centre_only_where_a_map_has_centres():
    assert has_centers("dpc-knn") and not has_centers("tome") and not has_centers("topk")


def test_variants_are_options_that_the_strategy_has_and_that_change_something():
    assert variants("tome") == ["", ",reduce=mlerp", ",prop_attn=half-log", ",reduce=mlerp,prop_attn=half-log"]
    assert variants("k-medoids") == ["", ",reduce=mean", ",reduce=mean,prop_attn=half-log"]  # medoids forget sizes
    assert variants("tofu") == ["", ",reduce=mean", ",reduce=released"]
    for strategy in strategies():
        for options in variants(strategy):
            read_setting(strategy + options).select()  # raises for an option that it does not have
