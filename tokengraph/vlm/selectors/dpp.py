"""A determinantal point process: tokens that are relevant and unlike each other, by greedy MAP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from tokengraph.cost import Cost
from tokengraph.errors import check_finite, check_tokens
from tokengraph.maps.hard import Assignment
from tokengraph.select.base import Select
from tokengraph.select.parts.choices.peaks import assign_to_centers
from tokengraph.select.tokens import Tokens, clamp_budget
from tokengraph.vlm.selectors.keep import keep_tokens

RIDGE = 1e-6  # added to the kernel's diagonal, so that equal tokens leave it invertible


def dpp(x: Tensor, keep: int, *, query: Tensor | None = None, merge: bool = False) -> Assignment:
    r"""Keeps the tokens whose kernel matrix has, greedily, the largest determinant.

    .. math::
        L_{ij} = r_i\, r_j \cos(x_i, x_j), \qquad S_{t+1} = S_t \cup \{\arg\max_i \det L_{S_t \cup \{i\}}\}

    Args:
        x: Features, ``[B, N, C]``.
        keep: Tokens an image.
        query: Embeddings of a text, ``[C]`` or ``[Q, C]``: the relevance r of a token is its cosine with their mean,
            scaled to [0, 1] within the image. ``None``: all tokens are alike relevant.
        merge: Merge every other token into the kept one of highest cosine, instead of dropping it.

    Returns:
        The map, with ``centers``; clusters in the order of their tokens.

    Raises:
        ValueError: If ``keep`` is below 1, features are not finite, or a query has another width.

    Cost: ``O(B N^2 C)`` for the kernel and ``keep`` steps of ``O(B N keep)``; no host synchronisation.

    Example:
        >>> dpp(torch.tensor([[[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]]), 2).cluster.tolist()
        [0, 2, 1]

    Ties: the lower index.

    Source: greedy MAP: Chen et al., *Fast Greedy MAP Inference for Determinantal Point Process*, NeurIPS 2018. With a
    text's relevance: Zhang et al., *Beyond Attention or Similarity* (CDPruner), 2025, whose relevance comes from CLIP;
    here it is any embedding of the projected features' width. Merging is this library's own.
    """
    check_tokens(x)
    check_finite(x)
    keep_each = clamp_budget(keep, x, None)
    assert isinstance(keep_each, int)
    if query is not None and (query.dim() not in (1, 2) or query.size(-1) != x.size(-1)):
        raise ValueError(f"Expected query of shape [C] or [Q, C] with C={x.size(-1)} (got {list(query.shape)}).")
    return _dpp(x, keep_each, query, merge)


@dataclass(frozen=True, eq=False)
class DPP(Select):
    """:func:`dpp` as a strategy on features alone.

    Args:
        query: Embeddings of a text, ``[C]`` or ``[Q, C]``, such as ``model.get_input_embeddings()(question_ids)[0]``;
            one for all images. ``None``: no relevance.
        merge: Merge the other tokens into the kept ones.
    """

    reads: ClassVar[str] = "nothing"
    placement: ClassVar[str] = "after"
    query: Tensor | None = None
    merge: bool = False

    def __call__(self, tokens: Tokens, budget: int | list[int]) -> Assignment:
        """Maps the tokens to clusters; see :class:`tokengraph.Select`."""
        keep = clamp_budget(budget, tokens.x, tokens.mask)
        if tokens.mask is not None or isinstance(keep, list):
            raise ValueError("Expected images of one size without padding (got a mask). Choose image by image.")
        return _dpp(tokens.x, keep, self.query, self.merge)

    @property
    def weighs(self) -> bool:
        """As ``merge`` says."""
        return self.merge

    def cost(self, num_tokens: int, keep: int, channels: int, head_width: int = 64) -> Cost:
        """Counts the kernel and the greedy steps."""
        return Cost(2 * num_tokens * (num_tokens * channels + keep * keep // 2), 4 * num_tokens * (num_tokens + keep))


@torch.no_grad()
def _dpp(x: Tensor, keep: int, query: Tensor | None, merge: bool) -> Assignment:
    unit = F.normalize(x.float(), dim=2, eps=1e-6)
    similar = unit @ unit.transpose(1, 2)
    kernel = similar
    if query is not None:
        text = F.normalize(query.to(x.device).float().reshape(-1, x.size(2)).mean(dim=0), dim=0, eps=1e-6)
        cosine = unit @ text
        low, high = cosine.amin(dim=1, keepdim=True), cosine.amax(dim=1, keepdim=True)
        relevance = (cosine - low) / (high - low).clamp_min(1e-6)
        kernel = similar * relevance[:, :, None] * relevance[:, None, :]
    chosen = greedy_map(kernel, keep)
    if not merge:
        return keep_tokens(chosen, x.size(1))
    nearest = similar.gather(1, chosen[..., None].expand(-1, -1, x.size(1))).argmax(dim=1)
    center = chosen.gather(1, nearest).scatter(1, chosen, chosen)
    return assign_to_centers(center, chosen, keep, mask=None, order="index")


def greedy_map(kernel: Tensor, keep: int) -> Tensor:
    """Chooses ``keep`` different tokens of each image, ``[B, keep]``, best first, for kernels ``[B, N, N]``.

    Each step takes the token that adds most to the determinant; its gain is the squared diagonal that a Cholesky
    factorisation would have there.
    """
    batch, count = kernel.shape[:2]
    gain = kernel.diagonal(dim1=1, dim2=2) + RIDGE
    factor = kernel.new_zeros(batch, keep, count)
    chosen = torch.zeros(batch, keep, dtype=torch.long, device=kernel.device)
    image = torch.arange(batch, device=kernel.device)
    for t in range(keep):
        best = gain.argmax(dim=1)
        chosen[:, t] = best
        if t + 1 == keep:
            break
        before = factor[:, :t]
        row = kernel[image, best] - torch.einsum("bt,btn->bn", before[image, :, best], before)
        factor[:, t] = row / gain[image, best].clamp_min(RIDGE).sqrt()[:, None]
        gain = gain - factor[:, t].square()
        gain = gain.scatter(1, chosen[:, : t + 1], -torch.inf)
    return chosen
