"""tg.plan on tiny models: budgets hold, plans attach, the search beats even removal, and errors are clear."""

import copy

import pytest
import torch

import tokengraph as tg
from tokengraph.planning.clock import Clock
from tokengraph.testing import tiny_vit

IMAGES = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
FAST = {"strategies": "tome", "progress": False}


def planned(model=None, **options):
    return tg.plan(tiny_vit() if model is None else model, IMAGES, **{**FAST, **options})


@pytest.mark.parametrize(("cost", "preserve"), [(0.8, "class"), (0.5, "patches"), (0.5, "features"), (0.5, "logits")])
def test_plan_stays_within_its_cost(cost, preserve):
    found = planned(cost=cost, preserve=preserve)
    assert found.measured.cost is not None and 0.7 * cost <= found.measured.cost <= cost
    assert found.measured.images == 2 and found.budget == {"cost": cost} and found.preserve == preserve


def test_plan_is_deterministic_and_leaves_the_model_as_it_was():
    model = tiny_vit().train()
    before, weights = [type(m) for m in model.modules()], copy.deepcopy(model.state_dict())
    first, second = planned(model, cost=0.6), planned(model, cost=0.6)
    assert first.setting == second.setting and first.tokens == second.tokens
    assert first.sensitivity == second.sensitivity and first.predicted == second.predicted
    assert model.training and [type(m) for m in model.modules()] == before
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_plan_loses_no_more_than_equal_removal_at_the_same_cost():
    model = tiny_vit(depth=6)
    found = tg.plan(model, IMAGES, cost=0.5, preserve="patches", held_out=IMAGES[:4], resolution=False, **FAST)
    even = tg.fidelity(model, IMAGES[:4], "tome:[3, 3, 2, 2, 2, 2]")
    assert even.cost >= found.measured.cost and found.measured.patch_cosine >= even.patch_cosine


@pytest.mark.parametrize(("tokens", "count"), [(5, 5), (0.5, 8)])
def test_plan_of_tokens_ends_with_them(tokens, count):
    assert planned(tokens=tokens, preserve="patches").tokens[-1] <= count


def test_smallest_image_is_tried_where_sizes_are_far_apart():
    found = planned(cost=0.4, strategies="none")
    assert found.setting.resolution == 16 and found.measured.cost < 0.4


def test_plan_with_resolution_takes_images_of_the_model_itself():
    model = tiny_vit()
    plain = model(IMAGES)
    found = planned(model, cost=0.58, strategies="none")
    assert found.setting.resolution == 24 and found.tokens == (9, 9, 9, 9)
    with tg.attach(model, found) as handle:
        small = torch.nn.functional.interpolate(IMAGES, (24, 24), mode="bicubic", antialias=True)
        assert torch.equal(model(IMAGES), model(small)) and handle.trace.grid == (3, 3)
        with handle.paused():
            assert torch.equal(model(IMAGES), plain)
        assert handle.trace.lift(torch.zeros(6, 9, 2)).shape == (6, 9, 2)
    assert torch.equal(model(IMAGES), plain)


def test_resolution_false_keeps_the_input_size():
    assert planned(cost=0.5, resolution=False).setting.resolution is None


def test_attached_plan_gives_the_measured_fidelity():
    model = tiny_vit()
    found = planned(model, cost=0.6)
    with tg.attach(model, found) as handle:
        again = tg.fidelity(model, IMAGES[2::3], handle)
    assert again.class_cosine == pytest.approx(found.measured.class_cosine, abs=1e-9)
    assert tg.fidelity(model, IMAGES[2::3], found).class_cosine == pytest.approx(again.class_cosine, abs=1e-9)


def test_plan_for_a_time_that_the_plain_model_meets_changes_nothing():
    found = planned(time=1e6)
    assert found.plain and "meets the budget" in found.notes[0]
    model = tiny_vit()
    plain = model(IMAGES)
    with tg.attach(model, found):
        assert torch.equal(model(IMAGES), plain)


def test_plan_that_cannot_pay_returns_the_plain_model_and_says_so():
    found = planned(speedup=1000, resolution=False)
    assert found.plain and found.tokens == (16,) * 4
    assert any("Nothing pays" in note for note in found.notes) and "Nothing pays" in str(found)


