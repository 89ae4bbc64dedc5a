"""Looks into blocks before they run, memories that follow a run, and outputs of a strategy's own."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from needs import library
from torch.testing import assert_close

import tokengraph as tg
from tokengraph.select.tokens import Tokens
from tokengraph.testing import tiny_vit


@dataclass(frozen=True)
class Follows(tg.Select):
    """Counts the blocks that it sees, and keeps their class rows."""

    placement: ClassVar[str] = "before"
    merges: ClassVar[bool] = False
    reads: ClassVar[str] = "class"

    def observes(self, index):
        return True

    def observe(self, tokens: Tokens):
        return (*(tokens.seen or ()), tokens.class_row().sum(dim=1))

    def __call__(self, tokens, budget):
        return tg.topk(tokens.seen[-1], budget)


def images(count=2):
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def plain_rows(model, x):
    """The class rows of a model's blocks, heads summed."""
    rows = []

    def hook(attn, args):
        q, k, _ = attn.qkv(args[0]).unflatten(2, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
        rows.append(((q[:, :, 0] * attn.scale)[:, :, None] @ k.transpose(2, 3)).softmax(dim=3)[:, :, 0, 1:].sum(dim=1))

    hooks = [block.attn.register_forward_pre_hook(hook) for block in model.blocks]
    with torch.no_grad():
        model(x)
    for each in hooks:
        each.remove()
    return rows


def test_class_rows_of_blocks_that_do_not_reduce_reach_the_strategy():
    model = tiny_vit()
    wanted = plain_rows(model, images())
    with torch.no_grad(), tg.attach(model, Follows(), {2: 9}) as handle:
        model(images())
        seen = handle.trace.seen
    assert len(seen) == 3
    assert_close(seen[0], wanted[0])
    assert_close(seen[1], wanted[1])
    assert seen[2].shape == (2, 9)


@pytest.mark.parametrize("again", [False, True])
def test_memories_survive_gradient_checkpointing(again):
    model = tiny_vit().train()
    grads = []
    for checkpoint in (False, True):
        model.set_grad_checkpointing(checkpoint)
        model.zero_grad()
        with tg.attach(model, tg.EvoViT([(1, 3, 0.5)], summary=again)):
            model(images()).square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_a_look_gives_the_queries_and_keys_that_the_block_makes():
    model = tiny_vit()
    wanted = plain_rows(model, images())

    @dataclass(frozen=True)
    class Peeks(tg.Select):
        placement: ClassVar[str] = "around"
        around: ClassVar[str] = "block"
        merges: ClassVar[bool] = False
        reads: ClassVar[str] = "class"
        peeks: ClassVar[bool] = True

        def __call__(self, tokens, budget):
            found.append(tokens.class_row().sum(dim=1))
            return tg.topk(found[-1], budget)

    found = []
    with torch.no_grad(), tg.attach(model, Peeks(), {1: 8, 2: "reconstruct"}):
        model(images())
    assert len(found) == 1
    assert_close(found[0], wanted[1])


def test_the_cheap_way_to_logits_equals_projecting_all_keys(monkeypatch):
    from tokengraph.adapters.timm.vit import TimmViT

    library("timm")
    runs = []
    for cheap in (True, False):
        if not cheap:
            monkeypatch.setattr(TimmViT, "class_logits", lambda *args: None)
        model = tiny_vit()
        with torch.no_grad(), tg.attach(model, tg.IdleViT(0.5)):
            runs.append(model(images()))
    assert_close(runs[0], runs[1])


def test_around_without_a_look_still_refuses_strategies_that_read_attention():
    with pytest.raises(ValueError, match="the block has not run yet"):
        tg.attach(tiny_vit(), tg.Around(tg.TopK(), "block"), {1: 8})


@pytest.mark.parametrize("schedule", [4, {1: 0.5, 2: 0.25}])
def test_evovit_chooses_again_among_the_tokens_that_run(schedule):
    model, images = tiny_vit(), torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), tg.attach(model, tg.EvoViT(), schedule) as handle:
        assert model(images).isfinite().all()
    counts = handle.trace.counts
    assert counts[0] > counts[1] > counts[2] > 0
