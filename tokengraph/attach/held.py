"""A map on whole sequences: rows down to clusters, and rows of clusters back up."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from tokengraph.flat.layout import Layout
from tokengraph.flat.looks import may_differentiate, may_look, may_write
from tokengraph.flat.segment import few
from tokengraph.flat.tables import ones
from tokengraph.maps.edge_sums import add_extra, mean_with_extra
from tokengraph.maps.hard import Assignment
from tokengraph.maps.prefix import behind_prefix, centers_behind, with_prefix
from tokengraph.maps.soft import SoftAssignment

CENTERED = ("center", "released-mlerp")  # reductions that read the rows of centers


@dataclass(eq=False)
class Held:
    """A map over patch tokens, ready for sequences ``[B, P+n, C]``.

    If all images have equal numbers of tokens before and after, the map is extended to prefix tokens and takes whole
    sequences without a copy. Otherwise it takes patch tokens only, and prefix tokens are put in front again.

    Args:
        given: The map over patch tokens.
        images: B.
        inside: Prefix tokens that are to be part of the map.
        ahead: Prefix tokens that it leaves out.
        source: How the rows that it takes lie.
        target: How the rows that it gives lie.
        after: How the clusters lie, without prefix tokens.
    """

    given: Assignment | SoftAssignment
    images: int
    inside: int
    ahead: int
    source: Layout
    target: Layout
    after: Layout
    _whole: Assignment | SoftAssignment | None = field(init=False, default=None, repr=False)

    @classmethod
    def of(
        cls, assignment: Assignment | SoftAssignment, before: Layout, num_prefix: int, *, apart: bool = False
    ) -> Held:
        """Makes it from a map over the patch tokens of ``before``; ``apart``: prefix tokens are left out anyway."""
        after = Layout.of(before.images, assignment.num_clusters, assignment.counts, assignment.cluster.device)
        equal = before.valid is None and after.valid is None and not apart
        inside = num_prefix if equal else 0
        ends = before.with_prefix(inside), after.with_prefix(inside)
        return cls(assignment, before.images, inside, num_prefix - inside, *ends, after)

    @property
    def whole(self) -> Assignment | SoftAssignment:
        """The map over patch tokens, or over whole sequences, made when it is first needed."""
        if self._whole is None:  # no cached_property, whose lock does not compile
            self._whole = with_prefix(self.given, self.images, self.inside, centers=False)
        return self._whole

    def down(
        self, x: Tensor, size: Tensor | None, reduction: str, *, sized: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """Reduces ``x [B, P+n, C]`` by sizes ``[B, P+n]``: rows ``[B, P+n', C]`` and their sizes; size 0 is padding.

        Without ``sized`` the result may leave sizes out, for callers that do not read them.
        """
        given = self.given
        if reduction == "center" and not sized and type(given) is Assignment and given.centers is not None:
            rows = self.source.flat(self._patches(x)).index_select(0, self._centers())
            return self.behind(x, rows), None
        weights = None if size is None else self.source.flat(self._patches(size))
        rows = self.source.flat(self._patches(x))
        if self._picks:
            rows, made = self._picked(rows, weights)
        elif isinstance(self.given, SoftAssignment) and reduction == "mean" and self._adds(self.given, rows, weights):
            rows, made = self._added(self.given, rows, weights)
        elif isinstance(self.given, Assignment):
            whole = with_prefix(self.given, self.images, self.inside) if reduction in CENTERED else self.whole
            assert isinstance(whole, Assignment)
            rows, made = whole.reduce(rows, weights, reduce=reduction)
        elif reduction != "mean":
            raise ValueError(
                f"Expected reduction 'mean' for a weighted map, whose weights say how it pools (got {reduction!r})."
            )
        else:
            rows, made = self.whole.reduce(rows, weights)
        return self.behind(x, rows), self.sizes(made)

    @property
    def _picks(self) -> bool:
        """True if the map only picks rows, so that nothing but its centers is needed."""
        return type(self.given) is Assignment and self.given.single and not self.given.counts_apart

    def _picked(self, rows: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
        """Picks the rows ``[M, C]`` of centers, and their sizes."""
        index = self._centers()
        if weights is None:
            return rows.index_select(0, index), ones(index.size(0), rows.device)
        return rows.index_select(0, index), weights.index_select(0, index)

    def _added(self, given: SoftAssignment, rows: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
        """Picks the rows ``[M, C]`` of centers, and adds those of the map's other edges."""
        token, cluster, weight = (ends[given.num_clusters :] for ends in (given.token, given.cluster, given.weight))
        if self.inside:
            token = behind_prefix(token, self.images, given.num_tokens // self.images, self.inside)
            cluster = behind_prefix(cluster, self.images, given.num_clusters // self.images, self.inside)
        if given.normalize:
            return mean_with_extra(rows, self._centers(), token, cluster, weight)
        return add_extra(rows, weights, self._centers(), token, cluster, weight)

    def _adds(self, given: SoftAssignment, rows: Tensor, weights: Tensor | None) -> bool:
        """True if ``reduce`` picks the centers' rows and adds those of other edges; means where all sizes are 1."""
        if not given.normalize or given.others is None or given.counts_apart or weights is not None:
            return given.adds(rows)
        eager = may_look(rows) and may_write(rows)
        eager = eager and not may_differentiate(rows) and not may_differentiate(given.weight)
        return eager and few(given.cluster[given.num_clusters :], given.others)

    def _centers(self) -> Tensor:
        """The rows of the map's centers, behind the prefix tokens' rows."""
        assert self.given.centers is not None
        if not self.inside:
            return self.given.centers
        tokens = self.given.num_tokens // self.images
        return centers_behind(self.given.centers, self.images, self.inside, tokens)

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
