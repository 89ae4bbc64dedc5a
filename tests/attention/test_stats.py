"""Lazy attention statistics against the full map."""

import pytest
import torch

from tokengraph.attention import stats as attention
from tokengraph.attention.stats import AttentionStats


@pytest.mark.parametrize("bias", [None, torch.rand(2, 1, 1, 9), torch.rand(1, 3, 9, 9), torch.rand(2, 1, 9, 9) > 0.3])
@pytest.mark.parametrize("prefix", [1, 3])
def test_statistics_equal_those_of_the_full_map(bias, prefix, monkeypatch):
    monkeypatch.setattr(attention, "CHUNK", 4)
    q, k = torch.randn(2, 2, 3, 9, 4)
    if bias is not None and bias.dtype == torch.bool:
        bias[..., 0] = True
    logits = q @ k.transpose(2, 3) * 0.5
    if bias is not None:
        logits = logits.masked_fill(~bias, -torch.inf) if bias.dtype == torch.bool else logits + bias
    full = logits.softmax(-1)
    stats = AttentionStats(lambda: (q, k), 0.5, prefix, bias)
    _check(stats, full, prefix)
    torch.testing.assert_close(stats.keys(), k[:, :, prefix:].mean(1))
    _check(AttentionStats.from_map(full, prefix), full, prefix)


def _check(stats, full, prefix):
    torch.testing.assert_close(stats.class_row(), full[:, :, 0, prefix:])
    torch.testing.assert_close(stats.rows(2, 5), full[:, :, 2:5])
    torch.testing.assert_close(stats.column_sums(), full.sum(2)[..., prefix:])
    torch.testing.assert_close(stats.diagonal(), full.diagonal(dim1=2, dim2=3)[..., prefix:])


def test_nothing_is_projected_until_it_is_asked_for():
    asked = []
    stats = AttentionStats(lambda: asked.append(1) or (torch.ones(1, 1, 2, 2),) * 2, 1.0, 1)
    assert asked == []
    stats.keys()
    stats.class_row()
    assert asked == [1]


def test_a_map_alone_has_no_keys():
    with pytest.raises(ValueError, match="attention with queries and keys"):
        AttentionStats.from_map(torch.ones(1, 1, 2, 2)).keys()


def test_statistics_of_a_half_precision_map_are_float32():
    stats = AttentionStats.from_map(torch.rand(1, 2, 5, 5).half(), 1)
    assert {t.dtype for t in (stats.class_row(), stats.column_sums(), stats.diagonal())} == {torch.float32}


def test_value_norms_are_over_all_heads_together():
    values = torch.zeros(1, 2, 3, 2)
    values[0, :, 1] = torch.tensor([[1.0, 2.0], [2.0, 4.0]])
    stats = AttentionStats(None, 1.0, 1, values=lambda: values.half())
    assert stats.values().shape == (1, 2, 3, 2)
    assert stats.value_norms().tolist() == [[0.0, 5.0, 0.0]] and stats.value_norms().dtype == torch.float32


def test_a_map_alone_has_no_values():
    with pytest.raises(ValueError, match="attention with values"):
        AttentionStats.from_map(torch.ones(1, 1, 2, 2)).value_norms()


@pytest.mark.parametrize("given", [True, False])
def test_sums_leave_queries_of_padding_out(given):
    q, k = torch.randn(2, 3, 9, 4), torch.randn(2, 3, 9, 4)
    valid = torch.arange(9) < torch.tensor([[9], [6]])  # 2 prefix tokens; 7 and 4 patch tokens
    bias = torch.zeros(2, 1, 1, 9).masked_fill(~valid[:, None, None], -torch.inf)
    attention = (q @ k.transpose(2, 3) * 0.5 + bias).softmax(dim=3)
    make = AttentionStats.from_map(attention, 2) if given else AttentionStats(lambda: (q, k), 0.5, 2, bias)
    stats = make.without_padding(valid)
    alone = AttentionStats.from_map(attention[1:, :, :6, :6], 2)
    torch.testing.assert_close(stats.column_sums()[1:, :, :4], alone.column_sums())
    torch.testing.assert_close(stats.diagonal()[1:, :, :4], alone.diagonal())
    assert not stats.column_sums()[1, :, 4:].any()
    torch.testing.assert_close(stats.column_sums()[:1], AttentionStats.from_map(attention[:1], 2).column_sums())
