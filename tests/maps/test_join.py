import pytest
import torch
from torch.testing import assert_close

import tokengraph as tg
from tokengraph.maps.join import join


@pytest.fixture
def rows():
    return [torch.randn(n, 4, generator=torch.Generator().manual_seed(n)) for n in (5, 3, 6)]


def check(parts, rows):
    """The joined map does to the batch what each map does to its image."""
    whole = join(parts, rows)
    x, size = whole.reduce(torch.cat(rows))
    for (ours, mine), part, own in zip(zip(x.split(sizes := [p.num_clusters for p in parts]), size.split(sizes),
                                           strict=True), parts, rows, strict=True):  # fmt: skip
        assert_close(ours, part.reduce(own)[0])
        assert_close(mine, part.reduce(own)[1])
    back = whole.lift(x).split([len(r) for r in rows])
    for ours, part, own in zip(back, parts, rows, strict=True):
        assert_close(ours, part.lift(part.reduce(own)[0]))
    return whole


def test_join_of_hard_maps_is_hard_and_keeps_the_bin(rows):
    parts = [tg.topk(rows[0][None, :, 0], 2), tg.dpc_knn(rows[1][None], 2), tg.topk(rows[2][None, :, 0], 6)]
    whole = check(parts, rows)
    assert isinstance(whole, tg.Assignment) and whole.drops and not whole.single
    assert whole.counts == (2, 2, 6) and whole.ptr.tolist() == [0, 5, 8, 14]
    assert whole.cluster_ptr.tolist() == [0, 2, 4, 10]
    assert (whole.cluster == 10).sum() == 3  # dropped tokens of the first image
    assert_close(torch.cat(rows)[whole.centers][:2], rows[0][parts[0].centers])


def test_join_of_soft_and_hard_maps_is_soft(rows):
    soft = tg.expedite(rows[2][None], (2, 3), (1, 2), neighbors=2)
    whole = check([tg.dpc_knn(rows[0][None], 2), soft], [rows[0], rows[2]])
    assert isinstance(whole, tg.SoftAssignment) and whole.counts is None and whole.centers is None
    assert_close(whole.centroids[2:], soft.centroids)
    assert_close(whole.centroids[:2], whole.reduce(torch.cat([rows[0], rows[2]]))[0][:2])


def test_join_of_sums_stays_a_sum(rows):
    parts = [tg.gtp(r[None, :, 0], keep, mode="none") for r, keep in zip(rows, (2, 3, 4), strict=True)]
    assert check(parts, rows).normalize is False