def test_plan_meets_a_speedup_when_the_clock_says_so(monkeypatch):
    def clock(model, plans, batch, rounds=7):
        """Time in proportion to tokens, plus a fixed part."""
        return [10.0 + sum(plan.tokens) for plan in plans]

    monkeypatch.setattr("tokengraph.planning.timed.time_plans", clock)
    found = planned(speedup=1.3)
    assert not found.plain and 74 / (10 + sum(found.tokens)) >= 1.3 / 1.02
    assert found.measured.speedup == pytest.approx(74 / (10 + sum(found.tokens)))


def test_clock_splits_time_into_a_fixed_part_and_a_rate():
    clock = Clock.fit([1.0, 0.5], [30.0, 20.0])
    assert (clock.fixed, clock.rate, clock.plain) == (pytest.approx(10), pytest.approx(20), 30.0)


def test_memory_of_one_budget_serves_another_one():
    model, memory = tiny_vit(), {}
    planned(model, cost=0.6, memory=memory)
    known = set(memory["outcomes"])
    shared = planned(model, cost=0.5, memory=memory)
    assert shared.tokens == planned(model, cost=0.5).tokens and known < set(memory["outcomes"])
    with pytest.raises(ValueError, match="memory of the same model and images"):
        planned(tiny_vit(seed=1), cost=0.5, memory=memory)


@pytest.mark.slow
def test_all_strategies_join_from_the_registry():
    found = planned(cost=0.6, strategies="all", resolution=False)
    names = {name for name, kind in tg.registry().items() if kind.__module__.startswith("tokengraph.")}
    assert "tome" in found.sensitivity and len(found.sensitivity) + len(found.notes) >= 8
    assert {name.split(",")[0] for name in found.sensitivity} <= names


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({}, ValueError, r"one budget of speedup, cost, time, tokens \(got none\)"),
        ({"cost": 0.5, "time": 3.0}, ValueError, "got cost, time"),
        ({"cost": 0}, ValueError, "a share in"),
        ({"cost": 1.5}, ValueError, "a share in"),
        ({"cost": float("nan")}, ValueError, "a share in"),
        ({"cost": "half"}, TypeError, "Expected cost as"),
        ({"speedup": 0.5}, ValueError, "a factor above 1"),
        ({"time": -1}, ValueError, "milliseconds"),
        ({"tokens": 0}, ValueError, "at least 1"),
        ({"tokens": 17}, ValueError, "tokens <= 16"),
        ({"tokens": True}, TypeError, "Expected tokens as"),
        ({"cost": 0.001}, ValueError, "a budget that can be met"),
        ({"cost": 0.5, "preserve": "maps"}, ValueError, "preserve as one of class"),
        ({"cost": 0.5, "strategies": "tomme"}, ValueError, "Did you mean 'tome'"),
        ({"cost": 0.5, "strategies": "tome:8"}, ValueError, "without schedule"),
        ({"cost": 0.5, "strategies": "dynamicvit"}, ValueError, "need no training"),
        ({"cost": 0.5, "strategies": []}, ValueError, "at least one strategy"),
        ({"cost": 0.5, "batch_size": 0}, ValueError, "batch_size >= 1"),
    ],
)
def test_plan_explains_bad_arguments(options, error, told):
    with pytest.raises(error, match=told):
        planned(**options)


def test_plan_explains_bad_images_and_models():
    with pytest.raises(ValueError, match="at least 3 images"):
        tg.plan(tiny_vit(), IMAGES[:2], cost=0.5, **FAST)
    with pytest.raises(TypeError, match="Expected images as tensors"):
        tg.plan(tiny_vit(), [IMAGES, "photo.png"], cost=0.5, **FAST)
    with pytest.raises(ValueError, match="logits to preserve"):
        planned(tiny_vit(num_classes=0), cost=0.5, preserve="logits")
    model = tiny_vit()
    with tg.attach(model, "tome", 2), pytest.raises(ValueError, match="Expected a plain model"):
        planned(model, cost=0.5)


def test_attach_refuses_a_plan_for_another_model_and_options_beside_it():
    found = planned(cost=0.6)
    with pytest.raises(ValueError, match="4 blocks for 3"):
        tg.attach(tiny_vit(depth=4), found)
    with pytest.raises(ValueError, match="Expected Plan alone"):
        tg.attach(tiny_vit(), found, 3)
    with tg.attach(tiny_vit(), found.lifting()) as handle:
        assert handle.model.forward_features(IMAGES).size(1) == 1 + found.tokens[0]
