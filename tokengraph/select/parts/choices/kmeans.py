"""k-means from farthest points, without random numbers and without empty clusters."""

from __future__ import annotations

import torch
from torch import Tensor

from tokengraph.select.parts.choices.farthest import choose_farthest

STEPS = 20


def kmeans(x: Tensor, keep: int, *, steps: int = STEPS) -> Tensor:
    """Clusters rows ``[N, C]`` into exactly ``keep`` clusters by Lloyd's steps.

    Args:
        x: The rows, in float64: distances are taken by products.
        keep: K, from 1 to N.
        steps: The most steps; it ends sooner once no row changes its cluster.

    Returns:
        The cluster of each row, ``[N]``; ties go to the lower cluster. A row far from its mean leaves a larger
        cluster for one that would be empty.

    Cost: ``O(N K C)`` a step, and once more for the start; on CUDA host synchronisations.

    Source: Lloyd, IEEE Trans. Inf. Theory 1982; farthest points as in Gonzalez, TCS 1985.
    """
    norm = (x * x).sum(dim=1)

    def distances(new: Tensor) -> Tensor:
        return (norm + norm[new[0]] - 2.0 * (x @ x[new[0, 0]])).clamp_min_(0)[None]  # squared

    center, chosen = choose_farthest(distances, torch.full_like(norm, torch.inf)[None], keep)
    number = torch.zeros(x.size(0), dtype=torch.long, device=x.device)
    number[chosen[0]] = torch.arange(keep, device=x.device)
    label = number[center[0]]
    for _ in range(steps):
        count = torch.bincount(label, minlength=keep)
        mean = x.new_zeros(keep, x.size(1)).index_add_(0, label, x) / count.clamp_min(1)[:, None]
        least, new = torch.addmm((mean * mean).sum(dim=1), x, mean.T, alpha=-2.0).min(dim=1)  # less |x|^2
        new = _filled(new, least + norm, keep)
        if torch.equal(new, label):
            break
        label = new
    return label


def _filled(label: Tensor, distance: Tensor, keep: int) -> Tensor:
    """Moves the rows farthest from their means into empty clusters, one each."""
    count = torch.bincount(label, minlength=keep)
    empty = (count == 0).nonzero()[:, 0].tolist()
    if not empty:
        return label
    label, sizes, old = label.clone(), count.tolist(), label.tolist()
    for row in distance.argsort(descending=True, stable=True).tolist():
        if not empty:
            break
        if sizes[old[row]] > 1:
            sizes[old[row]] -= 1
            label[row] = empty.pop(0)
    return label
