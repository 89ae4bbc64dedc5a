"""Images that are not finite: inside a model no strategy raises, and the other images are as they are alone."""

import pytest
import torch
from needs import library
from strategies import CLASS, STRATEGIES

import tokengraph as tg
from tokengraph.testing import tiny_vit

library("timm")

ALL = STRATEGIES | CLASS


def test_every_strategy_of_the_registry_is_tried_on_images_that_are_not_finite():
    from tokengraph.select.base import registry

    tried = {select.name for select, _ in ALL.values()}
    assert {n for n, cls in registry().items() if cls.__module__.startswith("tokengraph.")} <= tried


PATCH = 0, slice(8), slice(8)


@pytest.mark.parametrize(("bad", "where"), [(torch.nan, ()), (torch.inf, PATCH)], ids=["nan image", "infinite patch"])
@pytest.mark.parametrize("name", ALL)
def test_attach_leaves_batch_mates_alone_where_one_image_is_not_finite(name, bad, where):
    torch.manual_seed(0)
    model = tiny_vit().eval()
    images = torch.randn(3, 3, 32, 32)
    broken = images.clone()
    broken[(1, *where)] = bad
    with torch.no_grad(), tg.attach(model, *ALL[name]) as handle:
        expected, counts = model(images), handle.trace.counts
        got = model(broken)
        if ALL[name][0].ragged:  # a threshold says for each image how many stay
            counts = [handle.trace.counts_per_image(layer) for layer in range(4)]
            assert model(images).isfinite().all()
            for layer, (first, _, last) in enumerate(counts):
                assert handle.trace.counts_per_image(layer)[::2] == [first, last]
        else:
            assert handle.trace.counts == counts
        torch.testing.assert_close(got[[0, 2]], expected[[0, 2]], rtol=1e-5, atol=1e-6)
        assert not got[1].isfinite().all()


@pytest.mark.parametrize("threshold", [0.3, 0.5])
def test_dynamicvit_by_threshold_leaves_batch_mates_alone_where_one_image_is_not_finite(threshold):
    torch.manual_seed(0)
    model = tiny_vit().eval()
    images = torch.randn(3, 3, 32, 32)
    broken = images.clone()
    broken[1] = torch.nan
    with torch.no_grad(), tg.attach(model, tg.DynamicViT(layers=[1, 2], threshold=threshold)):
        expected, got = model(images), model(broken)
    torch.testing.assert_close(got[[0, 2]], expected[[0, 2]], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("graph", ["semantic", "mixed"])
def test_propagation_graph_refuses_features_that_are_not_finite(graph):
    x = torch.full((1, 12, 4), torch.inf)
    with pytest.raises(ValueError, match="Expected finite tokens .got NaN or infinity in 12 rows"):
        tg.propagation_graph(x, (3, 4), graph=graph, neighbors=2)
