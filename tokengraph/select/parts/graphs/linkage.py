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

    A cluster lies at one place; ``alive [B, N]`` says which places have one.

    Attributes:
        all_at_once: Whether every cluster may merge into its nearest in one round, or mutual nearest ones only.
        rounds: Of which more are never needed.
    """

    all_at_once = False

    def __init__(self, unit: Tensor) -> None:
        self.total, self.count, self.rounds = unit, unit.new_ones(unit.shape[:2]), unit.size(1)

    def nearest(self, alive: Tensor) -> Found:
        """The most similar other cluster of each; ``O(N^2 D)`` time, a block of rows at a time."""
        best, to = nearest(self.total / self.count[..., None], alive)
        return best.masked_fill(~alive, -torch.inf), to

    def merge(self, into: Tensor, leaves: Tensor) -> None:
        """Takes each cluster where ``leaves [B, N]`` is True into cluster ``into``, at most one into each."""
        other = _takes(into, leaves)
        takes = other != _places(into)
        self.total = torch.where(takes[..., None], self.total + take_rows(self.total, other), self.total)
        self.count = torch.where(takes, self.count + self.count.gather(1, other), self.count)


class Single:
    """The best edge between two clusters' tokens; arguments as for `Average`."""

    all_at_once = True

    def __init__(self, unit: Tensor) -> None:
        self.unit, self.rounds = unit, max(unit.size(1) - 1, 1).bit_length()
        self.root = _places(unit[..., 0])

    def nearest(self, alive: Tensor) -> Found:
        """The most similar other cluster of each; ``O(N^2 D)`` time, a block of rows at a time."""
        tokens = self.root.size(1)
        root, order = self.root.sort(dim=1, stable=True)  # of equal edges the one to the lower cluster comes first
        best, to = nearest(take_rows(self.unit, order), alive.gather(1, root), root)
        to = root.gather(1, to)
        most = torch.full_like(best, -torch.inf).scatter_reduce(1, root, best, "amax")
        to = torch.where(best == most.gather(1, root), to, tokens - 1)
        to = torch.full_like(root, tokens - 1).scatter_reduce(1, root, to, "amin")
        return most.masked_fill(~alive, -torch.inf), to

    def merge(self, into: Tensor, leaves: Tensor) -> None:
        """Takes each cluster where ``leaves [B, N]`` is True into cluster ``into``, which may leave itself."""
        for _ in range(self.rounds):
            into = into.gather(1, into)
        self.root = into.gather(1, self.root)


class Complete:
    """The worst edge between two clusters' tokens, on a matrix of all, ``[B, N, N]``; arguments as for `Average`."""

    all_at_once = False

    def __init__(self, unit: Tensor) -> None:
        self.similar, self.rounds = cosines(unit, unit), unit.size(1)
        self.own = torch.eye(unit.size(1), dtype=torch.bool, device=unit.device)

    def nearest(self, alive: Tensor) -> Found:
        """The most similar other cluster of each; ``O(N^2)`` time."""
        self.similar = self.similar.masked_fill(self.own | ~alive[:, None], -torch.inf)
        best, to = self.similar.max(dim=2)
        return best.masked_fill(~alive, -torch.inf), to

    def merge(self, into: Tensor, leaves: Tensor) -> None:
        """Takes each cluster where ``leaves [B, N]`` is True into cluster ``into``: rows, then columns."""
        other = _takes(into, leaves)  # a cluster that takes none is joined with itself
        rows = torch.minimum(self.similar, take_rows(self.similar, other))
        columns = take_rows(rows.transpose(1, 2).contiguous(), other).transpose(1, 2)
        self.similar = torch.minimum(rows, columns).contiguous()


class CompleteAnew:
    """Complete linkage without a matrix: similarities of tokens are made anew, a block of rows at a time."""

    all_at_once = False

    def __init__(self, unit: Tensor) -> None:
        self.unit, self.rounds, self.root = unit, unit.size(1), _places(unit[..., 0])

    def nearest(self, alive: Tensor) -> Found:
        """The most similar other cluster of each; ``O(N^2 D)`` time, image by image."""
        each = [self._of_image(unit, root, ok) for unit, root, ok in zip(self.unit, self.root, alive, strict=True)]
        return torch.stack([best for best, _ in each]), torch.stack([to for _, to in each])

    def merge(self, into: Tensor, leaves: Tensor) -> None:
        """Takes each cluster where ``leaves [B, N]`` is True into cluster ``into``."""
        self.root = into.gather(1, self.root)

    def _of_image(self, unit: Tensor, root: Tensor, alive: Tensor) -> Found:
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


def linkage_of(unit: Tensor, linkage: str) -> Average | Single | Complete | CompleteAnew:
    """The state of clusters ``[B, N]`` that are single tokens at first, of unit rows ``[B, N, D]``."""
    if linkage != "complete":
        return Average(unit) if linkage == "average" else Single(unit)
    small = torch.compiler.is_compiling() or unit.size(0) * unit.size(1) ** 2 <= MATRIX
    return Complete(unit) if small else CompleteAnew(unit)


def _places(like: Tensor) -> Tensor:
    """``0, 1, ...`` for every image of ``[B, N]``."""
    return torch.arange(like.size(1), device=like.device).expand(like.shape[:2])


def _takes(into: Tensor, leaves: Tensor) -> Tensor:
    """The cluster that each one takes, where at most one goes ``into`` it: itself for all others."""
    place = _places(into)
    spare = torch.cat([place, place[:, :1]], dim=1)  # the last column is for those that stay
    return spare.scatter(1, torch.where(leaves, into, into.size(1)), place)[:, :-1]
