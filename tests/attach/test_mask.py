"""The user's attention mask, carried over to clusters."""

import pytest
import torch
from needs import library

import tokengraph as tg
from tokengraph.adapters.base import InputShape
from tokengraph.attach.mask import attention_bias, coarse_mask
from tokengraph.attach.state import Asked, State
from tokengraph.attention.size_bias import SizeBias, SizeRule
from tokengraph.flat.layout import Layout
from tokengraph.maps.lineage import Lineage
from tokengraph.testing import tiny_vit

library("timm")

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def state(cluster, count, drops=False):
    source = tg.Assignment.from_dense(torch.tensor(cluster), count, drops=drops)
    images, patches = torch.tensor(cluster).shape
    size = source.reduce(torch.zeros(images * patches, 1))[1].view(images, -1)
    size = torch.cat([torch.ones(images, 1), size], dim=1)
    lineage = Lineage(Layout(images, patches), Layout(images, count), (source,))
    return State(lineage, Asked(InputShape((1, patches))), size)


def test_bias_without_a_mask_is_the_log_size():
    s = state([[0, 0, 1], [0, 1, 1]], 2)
    bias = attention_bias(None, s, 1, rule=SizeRule.of(True), dtype=torch.float32)
    torch.testing.assert_close(bias.exp(), torch.tensor([[1.0, 2, 1], [1, 1, 2]]).view(2, 1, 1, 3))
    assert attention_bias(None, s, 1, rule=SizeRule.of(False), dtype=torch.float32) is None


@pytest.mark.parametrize(("name", "factor"), [("log", 2.0), ("half-log", 2**0.5), ("inverse", 0.5)])
def test_bias_is_a_power_of_the_size(name, factor):
    s = state([[0, 0, 1]], 2)
    bias = attention_bias(None, s, 1, rule=SizeRule.of(name), dtype=torch.float32)
    torch.testing.assert_close(bias.exp(), torch.tensor([[[[1.0, factor, 1.0]]]]))
    mask = torch.tensor([[[[True, True, True, False]]]])  # both members of cluster 0 may be attended, none of 1
    bias = attention_bias(mask, s, 1, rule=SizeRule.of(name), dtype=torch.float32)
    torch.testing.assert_close(bias.exp(), torch.tensor([[[[1.0, factor, 0.0]]]]))


@pytest.mark.parametrize("power", [1.0, 0.5, 0.0, -1.0])
def test_bias_bars_padding_whatever_the_power(power):
    assert SizeRule(power).bias(torch.tensor([1.0, 0.0])).tolist() == [0.0, -torch.inf]


def test_folded_bias_stands_for_the_mask():
    s = state([[0, 0, 1]], 2)
    bias = attention_bias(None, s, 1, rule=SizeRule(1.0, "fold"), dtype=torch.bfloat16)
    assert isinstance(bias, SizeBias) and bias.dtype == torch.bfloat16
    torch.testing.assert_close(bias.float().exp(), torch.tensor([[[[1.0, 2.0, 1.0]]]]))


def test_mask_is_passed_on_as_it_is_while_nothing_is_coarsened():
    mask = torch.rand(1, 1, 1, 4) > 0.5
    assert (
        attention_bias(
            mask, State.at_input(2, 3, Asked(InputShape((1, 3)))), 1, rule=SizeRule.of(True), dtype=torch.float32
        )
        is mask
    )


def test_key_entries_add_up_like_the_members_themselves():
    s = state([[0, 0, 1], [0, 1, 1]], 2)
    mask = torch.randn(2, 1, 1, 4)
    got = coarse_mask(mask, s.lineage, 1, power=1.0).exp()
    e = mask.exp()[:, 0, 0]
    expected = torch.stack([torch.stack([e[0, 0], e[0, 1] + e[0, 2], e[0, 3]]),
                            torch.stack([e[1, 0], e[1, 1], e[1, 2] + e[1, 3]])])  # fmt: skip
    torch.testing.assert_close(got[:, 0, 0], expected)


def test_bool_mask_counts_members_that_may_be_attended():
    s = state([[0, 0, 1]], 2)
    mask = torch.tensor([[[[True, True, False, False]]]])
    assert coarse_mask(mask, s.lineage, 1, power=1.0).exp().tolist() == [[[[1.0, 1.0, 0.0]]]]
    both = torch.tensor([[[[True, True, True, False]]]])
    torch.testing.assert_close(coarse_mask(both, s.lineage, 1, power=1.0).exp(), torch.tensor([[[[1.0, 2.0, 0.0]]]]))
    torch.testing.assert_close(coarse_mask(both, s.lineage, 1, power=0.0).exp(), torch.tensor([[[[1.0, 1.0, 0.0]]]]))


def test_square_mask_shrinks_on_both_sides_and_forgets_dropped_tokens():
    s = state([[0, -1, 1]], 2, drops=True)
    mask = torch.randn(1, 2, 4, 4)
    got = coarse_mask(mask, s.lineage, 1, power=1.0)
    keep = torch.tensor([0, 1, 3])
    torch.testing.assert_close(got, mask[:, :, keep][..., keep])


def test_attached_model_under_a_mask_equals_the_plain_one_while_nothing_is_removed():
    model = tiny_vit()
    mask = torch.rand(2, 1, 1, 17) > 0.3
    mask[..., 0] = True
    expected = model.forward_features(IMAGES, attn_mask=mask)
    with tg.attach(model, "tome", 0):
        assert torch.equal(model.forward_features(IMAGES, attn_mask=mask), expected)


def test_masked_patches_stay_unseen_by_the_class_token():
    """The class token must not change when a patch that no one may attend to does."""
    model = tiny_vit(depth=2)
    mask = torch.ones(1, 1, 1, 17, dtype=torch.bool)
    mask[..., 6] = False
    other = IMAGES.clone()
    other[..., 8:16, 8:16] += 1.0  # patch 5, token 6
    with tg.attach(model, tg.Random(), [0, 4]):
        a = model.forward_features(IMAGES, attn_mask=mask)[:, 0]
        assert torch.equal(a, model.forward_features(other, attn_mask=mask)[:, 0])
        assert not torch.equal(a, model.forward_features(other)[:, 0])


def test_mask_of_another_shape_is_refused():
    with tg.attach(tiny_vit(), "tome", 2) as coarse, pytest.raises(ValueError, match=r"Expected attn_mask of shape"):
        coarse.model.forward_features(IMAGES, attn_mask=torch.zeros(1, 1, 1, 16))


def test_causal_attention_is_refused():
    with tg.attach(tiny_vit(), "tome", 2) as coarse, pytest.raises(ValueError, match="Expected is_causal=False"):
        coarse.model.blocks[0](torch.randn(1, 17, 32), is_causal=True)


def test_gradient_of_a_learned_mask_is_finite_where_nothing_may_be_attended():
    s = state([[0, 0, 1]], 2)
    mask = torch.tensor([[[[0.5, -torch.inf, -torch.inf, 0.1]]]], requires_grad=True)
    out = coarse_mask(mask, s.lineage, 1, power=1.0)
    out[out > -torch.inf].sum().backward()
    assert mask.grad.tolist() == [[[[1.0, 0.0, 0.0, 1.0]]]]
