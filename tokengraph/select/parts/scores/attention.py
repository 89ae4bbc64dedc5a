"""GTP's attention scores of tokens, and its sparsification of the attention map."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tokengraph.attention.stats import AttentionStats
from tokengraph.flat.looks import may_look, transforming
from tokengraph.flat.segment import as_type, wide

SCORES = (
    *(f"{what}-{over}" for what in ("cls", "image", "diag", "mixed", "cosine") for over in ("mean", "max")),
    "sum-max",
)


@torch.no_grad()
def gtp_score(stats: AttentionStats, score: str = "mixed-max", *, include_self: bool = True) -> Tensor:
    r"""Scores patch tokens by a layer's attention map :math:`A`; GTP drops the lowest scores.

    :math:`\gamma_j = A_{jj}` measures how hard a token is to reconstruct from others, and
    :math:`\psi_j = \sum_i A_{ij}` how much other tokens read it (i runs over all tokens, prefix tokens too). With
    :math:`\mu` the mean or maximum over heads:

    .. math::
        \text{cls: } \mu(A_{0j}) \quad \text{image: } \mu(\psi_j) \quad \text{diag: } \mu(\gamma_j) \quad
        \text{mixed: } \mu(\gamma_j)\,\mu(\psi_j) \quad \text{sum: } \mu(\gamma_j) + \mu(\psi_j) \quad
        \text{cosine: } -\textstyle\sum_i \cos(\mu(A_{j\cdot}), \mu(A_{i\cdot}))

    Args:
        stats: The layer's attention.
        score: ``"cls-mean"``, ``"cls-max"``, and so on for image, diag, mixed and cosine; ``"sum-max"``. In mixed and
            sum each factor takes its own maximum, perhaps from different heads.
        include_self: Counts a token's attention to itself in psi, as the published code does and the paper does not.

    Returns:
        ``[B, N]`` float32, without gradient.

    Raises:
        ValueError: For another ``score``, or a cls score without a class token.

    Cost: cls: one row of the map; the others: one pass over it. ``O(B H (P+N)^2)``.

    Source: Xu et al., *GTP-ViT*, WACV 2024, section 3, and its code; the authors use ``mixed-max``.
    """
    check_score(score)
    what, over = score.split("-")
    if what == "cls" and stats.num_prefix == 0:
        raise ValueError(f"Expected attention of a class token for score={score!r} (got none). Use score='mixed-max'.")
    if what == "cls":
        return _pool(stats.class_row(), over)
    if what == "cosine":
        return _unlike_others(stats, over)
    if what == "diag":
        return _pool(stats.diagonal(), over)
    received = stats.column_sums() if include_self else stats.column_sums() - stats.diagonal()
    received = _pool(received, over)
    if what == "image":
        return received
    own = _pool(stats.diagonal(), over)
    return own * received if what == "mixed" else own + received


def sparsify(attention: Tensor, density: float) -> Tensor:
    r"""Sets the smallest entries of each attention map to 0; rows are not normalised again.

    Zeroes the entries below the m-th smallest of a map of side S, :math:`m = \lfloor S^2 (1 - \theta) \rfloor`
    computed in float64 as in the published code (for S = 65 and :math:`\theta = 0.8` that is 844, not 845).

    Args:
        attention: ``[B, H, S, S]``, after softmax; not written into. Gradients reach the kept entries.
        density: :math:`\theta`, the share of kept entries; 1 keeps everything.

    Cost: an order statistic of every map and one copy. It makes layers slower; its purpose is accuracy.

    Source: Xu et al., *GTP-ViT*, WACV 2024, "attention sparsification", as in its code. Differs: m = 0 keeps every
    entry (published: an error), and backward works in eval mode.
    """
    cut = int(attention.size(-2) * attention.size(-1) * (1 - density))
    if cut < 1:
        return attention
    threshold = _nth_smallest(attention.detach().flatten(2), cut).to(attention.dtype)
    # A product is several times faster on CPU than masked_fill.
    return attention * (attention.detach() >= threshold[..., None, None])


def check_score(score: str, *, also: tuple[str, ...] = ()) -> None:
    """Raises unless this is one of :data:`SCORES`, or of ``also``."""
    if score not in (*SCORES, *also):
        raise ValueError(f"Expected score to be one of {', '.join((*SCORES, *also))} (got {score!r}).")


def _pool(x: Tensor, over: str) -> Tensor:
    return x.mean(dim=1) if over == "mean" else x.amax(dim=1)


def _unlike_others(stats: AttentionStats, over: str) -> Tensor:
    rows = _pool(stats.rows(stats.num_prefix, stats.tokens), over)
    unit = F.normalize(rows, dim=2)
    # The sum over i of unit_j . unit_i, without the [N, N] products; not a matmul, which rounds by batch size.
    return -(unit * unit.sum(dim=1, keepdim=True)).sum(dim=2)


def _nth_smallest(values: Tensor, n: int) -> Tensor:
    """Returns the n-th smallest value of each row, n from 1: ``[..., J]`` to ``[...]``."""
    values = as_type(values, wide(values))  # NumPy has no bfloat16, and kthvalue no float16
    if may_look(values) and not transforming():
        # An order of magnitude faster than kthvalue on processors for which NumPy vectorises it.
        return torch.from_numpy(np.partition(values.numpy(), n - 1, axis=-1)[..., n - 1].copy())
    return values.kthvalue(n, dim=-1).values
