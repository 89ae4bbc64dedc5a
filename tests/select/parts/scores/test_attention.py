"""GTP's scores on tiny maps, and its cut of the map."""

import pytest
import torch
from torch.testing import assert_close

from tokengraph.attention.stats import AttentionStats
from tokengraph.select.parts.scores.attention import SCORES, gtp_score, sparsify

# One image, two heads, a class token and two patches; rows are queries.
MAP = torch.tensor(
    [
        [[0.5, 0.2, 0.3], [0.1, 0.6, 0.3], [0.2, 0.7, 0.1]],
        [[0.1, 0.5, 0.4], [0.8, 0.1, 0.1], [0.0, 0.1, 0.9]],
    ]
)[None]


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        ("cls-mean", [0.35, 0.35]),
        ("cls-max", [0.5, 0.4]),
        ("image-mean", [1.1, 1.05]),
        ("image-max", [1.5, 1.4]),
        ("diag-mean", [0.35, 0.5]),
        ("diag-max", [0.6, 0.9]),
        ("mixed-mean", [0.35 * 1.1, 0.5 * 1.05]),
        ("mixed-max", [0.6 * 1.5, 0.9 * 1.4]),  # patch 2: both from the second head; patch 1: from the first
        ("sum-max", [0.6 + 1.5, 0.9 + 1.4]),
    ],
)
def test_gtp_score_of_a_map_written_out(score, expected):
    assert_close(gtp_score(AttentionStats.from_map(MAP, 1), score), torch.tensor([expected]))


def test_gtp_score_takes_each_factor_from_its_own_head():
    two_heads = torch.tensor([[[0.9, 0.1], [0.1, 0.9]], [[0.0, 1.0], [0.3, 0.7]]])[None]
    # Patch 1: diagonal 0.9 (first head), column sum 1.7 (second head).
    assert_close(gtp_score(AttentionStats.from_map(two_heads), "mixed-max")[0, 1], torch.tensor(0.9 * 1.7))


def test_gtp_score_leaves_a_tokens_own_attention_out_of_the_sums_only():
    stats = AttentionStats.from_map(MAP, 1)
    without = {s: gtp_score(stats, s, include_self=False) for s in ("image-max", "mixed-max", "diag-max")}
    assert_close(without["image-max"], torch.tensor([[0.9, 0.6]]))  # published code: 1.5 and 1.4
    assert_close(without["mixed-max"], torch.tensor([[0.6 * 0.9, 0.9 * 0.6]]))
    assert_close(without["diag-max"], torch.tensor([[0.6, 0.9]]))


@pytest.mark.parametrize("over", ["mean", "max"])
def test_cosine_score_sums_cosines_of_image_rows_itself_included(over):
    attention = torch.randn(2, 3, 7, 7).softmax(dim=-1)
    pooled = attention[:, :, 2:].mean(dim=1) if over == "mean" else attention[:, :, 2:].amax(dim=1)
    expected = -torch.cosine_similarity(pooled[:, :, None], pooled[:, None], dim=3).sum(dim=2)
    assert_close(gtp_score(AttentionStats.from_map(attention, 2), f"cosine-{over}"), expected)


@pytest.mark.parametrize("prefix", [0, 1, 5])
@pytest.mark.parametrize("score", SCORES)
def test_gtp_score_from_queries_and_keys_is_that_of_their_map(score, prefix):
    if score.startswith("cls") and prefix == 0:
        pytest.skip("no class token")
    q, k = torch.randn(2, 2, 3, prefix + 6, 4)
    lazy = AttentionStats(lambda: (q, k), 0.5, prefix)
    made = AttentionStats.from_map((q @ k.transpose(2, 3) * 0.5).softmax(dim=-1), prefix)
    got = gtp_score(lazy, score)
    assert got.shape == (2, 6)
    assert_close(got, gtp_score(made, score))


def test_sums_over_all_columns_are_the_number_of_rows():
    attention = torch.randn(2, 3, 9, 9).softmax(dim=-1)
    sums = AttentionStats.from_map(attention, 0).column_sums()
    assert_close(sums.sum(dim=2), torch.full((2, 3), 9.0))
    cut = AttentionStats.from_map(sparsify(attention, 0.5), 0)
    assert (cut.column_sums().sum(dim=2) < 9).all()  # rows are not normalised again, and scores see that


def test_gtp_score_passes_no_gradient():
    attention = torch.randn(1, 2, 5, 5, requires_grad=True).softmax(dim=-1)
    assert not gtp_score(AttentionStats.from_map(attention, 1)).requires_grad


def test_gtp_score_refuses_what_it_does_not_know():
    stats = AttentionStats.from_map(torch.full((1, 1, 3, 3), 1 / 3))
    with pytest.raises(ValueError, match=r"Expected score to be one of cls-mean, .*sum-max \(got 'MixedAttnMax'\)"):
        gtp_score(stats, "MixedAttnMax")
    with pytest.raises(ValueError, match="score to be one of"):
        gtp_score(stats, "sum-mean")
    with pytest.raises(ValueError, match="Expected attention of a class token for score='cls-max'"):
        gtp_score(stats, "cls-max")


def test_sparsify_cuts_what_lies_below_the_mth_smallest():
    attention = torch.arange(1.0, 17.0).view(1, 1, 4, 4)
    # m = int(16 * (1 - 0.75)) = 4: the fourth smallest stays.
    assert sparsify(attention, 0.75).flatten().tolist() == [0, 0, 0, *range(4, 17)]
    assert attention.min() == 1  # not in place


@pytest.mark.parametrize("density", [0.1, 0.5, 0.8, 0.95])
def test_sparsify_leaves_as_many_entries_in_each_map_as_the_published_rule(density):
    attention = torch.randn(2, 3, 13, 13).softmax(dim=-1)
    m = int(13 * 13 * (1 - density))
    cut = sparsify(attention, density)
    assert (cut != 0).flatten(2).sum(dim=2).tolist() == [[169 - m + 1] * 3] * 2
    assert torch.equal(cut[cut != 0], attention[cut != 0])


@pytest.mark.parametrize("density", [1.0, 1 - 1e-9])
def test_sparsify_with_nothing_to_cut_returns_the_map(density):
    attention = torch.rand(1, 1, 4, 4)
    assert sparsify(attention, density) is attention


def test_sparsify_passes_gradients_through_what_is_kept():
    logits = torch.randn(1, 2, 5, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: sparsify(z.softmax(dim=-1), 0.6), logits)
    attention = torch.rand(1, 1, 4, 4, requires_grad=True)
    cut = sparsify(attention, 0.5)
    cut.sum().backward()
    assert torch.equal(attention.grad, (cut != 0).float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sparsify_cuts_half_precision_maps_by_their_own_values(dtype):
    attention = torch.randn(1, 2, 9, 9).softmax(dim=-1).to(dtype)
    cut = sparsify(attention, 0.6)
    assert cut.dtype == dtype
    assert torch.equal(cut, sparsify(attention.float(), 0.6).to(dtype))


def test_sparsify_compiled_cuts_the_same():
    attention = torch.randn(2, 3, 13, 13).softmax(dim=-1)
    torch.compiler.reset()
    compiled = torch.compile(sparsify, fullgraph=True, backend="eager")
    assert torch.equal(compiled(attention, 0.7), sparsify(attention, 0.7))
