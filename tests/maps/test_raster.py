"""Clusters numbered as their first tokens follow."""

import pytest
import torch
from needs import library

import tokengraph as tg
from tokengraph.maps.raster import in_raster_order
from tokengraph.testing import make_tokens, tiny_vit

ORDERED = {
    "tome": tg.ToMe(order="raster"),
    "dpc-knn": tg.DPCKNN(order="raster"),
    "ailurus": tg.AiluRus(order="raster"),
}
EACH = pytest.mark.parametrize("select", ORDERED.values(), ids=ORDERED)


def first_tokens(a):
    return [
        [int((a.cluster == k).nonzero()[0]) for k in range(i, j)]
        for i, j in zip(a.cluster_ptr[:-1], a.cluster_ptr[1:], strict=True)
    ]


def test_in_raster_order_moves_centers_along_and_leaves_dropped_tokens_dropped():
    ptr = torch.tensor([0, 3, 6])
    a = tg.Assignment(
        torch.tensor([4, 1, 0, 3, 2, 4]), 4, True, ptr, torch.tensor([0, 2, 4]), torch.tensor([2, 1, 4, 3])
    )
    b = in_raster_order(a)
    assert b.cluster.tolist() == [4, 0, 1, 2, 3, 4] and b.centers.tolist() == [1, 2, 3, 4]


@EACH
def test_strategies_number_clusters_by_their_first_tokens(select):
    torch.manual_seed(0)
    tokens = make_tokens(torch.randn(3, 16, 8), (4, 4))
    a = select(tokens, 10)
    assert all(first == sorted(first) for first in first_tokens(a))
    plain = type(select)()(tokens, 10)
    x = tokens.x.flatten(0, 1)
    assert sorted(a.reduce(x)[0].tolist()) == sorted(plain.reduce(x)[0].tolist())


@EACH
def test_attach_gives_an_image_the_same_tokens_in_raster_order_alone_and_in_a_batch(select):
    library("timm")
    images = torch.randn(2, 3, 32, 32)
    model = tiny_vit(global_pool="avg", class_token=False)
    with torch.no_grad(), tg.attach(model, select, {1: 0.5}) as handle:
        both = model.forward_features(images)
        assert handle.trace.lift(both).shape == (2, 16, 32)
        torch.testing.assert_close(model.forward_features(images[1:]), both[1:])


def test_tome_in_raster_order_takes_ragged_batches_and_several_layers():
    x, mask = torch.randn(2, 6, 4), torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    a = tg.tome(x, [4, 3], mask=mask, order="raster")
    assert first_tokens(a) == [sorted(f) for f in first_tokens(a)]
    graph = tg.TokenGraph.from_tokens(torch.randn(1, 16, 4), grid=(4, 4))
    levels = tg.hierarchy(graph, tg.ToMe(order="raster"), [12, 9, 6])
    assert first_tokens(levels.between(3)) == [sorted(f) for f in first_tokens(levels.between(3))]


def test_strategies_refuse_an_unknown_order():
    with pytest.raises(ValueError, match=r"Expected order to be 'published' or 'raster' .got 'index'"):
        tg.ToMe(order="index")
    for make in (tg.DPCKNN, tg.AiluRus):
        with pytest.raises(ValueError, match=r"Expected order to be 'index', 'score' or 'raster' .got 'published'"):
            make(order="published")


def test_dpc_knn_by_score_gives_an_image_that_keeps_all_the_same_order_alone_and_in_a_batch():
    torch.manual_seed(0)
    x = torch.randn(2, 6, 4)
    alone, both = tg.dpc_knn(x[:1], 6, order="score"), tg.dpc_knn(x, [6, 3], order="score")
    assert both.cluster[:6].tolist() == alone.cluster.tolist() == list(range(6))
    mask = torch.tensor([[True] * 4 + [False] * 2, [True] * 6])
    assert tg.dpc_knn(x, [4, 3], mask=mask, order="score").cluster[:4].tolist() == list(range(4))
    assert tg.dpc_knn(x, [4, 3], mask=mask, order="score").centers[:4].tolist() == list(range(4))
