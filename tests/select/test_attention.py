"""Lazy attention statistics against the full map."""

import pytest
import torch

from tokengraph.select.attention import AttentionStats


@pytest.mark.parametrize("bias", [None, torch.rand(2, 1, 1, 9), torch.rand(1, 3, 9, 9), torch.rand(2, 1, 9, 9) > 0.3])
@pytest.mark.parametrize("prefix", [1, 3])
def test_statistics_equal_those_of_the_full_map(bias, prefix):
    q, k = torch.randn(2, 2, 3, 9, 4)
    if bias is not None and bias.dtype == torch.bool:
        bias[..., 0] = True
    logits = q @ k.transpose(2, 3) * 0.5
    if bias is not None:
        logits = logits.masked_fill(~bias, -torch.inf) if bias.dtype == torch.bool else logits + bias
    full = logits.softmax(-1)
    stats = AttentionStats(lambda: (q, k), 0.5, prefix, bias)
    torch.testing.assert_close(stats.class_row(), full[:, :, 0, prefix:])
    torch.testing.assert_close(stats.column_sums(chunk=4), full.sum(2)[..., prefix:])
    torch.testing.assert_close(stats.diagonal(chunk=4), full.diagonal(dim1=2, dim2=3)[..., prefix:])
    torch.testing.assert_close(stats.keys(), k[:, :, prefix:].mean(1))


def test_nothing_is_projected_until_it_is_asked_for():
    asked = []
    stats = AttentionStats(lambda: asked.append(1) or (torch.ones(1, 1, 2, 2),) * 2, 1.0, 1)
    assert asked == []
    stats.keys()
    stats.class_row()
    assert asked == [1]
