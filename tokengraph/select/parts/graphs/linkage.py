"""How similar clusters are that grow: their nearest others by average, single or complete linkage."""

from __future__ import annotations

import torch
from torch import Tensor

from tokengraph.flat.layout import take_rows
from tokengraph.select.parts.graphs.halves import cosines
from tokengraph.select.parts.graphs.mutual import COSINES, nearest

LINKAGES = ("average", "single", "complete")
MATRIX = 2**24  # cosines of a batch that are kept; of more, blocks are made anew in each round
Found = tuple[Tensor, Tensor]  # of each cluster: its best similarity, -inf where it is not alive, and the other's place


class Average:
    """The mean cosine of two clusters' tokens: the product of the means of their unit rows, so no pairs are kept.

    A cluster lies at the place of its smallest token; ``alive [B, N]`` says which places have one.
    """

    def __init__(self, unit: Tensor) -> None:
        self.total, self.count = unit, unit.new_ones(unit.shape[:2])

    def nearest(self, alive: Tensor) -> Found:
        """The most similar other cluster of each; ``O(N^2 D)`` time, a block of rows at a time."""
        best, to = nearest(self.total / self.count[..., None], alive)
        return best.masked_fill(~alive, -torch.inf), to

    def merge(self, first: Tensor, to: Tensor) -> None:
        """Takes cluster ``to`` into each cluster where ``first [B, N]`` is True."""
        other = take_rows(self.total, to)
        self.total = torch.where(first[..., None], self.total + other, self.total)
        self.count = torch.where(first, self.count + self.count.gather(1, to), self.count)


class Kept:
    """Single or complete linkage on a matrix of all similarities, ``[B, N, N]``; arguments as for `Average`."""

    def __init__(self, unit: Tensor, single: bool) -> None:
        self.similar, self.single = cosines(unit, unit), single
        self.place = torch.arange(unit.size(1), device=unit.device)
        self.own = self.place[:, None] == self.place

    def nearest(self, alive: Tensor) -> Found:
        """The most similar other cluster of each; ``O(N^2)`` time."""
        self.similar = self.similar.masked_fill_(self.own | ~alive[:, None], -torch.inf)
        best, to = self.similar.max(dim=2)
        return best.masked_fill(~alive, -torch.inf), to

    def merge(self, first: Tensor, to: Tensor) -> None:
        """Takes cluster ``to`` into each cluster where ``first [B, N]`` is True: rows, then columns."""
        join = torch.maximum if self.single else torch.minimum
        other = torch.where(first, to, self.place)  # a cluster that takes none is joined with itself
        rows = join(self.similar, take_rows(self.similar, other))
        columns = take_rows(rows.transpose(1, 2).contiguous(), other).transpose(1, 2)
        self.similar = join(rows, columns).contiguous()


class Anew:
    """Single or complete linkage without a matrix: similarities of tokens are made anew, a block of rows at a time."""

    def __init__(self, unit: Tensor, single: bool) -> None:
        self.unit, self.single = unit, single
        self.root = torch.arange(unit.size(1), device=unit.device).repeat(unit.size(0), 1)

    def nearest(self, alive: Tensor) -> Found:
        """The most similar other cluster of each; ``O(N^2 D)`` time, image by image."""
        find = self._by_tokens if self.single else self._by_clusters
        each = [find(unit, root, ok) for unit, root, ok in zip(self.unit, self.root, alive, strict=True)]
        return torch.stack([best for best, _ in each]), torch.stack([to for _, to in each])

    def merge(self, first: Tensor, to: Tensor) -> None:
        """Takes cluster ``to`` into each cluster where ``first [B, N]`` is True."""
        place = torch.arange(to.size(1), device=to.device).expand_as(to)
        home = torch.where(first.gather(1, to) & (to < place) & (to.gather(1, to) == place), to, place)
        self.root = home.gather(1, self.root)

    def _by_tokens(self, unit: Tensor, root: Tensor, alive: Tensor) -> Found:
        """Single linkage: the best edge of any of a cluster's tokens to one of another cluster."""
        root, order = root.sort(stable=True)  # so that of equal edges the one to the lower cluster comes first
        best, to = nearest(unit[None, order], alive[None, root], root[None])
        best, to = best[0], root[to[0]]
        low = torch.full_like(best, -torch.inf)
        most = low.scatter_reduce(0, root, best, "amax")
        to = torch.where(best == most[root], to, root.numel())
        to = torch.full_like(root, root.numel()).scatter_reduce(0, root, to, "amin")
        return most.masked_fill(~alive, -torch.inf), torch.where(alive & (to < root.numel()), to, 0)

    def _by_clusters(self, unit: Tensor, root: Tensor, alive: Tensor) -> Found:
        """Complete linkage: the worst edge between two clusters."""
        tokens = root.numel()
        best, to = unit.new_full((tokens,), -torch.inf), root.new_zeros(tokens)
        order = root.argsort(stable=True)  # tokens of a cluster lie together: their rows become one, block by block
        carried = unit.new_full((1, tokens), torch.inf)  # the row, so far, of the cluster that the last block ended in
        last = root.new_full((1,), -1)
        for token in order.split(max(1, COSINES // max(tokens, 1))):
            rows = cosines(unit[None, token], unit[None])[0]
            columns = root.expand(token.numel(), -1)
            rows = torch.full_like(rows, -torch.inf).scatter_reduce_(1, columns, rows, "amin", include_self=False)
            mine = torch.cat([last, root[token]])
            cluster, which = mine.unique_consecutive(return_inverse=True)
            full = rows.new_zeros(cluster.numel(), tokens)
            index = which[:, None].expand(-1, tokens)
            full.scatter_reduce_(0, index, torch.cat([carried, rows]), "amin", include_self=False)
            carried, last = full[-1:], cluster[-1:]
            full = full.masked_fill(~alive | (cluster[:, None] == torch.arange(tokens, device=root.device)), -torch.inf)
            found = full.max(dim=1)
            known = cluster >= 0  # an unfinished cluster's row is written again behind its next block
            best[cluster[known]], to[cluster[known]] = found.values[known], found.indices[known]
        return best.masked_fill(~alive, -torch.inf), to


def linkage_of(unit: Tensor, linkage: str) -> Average | Kept | Anew:
    """The state of clusters ``[B, N]`` that are single tokens at first, of unit rows ``[B, N, D]``."""
    if linkage == "average":
        return Average(unit)
    small = torch.compiler.is_compiling() or unit.size(0) * unit.size(1) ** 2 <= MATRIX
    return (Kept if small else Anew)(unit, linkage == "single")
