"""Strategies inside the packed towers of Qwen2-VL, Qwen2.5-VL and Qwen3-VL."""

import sys
from functools import cache

import pytest
import torch

pytest.importorskip("transformers", minversion="5.18")

from vlm_models import BUILDERS, Case

import tokengraph as tg

FAMILIES = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"]
NORM = tg.TopK(score="norm")


@cache
def case_of(name: str) -> Case:
    return BUILDERS[name]()


@pytest.fixture(params=FAMILIES)
def case(request):
    with torch.no_grad():
        yield case_of(request.param)


def shapes(case: Case, grids: list) -> tuple:
    torch.manual_seed(1)
    grid = torch.tensor(grids)
    return torch.randn(int(grid.prod(dim=1).sum()), 96), grid


def features(case: Case, pixels, grid) -> list:
    output = case.model.model.visual(pixels, grid_thw=grid)
    return [output.pooler_output, *(getattr(output, "deepstack_features", None) or [])]


def test_a_schedule_that_removes_nothing_is_bit_identical_and_remove_restores(case):
    inputs = case.inputs((2,))
    plain = case.model(**inputs).logits
    kinds = [type(m) for m in case.model.modules()]
    with tg.attach(case.model.model.visual, "tome", 0) as handle:
        assert torch.equal(case.model(**inputs).logits, plain)
        assert handle.trace.counts == [32] * (handle.trace.depth + 1)
    assert [type(m) for m in case.model.modules()] == kinds
    assert torch.equal(case.model(**inputs).logits, plain)


@pytest.mark.parametrize("strategy", ["tome", "dpc-knn", "grid-pool", "random", "pitome"])
def test_strategies_run_on_images_of_all_shapes_and_each_image_by_itself(case, strategy):
    pixels, grid = shapes(case, [[1, 8, 8], [2, 8, 12], [1, 4, 4]])
    with tg.attach(case.model, strategy, {1: 0.5}) as handle:
        together = features(case, pixels, grid)
        assert handle.trace.counts[-1] == 8 + 2 * 12 + 2
        alone = features(case, pixels[64 : 64 + 192], grid[1:2])
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a[16 : 16 + 48], b, rtol=0, atol=1e-5)


def test_dropped_units_are_as_if_masked_in_later_blocks(case, monkeypatch):
    pixels, grid = shapes(case, [[1, 8, 8], [1, 8, 12]])
    visual = case.model.model.visual
    with tg.attach(visual, NORM, {1: 0.5}) as handle:
        got = features(case, pixels, grid)
        units = handle.trace.at(handle.trace.depth)
    there = torch.zeros(40, dtype=torch.bool)
    there[units.stands] = True
    module, state = sys.modules[type(visual).__module__], {"row": 0}

    def masked(attn, q, k, v, attention_mask=None, **more):
        first, start = state["row"] < 160, state["row"] % 160  # block 0 runs on all
        state["row"] += q.size(2)
        hidden = torch.zeros(k.size(2)).masked_fill(~there.repeat_interleave(4)[start : start + k.size(2)], -torch.inf)
        bias = None if first else hidden[None, None, None]
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2), None

    monkeypatch.setattr(module.ALL_ATTENTION_FUNCTIONS, "get_interface", lambda *args: masked, raising=False)
    wanted = features(case, pixels, grid)
    kept = torch.zeros(40, dtype=torch.bool)
    kept[units.raster[units.stands]] = True  # features come back row by row
    for place, (a, b) in enumerate(zip(got, wanted, strict=True)):
        if place != 1:  # the first DeepStack layer is block 0's output, from which units are dropped already
            assert a.shape == b.shape
        torch.testing.assert_close(a[kept], b[kept], rtol=0, atol=1e-5)


def test_merged_units_come_back_with_their_cluster(case):
    pixels, grid = shapes(case, [[1, 8, 8]])
    with tg.attach(case.model.model.visual, "grid-pool", {1: 4}) as handle:
        output = features(case, pixels, grid)[0].view(4, 4, -1)
        assert handle.trace.counts[-1] == 4
    for rows in (0, 2):
        for columns in (0, 2):
            block = output[rows : rows + 2, columns : columns + 2].flatten(0, 1)
            torch.testing.assert_close(block, block[:1].expand(4, -1))
    assert len(output.flatten(0, 1).unique(dim=0)) >= 4


def test_several_layers_and_strategies_before_after_and_inside(case):
    inputs = case.inputs((1,))
    for strategy in ("tome", "dpc-knn", tg.ToFu()):
        with tg.attach(case.model, strategy, [4] * len(case.model.model.visual.blocks)) as handle:
            assert case.model(**inputs).logits.isfinite().all()
            assert handle.trace.counts[:3] == [16, 12, 8]


def test_gradients_pass_and_checkpointing_changes_nothing(case):
    pixels, grid = shapes(case, [[1, 8, 8]])
    visual = case.model.model.visual
    weight = visual.blocks[0].attn.qkv.weight
    found = []
    with torch.enable_grad(), tg.attach(visual, "tome", {1: 0.5}):
        for checkpointing in (False, True):
            if checkpointing:
                visual.gradient_checkpointing_enable()
                visual.train()
            found.append(torch.autograd.grad(features(case, pixels, grid)[0].square().sum(), weight)[0])
    visual.gradient_checkpointing_disable()
    visual.eval()
    assert found[0].abs().sum() > 0
    torch.testing.assert_close(*found)


def test_what_a_packed_tower_cannot_serve_is_refused_by_name(case):
    visual = case.model.model.visual
    for strategy, schedule, more, match in [
        (tg.TopK(score="class"), {1: 0.5}, {}, "reads features or keys .*TopK"),
        ("tome", {1: 0.5}, {"prop_attn": "log"}, "no prop_attn for a packed tower"),
        ("dpc-knn", {1: 0.5, 2: "reconstruct"}, {}, "without 'reconstruct'"),
    ]:
        with pytest.raises(ValueError, match=match):
            tg.attach(visual, strategy, schedule, **more)
    with tg.attach(visual, "tome", {1: 0.5}), pytest.raises(ValueError, match="without a strategy"):
        tg.attach(case.model, "tome", {1: 0.5})


def test_reduce_and_a_strategy_inside_the_tower_go_together(case):
    inputs = case.inputs((1,))
    with tg.attach(case.model, "tome", {1: 0.5}):
        reduced = tg.vlm.reduce(case.model, inputs, "dpc-knn", 0.5)
    assert reduced.record.kept == [8]
    assert case.model(**reduced).logits.isfinite().all()
