"""MCTF by its properties."""

import pytest
import torch

import tokengraph as tg
from tokengraph import mctf
from tokengraph.select.parts.scores.received import received
from tokengraph.testing import make_tokens


@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
@pytest.mark.parametrize("t1", [0.5, 1, 3])
def test_by_similarity_alone_and_one_way_it_chooses_as_tome(prefix, t1):
    x = torch.randn(3, 21, 8)
    a = mctf(x, torch.rand(3, 21), 14, tau=(t1, 0, 0), bidirectional=False, num_prefix=prefix)
    assert torch.equal(a.cluster, tg.tome(x, 14, num_prefix=prefix).cluster)


def test_constant_attention_and_sizes_are_no_criteria():
    x = torch.randn(2, 20, 8)
    plain = mctf(x, torch.rand(2, 20), 13, tau=(1, 0, 0))
    for size in (None, torch.full((2, 20), 3.0)):
        assert torch.equal(mctf(x, torch.full((2, 20), 0.2), 13, size=size).cluster, plain.cluster)


def test_little_attended_and_small_tokens_merge_first():
    x = torch.ones(1, 6, 2) + 0.01 * torch.arange(6)[:, None]
    a = mctf(x, torch.tensor([[9.0, 9.0, 9.0, 1.0, 1.0, 9.0]]), 5, tau=(1, 1, 0))
    assert a.cluster[3] == a.cluster[4]
    a = mctf(x, torch.ones(1, 6), 5, size=torch.tensor([[9.0, 9.0, 9.0, 1.0, 1.0, 9.0]]), tau=(1, 0, 1))
    assert a.cluster[3] == a.cluster[4]


def test_a_factor_on_attention_or_sizes_changes_nothing():
    x, a, s = torch.randn(2, 20, 8), torch.rand(2, 20), torch.rand(2, 20) + 1
    one, other = mctf(x, a, 12, size=s), mctf(x, 8 * a, 12, size=4 * s)
    assert torch.equal(one.cluster, other.cluster)
    torch.testing.assert_close(one.reduce(x.flatten(0, 1))[0], other.reduce(x.flatten(0, 1))[0])


def test_rows_are_means_by_attention_and_size_and_sizes_add_up():
    x, a, s = torch.randn(2, 20, 8), torch.rand(2, 20), torch.rand(2, 20) + 1
    m = mctf(x, a, 11, size=s)
    rows, size = m.reduce(x.flatten(0, 1), s.flatten())
    for k in range(22):
        mine = m.cluster == k
        weight = (a * s).flatten()[mine][:, None]
        torch.testing.assert_close(rows[k], (weight * x.flatten(0, 1)[mine]).sum(0) / weight.sum())
        torch.testing.assert_close(size[k], s.flatten()[mine].sum())


def test_attention_of_zero_is_finite():
    x = torch.randn(1, 8, 4)
    m = mctf(x, torch.zeros(1, 8), 4)
    rows, _ = m.reduce(x[0])
    torch.testing.assert_close(rows, m.by_size().reduce(x[0])[0])  # no token has weight: the plain mean


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("prefix", [0, 1])
def test_with_a_mask_equals_each_image_alone(prefix, bidirectional):
    x, a, counts, keep = torch.randn(5, 20, 8), torch.rand(5, 20), [20, 13, 0, 6, 1], [15, 7, 1, 6, 1]
    mask = torch.arange(20) < torch.tensor(counts)[:, None]
    x[~mask], a[~mask] = torch.nan, torch.nan
    options = {"num_prefix": prefix, "bidirectional": bidirectional}
    whole = mctf(x, a, keep, mask=mask, **options)
    for b, (n, k) in enumerate(zip(counts, keep, strict=True)):
        part = mctf(x[b : b + 1, :n], a[b : b + 1, :n], k, **options)
        mine = whole.cluster[whole.ptr[b] : whole.ptr[b + 1]] - whole.cluster_ptr[b]
        assert mine.tolist() == part.cluster.tolist()
        assert torch.equal(whole.weight[whole.ptr[b] : whole.ptr[b + 1]], part.weight)


@pytest.mark.parametrize("tokens", [1, 2, 3, 7, 8])
@pytest.mark.parametrize("prefix", [0, 1])
def test_half_of_the_tokens_leave_at_most(tokens, prefix):
    a = mctf(torch.randn(2, tokens, 4), torch.rand(2, tokens), 1, num_prefix=prefix)
    assert a.num_clusters == 2 * tg.MCTF().fewest(tokens) and torch.bincount(a.cluster).min() >= 1


def test_nothing_to_remove_is_the_identity_bit_for_bit():
    x = torch.randn(1, 5, 3)
    a = mctf(x, torch.rand(1, 5), 5)
    assert a.cluster.tolist() == [0, 1, 2, 3, 4] and torch.equal(a.reduce(x[0])[0], x[0])


def test_gradients_reach_attention_through_the_weights():
    x, a = torch.randn(1, 6, 3), torch.rand(1, 6, requires_grad=True)
    rows, _ = mctf(x, a, 3).reduce(x[0])
    rows.square().sum().backward()
    assert a.grad.isfinite().all() and a.grad.any()


def test_the_strategy_reads_what_tokens_receive():
    tokens = make_tokens(torch.randn(2, 20, 8), (4, 5))
    own = mctf(tokens.x, received(tokens.attention), 12, num_prefix=1)
    assert torch.equal(tg.MCTF()(tokens, 12).cluster, own.cluster)
    torch.testing.assert_close(received(tokens.attention), tokens.attention.column_sums().sum(1))


def test_published_schedule_spares_the_last_block():
    assert tg.MCTF.published_schedule(4) == [16, 16, 16, 0]


def test_wrong_options_are_refused():
    x = torch.randn(1, 4, 2)
    for tau in ((1, 2), (1, -1, 0), (1, 0, float("nan"))):
        with pytest.raises(ValueError, match="Expected tau as three temperatures >= 0"):
            mctf(x, torch.rand(1, 4), 3, tau=tau)
    with pytest.raises(ValueError, match="Expected tau as three temperatures >= 0"):
        tg.MCTF(tau=(1, True, 0))
    with pytest.raises(ValueError, match=r"Expected received of shape \[B, N\] = \[1, 4\] \(got \[1, 3\]\)"):
        mctf(x, torch.rand(1, 3), 3)
    with pytest.raises(ValueError, match=r"Expected size of shape \[B, N\] = \[1, 4\] \(got \[4\]\)"):
        mctf(x, torch.rand(1, 4), 3, size=torch.ones(4))
