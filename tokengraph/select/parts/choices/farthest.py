"""Farthest points: each new centre is the token farthest from all centres before it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tokengraph.flat.layout import take_rows
from tokengraph.optional import require
from tokengraph.select.tokens import valid_counts


def farthest_centers(x: Tensor, keep: int | list[int], mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Chooses centres from the first token on, and gives each token its nearest.

    Args:
        x: ``[B, N, C]``.
        keep: Centres of each image, at most its tokens.
        mask: ``[B, N]`` bool, True where there is a token.

    Returns:
        The centre of each token ``[B, N]``, and the centres in the order of their choice, ``[B, K]``, both token ids;
        ties to the lower index and to the earlier centre. Centres past an image's own budget are arbitrary.

    Cost: K steps of ``O(N C)``, by differences: products would need corrections where tokens are nearly equal.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    gap = torch.full_like(x[..., 0], torch.inf)
    gap = gap if mask is None else gap.masked_fill(~mask, -torch.inf)
    return choose_farthest(lambda new: torch.linalg.vector_norm(x - take_rows(x, new), dim=2), gap, keep)


def choose_farthest(distances: Callable[[Tensor], Tensor], gap: Tensor, keep: int | list[int]) -> tuple[Tensor, Tensor]:
    """The choice of :func:`farthest_centers` by any distances.

    Args:
        distances: Returns the distance of every token to the given tokens ``[B, 1]``, as ``[B, N]``.
        gap: Infinity at tokens, minus infinity at padding, ``[B, N]``.
        keep: Centres of each image.

    Returns:
        As for :func:`farthest_centers`.
    """
    most = max(keep, default=0) if isinstance(keep, list) else keep
    budget = torch.tensor(keep, device=gap.device)[:, None] if isinstance(keep, list) else None
    place = torch.arange(gap.size(1), device=gap.device)
    center, chosen = torch.zeros(gap.shape, dtype=torch.long, device=gap.device), []
    for step in range(most):
        new = gap.argmax(dim=1, keepdim=True)
        chosen.append(new)
        far, own = distances(new), place == new
        nearer = ((far < gap) | own) & (gap > -torch.inf)  # centres and padding have a gap of -inf
        if budget is not None:
            nearer = nearer & (step < budget)
        center = torch.where(nearer, new, center)
        gap = torch.where(own, -torch.inf, torch.where(nearer, far, gap))
    return center, torch.cat(chosen, dim=1) if chosen else center[:, :0]


def by_torch_cluster(x: Tensor, keep: int | list[int], mask: Tensor | None) -> Tensor:
    """Returns the centres by ``torch_cluster.fps``, ``[B, K]`` token ids; arguments as for :func:`farthest_centers`.

    It may choose a token twice where tokens are equal; unused tokens of the lowest index then take its place.

    Raises:
        ImportError: If torch-cluster is not usable.
    """
    fps = require("torch-cluster").fps
    counts = valid_counts(x, mask)
    budgets = keep if isinstance(keep, list) else [keep] * len(counts)
    rows = torch.zeros(x.size(0), max(budgets, default=0), dtype=torch.long, device=x.device)
    for b, (n, k) in enumerate(zip(counts, budgets, strict=True)):
        at = torch.arange(n, device=x.device) if mask is None else mask[b].nonzero()[:, 0]
        if not k:
            continue
        ptr, share = at.new_tensor([0, n]), torch.tensor([(k - 0.5) / n], device=x.device)
        found = list(dict.fromkeys(fps(x[b, at].float(), ptr=ptr, ratio=share, random_start=False).tolist()))
        taken = set(found)
        found += [i for i in range(n) if i not in taken][: k - len(found)]
        rows[b, :k] = at[torch.tensor(found, device=x.device)]
    return rows
