"""GTP's propagation graph: the receivers of each dropped token's features, with weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokengraph.edges import grid_positions
from tokengraph.edges.local import WINDOW
from tokengraph.errors import check_finite, check_grid, check_tokens
from tokengraph.kinds import explains
from tokengraph.select.parts.graphs.propagation_slots import (
    Slots,
    first_patch,
    first_slots,
    local,
    mixed,
    normalized,
    repeat,
    semantic,
    spatial,
)

GRAPHS = ("spatial", "semantic", "mixed", "local")


@dataclass(frozen=True, eq=False)
class PropagationGraph:
    r"""A directed graph over the input patches of B images, sorted by sender; it stays the same for a whole run.

    Weights are :math:`\hat A_{ij} = A_{ij} / \sqrt{d_i d_j}` from sender j to receiver i, with :math:`d_i` the number
    of senders of i in the whole graph, also after tokens were dropped. A sub-graph is an index into this graph.

    Args:
        start: First slot of each sender, ``[M+1]`` int64, M = B*n.
        sender: ``[E]`` int64 flat patch ids, ascending.
        receiver: ``[E]`` int64.
        weight: ``[E]`` float32; 0 in unused slots, so that E depends only on B, n, grid and neighbours.
        x: The features that it was built from, ``[M, C]``, detached.
        images: B.
        grid: ``(H, W)`` of the patches, or ``None``.
        near: For spatial graphs the receivers of each patch within an image, ``[n, 8]``; the patch itself in unused
            slots.
        near_weight: For spatial graphs their weights, ``[n, 8]``.
    """

    start: Tensor
    sender: Tensor
    receiver: Tensor
    weight: Tensor
    x: Tensor
    images: int
    grid: tuple[int, ...] | None = None
    near: Tensor | None = None
    near_weight: Tensor | None = None

    @property
    def patches(self) -> int:
        """n, the patches an image."""
        return self.x.size(0) // max(self.images, 1)

    @property
    def used(self) -> Slots:
        """Sender, receiver and weight of the slots in use; found once. Reads values."""
        if "_used" not in self.__dict__:
            live = self.weight.nonzero().squeeze(1)
            ends = self.sender.index_select(0, live), self.receiver.index_select(0, live)
            self.__dict__["_used"] = (*ends, self.weight.index_select(0, live))
        return self.__dict__["_used"]

    @classmethod
    def from_edges(
        cls, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None, *, grid: tuple[int, ...] | None = None
    ) -> PropagationGraph:
        """Builds a graph from your own edges.

        Args:
            x: Features of the patches, ``[B, n, C]``.
            edge_index: ``[2, E]`` int64, sender to receiver, flat ids; each edge once.
            edge_weight: ``[E]``, used unchanged; ``None`` normalises as :func:`propagation_graph` does.
            grid: ``(H, W)``, if the patches form a grid.

        Raises:
            ValueError: If shapes do not fit, or an edge leads to another image.
        """
        check_tokens(x)
        images, patches, channels = x.shape
        grid = None if grid is None else check_grid(grid, patches, video=True)
        if edge_index.dim() != 2 or edge_index.size(0) != 2:
            raise ValueError(f"Expected edge_index of shape [2, E] (got {list(edge_index.shape)}).")
        image = edge_index.div(max(patches, 1), rounding_mode="floor")
        if not bool(((image[0] == image[1]) & (image[0] >= 0) & (image[0] < images)).all()):
            raise ValueError(f"Expected edges within images of n={patches} patches, B={images} (got one between two).")
        sender, order = edge_index[0].sort(stable=True)
        receiver, rows = edge_index[1][order], images * patches
        weight = torch.ones_like(receiver) if edge_weight is None else edge_weight.detach()[order].float()
        weight = normalized(sender, receiver, weight, rows) if edge_weight is None else weight
        flat = x.detach().reshape(rows, channels)
        return cls(first_slots(sender, rows), sender, receiver, weight, flat, images, grid)

    def edges(self) -> tuple[Tensor, Tensor]:
        """Returns ``edge_index [2, E']``, sender to receiver, flat ids, and ``edge_weight [E']``; no unused slots."""
        used = self.weight != 0
        return torch.stack([self.sender[used], self.receiver[used]]), self.weight[used]

    def survivors(self, patch: Tensor | None = None, size: Tensor | None = None) -> dict[str, Any]:
        """Returns the graph of the kept patches: features before block 0, and edges with unchanged weights.

        Args:
            patch: Kept patches, ``[B, n']`` int64 in the order of the nodes; ``None`` keeps all.
            size: Their token scales, ``[B, n']``; ``None`` means one each.

        Returns:
            ``x``, ``size``, ``edge_index``, ``edge_weight`` and, on a grid, ``grid`` and ``pos``; see
            :meth:`tokengraph.TokenGraph.from_propagation`.

        Raises:
            ValueError: If ``patch`` or ``size`` has another shape.

        Cost: a few passes over the edges; on CUDA with host synchronisation.
        """
        left = torch.arange(self.patches, device=self.x.device).expand(self.images, -1) if patch is None else patch
        if left.dim() != 2 or left.size(0) != self.images or (size is not None and size.shape != left.shape):
            got = list(left.shape) if size is None else f"{list(left.shape)} and {list(size.shape)}"
            raise ValueError(f"Expected patch (and size) of shape [B={self.images}, n'] (got {got}).")
        alive = (left + first_patch(self.images, self.patches, left.device)).flatten()
        number = alive.new_full((self.x.size(0),), -1)
        number[alive] = torch.arange(alive.numel(), device=alive.device)
        edge_index, edge_weight = self.edges()
        ends = number[edge_index]
        kept = (ends >= 0).all(dim=0)
        scale = self.x.new_ones(alive.numel(), dtype=torch.float32) if size is None else size.flatten().float()
        fields: dict[str, Any] = {"x": self.x[alive], "size": scale}
        fields |= {"edge_index": ends[:, kept], "edge_weight": edge_weight[kept]}
        if self.grid is not None:
            fields |= {"grid": self.grid, "pos": grid_positions(self.grid, device=alive.device)[left.flatten()]}
        return fields


@explains
@torch.no_grad()
def propagation_graph(
    x: Tensor,
    grid: tuple[int, ...] | None = None,
    *,
    graph: str = "mixed",
    neighbors: int = 8,
    window: int = WINDOW,
) -> PropagationGraph:
    r"""Connects patches as GTP does: with neighbours in the grid, with similar patches, or with both.

    .. math::
        \hat A_{ij} = A_{ij} / \sqrt{d_i d_j}, \qquad d_i = \textstyle\sum_j A_{ij}, \qquad
        A_{ij} = 1 \iff j \text{ (sender) is a neighbour of } i \text{ (receiver)}

    Args:
        x: Patch tokens at the first block's input (position embedding included), ``[B, n, C]``, no prefix tokens.
        grid: ``(H, W)``, any rectangle; only ``graph="semantic"`` accepts ``None`` or ``(T, H, W)``.
        graph: ``"spatial"``: the up to 8 patches that touch i; ``"semantic"``: the ``neighbors`` patches most similar
            to i by cosine, which is not symmetric; ``"mixed"``: the union of both; ``"local"``: the ``neighbors`` most
            similar of the ``window`` patches around i, linear in n.
        neighbors: Semantic neighbours of each receiver, ``0 <= neighbors < n``.
        window: Patches around each receiver that ``graph="local"`` compares, at least ``neighbors``.

    Returns:
        The graph, without gradients.

    Raises:
        ValueError: For another ``graph``, a missing or wrong grid, too many neighbours, or tokens that are not finite.

    Cost: spatial: ``O(B n)``, from tables built once a grid; otherwise one :func:`~tokengraph.knn_graph`,
    ``O(B n^2 C)``, and a sort of ``B n neighbors`` ids.

    Source: Xu et al., *GTP-ViT*, WACV 2024, and its code. Differs: exactly ``neighbors`` also without a class token
    (published: one more) and among duplicates, ties to the lower index, zero vectors have cosine 0 (published: NaN).
    """
    check_tokens(x)
    check_graph(graph, neighbors)
    if graph != "spatial":
        check_finite(x)
    return connect_patches(x, grid, graph, neighbors, window)


def connect_patches(
    x: Tensor, grid: tuple[int, ...] | None, graph: str, neighbors: int, window: int = WINDOW
) -> PropagationGraph:
    """Like :func:`propagation_graph`, with zeros for non-finite features, so that other images still run."""
    images, patches, channels = x.shape
    if graph != "semantic" and (grid is None or (len(grid) == 3 and graph != "local")):
        hint = "Only 'semantic' needs none." if grid is None else "Use graph='semantic' for videos."
        raise ValueError(f"Expected grid as (H, W) for graph={graph!r} (got {grid and tuple(grid)}). {hint}")
    grid = grid and check_grid(grid, patches, video=True)
    if graph != "spatial" and neighbors > max(patches - 1, 0):
        raise ValueError(f"Expected 0 <= neighbors < n={patches} (got neighbors={neighbors}).")
    flat = x.detach().reshape(images * patches, channels)
    if graph == "semantic":
        start, slots = semantic(x, neighbors)
        return PropagationGraph(start, *slots, flat, images, grid)
    assert grid is not None
    if graph == "local":
        start, slots = local(x, grid, neighbors, window)
        return PropagationGraph(start, *slots, flat, images, grid)
    tables = spatial(*grid, str(x.device))
    start, slots = repeat(tables, images, patches)
    near = tables[4:] if graph == "spatial" else ()
    if graph == "mixed":
        start, slots = mixed(x, neighbors, grid[1], start, slots)
    return PropagationGraph(start, *slots, flat, images, grid, *near)


@explains
def gtp_graph(
    x: Tensor, grid: tuple[int, ...] | None = None, *, graph: str = "mixed", neighbors: int = 8
) -> tuple[Tensor, Tensor]:
    """Returns GTP's graph as plain edges; arguments, errors, cost and source as for :func:`propagation_graph`.

    Returns:
        ``edge_index [2, E]`` int64, sender to receiver, flat ids, sorted by sender; ``edge_weight [E]`` float32.

    Example:
        >>> edge_index, edge_weight = gtp_graph(torch.randn(1, 3, 4), (1, 3), graph="spatial")
        >>> edge_index.tolist(), edge_weight.tolist()
        ([[0, 1, 1, 2], [1, 0, 2, 1]], [0.7071067690849304, 0.7071067690849304, 0.7071067690849304, 0.7071067690849304])
    """
    return propagation_graph(x, grid, graph=graph, neighbors=neighbors).edges()


def check_graph(graph: str, neighbors: int) -> None:
    """Raises unless ``graph`` is a known kind and ``neighbors`` an int of at least 0."""
    if graph not in GRAPHS:
        raise ValueError(f"Expected graph to be one of {', '.join(GRAPHS)} (got {graph!r}).")
    if isinstance(neighbors, bool) or not isinstance(neighbors, int | torch.SymInt):
        raise TypeError(f"Expected neighbors to be an int (got {neighbors!r}).")
    if neighbors < 0:
        raise ValueError(f"Expected neighbors >= 0 (got neighbors={neighbors}).")
