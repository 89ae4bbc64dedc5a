"""The window graph: distances from each token to its nearest patches."""

from __future__ import annotations

import torch
from torch import Tensor

from tokengraph.edges.distance import mend_close, origin, squared_norm
from tokengraph.edges.window import Tiles, window_graph, window_tiles
from tokengraph.flat.looks import may_look
from tokengraph.flat.segment import as_type

BLOCK = 2**20  # bytes of one image's gathered candidates at a time: about the size of a core's cache


def window_distances(x: Tensor, grid: tuple[int, ...], lam: int) -> Tensor:
    """Returns ``|x_i - x_j| / sqrt(C)`` on the window graph, ``[B, N, L]``, by products of tiles with candidates.

    Processes a block of tiles at a time, so that it never copies the whole of ``x``. If products lose digits, eager CPU
    runs subtract instead; CUDA and compiled runs always use products.
    """
    tiles: Tiles = window_tiles(grid, lam, device=x.device)
    images, _, channels = x.shape
    count = tiles.queries.size(0)
    wide = torch.promote_types(x.dtype, torch.float32)
    zero = origin(as_type(x, wide)).unsqueeze(1) if x.size(1) else x.new_zeros(images, 1, 1, channels)
    step = max(1, BLOCK // max(1, tiles.candidates.size(1) * channels * 4))
    if x.is_cuda or torch.compiler.is_compiling():
        step = max(count, 1)
    rows, late = x, True
    if step >= count:  # all at once: one subtraction instead of two
        rows, late = as_type(x, wide) - zero.squeeze(1), False
    dots, norms = [], []
    for start in range(0, count, step):
        query, candidate, local = (t[start : start + step] for t in tiles[:3])
        a, b = (
            as_type(rows.index_select(1, ids.flatten()), wide).view(images, *ids.shape, channels)
            for ids in (query, candidate)
        )
        a, b = (a.sub_(zero), b.sub_(zero)) if late else (a, b)
        product = torch.bmm(a.flatten(0, 1), b.flatten(0, 1).transpose(1, 2)).view(*a.shape[:3], b.size(2))
        dots.append(product.gather(3, local.expand(images, -1, -1, -1)))
        norms.append(squared_norm(a))
    norm, dot = (
        (parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)).flatten(1, 2).index_select(1, tiles.slot)
        for parts in (norms, dots)
    )
    window = window_graph(grid, lam, device=x.device)
    squared = (look_up(norm, window) + norm[..., None]).sub_(dot, alpha=2.0)
    if may_look(x):
        mend_close(squared, as_type(x, wide), norm, columns=window)
    return squared.clamp_min_(0.0).mul_(1.0 / channels).sqrt_()


def look_up(values: Tensor, window: Tensor) -> Tensor:
    """Returns ``values[b, window[i, r]]``, ``[B, N, L]``, several times faster than advanced indexing."""
    return values.index_select(1, window.flatten()).view(values.size(0), window.size(0), window.size(1))
