"""The attention that tokens receive."""

from __future__ import annotations

from torch import Tensor

from tokengraph.attention.stats import AttentionStats


def received(stats: AttentionStats) -> Tensor:
    """How much attention each patch token receives from all tokens, prefix tokens among them: ``[B, N]`` float32.

    A sum over heads and queries, so that all tokens together receive ``H (P + N)``. It may be
    differentiated. Cost: a pass over the map.
    """
    return stats.column_sums().sum(dim=1)
