"""Chooses the settings to measure on the tasks: the best of the search, the published ones, and the controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from tokengraph.evaluate.costs import multiply_adds
from truth.results import Line
from truth.tables import (
    COSTS,
    Body,
    Candidate,
    made,
    nearest_share,
    ragged,
    resolutions,
    shapes,
    strategies,
    thresholds,
)
from truth.thresholds import SHAPE

CONTROLS = ("random", "grid-pool")
PUBLISHED = {  # the published family of schedules; strategies that are not here were published for other models
    "tome": "constant",
    "gtp": "constant",
    "evit": "thirds",
    "topk": "thirds",
    "random": "thirds",
    "ailurus": "after 2",
    "dpc-knn": "after 2",
    "grid-pool": "after 2",
}


def best(candidates: Sequence[Candidate], score: Mapping[str, float]) -> list[Candidate]:
    """Returns the best candidate of each strategy at each cost; smaller images with ToMe count as one strategy.

    Candidates without a wanted cost, smaller images and strategies by threshold, are left out.

    Args:
        candidates: The candidates of the search.
        score: Scores by the text of the setting; failed settings have none.
    """
    found: dict[tuple[float, str], Candidate] = {}
    for candidate in candidates:
        if candidate.setting not in score or not candidate.cost:
            continue
        key = candidate.cost, "combined" if "+" in candidate.strategy else candidate.strategy
        if key not in found or score[candidate.setting] > score[found[key].setting]:
            found[key] = candidate
    return [found[key] for key in sorted(found)]


def settled(candidates: Sequence[Candidate], lines: Sequence[Line]) -> list[Candidate]:
    """Gives settings of thresholds the share of their measured cost, 0 if it is far from all."""
    shares = {line["setting"]: nearest_share(line.get("cost")) for line in lines}
    return [replace(c, cost=shares.get(c.setting, 0.0)) if c.shape == SHAPE else c for c in candidates]


def moved(
    picked: Sequence[Candidate], score: Mapping[str, float], old: Body, new: Body
) -> tuple[list[Candidate], dict[str, float]]:
    """Adapts settings to another grid: keeps families, options and costs; recomputes schedules and resolutions."""
    scored: dict[Candidate, float] = {}
    for candidate in picked:
        if candidate.shape == SHAPE:  # its thresholds know no grid
            scored[candidate] = score[candidate.setting]
            continue
        size, name = None, candidate.strategy
        if "+" in name:
            resolution, name = name.split("+")
            size = round(int(resolution.split(":")[1]) / old.patch / old.side * new.side) * new.patch
        shape = next(shape for shape in shapes(name, new.anatomy.depth) if shape.name == candidate.shape)
        for again in made(new, name, shape, candidate.cost, candidate.options, size):
            scored[again] = score[candidate.setting]
    return list(scored), {c.setting: value for c, value in scored.items()}


def frontier(body: Body, picked: Sequence[Candidate]) -> list[Candidate]:
    """Returns the best of each strategy, the published ones and the smaller images, each setting once."""
    controls = [nearest_resolution(body, share) for share in COSTS]
    return list({c.setting: c for c in [*controls, *picked, *published(body)]}.values())


def headline(body: Body, picked: Sequence[Candidate], score: Mapping[str, float]) -> list[Candidate]:
    """Returns at each cost the smaller image, random, the best with a smaller image, and the two best without."""
    found = []
    for share in COSTS:
        here = [c for c in picked if c.cost == share]
        own = [c for c in here if "+" not in c.strategy and c.strategy not in CONTROLS]
        found.append(nearest_resolution(body, share))
        found += [c for c in here if c.strategy == "random" or "+" in c.strategy]
        found += sorted(own, key=lambda c: -score[c.setting])[:2]
    return list({c.setting: c for c in found}.values())


def published(body: Body, costs: Sequence[float] = COSTS) -> list[Candidate]:
    """Returns every strategy with its defaults and its published family, if it reaches the cost."""
    found = []
    for share in costs:
        for strategy in (name for name in strategies() if not ragged(name)):
            for shape in shapes(strategy, body.anatomy.depth):
                if shape.name == PUBLISHED.get(strategy):
                    found += made(body, strategy, shape, share, "")
    first: dict[str, Candidate] = {}
    for candidate in thresholds(body):  # the published setting of each comes first
        first.setdefault(candidate.strategy, candidate)
    return [*found, *first.values()]


def nearest_resolution(body: Body, share: float) -> Candidate:
    """Returns the smaller image whose cost is nearest to a share, the control at that cost."""

    def distance(size: int) -> float:
        tokens = (size // body.patch) ** 2
        return abs(multiply_adds(body.anatomy, [tokens] * (body.anatomy.depth + 1))[0] / body.whole - share)

    return Candidate(f"resolution:{min(resolutions(body), key=distance)}", "resolution", "alone", share)
