"""K-medoids by its properties."""

import pytest
import torch

import tokengraph as tg
from tokengraph import k_medoids
from tokengraph.flat.memory import set_memory_budget
from tokengraph.select.parts.choices import medoids
from tokengraph.select.parts.graphs import complete
from tokengraph.testing import make_tokens, tiny_vit


def cost(x, a, weight):
    """The weighted sum of distances to the medoids."""
    rows = x.flatten(0, 1)
    return float((weight.flatten() * (rows - rows[a.centers[a.cluster]]).norm(dim=1)).sum())


@pytest.mark.parametrize("weight", [None, torch.rand(2, 30)], ids=["equal", "weighted"])
def test_a_medoid_is_in_its_cluster_and_the_nearest_to_it(weight):
    x = torch.randn(2, 30, 8)
    a = k_medoids(x, 7, weight=weight, iterations=20)
    assert a.cluster[a.centers].tolist() == list(range(14))
    far, w = torch.cdist(x[0], x[0]), torch.ones(30) if weight is None else weight[0]
    own = a.cluster[:30]
    for k in range(7):
        members = (own == k).nonzero().squeeze(1)
        sums = (far[members][:, members] * w[members]).sum(dim=1)
        assert members[sums.argmin()] == a.centers[k]


def test_the_objective_never_rises():
    x, weight = torch.randn(2, 200, 3), torch.rand(2, 200)
    costs = [cost(x, k_medoids(x, 9, weight=weight, iterations=i), weight) for i in (1, 2, 3, 4, 8)]
    assert costs == sorted(costs, reverse=True) and costs[-1] < costs[0]


def test_all_tokens_keep_their_order():
    x = torch.randn(2, 5, 3)
    for keep in (5, 9):
        assert k_medoids(x, keep, weight=torch.rand(2, 5)).cluster.tolist() == list(range(10))


@pytest.mark.parametrize("objective", ["cluster", "released"])
def test_duplicates_give_distinct_centers(objective):
    x = torch.randn(1, 6, 4)[:, torch.arange(24) % 6]
    for weight in (None, torch.rand(1, 24)):
        a = k_medoids(x, 10, weight=weight, objective=objective)
        assert a.centers.unique().numel() == 10 and torch.bincount(a.cluster).min() >= 1


@pytest.mark.parametrize("objective", ["cluster", "released"])
@pytest.mark.parametrize("weighted", [False, True])
def test_with_a_mask_equals_each_image_alone(weighted, objective):
    x, counts, keep = torch.randn(5, 20, 8), [20, 13, 0, 6, 1], [7, 4, 1, 6, 1]
    mask = torch.arange(20) < torch.tensor(counts)[:, None]
    mask[1] = mask[1].roll(4)  # padding may lie anywhere
    x[~mask] = torch.nan
    weight = torch.rand(5, 20) if weighted else None
    whole = k_medoids(x, keep, weight=weight, objective=objective, mask=mask)
    for b, k in enumerate(keep):
        own = None if weight is None else weight[b : b + 1, mask[b]]
        part = k_medoids(x[b : b + 1, mask[b]], k, weight=own, objective=objective)
        mine = whole.cluster[whole.ptr[b] : whole.ptr[b + 1]] - whole.cluster_ptr[b]
        assert mine.tolist() == part.cluster.tolist()
        assert (whole.centers[whole.cluster_ptr[b] : whole.cluster_ptr[b + 1]] - whole.ptr[b]).equal(part.centers)


def test_in_blocks_equals_in_one_piece():
    x, weight = torch.randn(2, 23, 8), torch.rand(2, 23)
    whole = [k_medoids(x, 6, weight=w) for w in (None, weight)]
    for a, w in zip(whole, (None, weight), strict=True):
        with set_memory_budget(4 * 2 * 23 * 5):
            assert torch.equal(k_medoids(x, 6, weight=w).cluster, a.cluster)


def test_farthest_first_takes_no_token_twice():
    x = torch.tensor([[[0.0], [1.0], [2.0], [2.0], [9.0]]])
    assert medoids.farthest_first(complete.Distances(x, None), 5).tolist() == [[2, 4, 0, 1, 3]]


def test_the_strategy_reads_what_tokens_receive():
    x = torch.randn(2, 20, 8)
    tokens = make_tokens(x, (4, 5))
    weight = tokens.attention.column_sums().sum(dim=1)
    assert torch.equal(tg.KMedoids()(tokens, 6).cluster, k_medoids(x, 6, weight=weight).cluster)
    assert torch.equal(tg.KMedoids(weight="equal")(tokens, 6).cluster, k_medoids(x, 6).cluster)
    tokens.attention = None
    with pytest.raises(ValueError, match=r"Expected tokens with attention .* Use weight='equal'"):
        tg.KMedoids()(tokens, 6)


def test_medoids_count_once_and_means_by_size():
    images, model = torch.randn(2, 3, 32, 32), tiny_vit()
    for select, sized in ((tg.KMedoids(), False), (tg.KMedoids(reduce="mean"), True)):
        assert select.weighs is sized
        with torch.no_grad(), tg.attach(model, select, {1: 8, 2: 5}) as handle:
            model(images)
            assert handle.trace.counts == [16, 8, 5, 5]
            assert handle.trace.size(3).sum(dim=1).tolist() == [16.0, 16.0]
            assert (handle.trace.state(3).size is not None) is sized


def test_wrong_options_are_refused():
    x = torch.randn(1, 4, 2)
    with pytest.raises(ValueError, match="Expected objective to be one of cluster, released .got 'x'"):
        k_medoids(x, 2, objective="x")
    with pytest.raises(ValueError, match="Expected iterations >= 1"):
        tg.KMedoids(iterations=0)
    with pytest.raises(ValueError, match="Expected weight to be 'attention' or 'equal' .got 'class'"):
        tg.KMedoids(weight="class")
    with pytest.raises(ValueError, match="Expected reduce to be 'center' or 'mean' .got 'max'"):
        tg.KMedoids(reduce="max")
    with pytest.raises(ValueError, match=r"Expected weight of shape \[B, N\] = \[1, 4\] \(got \[4\]\)"):
        k_medoids(x, 2, weight=torch.rand(4))
    with pytest.raises(ValueError, match="Expected finite weight"):
        k_medoids(x, 2, weight=torch.tensor([[1.0, torch.nan, 1.0, 1.0]]))
