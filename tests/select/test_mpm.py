"""MPM by its properties."""

import pytest
import torch

import tokengraph as tg
from tokengraph import mpm
from tokengraph.select.parts.graphs import mutual
from tokengraph.testing import tiny_vit


def test_of_equal_tokens_the_first_two_merge():
    assert mpm(torch.ones(1, 5, 3)).cluster.tolist() == [0, 0, 1, 2, 3]
    zeros = mpm(torch.zeros(1, 4, 3))
    assert zeros.cluster.tolist() == [0, 0, 1, 2]


@pytest.mark.parametrize("kind", ["signs", "ones"])
def test_ties_go_to_the_lower_index(vectors, kind):
    v = vectors("merging", "ties")
    assert mpm(v[kind][None]).cluster.tolist() == v[f"mpm_{kind}"].tolist()


def test_every_image_merges_its_closest_pair_and_half_at_most():
    x = torch.randn(4, 21, 8)
    a = mpm(x)
    u = torch.nn.functional.normalize(x, dim=2)
    similar = (u @ u.transpose(1, 2)).masked_fill(torch.eye(21, dtype=torch.bool), -2)
    assert torch.bincount(a.cluster).max() == 2
    for b, count in enumerate(a.cluster_ptr.diff().tolist()):
        i, j = divmod(int(similar[b].argmax()), 21)
        own = a.cluster[21 * b : 21 * b + 21]
        assert own[i] == own[j] and 11 <= count <= 20


def test_the_budget_is_the_fewest_that_may_stay():
    x = torch.randn(2, 30, 8)
    free = [30 - n for n in mpm(x).cluster_ptr.diff().tolist()]
    assert min(free) > 3
    a = mpm(x, [28, 30])
    assert a.cluster_ptr.diff().tolist() == [28, 30]
    assert a.cluster[30:].tolist() == list(range(28, 58))
    whole = mpm(x[:1])
    pairs = [torch.equal(whole.cluster[i : i + 1], whole.cluster[j : j + 1]) for i, j in _pairs(a.cluster[:30])]
    assert len(pairs) == 2 and all(pairs)


def _pairs(cluster):
    return [(i, j) for i in range(len(cluster)) for j in range(i + 1, len(cluster)) if cluster[i] == cluster[j]]


def test_permuted_tokens_give_permuted_clusters():
    x, order = torch.randn(1, 24, 8), torch.randperm(24)
    plain, moved = mpm(x).cluster[order], mpm(x[:, order]).cluster
    assert torch.equal(plain[:, None] == plain, moved[:, None] == moved)


def test_with_a_mask_equals_each_image_alone():
    x, counts = torch.randn(4, 12, 8), [12, 7, 1, 0]
    mask = torch.arange(12) < torch.tensor(counts)[:, None]
    mask[1] = mask[1].flip(0)  # tokens need not come first
    x[~mask] = torch.nan
    a = mpm(x, mask=mask)
    for b, n in enumerate(counts):
        mine = a.cluster[a.ptr[b] : a.ptr[b + 1]] - a.cluster_ptr[b]
        assert mine.tolist() == mpm(x[b][mask[b]][None]).cluster.tolist()
        assert len(mine) == n


def test_rows_in_blocks_equal_the_whole(monkeypatch):
    x = torch.randn(2, 23, 8)
    whole = mpm(x).cluster
    monkeypatch.setattr(mutual, "COSINES", 2 * 23 * 4)
    assert torch.equal(mpm(x).cluster, whole)


def test_layers_outside_of_the_model_are_refused():
    with pytest.raises(ValueError, match=r"Expected layers in \[0, 3\] for MPM .got \[2, 5\]"):
        tg.attach(tiny_vit(), tg.MPM())


def test_a_model_says_for_each_image_what_stayed():
    model, images = tiny_vit(), torch.randn(3, 3, 32, 32)
    with torch.no_grad(), tg.attach(model, tg.MPM(layers=(0, 2))) as handle:
        model(images)
        found = [handle.trace.counts_per_image(layer) for layer in range(4)]
    assert found[0] == found[1] != found[2] == found[3]
    assert all(8 <= n < 16 for n in found[0]) and all(b < a for a, b in zip(found[1], found[2], strict=True))


def test_a_schedule_says_layers_and_the_fewest_that_stay():
    model, images = tiny_vit(), torch.randn(2, 3, 32, 32)
    for schedule, wanted in (({1: 15}, [16, 15, 15, 15]), (1, [16, 15, 14, 13]), ({1: 1.0}, [16] * 4)):
        with torch.no_grad(), tg.attach(model, "mpm", schedule) as handle:
            model(images)
            assert list(handle.trace.counts) == wanted
