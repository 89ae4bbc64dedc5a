"""Strategies that give images of one batch different numbers of tokens inside a model."""

import pytest
import torch
from needs import library
from strategies import Uneven
from torch.testing import assert_close

import tokengraph as tg
from tokengraph.testing import tiny_vit

library("timm")

INNER = [tg.ToMe(), tg.DPCKNN(), tg.TopK(), tg.TopK(score="norm", fuse=True), tg.Random()]


@pytest.fixture
def images():
    scale = torch.tensor([0.1, 1.0, 3.0, 10.0, 0.4]).view(5, 1, 1, 1)
    return torch.randn(5, 3, 32, 32) * scale


@pytest.mark.parametrize("prop_attn", [None, False])
@pytest.mark.parametrize("inner", INNER, ids=repr)
def test_every_image_is_what_it_is_alone(images, inner, prop_attn):
    model = tiny_vit(num_classes=7)
    with tg.attach(model, Uneven(inner), [4, 3, 2], prop_attn=prop_attn) as handle, torch.no_grad():
        together = model(images)
        counts = [handle.trace.counts_per_image(layer) for layer in range(4)]
        assert any(len(set(c)) > 1 for c in counts)  # they do differ
        assert handle.trace.counts == [max(c) for c in counts]
        for b, image in enumerate(images):
            assert_close(model(image[None])[0], together[b], rtol=1e-4, atol=1e-5)
            assert [handle.trace.counts_per_image(layer)[0] for layer in range(4)] == [c[b] for c in counts]


@pytest.mark.parametrize("inner", [tg.ToMe(), tg.TopK()], ids=repr)
def test_tokens_come_back_to_full_resolution(images, inner):
    model = tiny_vit()
    with tg.attach(model, Uneven(inner), [4, 3, 2]) as handle, torch.no_grad():
        features = model.forward_features(images)
        trace = handle.trace
        assert trace.as_map(features).shape == (5, 32, 4, 4)
        back = trace.lift(torch.ones(5, features.size(1) - 1, 1))
        valid = trace.valid()
        assert valid.sum(1).tolist() == trace.counts_per_image()
        assert bool((back == 1).all()) == inner.merges  # dropped tokens get zeros
        if inner.merges:
            assert_close(trace.size().sum(1), torch.full((5,), 16.0))
            assert (trace.size()[~valid] == 0).all()
        maps = model.forward_intermediates(images, intermediates_only=True)
        assert {m.shape for m in maps} == {(5, 32, 4, 4)}
        filled = trace.lift(features, fill=torch.full((5, 16, 32), 7.0))
        assert (filled == 7).any() != inner.merges


@pytest.mark.parametrize("inner", [tg.ToMe(), tg.TopK(score="norm")], ids=repr)
def test_average_pooling_counts_no_padding(images, inner):
    model = tiny_vit(num_classes=7, class_token=False, global_pool="avg")
    with tg.attach(model, Uneven(inner), [4, 3, 2]), torch.no_grad():
        together = model(images)
        alone = torch.cat([model(image[None]) for image in images])
    assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_gradients_are_those_of_the_images_alone(images):
    grads = []
    for alone in (False, True):
        model = tiny_vit(num_classes=7)
        with tg.attach(model, Uneven(), [4, 3, 2]):
            out = torch.cat([model(image[None]) for image in images]) if alone else model(images)
            out.square().sum().backward()
        grads.append([p.grad for p in model.parameters()])
    for ours, theirs in zip(*grads, strict=True):
        assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_a_budget_that_all_images_reach_ends_the_padding(images):
    model = tiny_vit()
    with tg.attach(model, Uneven(tg.TopK()), {1: 8, 2: 6}) as handle, torch.no_grad():
        model(images)
        assert handle.trace.lineage(1).now.valid is not None
    with tg.attach(model, Uneven(tg.Random()), {1: 8, 3: 1}) as handle, torch.no_grad():
        assert model(images).isfinite().all()


def test_a_mask_of_the_user_is_refused_where_images_differ(images):
    model = tiny_vit()
    with tg.attach(model, Uneven(tg.TopK()), {1: 8}):
        with pytest.raises(ValueError, match="no attn_mask while images differ"):
            model.forward_features(images, attn_mask=torch.zeros(1, 1, 17, 17))


def test_a_schedule_that_does_not_fit_an_image_says_which_and_counts_no_padding():
    """Two images of 40 and 20 patches, padded to 64: the error names one of them."""
    transformers = library("transformers")
    if not hasattr(transformers, "Siglip2VisionConfig"):
        pytest.skip("this transformers has no SigLIP 2")
    from architectures import from_siglip2

    model, shapes = from_siglip2(), torch.tensor([[5, 8], [4, 5]])
    mask = torch.zeros(2, 64, dtype=torch.long)
    mask[0, :40] = mask[1, :20] = 1
    inputs = {"pixel_values": torch.randn(2, 64, 48), "pixel_attention_mask": mask, "spatial_shapes": shapes}
    with (
        tg.attach(model, "tome", {1: 10}),
        pytest.raises(ValueError, match=r"keep >= 20 of 40 tokens.*The image has 40 patches without padding\.$"),
    ):
        model(**inputs)
