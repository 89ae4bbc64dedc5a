"""Farthest points: each new centre is the token farthest from all centres before it."""

from __future__ import annotations

import torch
from torch import Tensor

from tokengraph.optional import require
from tokengraph.select.parts.graphs.complete import Distances
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

    Cost: ``O(N^2 C)`` for the distances where they fit into memory (``O(N K C)`` otherwise), ``O(N K)`` for the
    choice, as K steps in turn.
    """
    pairs = Distances(x, mask)
    if pairs.step >= pairs.tokens:
        next(iter(pairs))  # all distances at once, which rows() then reads
    most = max(keep, default=0) if isinstance(keep, list) else keep
    budget = torch.tensor(keep, device=x.device)[:, None] if isinstance(keep, list) else None
    place = torch.arange(x.size(1), device=x.device)
    gap = torch.full_like(pairs.norm, torch.inf)
    if mask is not None:
        gap = gap.masked_fill(~mask, -torch.inf)
    center, chosen = torch.zeros_like(pairs.norm, dtype=torch.long), []
    for step in range(most):
        new = gap.argmax(dim=1, keepdim=True)
        chosen.append(new)
        far = pairs.rows(new)[:, 0]
        own = place == new
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
