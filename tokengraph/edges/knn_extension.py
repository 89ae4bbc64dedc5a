"""k nearest neighbours by the compiled kernels of torch-cluster and pyg-lib, corrected to the edges of ``"torch"``."""

from __future__ import annotations

import torch
from torch import Tensor

from tokengraph.edges import knn_torch
from tokengraph.edges.distance import pair_distance
from tokengraph.optional import require

FAINT, VAST = 1e-15, 1e18
SPARE = 2  # extra neighbours: one for the token itself, one to detect a tie at the last place


def search(name: str, x: Tensor, counts: list[int], k: int, *, loop: bool) -> tuple[Tensor, Tensor]:
    """Searches within each image by a named extension; arguments and results as :func:`knn_torch.search`.

    Raises:
        ImportError: If the extension is missing or broken.
        ValueError: If its kernel does not support this ``k``.

    Cost: the kernel's, plus a host synchronisation, because these kernels return as many edges as they find. Rows with
    a tie at the last place are searched again by the torch backend.
    """
    module = require(name)
    if name == "pyg-lib" and not hasattr(torch.ops.pyg, "knn"):
        raise ImportError(f"Expected pyg-lib >= 0.6, which has knn (got {getattr(module, '__version__', 'unknown')}).")
    most = max(counts)
    ask = min(k + SPARE, most)
    if x.is_cuda and ask > 100:
        raise ValueError(f"Expected k <= {100 - SPARE} for {name} on CUDA (got k={k}). Use backend='torch'.")
    device = x.device
    count = torch.tensor(counts, device=device)
    image = torch.repeat_interleave(torch.arange(len(counts), device=device), count)
    if name == "torch-cluster":
        row, col = module.knn(x.contiguous(), x.contiguous(), ask, image, image, batch_size=len(counts))
    else:
        ptr = torch.cat([count.new_zeros(1), count.cumsum(0)])
        row, col = torch.ops.pyg.knn(x.contiguous(), x.contiguous(), ptr, ptr, ask, False, 1)
    return _canonical(x, counts, image, row, col, ask, k, loop)


def _canonical(
    x: Tensor, counts: list[int], image: Tensor, row: Tensor, col: Tensor, ask: int, k: int, loop: bool
) -> tuple[Tensor, Tensor]:
    """Sorts edges by (target, distance, source), moves or removes self loops, and resolves ties at the last place."""
    distance = pair_distance(x, row, col).sqrt_()
    distance = torch.where(row == col, -1.0 if loop else torch.inf, distance)
    order = col.argsort(stable=True)
    for key in (distance, row):
        order = order[key[order].argsort(stable=True)]
    row, col, distance = row[order], col[order], distance[order]
    found = torch.bincount(row, minlength=x.size(0))
    first = found.cumsum(0) - found
    width = int(found.max())
    rank = torch.arange(row.numel(), device=x.device) - first[row]
    neighbors = row.new_full((x.size(0), max(width, k + 1)), -1)
    table = distance.new_full(neighbors.shape, torch.inf)
    neighbors[row, rank], table[row, rank] = col, distance
    own = torch.arange(x.size(0), device=x.device)
    count = torch.tensor(counts, device=x.device)[image]
    # Search again: full rows with a tie at the last place, or out of which duplicates have pushed the token itself; and
    # rows in which the kernel found too few, as it ignores tokens beyond a fixed distance.
    unsure = (table[:, k] <= table[:, k - 1] * (1 + 1e-5)) & (count - int(not loop) > k)
    unsure |= found < count.clamp_max(ask)
    if loop:
        unsure |= neighbors[:, 0] != own
    # The kernel cannot order distances whose float32 squares underflow or overflow.
    unsure |= (table[:, k] < FAINT) | (table[:, k - 1] > VAST)
    neighbors = torch.where(table == torch.inf, -1, neighbors)[:, :k].contiguous()
    table = table[:, :k].clamp_min(0.0).to(x.dtype)
    if bool(unsure.any()):
        exact, exact_distance = knn_torch.search(x, counts, k, loop=loop)
        neighbors[unsure], table[unsure] = exact[unsure], exact_distance[unsure]
    return neighbors, table
