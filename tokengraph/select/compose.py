"""``compose``: a strategy of parts by name or function, which refuses what makes no sense and says why."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokengraph.kinds import explains
from tokengraph.maps.hard import Assignment
from tokengraph.maps.soft import SoftAssignment
from tokengraph.schedule import Schedule
from tokengraph.select.around import Around
from tokengraph.select.base import PLACEMENTS, READS, Select
from tokengraph.select.grid_tome import GridToMe
from tokengraph.select.parts.choices.members import best_members
from tokengraph.select.pieces import CHOICES, SCORES, Piece, Seen, edges_of
from tokengraph.select.tokens import Tokens

Score = Callable[[Tokens], Tensor]
Choose = Callable[[Seen, int | list[int]], Assignment | SoftAssignment]
PLACES = (*PLACEMENTS[:3], "around")
METRICS = ("keys", "features")


@explains
def compose(
    *,
    score: str | Score | None = None,
    graph: str | None = None,
    choose: str | Choose = "top-edges",
    reduce: str | None = None,
    place: str = "inside",
    metric: str | None = None,
    knob: float | None = None,
) -> Select:
    """Makes a strategy of four parts; what fits with what is in ``docs/compose.md``.

    Args:
        score: How much a token matters: ``"class"`` (attention of the class token), ``"received"`` (attention that it
            receives), ``"norm"``, ``"distinct"`` (how few others resemble it, PiToMe's energy negated), ``"random"``;
            or a function of :class:`tokengraph.select.tokens.Tokens` that returns ``[B, N]``, higher for tokens that
            matter more. ``None``: none, where no part reads one.
        graph: Who may merge with whom: ``"alternating"`` or ``"ranked"`` halves, ``"cells"`` (a destination in each
            2 x 2 cell), ``"grid"`` neighbours, ``"complete"``; default: the first that the choice works on.
        choose: Which tokens become one: ``"top-edges"``, ``"both-ways"``, ``"mutual-pairs"``, ``"components"``,
            ``"agglomerate"``, ``"medoids"``, ``"peaks"``, ``"facility"``, ``"around-best"`` (the best by score are
            centres), ``"top-k"`` (the others drop); or a function ``(seen, budget)`` that returns a map, where ``seen``
            has ``tokens``, ``metric`` and ``score``.
        reduce: What they become: ``"mean"`` by size, ``"weighted"`` by score times size, ``"max"``, ``"absmax"``,
            ``"mlerp"``, ``"center"`` (the token that stands for the cluster, or the one of highest score), ``"soft"``,
            ``"drop"`` or ``"fuse"``; default: the first that the choice allows.
        place: ``"before"``, ``"inside"`` or ``"after"`` a block, or ``"around"`` its attention; see
            :class:`tokengraph.Around` for other spans.
        metric: What similarity is measured on: ``"keys"`` of the block, or ``"features"``; default: keys, but features
            around a module.
        knob: The choice's own number: the threshold of ``"components"``, the neighbours of ``"peaks"``, the factor of
            ``"soft"``.

    Raises:
        ValueError: If a name is unknown, or parts do not fit; the message gives the reason.

    Example:
        >>> import tokengraph as tg
        >>> graph = tg.TokenGraph.from_tokens(torch.tensor([[[3.0, 0.0], [2.0, 0.1], [0.0, 1.0], [0.1, 4.0]]]))
        >>> made = tg.coarsen(graph, compose(score="norm", choose="around-best", reduce="center"), 2)
        >>> made.assignment.cluster.tolist(), made.graph.x.tolist()
        ([0, 0, 1, 1], [[3.0, 0.0], [0.10000000149011612, 4.0]])

    Source: our own; combinations of the parts of published methods, most of them unpublished.
    """
    own = isinstance(choose, str)
    piece = CHOICES.get(choose) if isinstance(choose, str) else Piece(choose, ("own",), "may", centers=False)
    if piece is None:
        raise ValueError(f"Expected choose to be one of {', '.join(CHOICES)}, or a function (got {choose!r}).")
    graph = piece.graphs[0] if graph is None else graph
    reduce = piece.reduces[0] if reduce is None else reduce
    metric = ("features" if place == "around" else "keys") if metric is None else metric
    named = score if isinstance(score, str | None) else "own"
    if (reason := misfit(named, graph, choose if own else None, reduce, place, metric)) is not None:  # type: ignore[arg-type]
        raise ValueError(reason)
    if knob is not None and piece.knob is None:
        raise ValueError(f"Expected no knob for choose={choose!r} (got {knob!r}): it has no number of its own.")
    made = Composed(score, graph, choose, reduce, "before" if place == "around" else place, metric, knob)
    return Around(made) if place == "around" else made


def misfit(score: str | None, graph: str, choose: str | None, reduce: str, place: str, metric: str) -> str | None:
    """Returns why parts do not fit together; ``None``: they do. ``choose=None``: a function of the user's."""
    piece = CHOICES[choose] if choose is not None else None
    if score not in (None, "own") and score not in SCORES:
        return f"Expected score to be one of {', '.join(SCORES)}, or a function (got {score!r})."
    if place not in PLACES:
        return f"Expected place to be one of {', '.join(PLACES)} (got {place!r})."
    if metric not in METRICS:
        return f"Expected metric to be 'keys' or 'features' (got {metric!r})."
    reads = SCORES[score][0] if score in SCORES else "nothing"
    if place == "around" and (reads != "nothing" or metric == "keys"):
        what = f"score={score!r}" if reads != "nothing" else "metric='keys'"
        return f"Expected parts that read features around a module (got {what}): the block has not run yet."
    known = {name for each in CHOICES.values() for name in each.reduces}
    if reduce not in known:
        return f"Expected reduce to be one of {', '.join(sorted(known))} (got {reduce!r})."
    if piece is None:
        return "Expected a score for reduce='weighted' (got none)." if reduce == "weighted" and score is None else None
    if graph not in piece.graphs:
        return (
            f"Expected graph to be {' or '.join(map(repr, piece.graphs))} for choose={choose!r} (got {graph!r}), which "
            "has no edges of the kind that it takes."
        )
    if reduce not in piece.reduces:
        why = (
            "nothing merges"
            if choose == "top-k"
            else "it drops nothing"
            if reduce in ("drop", "fuse")
            else ("it has no centres to spread tokens over")
        )
        return f"Expected reduce to be one of {', '.join(piece.reduces)} for choose={choose!r} (got {reduce!r}): {why}."
    return _score_misfit(piece, score, graph, choose, reduce)


def _score_misfit(piece: Piece, score: str | None, graph: str, choose: str | None, reduce: str) -> str | None:
    needed = piece.score == "yes" or piece.score == graph or reduce == "weighted"
    centers = reduce == "center" and not piece.centers and choose != "top-edges"
    centers |= reduce == "center" and choose == "top-edges" and graph != "alternating"
    if score is None and (needed or centers):
        what = (
            f"choose={choose!r}"
            if piece.score == "yes"
            else f"graph={graph!r}"
            if piece.score == graph
            else (f"reduce={reduce!r} of choose={choose!r}")
        )
        return f"Expected a score for {what} (got none), such as score='norm'."
    reads = needed or piece.score == "may" or (reduce == "center" and not piece.centers)
    if score is not None and not reads:
        return (
            f"Expected no score for choose={choose!r} on graph={graph!r} with reduce={reduce!r} (got {score!r}): none "
            "of these parts reads one. Use reduce='weighted', or leave the score out."
        )
    if reduce in ("weighted", "fuse") and score == "distinct":
        return f"Expected a score of positive numbers for reduce={reduce!r} (got 'distinct', which is negative)."
    if piece.score == "may" and score == "distinct":
        return f"Expected a score of positive numbers for choose={choose!r} (got 'distinct', which is negative)."
    return None


@dataclass(frozen=True)
class Composed(Select):
    """A strategy of parts; made by :func:`compose`, whose arguments these are."""

    name: ClassVar[str] = ""
    score: Any = None
    graph: str = "alternating"
    choose: Any = "top-edges"
    reduce: str = "mean"
    placement: str = "inside"  # type: ignore[misc]
    metric: str = "keys"
    knob: float | None = None
    at: tuple[int, ...] | None = None
    piece: Piece = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        piece = CHOICES[self.choose] if isinstance(self.choose, str) else Piece(self.choose, ("own",), "may")
        if self.choose == "top-edges":
            piece = replace(piece, make=edges_of(self.graph))
        object.__setattr__(self, "piece", piece)
        object.__setattr__(self, "ragged", piece.ragged)
        object.__setattr__(self, "needs_grid", self.graph in ("cells", "grid"))
        object.__setattr__(self, "merges", self.reduce not in ("drop", "fuse"))

    @property
    def reads(self) -> str:  # type: ignore[override]
        """The most that a part reads."""
        own = SCORES[self.score][0] if self.score in SCORES else "nothing" if self.score is None else "keys"
        similar = "keys" if self.metric == "keys" and self.piece.graphs != ("none",) else "nothing"
        return max(own, similar, key=READS.index)

    def reduction_at(self, layer: int) -> str:
        """The reduction; weights and soft maps are in the map itself."""
        return "mean" if self.reduce in ("weighted", "soft", "drop", "fuse") else self.reduce

    def bind(self, channels: int, depth: int, schedule: Schedule | None = None) -> tuple[Select, Schedule]:
        """As any strategy; by a threshold it acts at the layers of the schedule, which says the fewest tokens."""
        _, schedule = super().bind(channels, depth, schedule)
        if not self.ragged:
            return self, schedule
        bound = copy.copy(self)
        named = schedule if isinstance(schedule, Mapping) else range(1, depth + 1)
        object.__setattr__(bound, "at", tuple(int(layer) for layer in named))
        return bound, schedule

    def acts(self, finished: int, keep: int, count: int) -> bool:
        """Where the plan has fewer tokens; by a threshold at the layers of the schedule alone."""
        return keep < count and (not self.ragged or self.at is None or finished in self.at)

    def __call__(self, tokens: Tokens, budget: int | list[int]) -> Assignment | SoftAssignment:
        """Maps the tokens to clusters; see :class:`tokengraph.Select`."""
        metric = tokens.keys if self.metric == "keys" and self.piece.graphs != ("none",) else tokens.x
        score = None
        if self.score is not None:
            score = SCORES[self.score][1](tokens, metric) if isinstance(self.score, str) else self.score(tokens)
            if score.shape != tokens.x.shape[:2]:
                raise ValueError(f"Expected a score [B, N] = {list(tokens.x.shape[:2])} (got {list(score.shape)}).")
        knob = self.knob if self.knob is not None else self.piece.knob[0] if self.piece.knob else 0.0
        made = self.piece.make(Seen(tokens, metric, score, knob, self.reduce), budget)
        if score is None or not isinstance(made, Assignment):
            return made
        flat = score.flatten() if tokens.mask is None else score[tokens.mask]
        if self.reduce == "weighted":
            flat = flat.float() if flat.dtype != torch.float64 else flat
            if tokens.size is not None:
                flat = flat * (tokens.size.flatten() if tokens.mask is None else tokens.size[tokens.mask])
            return replace(made, weight=flat)
        if self.reduce == "center" and made.centers is None:
            return replace(made, centers=best_members(made, flat))
        return made

    def makes(self, keep: int, num_tokens: int, grid: tuple[int, int] | None = None) -> int:
        """As asked; with a destination in each cell no fewer than cells."""
        if self.graph == "cells":
            return GridToMe().makes(keep, num_tokens, grid)
        return super().makes(keep, num_tokens, grid)

    def fewest(self, num_tokens: int) -> int:
        """Half of the tokens where pairs merge, else one."""
        if self.graph == "cells":
            return GridToMe().fewest(num_tokens)
        return num_tokens - num_tokens // 2 if self.piece.half else min(1, num_tokens)


def fitting(place: str = "inside") -> Iterator[tuple[str | None, str, str, str]]:
    """Every combination of named parts that fits: score, graph, choice, reduction."""
    for choose, piece in CHOICES.items():
        for graph in piece.graphs:
            for reduce in piece.reduces:
                for score in (None, *SCORES):
                    metric = "features" if place == "around" else "keys"
                    if misfit(score, graph, choose, reduce, place, metric) is None:
                        yield score, graph, choose, reduce


def table() -> str:
    """The table of what fits, as in ``docs/compose.md``."""
    rows: dict[tuple[str, str], dict[str, list[str]]] = {}
    for score, graph, choose, reduce in fitting():
        rows.setdefault((choose, graph), {}).setdefault(reduce, []).append(score or "none")
    lines = ["| choose | graph | reduce, each with the scores that fit | own number |", "| --- | --- | --- | --- |"]
    for (choose, graph), reduces in rows.items():
        groups: dict[tuple[str, ...], list[str]] = {}
        for reduce, scores in reduces.items():
            groups.setdefault(tuple(scores), []).append(f"`{reduce}`")
        cells = "; ".join(f"{', '.join(names)}: {', '.join(scores)}" for scores, names in groups.items())
        knob = CHOICES[choose].knob
        lines.append(f"| `{choose}` | `{graph}` | {cells} | {f'{knob[0]:g}, {knob[1]}' if knob else ''} |")
    return "\n".join(lines)
