"""A look at the queries and keys that a block will make of its input, before it runs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokengraph.adapters.coarse import KEPT
from tokengraph.attach.kept import keep_outputs
from tokengraph.attach.mask import attention_bias
from tokengraph.attach.site import Site
from tokengraph.attach.state import State
from tokengraph.attention.mask_object import MaskObject
from tokengraph.attention.open_map import MapSeen
from tokengraph.attention.stats import AttentionStats


class Leave(MaskObject):
    """A mask that leaves the block's attention where it would weigh keys, by :class:`MapSeen`.

    Compiled code cannot be left; what follows is not used there and taken out.
    """

    dtype = torch.float32

    def attention(
        self, q: Tensor, k: Tensor, v: Tensor, *, scale: float | None, dropout_p: float, enable_gqa: bool
    ) -> Tensor:
        """Leaves."""
        if torch.compiler.is_compiling():
            return v
        raise MapSeen

    def plus(self, scores: Tensor) -> Any:
        """Returns itself: a block may add a bias of its own before it has made its queries."""
        return scores if torch.compiler.is_compiling() else self

    def softmax(self, dim: int = -1, dtype: torch.dtype | None = None) -> Tensor:
        """Leaves."""
        raise MapSeen


def peek(site: Site, block: Any, x: Tensor, state: State, mask: Tensor | None, side: dict[str, Any]) -> AttentionStats:
    """Describes the attention that a block would pay to its tokens ``x [B, P+n, C]``; computed when it is read.

    Cost: the block's norm and its projections of all tokens; where only the class token's mean logits are read and the
    adapter knows the projections, the norm and two products of one row with them.
    """
    adapter, prefix = site.request.adapter, site.trace.run.num_prefix
    bias: Any = attention_bias(mask, state, prefix, rule=site.request.rule, dtype=x.dtype)
    others = adapter.carry(side, state.lineage, block) if state.lineage.coarse else side

    def project() -> tuple[Tensor, Tensor]:
        if not torch.compiler.is_compiling():
            keep_outputs(block, adapter.kept(block))
        kept = block.__dict__[KEPT] = {}
        try:
            adapter.attend(block, x, Leave(), **others)  # type: ignore[arg-type]
        except MapSeen:
            pass
        finally:
            block.__dict__.pop(KEPT, None)
        whole = adapter.statistics(block, kept, prefix, bias, others)
        stats.scale = whole.scale
        return whole._queries_keys()

    stats = AttentionStats(project, 1.0, prefix, bias, logits=adapter.class_logits(block, x))
    return stats
