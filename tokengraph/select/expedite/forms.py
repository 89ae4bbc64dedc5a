"""One step of token clustering in three forms that agree up to rounding: dense, edge list, tiles of cells.

Each form is built once a call and runs T times: ``form(s)`` takes centres ``[B, M, C]`` and returns the soft assignment
q on the edges ``[B, E]``, the means of the tokens under q ``[B, M, C]``, and the sums of q ``[B, M]``. It multiplies q
by ``real [B, N, 1]``, which is 0 at padding, so that padding affects no mean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tokengraph.edges.cells import cell_edges, cell_tiles
from tokengraph.edges.fractional import fractional_edges
from tokengraph.edges.grid import Grid
from tokengraph.flat.faint import drop_faint
from tokengraph.flat.segment import row_norm, segment_sum, weighted_sum
from tokengraph.flat.tables import table

FORMS = ("auto", "dense", "edges", "tiles")
LABEL_MAPS = {"nearest": cell_edges, "trilinear": fractional_edges}  # candidates of each patch
SMALL = 2**20  # pairs up to which the table of a dense form is kept
LEAST_MASS = 1e-16  # a cluster with less weight is empty; its mean is its sum divided by this


@dataclass(frozen=True, eq=False)
class Case:
    """What the forms step on.

    Args:
        z: Tokens, ``[B, N, C]``.
        grid: Sides of the grid of tokens.
        clusters: Sides of the grid of clusters.
        window: Side of the block of cells that a token may join.
        t: Inverse temperature, a number or ``[B, 1, 1]``.
        real: ``[B, N, 1]``, 1 at tokens and 0 at padding; ``None`` without padding.
        label_map: A name in ``LABEL_MAPS``.
    """

    z: Tensor
    grid: Grid
    clusters: Grid
    window: int
    t: float | Tensor
    real: Tensor | None = None
    label_map: str = "nearest"

    def candidates(self) -> tuple[Tensor, Tensor, Tensor]:
        """Returns token and cluster of each edge ``[E]`` within an image, and the order that sorts edges by cluster."""
        return LABEL_MAPS[self.label_map](self.grid, self.clusters, self.window, device=self.z.device)


class Dense:
    """Computes all N x M products, then masks them."""

    def __init__(self, case: Case) -> None:
        self.z, self.t, self.real = case.z, case.t, case.real
        facts = case.label_map, str(case.z.device), case.z.dtype == torch.float64, case.window, len(case.grid)
        small = case.z.size(1) * math.prod(case.clusters) <= SMALL
        self.slot, self.barred = (_table if small else _all_pairs)(*facts, *case.grid, *case.clusters)

    def __call__(self, s: Tensor, *, detach: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Steps once; with ``detach`` no gradient passes through q."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not detach):
            # 2 z s - |s|^2, which is |z|^2 - |z - s|^2
            near = torch.baddbmm(_squared(s)[:, None], self.z, s.transpose(1, 2), beta=-1.0, alpha=2.0)
            if isinstance(self.t, Tensor):
                q = torch.addcmul(self.barred, near, self.t.view(-1, 1, 1)).softmax(dim=-1)
            else:
                q = torch.add(self.barred, near, alpha=self.t).softmax(dim=-1)
            q = drop_faint(q if self.real is None else q * self.real)
        q = q.detach() if detach else q  # detaches forward-mode tangents too, which no_grad does not stop
        mass = q.sum(dim=1)
        mean = torch.bmm(q.transpose(1, 2), self.z) / mass.clamp_min(LEAST_MASS)[..., None]
        return q, mean, mass

    def weights(self, q: Tensor) -> Tensor:
        """Returns the weights of the edges ``[B, E]`` from a step's first result."""
        return q.flatten(1).index_select(1, self.slot)


def _all_pairs(label_map: str, device: str, double: bool, window: int, axes: int, *sides: int) -> tuple[Tensor, Tensor]:
    """Returns where the candidates stand among all pairs, ``[E]``, and 0 there in ``[N, M]``, ``-inf`` elsewhere."""
    grid, clusters = sides[:axes], sides[axes:]
    token, cluster, _ = LABEL_MAPS[label_map](grid, clusters, window, device=device)
    count, slot = math.prod(clusters), token * math.prod(clusters) + cluster
    barred = torch.full(
        (math.prod(grid) * count,), -torch.inf, dtype=torch.float64 if double else torch.float32, device=device
    )
    return slot, barred.index_fill_(0, slot, 0.0).view(-1, count)


_table = table(8)(_all_pairs)


