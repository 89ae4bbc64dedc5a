"""Recipes: texts of edges and coarsenings."""

import pytest
import torch

import tokengraph as tg
from tokengraph.datasets import Recipe


def make(**texts):
    tokens = torch.randn(2, 1 + 16, 8, generator=torch.Generator().manual_seed(0))
    return Recipe(**texts).make(tg.TokenGraph.from_tokens(tokens, (4, 4), num_prefix=1))


def test_make_reads_edges_and_levels():
    assert make(connect="knn:3")[0].num_edges == 2 * 16 * 3 and make()[0].edge_index is None
    assert make(connect="grid:4")[0].num_edges == 2 * 48 and make(connect="window:5")[0].num_edges == 2 * 16 * 5
    graph, nodes = make(connect="knn:3,cosine", coarsen="tome:[0.5, 4]")
    assert graph.counts == [4, 4] and nodes.shape == (2, 16) and nodes.unique().tolist() == [0, 1, 2, 3]
    graph, nodes = make(coarsen="topk:0.25,score=norm")
    assert graph.counts == [4, 4] and nodes.unique().tolist() == [-1, 0, 1, 2, 3]
    assert make(coarsen="expedite:4")[1] is None  # a patch belongs to several nodes


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"connect": "knm:8"}, "Expected edges as knn:8"),
        ({"connect": "knn:0"}, "Expected edges as"),
        ({"connect": "grid,cosine"}, "Expected edges as"),
        ({"coarsen": "tomme:0.5"}, "Did you mean 'tome'"),
        ({"coarsen": "tome"}, "NAME:KEEP"),
        ({"coarsen": "tome:1.5"}, "NAME:KEEP"),
        ({"coarsen": "tome:[]"}, "NAME:KEEP"),
        ({"coarsen": "dpc-knn:4,neighbours=3"}, "Expected options of DPCKNN"),
        ({"coarsen": "dpc-knn:4,k"}, "NAME=VALUE"),
        ({"dtype": "int8"}, "Expected dtype"),
        ({"layer": True}, "layer as a whole number"),
    ],
)
def test_recipe_refuses_what_it_cannot_read(texts, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**texts)
