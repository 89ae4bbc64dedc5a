"""A map on whole sequences: rows down to clusters, and rows of clusters back up."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokengraph.flat.layout import Layout
from tokengraph.maps.hard import Assignment
from tokengraph.maps.prefix import with_prefix
from tokengraph.maps.soft import SoftAssignment


@dataclass(eq=False)
class Held:
    """A map over patch tokens, ready for sequences ``[B, P+n, C]``.

    If all images have equal numbers of tokens before and after, the map is extended to prefix tokens and takes whole
    sequences without a copy. Otherwise it takes patch tokens only, and prefix tokens are put in front again.

    Args:
        whole: The map over patch tokens, or over whole sequences.
        ahead: Prefix tokens that it leaves out.
        source: How the rows that it takes lie.
        target: How the rows that it gives lie.
        after: How the clusters lie, without prefix tokens.
    """

    whole: Assignment | SoftAssignment
    ahead: int
    source: Layout
    target: Layout
    after: Layout

    @classmethod
    def of(
        cls, assignment: Assignment | SoftAssignment, before: Layout, num_prefix: int, *, apart: bool = False
    ) -> Held:
        """Makes it from a map over the patch tokens of ``before``; ``apart``: prefix tokens are left out anyway."""
        after = Layout.of(before.images, assignment.num_clusters, assignment.counts, assignment.cluster.device)
        equal = before.valid is None and after.valid is None and not apart
        inside = num_prefix if equal else 0
        whole = with_prefix(assignment, before.images, inside)
        return cls(whole, num_prefix - inside, before.with_prefix(inside), after.with_prefix(inside), after)

    def down(self, x: Tensor, size: Tensor | None, reduction: str) -> tuple[Tensor, Tensor]:
        """Reduces ``x [B, P+n, C]`` by sizes ``[B, P+n]``: rows ``[B, P+n', C]`` and their sizes; size 0 is padding."""
        weights = None if size is None else self.source.flat(self._patches(size))
        rows = self.source.flat(self._patches(x))
        if isinstance(self.whole, Assignment):
            rows, made = self.whole.reduce(rows, weights, reduce=reduction)
        elif reduction != "mean":
            raise ValueError(
                f"Expected reduction 'mean' for a weighted map, whose weights say how it pools (got {reduction!r})."
            )
        else:
            rows, made = self.whole.reduce(rows, weights)
        return self.behind(x, rows), self.sizes(made)

    def behind(self, x: Tensor, rows: Tensor) -> Tensor:
        """Lays flat rows out behind the prefix tokens of ``x``."""
        return self._behind(x, self.target.padded(rows))

    def sizes(self, size: Tensor) -> Tensor:
        """Lays flat sizes out, ``[B, P+n']``; prefix tokens have size 1."""
        size = self.target.padded(size)
        return torch.cat([size.new_ones(size.size(0), self.ahead), size], dim=1) if self.ahead else size

    def up(self, y: Tensor) -> Tensor:
        """Lifts rows ``[B, P+n', C]`` to ``[B, P+n, C]``; zeros for tokens that were dropped."""
        return self._behind(y, self.source.padded(self.whole.lift(self.target.flat(self._patches(y)))))

    def back(self, y: Tensor, x: Tensor, rows: Tensor) -> Tensor:
        """Returns ``x [B, P+n, C]`` with what ``rows``, its reduction, became: ``y [B, P+n', C]``.

        Each token gets its cluster's change; one that was dropped stays as it is, bit for bit.
        """
        whole = self.whole
        if isinstance(whole, Assignment) and whole.single and not self.ahead and self.source.valid is None:
            assert whole.centers is not None
            return x.flatten(0, 1).index_copy(0, whole.centers, self.target.flat(y).to(x.dtype)).view_as(x)
        return self.up(y) + (x - self.up(rows))

    def _patches(self, x: Tensor) -> Tensor:
        return x[:, self.ahead :] if self.ahead else x

    def _behind(self, x: Tensor, rows: Tensor) -> Tensor:
        return torch.cat([x[:, : self.ahead], rows], dim=1) if self.ahead else rows
