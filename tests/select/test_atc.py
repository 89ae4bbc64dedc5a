"""ATC by its properties, and against scipy's sequential clustering."""

import pytest
import torch

from tokengraph import ATC, atc
from tokengraph.select.parts.choices.agglomerate import first_of_cycle
from tokengraph.select.parts.graphs import linkage as module
from tokengraph.select.parts.graphs import mutual

LINKAGES = ("average", "single", "complete")
EACH = pytest.mark.parametrize("linkage", LINKAGES)


def same(cluster):
    return cluster[:, None] == cluster


def by_scipy(x, keep, linkage):
    """Cluster of each token by the sequential method, numbered by smallest token."""
    hierarchy = pytest.importorskip("scipy.cluster.hierarchy")
    u = torch.nn.functional.normalize(x.double(), dim=1)
    i, j = torch.triu_indices(len(x), len(x), 1)
    found = hierarchy.fcluster(hierarchy.linkage((1 - u @ u.T)[i, j].clamp_min(0).numpy(), linkage), keep, "maxclust")
    known = {}
    return [known.setdefault(label, len(known)) for label in found.tolist()]


@EACH
@pytest.mark.parametrize(("tokens", "keep"), [(50, 25), (50, 1), (120, 30), (33, 32)])
def test_rounds_give_what_the_sequential_method_gives(linkage, tokens, keep):
    x = torch.randn(3, tokens, 16)
    a = atc(x, keep, linkage=linkage)
    for b in range(3):
        mine = a.cluster[b * tokens : (b + 1) * tokens] - b * keep
        assert mine.tolist() == by_scipy(x[b], keep, linkage)


@EACH
def test_fewer_clusters_coarsen_more(linkage):
    x, finer = torch.randn(1, 60, 8), None
    for keep in (60, 41, 23, 9, 2, 1):
        a = atc(x, keep, linkage=linkage)
        assert a.num_clusters == keep == len(a.cluster.unique())
        assert finer is None or (same(a.cluster) | ~finer).all()
        finer = same(a.cluster)


def test_single_linkage_gives_the_components_of_close_tokens():
    x = torch.randn(1, 40, 8)
    u = torch.nn.functional.normalize(x[0], dim=1)
    together = same(atc(x, 15, linkage="single").cluster)
    apart = (u @ u.T)[~together].max()
    for cluster in together.unique(dim=0):
        inside = u[cluster] @ u[cluster].T > apart
        assert (torch.linalg.matrix_power(inside.double(), 40) > 0).all()


@EACH
def test_duplicates_merge_first_and_equal_tokens_by_index(linkage):
    x = torch.randn(1, 12, 8)[:, torch.arange(24) % 12]
    assert torch.equal(same(atc(x, 12, linkage=linkage).cluster), same(torch.arange(24) % 12))
    assert atc(torch.ones(1, 5, 3), 3, linkage=linkage).cluster.tolist() == [0, 0, 0, 1, 2]
    assert atc(torch.zeros(1, 4, 3), 2, linkage=linkage).num_clusters == 2


@EACH
def test_scaled_keys_change_nothing_and_permuted_ones_permute(linkage):
    x, order = torch.randn(1, 40, 8), torch.randperm(40)
    plain = atc(x, 13, linkage=linkage).cluster
    assert torch.equal(atc(x * (torch.rand(1, 40, 1) + 0.5), 13, linkage=linkage).cluster, plain)
    assert torch.equal(same(atc(x[:, order], 13, linkage=linkage).cluster), same(plain[order]))


@EACH
def test_with_a_mask_equals_each_image_alone(linkage):
    x, counts, keep = torch.randn(5, 20, 8), [20, 13, 6, 1, 0], [15, 2, 6, 1, 3]
    mask = torch.arange(20) < torch.tensor(counts)[:, None]
    mask[1] = mask[1].flip(0)
    x[~mask] = torch.nan
    whole = atc(x, keep, linkage=linkage, mask=mask)
    for b, k in enumerate(keep):
        alone = atc(x[b][mask[b]][None], k, linkage=linkage)
        mine = whole.cluster[whole.ptr[b] : whole.ptr[b + 1]] - whole.cluster_ptr[b]
        assert mine.tolist() == alone.cluster.tolist()


@EACH
def test_blocks_give_what_one_piece_gives(linkage, monkeypatch):
    x = torch.randn(2, 45, 8)
    whole = [atc(x, keep, linkage=linkage).cluster for keep in (30, 10, 1)]
    monkeypatch.setattr(module, "MATRIX", 0)
    monkeypatch.setattr(module, "COSINES", 45 * 4)
    monkeypatch.setattr(mutual, "COSINES", 2 * 45 * 4)
    for keep, wanted in zip((30, 10, 1), whole, strict=True):
        assert torch.equal(atc(x, keep, linkage=linkage).cluster, wanted)


def test_a_chain_takes_as_many_rounds_as_merges():
    angle = torch.tensor([0.0, 0.1, 0.21, 0.33, 0.46, 0.6, 0.75])
    x = torch.stack([angle.cos(), angle.sin()], dim=1)[None]
    assert atc(x, 2, linkage="single").cluster.tolist() == [0] * 6 + [1]


def test_a_cycle_of_products_that_round_apart_still_merges_something():
    to = torch.tensor([[1, 2, 0, 4, 3, 0, 6]])  # 0 -> 1 -> 2 -> 0, a pair, one that points to a cycle, one alone
    assert first_of_cycle(to)[0].nonzero().flatten().tolist() == [0, 3, 6]


def test_an_unknown_linkage_is_refused():
    for call in (lambda: ATC("ward"), lambda: atc(torch.ones(1, 2, 2), 1, linkage="ward")):
        with pytest.raises(ValueError, match="Expected linkage to be 'average', 'single' or 'complete' .got 'ward'"):
            call()
