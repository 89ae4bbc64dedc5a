"""DPC-KNN in its default mode: properties and edge cases of the specification."""

import math

import pytest
import torch

from tokengraph import dpc_knn
from tokengraph.flat.memory import set_memory_budget


def test_dpc_knn_ranks_features_that_underflow_exp_like_float64_logs():
    x = torch.randn(1, 40, 8) * 1e4
    d = torch.cdist(x.double(), x.double(), compute_mode="donot_use_mm_for_euclid_dist")[0] / 8**0.5
    log_rho = -d.topk(5, largest=False).values.square().mean(1)
    denser = log_rho[None] > log_rho[:, None]
    delta = torch.where(denser, d, math.inf).amin(1)
    delta = torch.where(delta < math.inf, delta, d.max())
    expected = (log_rho + delta.log()).topk(9).indices.sort().values
    assert (-(d.topk(5, largest=False).values ** 2).mean(1)).exp().max() == 0  # what the published form would see
    assert dpc_knn(x, 9).centers.tolist() == expected.tolist()


def test_dpc_knn_with_a_mask_equals_each_image_alone():
    x = torch.randn(3, 30, 8)
    counts = [30, 17, 3]
    mask = torch.arange(30) < torch.tensor(counts)[:, None]
    padded = dpc_knn(torch.where(mask[..., None], x, 1e4), 9, mask=mask)
    start, expected = 0, []
    for b, n in enumerate(counts):
        alone = dpc_knn(x[b : b + 1, :n], 9)
        expected += (alone.cluster + start).tolist()
        start += alone.num_clusters
    assert padded.cluster.tolist() == expected
    assert padded.cluster_ptr.tolist() == [0, 9, 18, 21]


def test_dpc_knn_with_holes_in_the_mask_equals_the_tokens_without_them():
    x = torch.randn(2, 30, 8)
    mask = torch.rand(2, 30) > 0.4
    holes = dpc_knn(x, 5, mask=mask)
    expected = torch.cat([dpc_knn(x[b : b + 1, mask[b]], 5).cluster + 5 * b for b in range(2)])
    assert torch.equal(holes.cluster, expected)


def test_dpc_knn_takes_one_budget_an_image():
    x = torch.randn(3, 20, 8)
    got = dpc_knn(x, [4, 20, 1])
    assert got.cluster_ptr.tolist() == [0, 4, 24, 25]
    assert got.cluster[20:40].tolist() == list(range(4, 24))
    assert torch.equal(got.cluster[:20], dpc_knn(x[:1], 4).cluster)
    assert got.centers.tolist()[-1] >= 40


@pytest.mark.parametrize("keep", [12, [12, 30]])
def test_dpc_knn_in_blocks_equals_in_one_piece(keep):
    x = torch.randn(2, 50, 8)
    whole = dpc_knn(x, keep).cluster
    with set_memory_budget(2 * 50 * 4 * 7):
        assert torch.equal(dpc_knn(x, keep).cluster, whole)


def test_dpc_knn_breaks_exact_ties_by_index():
    x = torch.tensor([[[0.0], [2.0], [1.0]]])  # token 2 lies half-way
    assert dpc_knn(x, 2, k=2).cluster.tolist() in ([0, 1, 0], [0, 1, 1])
    constant = dpc_knn(torch.full((1, 6, 3), 0.1), 3)
    assert constant.centers.tolist() == [0, 1, 2]
    assert constant.cluster.tolist() == [0, 1, 2, 0, 0, 0]


def test_dpc_knn_takes_the_callers_importance_for_centres():
    x = torch.randn(1, 10, 4)
    importance = torch.tensor([[0.0, 5, 1, 1, 9, 1, 1, 1, 7, 1]])
    assert dpc_knn(x, 3, importance=importance).centers.tolist() == [1, 4, 8]


def test_dpc_knn_counting_itself_with_k_1_warns():
    with pytest.warns(UserWarning, match="all densities are equal"):
        assert dpc_knn(torch.randn(1, 6, 3), 2, k=1).num_clusters == 2


def test_dpc_knn_clamps_k_and_keep():
    x = torch.randn(2, 6, 3)
    assert torch.equal(dpc_knn(x, 3, k=100).cluster, dpc_knn(x, 3, k=6).cluster)
    assert dpc_knn(x, 100).cluster.tolist() == list(range(12))
    assert dpc_knn(torch.randn(2, 1, 3), 5).cluster.tolist() == [0, 1]
    assert dpc_knn(torch.randn(2, 0, 3), 5).num_clusters == 0


def test_dpc_knn_choice_does_not_see_translation():
    x = torch.randn(1, 64, 16)
    assert torch.equal(dpc_knn(x + 50.0, 9).cluster, dpc_knn(x, 9).cluster)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"keep": 0}, "Expected keep >= 1"), ({"k": 0}, "Expected k >= 1"), ({"order": "x"}, "Expected order to be")],
)
def test_dpc_knn_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        dpc_knn(torch.randn(1, 8, 2), change.pop("keep", 2), **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"importance": torch.zeros(1, 8)}, r"no importance in parity mode \(got importance and noise\)"),
        ({"include_self": False}, r"include_self=True in parity mode \(got include_self=False\)"),
    ],
)
def test_dpc_knn_refuses_options_that_parity_has_not(change, message):
    with pytest.raises(ValueError, match=message):
        dpc_knn(torch.randn(1, 8, 2), 2, noise=torch.zeros(1, 8), **change)


def test_dpc_knn_takes_a_numeric_mask_in_parity_mode():
    x, noise, mask = torch.randn(2, 9, 4), torch.zeros(2, 9), torch.rand(2, 9) > 0.3
    expected = dpc_knn(x, 3, mask=mask, noise=noise).cluster
    assert torch.equal(dpc_knn(x, 3, mask=mask.float(), noise=noise).cluster, expected)
    assert torch.equal(dpc_knn(x, 3, mask=mask.long(), noise=noise).cluster, expected)


def test_dpc_knn_refuses_importance_that_does_not_fit():
    x, nan = torch.randn(2, 8, 2), torch.full((2, 8), math.nan)
    with pytest.raises(ValueError, match=r"Expected importance of shape \[B, N\] = \[2, 8\] \(got \[8\]\)"):
        dpc_knn(x, 2, importance=torch.zeros(8))
    with pytest.raises(ValueError, match=r"Expected finite importance \(got NaN or infinity in 16 rows\)"):
        dpc_knn(x, 2, importance=nan)
    mask = torch.arange(8).expand(2, -1) < 5
    assert dpc_knn(x, 2, importance=nan.masked_fill(mask, 0.0), mask=mask).num_clusters == 4
