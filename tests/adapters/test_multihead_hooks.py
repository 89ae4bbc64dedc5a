"""Hooks and pruning of an ``nn.MultiheadAttention`` act in attached models, too."""

import pytest
import torch
from beit_cases import TIMM
from beit_cases import make as make_beit
from multihead_cases import KINDS, attach, images, make, run
from torch import nn
from torch.nn.utils import prune
from torch.testing import assert_close

import tokengraph as tg

each_kind = pytest.mark.parametrize("kind", KINDS)


def attentions(model):
    return [m for m in model.modules() if isinstance(m, nn.MultiheadAttention)]


@each_kind
def test_hooks_are_called_once_a_block_and_change_what_comes_out(kind):
    model, calls = make(kind), []
    for part in attentions(model):
        part.register_forward_hook(lambda module, args, output: calls.append(module))
    with attach(model, kind, "tome", 3) as handle:
        hooked = run(model, images())
        assert calls == attentions(model) and min(handle.trace.counts_worked) < 16
        clusters = handle.trace.source().cluster
        attentions(model)[-1].register_forward_hook(lambda module, args, output: (0 * output[0], None))
        assert (run(model, images()) - hooked).abs().max() > 1e-3
    plain = make(kind)
    with attach(plain, kind, "tome", 3) as handle:
        assert_close(run(plain, images()), hooked, rtol=1e-4, atol=1e-5)
        assert torch.equal(handle.trace.source().cluster, clusters)


@each_kind
def test_pruned_weights_are_used_and_trained(kind):
    masked, cut = make(kind), make(kind)
    for model in (masked, cut):
        for part in attentions(model):
            prune.l1_unstructured(part, "in_proj_weight", 0.5)
    for part in attentions(cut):
        prune.remove(part, "in_proj_weight")
    for model in (masked, cut):
        attach(model, kind, "tome", 3)
    assert_close(run(masked, images()), run(cut, images()), rtol=1e-4, atol=1e-5)
    for _ in range(2):
        masked(images()).square().sum().backward()
    assert all(part.in_proj_weight_orig.grad.abs().sum() > 0 for part in attentions(masked))


def test_hooks_that_would_not_be_called_are_refused():
    model = make("own").train()
    attentions(model)[1].register_forward_hook(lambda *a: None)
    attach(model, "own", tg.DynamicViT(layers=[1]))
    with pytest.raises(ValueError, match="Expected MultiheadAttention without hooks, pruning or a forward of its own"):
        model(images())


@pytest.mark.skipif(not TIMM, reason="timm is not installed")
def test_hooks_on_the_attention_of_beit_are_refused_where_tokens_are_coarse():
    model = make_beit(next(iter(TIMM)))
    model.blocks[0].attn.register_forward_hook(lambda *a: None)
    with tg.attach(model, "tome", 0):
        model(images())
    model.blocks[2].attn.register_forward_hook(lambda *a: None)
    with tg.attach(model, "tome", 3), pytest.raises(ValueError, match="Expected Attention without hooks"):
        model(images())
