"""ALGM by its properties."""

import pytest
import torch

import tokengraph as tg
from tokengraph import algm_global, algm_local
from tokengraph.testing import make_tokens, tiny_vit


def alike(images, grid, channels=8, seed=0):
    """Tokens whose 2 x 2 windows are alike, some more than others."""
    g = torch.Generator().manual_seed(seed)
    h, w = grid
    coarse = torch.randn(images, channels, -(-h // 2), -(-w // 2), generator=g)
    fine = coarse.repeat_interleave(2, 2).repeat_interleave(2, 3)[:, :, :h, :w]
    noise = torch.rand(images, 1, h, w, generator=g) * torch.randn(images, channels, h, w, generator=g)
    return (fine + noise).flatten(2).transpose(1, 2)


@pytest.mark.parametrize("kind", ["signs", "ones"])
def test_ties_go_to_the_lower_index(vectors, kind):
    v = vectors("merging", "ties")
    assert algm_local(v[kind][None], (4, 6), 0.25).cluster.tolist() == v[f"algm_local_4x6_tau0.25_{kind}"].tolist()


def test_of_equal_tokens_all_of_a_merge_into_the_first_of_b(vectors):
    v = vectors("merging", "ties")
    assert algm_global(v["ones"][None], 5).cluster.tolist() == v["algm_global_ones"].tolist()


def test_tau_from_minus_one_takes_all_windows_and_above_one_none():
    x = torch.randn(2, 6 * 8, 4)
    assert algm_local(x, (6, 8), -1.0).num_clusters == 2 * 12
    assert algm_local(x, (6, 8), -1.0, window=(1, 2)).num_clusters == 2 * 24
    assert algm_local(x, (6, 8), 1.0001).cluster.tolist() == list(range(96))
    assert algm_local(torch.zeros(1, 48, 4), (6, 8), 0.1).num_clusters == 48  # zeros resemble nothing


def test_incomplete_windows_stay_single_tokens():
    a = algm_local(torch.ones(1, 15, 2), (3, 5), 0.5)
    assert a.cluster.view(3, 5).tolist() == [[0, 0, 1, 1, 2], [0, 0, 1, 1, 3], [4, 5, 6, 7, 8]]
    assert algm_local(torch.ones(1, 5, 2), (1, 5), 0.5).num_clusters == 5


def test_windows_of_a_video_lie_within_frames():
    a = algm_local(torch.ones(1, 12, 2), (3, 2, 2), 0.5)
    assert a.cluster.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_a_window_changes_no_other():
    x = alike(1, (6, 6))
    plain = algm_local(x, (6, 6), 0.8)
    x[0, [0, 1, 6, 7]] = torch.randn(4, 8)
    moved = algm_local(x, (6, 6), 0.8)
    rest = torch.ones(36, dtype=torch.bool)
    rest[[0, 1, 6, 7]] = False
    together = [(a.cluster[:, None] == a.cluster)[rest][:, rest] for a in (plain, moved)]
    assert torch.equal(*together) and together[0].sum() > 29


def test_the_budget_is_the_fewest_that_may_stay():
    x = alike(3, (6, 8))
    free = algm_local(x, (6, 8), 0.5).cluster_ptr.diff().tolist()
    assert max(free) < 40
    assert algm_local(x, (6, 8), 0.5, keep=[40, 1, 48]).cluster_ptr.diff().tolist() == [42, free[1], 48]
    free = algm_global(x, 5).cluster_ptr.diff().tolist()
    assert max(free) < 46
    a = algm_global(x, 5, keep=[46, 1, 48])
    assert a.cluster_ptr.diff().tolist() == [46, free[1], 48]
    assert (a.cluster[-48:] - a.cluster[-48]).tolist() == list(range(48))


def test_the_global_step_merges_half_at_most_and_needs_two_tokens_of_a():
    for tokens, left in ((1, 1), (2, 2), (3, 2), (4, 2), (9, 5)):
        assert algm_global(torch.ones(1, tokens, 3), 5).num_clusters == left
    assert algm_global(torch.ones(1, 2, 3), 5, num_prefix=1).num_clusters == 2


@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_the_global_step_with_a_mask_equals_each_image_alone(prefix):
    x, counts = torch.randn(5, 24, 8), [24, 13, 6, 1, 0]
    mask = torch.arange(24) < torch.tensor(counts)[:, None]
    x[~mask] = torch.nan
    whole = algm_global(x, 5, num_prefix=prefix, mask=mask)
    merged = 0
    for b, n in enumerate(counts):
        alone = algm_global(x[b : b + 1, :n], 5, num_prefix=prefix)
        mine = whole.cluster[whole.ptr[b] : whole.ptr[b + 1]] - whole.cluster_ptr[b]
        assert mine.tolist() == alone.cluster.tolist()
        merged += n - alone.num_clusters
    assert merged > 5


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match=r"Expected a window of at least two tokens .got \(1, 1\)"):
        tg.ALGM(window=(1, 1))
    with pytest.raises(ValueError, match=r"Expected window as \(height, width\), both at least 1 .got \(0, 2\)"):
        algm_local(torch.ones(1, 4, 2), (2, 2), 0.5, window=(0, 2))
    with pytest.raises(ValueError, match="Expected model to be one of vit_tiny, .* .got 'swin'"):
        tg.ALGM.published("swin")
    with pytest.raises(ValueError, match="Expected layer >= 1 .got layer=0"):
        algm_global(torch.ones(1, 4, 2), 0)
    tokens = make_tokens(torch.randn(1, 9, 4), (3, 3))
    tokens.full = False
    with pytest.raises(ValueError, match="Expected the full patch grid for the first step of ALGM .got 9 tokens"):
        tg.ALGM()(tokens, 1)


def test_a_model_merges_windows_and_then_pairs():
    model, images = tiny_vit(depth=4), torch.randn(3, 3, 32, 32)
    with torch.no_grad(), tg.attach(model, tg.ALGM(0.05, layers=(1, 3))) as handle:
        both = model(images)
        found = [handle.trace.counts_per_image(layer) for layer in range(5)]
        assert found[1] == found[2] and found[3] == found[4] and len(set(found[1])) > 1
        assert all((16 - n) % 3 == 0 for n in found[1]) and sum(found[3]) < sum(found[1]) < 48
        torch.testing.assert_close(both, torch.cat([model(i[None]) for i in images]), rtol=1e-4, atol=1e-5)
