"""Laplacians and their lowest eigenvectors, against networkx and the dense decomposition."""

import pytest
import torch
from torch.testing import assert_close

from tokengraph.select.parts.graphs import laplacian as module
from tokengraph.select.parts.graphs.laplacian import laplacian, low_eigenvectors
from tokengraph.select.parts.graphs.pairs import Pairs, join_pairs, undirected


def random_pairs(nodes, edges, seed=0):
    g = torch.Generator().manual_seed(seed)
    pairs = torch.combinations(torch.arange(nodes))
    pairs = pairs[torch.randperm(len(pairs), generator=g)[:edges].sort().values]
    return Pairs(pairs[:, 0], pairs[:, 1], torch.rand(edges, generator=g) + 0.1)


@pytest.mark.parametrize("normalized", [True, False])
def test_laplacian_is_that_of_networkx(normalized):
    nx = pytest.importorskip("networkx")
    pairs = random_pairs(12, 15)
    graph = nx.Graph()
    graph.add_nodes_from(range(12))
    graph.add_weighted_edges_from(zip(pairs.a.tolist(), pairs.b.tolist(), pairs.weight.tolist(), strict=True))
    theirs = (nx.normalized_laplacian_matrix if normalized else nx.laplacian_matrix)(graph).todense()
    assert_close(laplacian(pairs, 12, normalized=normalized), torch.tensor(theirs, dtype=torch.float64))


def test_loops_count_in_the_degree():
    pairs = Pairs(torch.tensor([0]), torch.tensor([1]), torch.tensor([2.0]))
    found = laplacian(pairs, 3, loops=torch.tensor([6.0, 0.0, 1.0]))
    assert_close(found, torch.tensor([[0.25, -0.5, 0.0], [-0.5, 1.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64))


@pytest.mark.parametrize("normalized", [True, False])
def test_iterations_on_the_sparse_matrix_find_the_dense_eigenvectors(monkeypatch, normalized):
    pairs = random_pairs(60, 200)
    values, vectors = low_eigenvectors(pairs, 60, 4, normalized=normalized)
    monkeypatch.setattr(module, "DENSE", 0)
    monkeypatch.setattr(module, "SHARE", 1)
    before = torch.get_rng_state()
    ours, space = low_eigenvectors(pairs, 60, 4, normalized=normalized)
    assert torch.equal(before, torch.get_rng_state())
    assert_close(ours, values, atol=1e-8, rtol=1e-6)
    assert_close(space @ (space.T @ vectors), vectors, atol=1e-4, rtol=0)  # the same subspace
    again, same = low_eigenvectors(pairs, 60, 4, normalized=normalized)
    assert torch.equal(ours, again) and torch.equal(space, same)


def test_more_eigenvectors_than_nodes_are_all_of_them():
    values, vectors = low_eigenvectors(random_pairs(5, 6), 5, 9)
    assert values.shape == (5,) and vectors.shape == (5, 5)


def test_undirected_takes_the_mean_of_both_directions():
    edges = torch.tensor([[0, 1, 2, 1, 1], [1, 0, 1, 1, 2]])
    pairs = undirected(edges, torch.tensor([1.0, 3.0, 5.0, 9.0, 1.0]), 3)
    assert (pairs.a.tolist(), pairs.b.tolist(), pairs.weight.tolist()) == ([0, 1], [1, 2], [2.0, 3.0])
    assert undirected(edges[:, :0], None, 0).weight.numel() == 0
    assert join_pairs(torch.tensor([2, 0]), torch.tensor([0, 2]), torch.ones(2), 3).weight.tolist() == [2.0]
