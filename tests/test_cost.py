"""The analytic costs against PyTorch's own counter of matrix products."""

from __future__ import annotations

import pytest
import torch
from needs import library
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import tokengraph as tg
from tokengraph.cost import (
    Cost,
    attention_cost,
    build_cost,
    distance_cost,
    lift_cost,
    mlp_cost,
    reduce_cost,
    vit_cost,
)
from tokengraph.testing import tiny_vit


def counted(call, name: str = "Global") -> int:
    """Matrix-product FLOPs of a call, in all or inside the module called ``name``; attention as plain products."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return sum(counter.get_flop_counts()[name].values())


def in_blocks(model: nn.Module) -> int:
    """Matrix-product FLOPs of the blocks for one image of 4 x 4 patches."""
    images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return counted(lambda: model(images), f"{type(model).__name__}.blocks")


def test_cost_adds_and_multiplies():
    assert Cost(1, 2) + Cost(3, 4) == Cost(4, 6)
    assert Cost(1, 2) * 3 == Cost(3, 6)
    assert sum([Cost(1, 2), Cost(3, 4)], start=Cost()) == Cost(4, 6)


@pytest.mark.parametrize("options", [{}, {"reg_tokens": 2, "embed_dim": 48}, {"mlp_ratio": 2.0, "depth": 1}])
def test_vit_cost_counts_a_plain_model(options: dict):
    library("timm")
    model = tiny_vit(**options)
    cost = vit_cost(
        [16] * (len(model.blocks) + 1),
        model.embed_dim,
        hidden=model.blocks[0].mlp.fc1.out_features,
        num_prefix=model.num_prefix_tokens,
    )
    assert cost.total.flops == in_blocks(model)
    assert cost.counted and cost.select == cost.reduce == Cost()


@pytest.mark.parametrize(
    ("select", "schedule"),
    [
        (tg.Random(), 4),  # inside a block: its MLP runs on fewer tokens already
        (tg.Random(), {2: 0.25}),
        (tg.GridPool(), [4, 0, 4]),  # after a block
        (tg.GridPool(), {1: 0.5}),
    ],
)
def test_vit_cost_counts_an_attached_model(select: tg.Select, schedule):
    library("timm")
    model = tiny_vit()
    with tg.attach(model, select, schedule) as coarse:
        flops = in_blocks(model)
        cost = vit_cost(coarse.trace.counts, 32, select=select)
    assert cost.attention.flops + cost.mlp.flops == flops


def test_vit_cost_of_an_attached_model_holds_the_products_of_its_strategy():
    library("timm")
    model = tiny_vit()
    with tg.attach(model, tg.ToMe(), 4) as coarse:
        flops = in_blocks(model)
        cost = vit_cost(coarse.trace.counts, 32, select=tg.ToMe())
    own = flops - cost.attention.flops - cost.mlp.flops
    # Keys, mean over 4 heads, are 8 wide, and ToMe pads widths to multiples of 16. The cost of the strategy is given
    # for the full 32 channels.
    width = 16
    assert own == sum(2 * (n // 2) * (n - n // 2) * width for n in (16, 12, 8))
    assert 0 < own < cost.select.flops


def test_vit_cost_adds_up_its_stages():
    cost = vit_cost([196, 196, 98, 98], 384, select=tg.DPCKNN())
    assert cost.total == cost.attention + cost.mlp + cost.select + cost.reduce
    assert cost.attention == attention_cost(197, 384) * 2 + attention_cost(99, 384)
    assert cost.mlp == mlp_cost(197, 384, 1536) * 2 + mlp_cost(99, 384, 1536)  # it acts after the block
    assert cost.reduce == reduce_cost(197, 99, 384)


def test_vit_cost_of_vit_s_16_is_what_its_papers_count_twice():
    # 4.6 G multiply-adds with embedding and head; the blocks alone: 4.54 G.
    assert round(vit_cost([196] * 13, 384).total.flops / 2e9, 2) == 4.54


def test_vit_cost_says_when_a_strategy_has_not_been_counted():
    class Uncounted(tg.Select):
        def __call__(self, tokens, budget):
            raise NotImplementedError

    assert not vit_cost([16, 8], 32, select=Uncounted()).counted
    assert vit_cost([16, 16], 32, select=Uncounted()).counted  # nothing chosen, nothing to count


def test_distance_cost_counts_the_products_of_a_knn_graph():
    x = torch.randn(1, 64, 32)
    flops = counted(lambda: tg.knn_graph(x, 5, backend="torch"))
    assert distance_cost(64, 64, 32).flops - 2 * 64 * 64 == flops  # norms are added, not multiplied
    assert build_cost(64, 32, neighbors=5).flops == distance_cost(64, 64, 32).flops


def products(name: str, side: int, keep: int, channels: int) -> tuple[int, float]:
    x = torch.randn(1, side * side, channels, generator=torch.Generator().manual_seed(0))
    calls = {
        "dpc-knn": lambda: tg.dpc_knn(x, keep),
        "ailurus": lambda: tg.ailurus(x, keep, (side, side)),
        "tome": lambda: tg.tome(x, side * side - side * side // 4),
    }
    cost = tg.resolve(name).cost(side * side, keep, channels, head_width=channels)
    assert cost is not None
    return counted(calls[name]), cost.flops


@pytest.mark.parametrize("name", ["dpc-knn", "ailurus", "tome"])
@pytest.mark.parametrize("side", [14, 32])
def test_select_costs_are_within_a_twentieth_of_the_counted_products(name: str, side: int):
    flops, cost = products(name, side, side * side // 4, 256)
    assert 0.95 < cost / flops < 1.05


@pytest.mark.parametrize("name", sorted(tg.registry()))
def test_select_costs_are_finite_and_grow_with_the_tokens(name: str):
    select = tg.resolve(name)
    small, large = select.cost(64, 16, 32), select.cost(256, 64, 32)
    if small is None or large is None:
        pytest.skip(f"{name} has not been counted")
    assert 0 < small.flops < large.flops < float("inf")
    assert 0 < small.bytes < large.bytes < float("inf")


def test_reduce_and_lift_are_far_cheaper_than_a_block():
    block = attention_cost(197, 384) + mlp_cost(197, 384, 1536)
    assert (reduce_cost(197, 184, 384) + lift_cost(197, 184, 384)).flops < 1e-3 * block.flops
    assert lift_cost(197, 184, 384).flops == 0


def test_costs_count_bytes_of_float32_rows():
    assert lift_cost(4, 2, 3).bytes == 4 * (2 * 3 + 4 * 3) + 8 * 4
    assert distance_cost(2, 3, 5).bytes == 4 * (2 * 5 + 3 * 5 + 2 * 3)
