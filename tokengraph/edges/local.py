"""k nearest neighbours within windows of the patch grid: linear in the number of tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tokengraph.edges.knn import directions
from tokengraph.edges.knn_torch import lowest
from tokengraph.edges.window import window_graph
from tokengraph.edges.window_distance import window_distances
from tokengraph.errors import check_finite, check_grid, check_positive, check_tokens
from tokengraph.flat.segment import as_type, wide
from tokengraph.flat.tables import counting, starts
from tokengraph.kinds import explains

WINDOW = 50


@explains
def local_knn_graph(
    x: Tensor, grid: tuple[int, ...], k: int, window: int = WINDOW, *, cosine: bool = False
) -> tuple[Tensor, Tensor]:
    r"""Connects each token to the k nearest, by features, of the patches around it.

    .. math:: \mathcal{N}(i) = \operatorname{top}_k -\lVert x_i - x_j \rVert, \quad j \in W(i)

    Args:
        x: Features of the full grid in row-major order, ``[B, N, C]``.
        grid: ``(H, W)``; ``(T, H, W)`` for a video.
        k: Neighbours per token; at most ``window`` and ``N - 1``.
        window: Patches in :math:`W(i)`, the nearest on the grid; see :func:`tokengraph.window_graph`.
        cosine: Compare directions; otherwise Euclidean distance. A zero vector has cosine 1 to other
            zero vectors and 0 to all other vectors.

    Returns:
        ``edge_index [2, E]`` int64, source (the neighbour) to target, flat ids, sorted by target and then nearest
        first; and ``weight [E]``, distance in feature units or cosine, float32 or wider.

    Raises:
        ValueError: If ``k`` exceeds the patches of a window, the grid does not match N, or tokens are not finite.

    Cost: ``O(B N window C)`` time at most, ``O(B N window)`` memory; no gradients. Ties go to the patch that is nearer
    on the grid, then to the lower index.

    Example:
        >>> x = torch.tensor([[[0.0], [5.0], [0.1], [5.1], [0.2]]])
        >>> local_knn_graph(x, (1, 5), 1, window=2)[0].tolist()
        [[2, 2, 1, 4, 2], [0, 1, 2, 3, 4]]

    Source: the window of AiluRus (Li et al., NeurIPS 2023).
    """
    check_tokens(x)
    check_positive(k=k, window=window)
    check_finite(x)
    sides = check_grid(grid, x.size(1), video=True)
    if k > min(window, x.size(1) - 1):
        raise ValueError(
            f"Expected k of at most {min(window, x.size(1) - 1)} patches in a window (got k={k}). Give a larger window."
        )
    local, weight = local_neighbors(x, sides, k, window, cosine=cosine)
    images, tokens = x.shape[:2]
    source = (local + starts(images, tokens, x.device)[..., None]).flatten()
    target = counting(images * tokens, x.device)[:, None].expand(-1, k).flatten()
    return torch.stack([source, target]), weight.flatten()


def local_edges(
    images: Sequence[Tensor], grids: Sequence[tuple[int, ...]], k: int, window: int, *, cosine: bool = False
) -> tuple[Tensor, Tensor]:
    """Returns :func:`local_knn_graph` of images ``[N_b, C]`` with grids of their own, in flat ids of the batch."""
    if len(set(grids)) == 1:
        return local_knn_graph(torch.stack(list(images)), grids[0], k, window, cosine=cosine)
    found, start = [], 0
    for x, grid in zip(images, grids, strict=True):
        edges, weight = local_knn_graph(x[None], grid, k, window, cosine=cosine)
        found.append((edges + start, weight))
        start += x.size(0)
    return torch.cat([edges for edges, _ in found], dim=1), torch.cat([weight for _, weight in found])


@torch.no_grad()
def local_neighbors(
    x: Tensor, grid: tuple[int, ...], k: int, window: int, *, cosine: bool = False
) -> tuple[Tensor, Tensor]:
    """Returns :func:`local_knn_graph` as neighbours within each image ``[B, N, k]``, and weights ``[B, N, k]``."""
    images, tokens, channels = x.shape
    table = window_graph(grid, window, device=x.device)
    with torch.autocast(x.device.type, enabled=False):
        rows = as_type(x, wide(x))
        if cosine:
            unit, zero = directions(rows.flatten(0, 1))
            rows = torch.cat([unit, as_type(zero, unit.dtype)], dim=1).view(images, tokens, -1)
        distance, place = lowest(window_distances(rows, grid, window), k)
    local = table.expand(images, -1, -1).gather(2, place)
    distance = distance * rows.size(2) ** 0.5
    if not cosine:
        return local, distance
    return local, (1.0 - 0.5 * distance.square()).clamp_min(-1.0)  # |a - b|^2 = 2 - 2 cos for unit vectors
