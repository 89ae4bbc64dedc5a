"""The dense forms choose and compute what the library does; else timing one against the other would mean nothing."""

from __future__ import annotations

import dense
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import tokengraph as tg
from tokengraph.select.topk import fuse_rest

B, SIDE, C = 2, 8, 16
N = SIDE * SIDE


def features(seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(B, N, C, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def sizes(seed: int = 1) -> Tensor:
    return torch.randint(1, 5, (B, N, 1), generator=torch.Generator().manual_seed(seed)).float()


def flat(cluster: Tensor, keep: int) -> list[int]:
    return (cluster + torch.arange(cluster.size(0))[:, None] * keep).flatten().tolist()


def test_knn_gives_the_librarys_edges():
    x = features()
    index = dense.knn(x, 4) + torch.arange(B)[:, None, None] * N
    edges, _ = tg.knn_graph(x, 4)
    assert edges[0].tolist() == index.flatten().tolist()


@pytest.mark.parametrize("keep", [5, 16, 40])
def test_dpc_knn_gives_the_librarys_clusters(keep: int):
    x = features(dtype=torch.float64)
    assert tg.dpc_knn(x, keep, order="score").cluster.tolist() == flat(dense.dpc_knn(x, keep), keep)


@pytest.mark.parametrize("keep", [3, 16, 40])
@pytest.mark.parametrize("lam", [9, 50])
def test_ailurus_gives_the_librarys_clusters(keep: int, lam: int):
    x = features(dtype=torch.float64)
    rank = dense.spatial_rank((SIDE, SIDE)).double()
    got = dense.ailurus(x, keep, rank, lam=lam)
    assert tg.ailurus(x, keep, (SIDE, SIDE), lam=lam, order="score").cluster.tolist() == flat(got, keep)


def test_spatial_rank_orders_by_distance_then_index():
    assert dense.spatial_rank((1, 4)).int().tolist() == [[0, 1, 2, 3], [1, 0, 2, 3], [3, 1, 0, 2], [3, 2, 1, 0]]


def test_merge_and_unmerge_give_the_librarys_rows():
    x, size = features(), sizes()
    cluster = dense.dpc_knn(x, 16)
    assignment = tg.Assignment.from_dense(cluster, 16)
    merged, total = dense.merge(x, size, cluster, 16)
    wanted, wanted_size = assignment.reduce(x.flatten(0, 1), size.flatten())
    assert_close(merged.flatten(0, 1), wanted)
    assert_close(total.flatten(), wanted_size)
    assert_close(dense.unmerge(merged, cluster).flatten(0, 1), assignment.lift(merged.flatten(0, 1)))


@pytest.mark.parametrize("r", [1, 13, 32])
def test_tome_gives_the_librarys_rows_and_their_way_back(r: int):
    x, size = features(), sizes()
    match = dense.tome(x, r)
    merged, total = dense.tome_merge(x, size, match)
    assignment = tg.tome(x, N - r)
    wanted, wanted_size = assignment.reduce(x.flatten(0, 1), size.flatten())
    assert_close(merged.flatten(0, 1), wanted)
    assert_close(total.flatten(), wanted_size)
    assert_close(dense.tome_unmerge(merged, match).flatten(0, 1), assignment.lift(wanted))


def test_tome_with_a_class_token_keeps_it_and_the_librarys_order():
    x = features()
    sequence = torch.cat([torch.ones(B, 1, C), x], dim=1)
    merged, _ = dense.tome_merge(sequence, torch.ones(B, N + 1, 1), dense.tome(sequence, 13, class_token=True))
    wanted, _ = tg.tome(x, N - 13, num_prefix=1).reduce(x.flatten(0, 1))
    assert_close(merged[:, 0], torch.ones(B, C))
    assert_close(merged[:, 1:].flatten(0, 1), wanted)


def test_topk_gives_the_librarys_rows_in_its_own_order():
    x = features()
    score = x.norm(dim=2)
    index = dense.topk(score, 16).sort(dim=1).values
    assignment = tg.topk(score, 16)
    kept, _ = assignment.reduce(x.flatten(0, 1))
    assert_close(dense.prune(x, index).flatten(0, 1), kept)
    assert_close(dense.unprune(dense.prune(x, index), index, N).flatten(0, 1), assignment.lift(kept))


def test_fuse_gives_the_librarys_rows():
    x = features()
    score = x.norm(dim=2).softmax(dim=1)
    index = dense.topk(score, 15).sort(dim=1).values
    wanted, _ = fuse_rest(score, 16).reduce(x.flatten(0, 1))
    assert_close(dense.fuse(x, score, index).flatten(0, 1), wanted)


def test_grid_pool_gives_the_librarys_rows():
    x = features()
    pos = torch.cartesian_prod(torch.arange(SIDE) + 0.5, torch.arange(SIDE) + 0.5).expand(B, -1, -1)
    assignment = tg.grid_pool(pos, 16, (SIDE, SIDE))
    wanted, _ = assignment.reduce(x.flatten(0, 1))
    pooled = dense.grid_pool(x, (SIDE, SIDE), (2, 2))
    assert_close(pooled.flatten(0, 1), wanted)
    assert_close(dense.grid_unpool(pooled, (SIDE, SIDE), (2, 2)).flatten(0, 1), assignment.lift(wanted))
