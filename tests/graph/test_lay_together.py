"""The map that ``coarsen`` lays together for images of several sizes says what maps of one size say."""

import pickle

import pytest
import torch

import tokengraph as tg
from tokengraph import TokenGraph, coarsen
from tokengraph.select.expedite import expedite

SHAPES = (4, 4), (4, 6), (4, 4), (2, 4)


def ragged():
    g = torch.Generator().manual_seed(0)
    return TokenGraph.from_tokens([torch.randn(h * w, 6, generator=g) for h, w in SHAPES], SHAPES)


def image(graph, b):
    start, stop = graph.ptr[b].item(), graph.ptr[b + 1].item()
    return TokenGraph.from_tokens([graph.x[start:stop]], [SHAPES[b]])


@pytest.mark.parametrize("select", ["topk", "random"])
def test_maps_that_pick_tokens_stay_such_maps(select):
    select = tg.TopK(score="norm") if select == "topk" else tg.Random()
    coarse, a = coarsen(ragged(), select, 0.5)
    assert a.single
    assert torch.equal(coarse.x, ragged().x[a.centers])  # rows as they are, not averages of one


@pytest.mark.parametrize("select", [tg.ToMe(), tg.TopK(score="norm"), tg.TopK(score="norm", fuse=True), tg.Expedite()])
def test_maps_know_the_clusters_of_each_image(select):
    coarse, a = coarsen(ragged(), select, 0.5)
    assert a.counts == tuple(coarse.counts)
    assert len(set(a.counts)) > 1


def test_maps_of_images_of_one_count_give_none():
    assert coarsen(ragged(), tg.TopK(score="norm"), 3).assignment.counts is None


@pytest.mark.parametrize("select", [tg.Expedite(), tg.TopK(score="norm")])
def test_maps_bring_centres_and_centroids_where_those_of_single_images_do(select):
    graph = ragged()
    a = coarsen(graph, select, 0.5).assignment
    for b in range(len(SHAPES)):
        one = coarsen(image(graph, b), select, 0.5).assignment
        own = slice(int(a.cluster_ptr[b]), int(a.cluster_ptr[b + 1]))
        if one.centers is not None:
            assert (a.centers[own] - graph.ptr[b]).tolist() == one.centers.tolist()
        if getattr(one, "centroids", None) is not None:
            torch.testing.assert_close(a.centroids[own], one.centroids)
    assert (a.centers if isinstance(a, tg.Assignment) else a.centroids) is not None


def test_edges_of_the_way_back_are_made_when_a_lift_asks_for_them(monkeypatch):
    calls, make = [], expedite.make_edges
    monkeypatch.setattr(expedite, "make_edges", lambda *a: calls.append(1) or make(*a))
    graph = ragged()
    coarse, a = coarsen(graph, tg.Expedite(), 0.5)
    assert not calls
    lifted = a.lift(coarse.x)
    assert len(calls) == 3  # kinds of images
    for b in range(len(SHAPES)):
        one, own = coarsen(image(graph, b), tg.Expedite(), 0.5)
        torch.testing.assert_close(lifted[graph.ptr[b] : graph.ptr[b + 1]], own.lift(one.x))


def test_a_map_laid_together_can_be_pickled():
    coarse, a = coarsen(ragged(), tg.Expedite(), 0.5)
    assert torch.equal(pickle.loads(pickle.dumps(a)).lift(coarse.x), a.lift(coarse.x))
