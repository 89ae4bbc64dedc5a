"""Expedite against vectors recorded from the released code (see tests/reference/expedite/README.md)."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tokengraph.edges.cells import cell_edges, label_map
from tokengraph.select.expedite.cluster import token_clustering
from tokengraph.select.expedite.expedite import expedite
from tokengraph.select.expedite.reconstruct import hard_labels, reconstruction_edges, token_reconstruction

HERE = Path(__file__).parents[2] / "reference" / "expedite"
SHARED = Path(__file__).parents[4] / "shared" / "reference" / "expedite"  # files too large for the repository
OPERATORS = ["op01_16x16_to_8x8", "op03_12x20_to_6x10", "op05_15x13_to_6x5_nondiv", "op07_swin_win12_to_8",
             "op11_window1", "op13_hot_empty_clusters"]  # fmt: skip
RELEASED = {"normalize": "l2", "ties": "released"}


def load(name: str) -> dict[str, Tensor]:
    path = next((f / f"{name}.npz" for f in (HERE, SHARED) if (f / f"{name}.npz").exists()), None)
    if path is None:
        pytest.skip(f"{name}.npz is not kept in the repository, and there is no shared/reference beside it")
    with np.load(path, allow_pickle=False) as file:
        return {k: torch.from_numpy(file[k]) for k in file.files if file[k].dtype.kind in "fiu"}


@pytest.fixture(params=OPERATORS)
def case(request: pytest.FixtureRequest) -> dict:
    data = load(request.param)
    data["name"] = request.param[:4]
    data["tokens"] = data["x"].flatten(2).transpose(1, 2).contiguous()
    data["pairs"] = tuple(data["grid"].tolist()), tuple(data["clusters"].tolist())
    return data


def cluster(case: dict, iterations: int, form: str, dtype: torch.dtype = torch.float32):
    return token_clustering(
        case["tokens"].to(dtype),
        *case["pairs"],
        iterations=iterations,
        inv_temperature=float(case["inv_temperature"]),
        window=int(case["window_size"]),
        empty="zero",
        form=form,
    )


def dense_weights(edges, images: int, tokens: int, clusters: int) -> Tensor:
    token, cluster, weight = edges
    out = torch.zeros(images * tokens, clusters).index_put_((token, cluster % clusters), weight, accumulate=True)
    return out.view(images, tokens, clusters)


def test_candidates_are_the_released_ones(case):
    grid, clusters = case["pairs"]
    assert torch.equal(label_map(grid, clusters), case["init_label_map"].long())
    token, cluster, _ = cell_edges(grid, clusters, int(case["window_size"]))
    bits = np.unpackbits(case["candidate_mask"].numpy(), axis=1)[:, : grid[0] * grid[1]]
    mask = torch.zeros(bits.shape, dtype=torch.uint8)
    mask[cluster, token] = 1
    assert torch.equal(mask, torch.from_numpy(bits))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("form", ["dense", "edges", "tiles"])
def test_centres_are_the_released_ones_after_every_iteration(case, form, dtype):
    for done, expected in enumerate(case["centres"]):
        last = done == int(case["n_iters"])
        tolerance = 1e-4 if case["name"] == "op13" and 0 < done and not last else 1e-5
        ours = cluster(case, done, form, dtype)[0]
        torch.testing.assert_close(ours, expected.to(dtype), atol=tolerance, rtol=0)


def test_soft_assignments_are_the_released_ones_in_the_first_and_last_iteration(case):
    if "affinity_first" not in case:
        pytest.skip(f"no affinities were stored for {case['name']}")
    for done, name in ((1, "affinity_first"), (int(case["n_iters"]), "affinity_last")):
        _, token, cluster_ids, weight = cluster(case, done, "auto")
        q = torch.zeros_like(case[name])
        q[:, cluster_ids, token] = weight
        torch.testing.assert_close(q, case[name], atol=1e-4 if case["name"] == "op13" else 1e-5, rtol=0)


def test_hard_labels_are_the_released_ones_where_they_are_clear(case):
    ours, clear = hard_labels(case["tokens"], case["centres_final"]), case["label_gap"] > 1e-4
    assert torch.equal(ours[clear], case["hard_labels"].long()[clear])
    copied = token_reconstruction(case["tokens"], case["centres_final"], case["rec_clustered_after"], mode="hard")
    assert torch.equal(copied[clear], case["unpool_hard"][clear])


def test_reconstructions_are_the_released_ones_where_the_neighbours_are_clear(case):
    y, s = case["rec_clustered_after"], case["centres_final"]
    compared = 0
    for i, k in enumerate(case["rec_k"].tolist()):
        t, clear = float(case["rec_inv_temperature"][i]), torch.ones(case["tokens"].shape[:2], dtype=torch.bool)
        if k != -1:
            clear = case[f"rec_gap_{i}"] > 1e-5
        options = {"inv_temperature": t, "neighbors": k}
        ours = token_reconstruction(case["tokens"], s, y, **options, **RELEASED)
        torch.testing.assert_close(ours[clear], case[f"rec_out_{i}"][clear], atol=2e-5, rtol=0)
        edges = reconstruction_edges(case["tokens"], s, **options, **RELEASED)
        weights = dense_weights(edges, *clear.shape, s.size(1))
        torch.testing.assert_close(weights.sum(2)[clear], case[f"rec_weight_sum_{i}"][clear], atol=2e-5, rtol=0)
        if i == 0 and "rec_attention_0" in case:
            torch.testing.assert_close(weights[clear], case["rec_attention_0"][clear], atol=2e-5, rtol=0)
        # The default: a softmax over the same clusters is the released output over its sum of weights.
        total = case[f"rec_weight_sum_{i}"]
        there = clear & (total > 0)
        soft = token_reconstruction(case["tokens"], s, y, **options)
        scaled = case[f"rec_out_{i}"] / total[..., None]
        if case["name"] != "op13" or t < 1:  # denormal weights there have few digits
            torch.testing.assert_close(soft[there], scaled[there], atol=1e-5, rtol=0)
        compared += int(there.sum())
    assert compared > 100


def test_the_whole_way_down_and_up_is_the_released_one(case):
    if case["name"] == "op07":
        pytest.skip("many near-duplicate centres: neighbours flip with the last digit of the centres")
    images, _, channels = case["tokens"].shape
    found = expedite(
        case["tokens"],
        *case["pairs"],
        iterations=int(case["n_iters"]),
        inv_temperature=float(case["inv_temperature"]),
        window=int(case["window_size"]),
        empty="zero",
        neighbors=int(case["rec_k"][0]),
        **RELEASED,
    )
    assert found.centroids is not None
    torch.testing.assert_close(found.centroids.view(images, -1, channels), case["centres_final"], atol=5e-5, rtol=0)
    at = 1 if case["name"] == "op13" else 0
    lifted = found.lift(case["rec_clustered_after"].flatten(0, 1)).view_as(case["tokens"])
    clear = case[f"rec_gap_{at}"] > 1e-3
    torch.testing.assert_close(lifted[clear], case[f"rec_out_{at}"][clear], atol=1e-4, rtol=0)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_exact_ties_all_survive_as_released(k):
    case = load("rec14_exact_ties")
    x, s = case["feat_before"], case["clustered_before"]
    options = {"inv_temperature": float(case["inv_temperature"]), "neighbors": k, "normalize": "l2"}
    ours = token_reconstruction(x, s, case["clustered_after"], **options, ties="released")
    torch.testing.assert_close(ours, case[f"out_k{k}"], atol=2e-6, rtol=0)
    weights = dense_weights(reconstruction_edges(x, s, **options, ties="released"), 2, 40, 12)
    torch.testing.assert_close(weights, case[f"attention_k{k}"], atol=2e-6, rtol=0)
    exact = dense_weights(reconstruction_edges(x, s, **options, ties="k"), 2, 40, 12)
    assert ((exact > 0).sum(2) == k).all()
    differ = ((weights > 0) != (exact > 0)).any(2)
    assert int(differ.sum()) == {1: 29, 2: 34, 3: 32, 5: 28}[k]  # rows where more than k survive
    # Of equals the lower index stays: no cluster is taken while a tied one before it is left.
    for row, kept in zip(weights.flatten(0, 1), exact.flatten(0, 1), strict=True):
        furthest = row[kept > 0].min()
        tied = (row == furthest).nonzero().flatten()
        taken = (kept[tied] > 0).long()
        assert (taken.diff() <= 0).all()
