"""ToMe against its published procedure, written out token by token."""

import pytest
import torch

from tokengraph import ToMe, tome


def published(metric, r, prefix):
    """One image of prefix and patch tokens: the groups of the merged sequence in its published order."""
    unit = metric.double() / metric.double().norm(dim=1, keepdim=True)
    a, b = list(range(0, len(metric), 2)), list(range(1, len(metric), 2))
    score = unit[a] @ unit[b].T
    for row, token in enumerate(a):
        if token < prefix:
            score[row] = -torch.inf
    for column, token in enumerate(b):
        if token < prefix:
            score[:, column] = -torch.inf
    best, partner = score.max(dim=1)
    order = sorted(range(len(a)), key=lambda i: (-float(best[i]), i))
    merged, unmerged = order[:r], order[r:]
    if prefix:
        unmerged = sorted(unmerged)
    groups = [[a[i]] for i in unmerged]
    joined = {j: [b[j]] for j in range(len(b))}
    for i in merged:
        joined[int(partner[i])].append(a[i])
    groups += [sorted(joined[j]) for j in range(len(b))]
    front = [g for g in groups if g[0] < prefix]
    assert all(len(g) == 1 for g in front)
    return [[t - prefix for t in g] for g in groups if g[0] >= prefix]


@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
@pytest.mark.parametrize(("tokens", "r"), [(20, 5), (21, 10), (7, 2), (9, 1)])
def test_tome_merges_and_orders_as_published(prefix, tokens, r):
    sequence = torch.randn(2, prefix + tokens, 16)
    got = tome(sequence[:, prefix:], tokens - r, num_prefix=prefix)
    for b in range(2):
        groups = published(sequence[b], r, prefix)
        expected = torch.empty(tokens, dtype=torch.long)
        for number, group in enumerate(groups):
            expected[group] = number
        assert (got.cluster.view(2, tokens)[b] - b * (tokens - r)).tolist() == expected.tolist()


def test_tome_halves_at_most():
    got = tome(torch.randn(1, 11, 4), 2)
    assert got.num_clusters == 6 == ToMe().fewest(11)


def test_tome_gives_zero_vectors_similarity_zero():
    x = torch.zeros(1, 4, 2)
    x[0, 2:] = torch.tensor([[1.0, 0.0], [1.0, 0.1]])
    assert tome(x, 3).cluster.tolist() == [0, 1, 2, 2]


def test_tome_with_a_mask_equals_each_image_alone():
    x = torch.randn(3, 20, 8)
    counts = [20, 13, 6]
    mask = torch.arange(20) < torch.tensor(counts)[:, None]
    for prefix in (0, 1):
        padded = tome(torch.where(mask[..., None], x, 1e3), 8, num_prefix=prefix, mask=mask)
        alone = [tome(x[b : b + 1, :n], 8, num_prefix=prefix) for b, n in enumerate(counts)]
        start = 0
        expected = []
        for a in alone:
            expected += (a.cluster + start).tolist()
            start += a.num_clusters
        assert padded.cluster.tolist() == expected
        assert padded.num_clusters == start
        assert padded.cluster_ptr.diff().tolist() == [a.num_clusters for a in alone]


def test_tome_refuses_bad_input():
    with pytest.raises(ValueError, match="Expected keep >= 1"):
        tome(torch.randn(1, 4, 2), 0)
    with pytest.raises(ValueError, match=r"Expected x of shape \[B, N, C\]"):
        tome(torch.randn(4, 2), 2)
    with pytest.raises(ValueError, match="Expected finite tokens"):
        tome(torch.full((1, 4, 2), torch.inf), 2)
    with pytest.raises(TypeError, match="Expected floating-point x"):
        tome(torch.ones(1, 4, 2, dtype=torch.long), 2)
