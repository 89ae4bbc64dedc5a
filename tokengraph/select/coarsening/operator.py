"""Clusters a batch by one of the methods, as a custom operator: matchings and iterations depend on the data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tokengraph.errors import check_finite
from tokengraph.select.coarsening.methods import METHODS, Linked
from tokengraph.select.parts.graphs.pairs import nearest_pairs, undirected, weighed


def cluster_linked(tokens: Linked, budgets: list[int], method: str, rank: int, relink: int) -> Tensor:
    """Returns the cluster of each token within its image, ``[M]``, numbered by its first token.

    Args:
        tokens: The batch.
        budgets: Clusters to keep of each image; 0 where it has no tokens.
        method: One of ``METHODS``.
        rank: Eigenvectors, for the methods that use them.
        relink: Neighbours of a node in an image that has run out of edges.
    """
    label = METHODS[method](tokens, budgets, rank, relink)
    nodes = label.numel()
    place = torch.arange(nodes, device=label.device)
    first = place.new_full((nodes,), nodes).scatter_reduce(0, label, place, "amin")[label]  # each cluster's first token
    root = first == place
    number = (root.cumsum(0) - 1)[first]
    before = torch.cat([number.new_zeros(1), root.cumsum(0)])[tokens.ptr[:-1]]
    return number - before[tokens.image]


SCHEMA = (
    "(Tensor x, Tensor? size, Tensor? mask, SymInt keep, SymInt[]? budgets, str method, str weight, SymInt neighbors, "
    "SymInt rank) -> Tensor"
)


@torch.library.custom_op("tokengraph::cluster_tokens", mutates_args=(), schema=SCHEMA)
def cluster_tokens(
    x: Tensor,
    size: Tensor | None,
    mask: Tensor | None,
    keep: int,
    budgets: Sequence[int] | None,
    method: str,
    weight: str,
    neighbors: int,
    rank: int,
) -> Tensor:
    """Clusters each image's tokens on their kNN graph.

    Args:
        x: Features, ``[B, N, C]``; tokens that are not finite count as zeros.
        size: Input patches of each token, ``[B, N]``.
        mask: ``[B, N]`` bool, True where there is a token.
        keep: Clusters of each image.
        budgets: One number for each image, in place of ``keep``.
        method: One of ``METHODS``.
        weight: Weights of the edges: ``"cosine"`` or ``"one"``.
        neighbors: Nearest tokens, by cosine, that each token has edges to.
        rank: Eigenvectors, for the methods that use them.

    Returns:
        The cluster of each token within its image, ``[B, N]``; 0 at padding.
    """
    images, width = x.shape[:2]
    there = torch.ones(images, width, dtype=torch.bool, device=x.device) if mask is None else mask
    flat = x[there].to(torch.promote_types(x.dtype, torch.float32))
    flat = torch.where(flat.isfinite().all(dim=1, keepdim=True), flat, 0.0)
    sizes = flat.new_ones(flat.size(0), dtype=torch.float32) if size is None else size[there]
    count = there.sum(dim=1)
    ptr = torch.cat([count.new_zeros(1), count.cumsum(0)])
    image = torch.repeat_interleave(torch.arange(images, device=x.device), count)
    pairs = nearest_pairs(flat, ptr, neighbors)  # weighs by cosine
    if weight != "cosine":
        pairs = weighed(pairs, flat, weight, image, images)
    linked = Linked(flat, sizes, image, ptr, pairs)
    wanted = [min(k, n) for k, n in zip(budgets or [keep] * images, count.tolist(), strict=True)]
    out = torch.zeros(images, width, dtype=torch.long, device=x.device)
    out[there] = cluster_linked(linked, wanted, method, rank, neighbors)
    return out


@cluster_tokens.register_fake
def _(x: Tensor, *others: object) -> Tensor:
    return x.new_empty(x.shape[:2], dtype=torch.long)


def _over_a_map(info: Any, dims: tuple[int | None, ...], x: Tensor, *others: Any) -> tuple[Tensor, int]:
    """Clusters under ``torch.func.vmap``: the mapped images are more images of one batch."""

    def laid(value: Any, dim: int | None) -> Any:
        if not isinstance(value, Tensor):
            return value
        value = value.expand(info.batch_size, *value.shape) if dim is None else value.movedim(dim, 0)
        return value.flatten(0, 1)

    x, size, mask, keep, budgets, *rest = (laid(v, d) for v, d in zip((x, *others), dims, strict=True))
    budgets = None if budgets is None else list(budgets) * info.batch_size
    return cluster_tokens(x, size, mask, keep, budgets, *rest).unflatten(0, (info.batch_size, -1)), 0


if hasattr(cluster_tokens, "register_vmap"):  # PyTorch 2.5 on
    cluster_tokens.register_vmap(_over_a_map)


def linked_by(
    edges: tuple[Tensor, Tensor | None],
    x: Tensor,
    size: Tensor | None,
    ptr: Tensor,
    weight: str,
    *,
    least: float = 0.0,
) -> Linked:
    """Returns flat tokens ``x [M, C]`` with a graph's own edges ``(edge_index, edge_weight)``.

    Raises:
        ValueError: If an edge connects tokens of different images, or the weight of an edge is not finite.
    """
    image = torch.repeat_interleave(torch.arange(ptr.numel() - 1, device=x.device), ptr.diff())
    if edges[1] is not None:
        check_finite(edges[1].detach()[:, None], "edge weights")
    pairs = undirected(edges[0], edges[1], x.size(0))
    across = int((image[pairs.a] != image[pairs.b]).sum())
    if across:
        raise ValueError(f"Expected edges within images (got {across} between tokens of different images).")
    rows = x.detach().to(torch.promote_types(x.dtype, torch.float32))
    sizes = rows.new_ones(rows.size(0), dtype=torch.float32) if size is None else size
    return Linked(rows, sizes, image, ptr, weighed(pairs, rows, weight, image, ptr.numel() - 1, least=least))
