"""Models whose parts carry hooks, are wrapped, swapped or parametrized, before or after a strategy is attached."""

import copy
import pickle
from types import MethodType

import pytest
import torch
from needs import library
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import tokengraph as tg
from tokengraph.testing import tiny_vit

library("timm")
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
SETTINGS = {"keys": (tg.ToMe(), 3), "class": (tg.TopK(), 3), "sums": (tg.GTP(score="image-mean"), 3)}
each_setting = pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)


class LowRank(nn.Module):
    """A projection with an added term, as in LoRA."""

    def __init__(self, base):
        super().__init__()
        self.base, self.more = base, nn.Linear(base.in_features, base.out_features)

    def forward(self, x):
        return self.base(x) + self.more(x)


def wrap(model):
    torch.manual_seed(0)
    for block in model.blocks:
        block.attn.qkv = LowRank(block.attn.qkv)


def merge(model):
    wrap(model)
    for block in model.blocks:
        wrapped = block.attn.qkv
        with torch.no_grad():
            wrapped.base.weight += wrapped.more.weight
            wrapped.base.bias += wrapped.more.bias
        block.attn.qkv = wrapped.base


@each_setting
def test_wrapped_projections_are_what_the_strategy_reads(setting):
    """Attached before or after the change, a strategy reads what the changed model computes."""
    merged, before, after = (tiny_vit() for _ in range(3))
    merge(merged)
    wanted = tg.attach(merged, *setting)
    first = tg.attach(before, *setting)
    wrap(before)
    wrap(after)
    last = tg.attach(after, *setting)
    outputs = [model(IMAGES) for model in (merged, before, after)]
    for handle, output in zip((first, last), outputs[1:], strict=True):
        assert torch.equal(handle.trace.source().cluster, wanted.trace.source().cluster)
        torch.testing.assert_close(output, outputs[0])
    first.remove()
    assert not any(m._forward_hooks for m in before.modules())


@each_setting
def test_quantized_parts_are_served_whichever_came_first(setting):
    quantize = torch.ao.quantization.quantize_dynamic
    first, last = tiny_vit(), tiny_vit()
    tg.attach(first, *setting)
    first, last = quantize(first, {nn.Linear}), quantize(last, {nn.Linear})
    tg.attach(last, *setting)
    assert torch.equal(first(IMAGES), last(IMAGES))


def test_removing_twice_leaves_alone_what_was_attached_since():
    model = tiny_vit()
    first = tg.attach(model, "tome", 3)
    first.remove()
    with tg.attach(model, "topk", 3) as second:
        first.remove()
        model(IMAGES)
        assert second.trace.counts == [16, 13, 10, 7]
    assert type(model.blocks[0]).__name__ == "Block"


def test_copies_and_pickles_keep_hooks_of_their_own():
    model = tiny_vit()
    tg.attach(model, "tome", 3)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        (hook,) = other.blocks[0].attn.qkv._forward_hooks.values()
        assert hook.block is other.blocks[0]
        assert torch.equal(other(IMAGES), model(IMAGES))
        tg.detach(other)
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in other.modules())


class Same(nn.Module):
    """A parametrization that changes nothing."""

    def forward(self, x):
        return x * 1.0


def test_a_parametrization_on_an_attached_model_must_go_first():
    model = tiny_vit()
    handle = tg.attach(model, "tome", 3)
    parametrize.register_parametrization(model, "pos_embed", Same())
    with pytest.raises(RuntimeError, match="classes have not been swapped since attach .got ParametrizedCoarse"):
        handle.remove()
    parametrize.remove_parametrizations(model, "pos_embed")
    handle.remove()
    assert model(IMAGES).shape == (2, 5)


def test_the_check_leaves_buffers_alone_and_calls_no_hooks():
    model, calls = tiny_vit().train(), []
    parametrizations.spectral_norm(model.blocks[2].attn.qkv)
    model.blocks[2].attn.register_forward_hook(lambda *a: calls.append("after"))
    model.blocks[2].register_forward_pre_hook(lambda *a: calls.append("before"))
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with tg.attach(model, "tome", 3):
        assert calls == []
        assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
        model(IMAGES)
    assert calls == ["before", "after"] and before


def test_models_made_in_inference_mode_are_checked():
    with torch.inference_mode():
        model = tiny_vit()
        parametrizations.spectral_norm(model.blocks[2].attn.qkv)
        with tg.attach(model.train(), "tome", 3):
            model(IMAGES)
    with tg.attach(model.eval(), "tome", 3), torch.no_grad():
        assert model(IMAGES).isfinite().all()


def test_every_kind_of_block_is_checked():
    model = tiny_vit()
    attn = model.blocks[0].attn
    forward = type(attn).forward
    attn.forward = MethodType(lambda self, x, attn_mask=None, is_causal=False: forward(self, x), attn)
    with pytest.raises(ValueError, match="to add its mask to the logits"):
        tg.attach(model, "tome", 3)


def test_attaching_under_autocast_and_with_fast_products_of_float32():
    with torch.autocast("cpu", torch.bfloat16):
        tg.attach(tiny_vit(), "tome", 3)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        tg.attach(tiny_vit(), "tome", 3)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_weights_that_are_not_there_yet_are_named():
    model = tiny_vit()
    nn.init.constant_(model.blocks[2].mlp.fc1.weight, float("nan"))
    with pytest.raises(ValueError, match="Expected Block to give finite tokens"):
        tg.attach(model, "tome", 3)
