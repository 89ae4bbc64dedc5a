"""Settings of strategies whose own threshold says how many tokens stay; a measurement tells what they cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from tokengraph.select.base import registry
from truth.plans import FAR
from truth.results import Line
from truth.tables import COSTS, Body, Candidate

SHAPE = "threshold"
TAUS = (0.5, 0.6, 0.7, 0.8, 0.85, 0.88, 0.91, 0.94)
ONCE = (1, 2, 3, 4, 5, 6, 8)  # of 12
TWICE = ((1, 5), (2, 5), (3, 6), (4, 7))


def by_threshold(body: Body) -> Iterator[Candidate]:
    """Yields each strategy with thresholds and layers around the published ones; costs are 0 until measured."""

    def at(*layers: int) -> str:
        scaled = [max(1, round(body.anatomy.depth * layer / 12)) for layer in layers]
        return "{" + ", ".join(f"{layer}: 1" for layer in scaled) + "}"  # each image keeps at least one

    texts = {
        "mpm": [f"mpm:{at(*layers)}" for layers in (*((layer,) for layer in ONCE), *TWICE)],
        "g2tm": [f"g2tm:{at(layer)},tau={tau}" for layer in ONCE for tau in TAUS],
        "algm": [f"algm:{at(*layers)},tau={tau}" for layers in TWICE for tau in TAUS],
    }
    for strategy, settings in texts.items():
        if strategy in registry():
            for text in dict.fromkeys(settings):
                yield Candidate(text, strategy, SHAPE, 0.0)


def nearest_share(cost: float | None) -> float:
    """Returns the share of the table that a measured cost belongs to; 0 if it is far from all."""
    near = min(COSTS, key=lambda share: abs(share - (cost or 0)))
    return near if abs(near - (cost or 0)) <= FAR else 0.0


def settled(candidates: list[Candidate], lines: list[Line]) -> list[Candidate]:
    """Gives settings of thresholds the share of their measured cost; leaves out those that are far from all."""
    shares = {line["setting"]: nearest_share(line.get("cost")) for line in lines}
    known = [replace(c, cost=shares.get(c.setting, 0.0)) if c.shape == SHAPE else c for c in candidates]
    return [c for c in known if c.shape != SHAPE or c.cost]
