"""Gradient checkpointing of timm's ViT beyond its own switch: segments of blocks, and runs before backward."""

import pytest
import torch
import torch.utils.checkpoint
from needs import library

import tokengraph as tg
from tokengraph.testing import tiny_vit

library("timm")


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_segments_of_several_blocks_give_the_plain_gradients(reentrant):
    model = tiny_vit(depth=4).double()  # in float64 sums in another order agree to many digits
    a, b = torch.randn(2, 2, 3, 32, 32, generator=torch.Generator().manual_seed(3)).double()

    def segment(x, start):
        return model.blocks[start + 1](model.blocks[start](x))

    def features(images, checkpointed):
        x = model._pos_embed(model.patch_embed(images))
        for start in (0, 2):
            run = torch.utils.checkpoint.checkpoint
            x = run(segment, x, start, use_reentrant=reentrant) if checkpointed else segment(x, start)
        return x

    def step(checkpointed):
        model.zero_grad()
        (features(a, checkpointed) - features(b, checkpointed)).square().sum().backward()
        return [p.grad.clone() for p in model.blocks.parameters()]

    with tg.attach(model, "tome", 3):
        for _ in range(3):  # memory of dead tensors is used again
            for plain, again in zip(step(False), step(True), strict=True):
                torch.testing.assert_close(plain, again)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_gradients_survive_other_runs_before_backward(reentrant):
    model = tiny_vit(depth=4, dynamic_img_size=True).double()
    a, b = torch.randn(2, 2, 3, 32, 32, generator=torch.Generator().manual_seed(3)).double()

    def features(images, checkpointed):
        x = model._pos_embed(model.patch_embed(images))
        for block in model.blocks:
            x = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=reentrant) if checkpointed else block(x)
        return model.norm(x)

    def step(checkpointed):
        model.zero_grad()
        loss = (features(a, checkpointed) - features(b, checkpointed)).square().sum()
        with torch.no_grad():
            features(torch.randn(1, 3, 48, 48).double(), checkpointed)
        loss.backward()
        return [p.grad.clone() for p in model.blocks.parameters()]

    with tg.attach(model, "tome", 3) as coarse:
        for plain, again in zip(step(False), step(True), strict=True):
            torch.testing.assert_close(plain, again)
        assert coarse.trace.counts[0] == 36  # backward has not written over the last run


def test_backward_of_a_run_that_is_no_longer_known_is_refused():
    model = tiny_vit()
    model.set_grad_checkpointing(True)
    with tg.attach(model, "tome", 3):
        runs = [model(torch.randn(2, 3, 32, 32)).sum() for _ in range(40)]
        runs[-1].backward()
        with pytest.raises(RuntimeError, match="on the tokens of a recent run"):
            runs[0].backward()