class EdgeList:
    """Computes edge by edge, as message passing does; slow, because each edge copies two rows of C numbers."""

    def __init__(self, case: Case) -> None:
        z = case.z
        self.z, self.t, self.real = z, case.t, case.real
        token, cluster, self.order = case.candidates()
        images = torch.arange(z.size(0), device=z.device)[:, None]
        self.token = token + images * z.size(1)  # [B, E]
        self.cluster = cluster + images * math.prod(case.clusters)

    def __call__(self, s: Tensor, *, detach: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Steps once; with ``detach`` no gradient passes through q."""
        rows, tokens = s.flatten(0, 1), self.z.flatten(0, 1)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not detach):
            t = self.t.flatten(1) if isinstance(self.t, Tensor) else self.t
            score = (tokens[self.token] - rows[self.cluster]).square().sum(dim=2).mul(-t)
            q = self._by_token(score)
            q = drop_faint(q if self.real is None else q * self.real.flatten()[self.token])
        q = q.detach() if detach else q
        # Sums run over edges sorted by cluster, which fixes their order.
        weight, into = q[:, self.order].flatten(), self.cluster[:, self.order].flatten()
        mass = segment_sum(weight, into, rows.size(0))
        total = weighted_sum(tokens, weight, into, rows.size(0), source=self.token[:, self.order].flatten())
        mean = total / mass.clamp_min(LEAST_MASS)[:, None]
        return q, mean.view_as(s), mass.view(s.shape[:2])

    def weights(self, q: Tensor) -> Tensor:
        """Returns the weights of the edges ``[B, E]`` from a step's first result."""
        return q

    def _by_token(self, score: Tensor) -> Tensor:
        """Softmax over the edges of each token, which is the source; message passing usually groups by target."""
        into, score = self.token.flatten(), score.flatten()
        count = self.z.size(0) * self.z.size(1)
        top = score.new_full((count,), -torch.inf).scatter_reduce(0, into, score.detach(), "amax")
        raised = (score - top[into]).exp()
        return (raised / segment_sum(raised, into, count)[into]).view_as(self.token)


class Tiles:
    """Multiplies tiles of cells with the cells around them; see :class:`tokengraph.edges.cells.CellTiles`.

    Rows are sorted by tile, and by image within a tile: T x B products of ``[P, C]`` with ``[C, J]``.
    """

    def __init__(self, case: Case) -> None:
        z, clusters, real = case.z, case.clusters, case.real
        assert case.label_map == "nearest"  # "trilinear" supports no tiles
        self.tiles = tiles = cell_tiles(case.grid, clusters, case.window, device=z.device)
        self.images, self.t = z.size(0), case.t
        self.count, self.patches, self.cells = tiles.barred.shape
        shift = torch.arange(self.images, device=z.device)[:, None]
        token = (tiles.token[:, None] + shift * z.size(1)).flatten()
        self.z = z.flatten(0, 1).index_select(0, token).view(self.count * self.images, self.patches, z.size(2))
        self.candidate = (tiles.candidate[:, None] + shift * math.prod(clusters)).flatten()  # [T * B * J]
        self.barred, self.real = tiles.barred[:, None].to(z.dtype), tiles.real[:, None].to(z.dtype)
        if real is not None:
            self.real = self.real * real.flatten()[token].view(self.count, self.images, self.patches, 1)
        # The positions of each cluster in [T, B, J], sorted by cluster.
        source = tiles.source // self.cells * (self.images * self.cells) + tiles.source % self.cells
        self.source = (source + shift * self.cells).flatten()
        self.into = self.candidate.index_select(0, self.source)

    def __call__(self, s: Tensor, *, detach: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Steps once; with ``detach`` no gradient passes through q."""
        rows = s.flatten(0, 1)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not detach):
            near = rows.index_select(0, self.candidate).view(self.z.size(0), self.cells, s.size(2))
            product = torch.bmm(self.z, near.transpose(1, 2)).view(self.count, self.images, self.patches, self.cells)
            norm = _half_norm(rows).index_select(0, self.candidate).view(self.count, self.images, 1, self.cells)
            q = drop_faint(_softmax(product, norm, self.t, self.barred) * self.real)
        q = q.detach() if detach else q
        mass = segment_sum(q.sum(dim=2).flatten().index_select(0, self.source), self.into, rows.size(0))
        part = torch.bmm(q.flatten(0, 1).transpose(1, 2), self.z).flatten(0, 1)
        share = 1.0 / mass.clamp_min(LEAST_MASS).index_select(0, self.into)
        mean = weighted_sum(part, share, self.into, rows.size(0), source=self.source)
        return q, mean.view_as(s), mass.view(s.shape[:2])

    def weights(self, q: Tensor) -> Tensor:
        """Returns the weights of the edges ``[B, E]`` from a step's first result."""
        return q.transpose(0, 1).flatten(1).index_select(1, self.tiles.slot)


def _half_norm(s: Tensor) -> Tensor:
    return 0.5 * _squared(s)


def _squared(s: Tensor) -> Tensor:
    return row_norm(s.flatten(0, -2)).square().view(s.shape[:-1])


def _softmax(product: Tensor, half_norm: Tensor, t: float | Tensor, barred: Tensor) -> Tensor:
    """Softmax over clusters of ``-t |z - s|^2``, without the ``|z|^2`` that cancels and would lose digits."""
    if isinstance(t, Tensor):
        t = t.view(-1, 1, 1)
    return (product - half_norm).mul(2.0 * t).add(barred).softmax(dim=-1)
