"""What `make truth` measured, read for the pages: each strategy beside ToMe, AiluRus and a smaller image."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import tokengraph as tg

ROOT = Path(__file__).resolve().parents[1]
TRUTH = ROOT / "benchmarks" / "results" / "truth"
COSTS = (0.8, 0.65, 0.5, 0.35)
SLACK = 0.02  # a setting costs no exact share: one of 0.51 counts for 0.5
SIZES = 0.05  # the slack of smaller images, whose costs are steps apart: in favour of the control
NEAR = 0.1  # a setting this much cheaper than a cost says nothing about it
CHOOSING = ("fashion-train",)  # serves to choose schedules on
METRICS = {
    "top1": "top-1",
    "biou": "boundary IoU",
    "probe_as_is": "probe as it is",
    "class_cosine": "cosine of the class token",
    "patch_cosine": "cosine of the patches",
}
RIVALS = {"tome": "ToMe", "ailurus": "AiluRus", "resolution": "smaller image"}
Line = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """The rows of one task, group and number of images, judged by one figure."""

    task: str
    images: int
    metric: str
    lines: Sequence[Line]

    @property
    def title(self) -> str:
        """Task, images and figure in words."""
        return f"{self.task} ({self.images:,} images): {METRICS[self.metric]}"

    @property
    def dense(self) -> float | None:
        """The dense model's figure."""
        found = [line["metrics"][self.metric] for line in self.lines if line["kind"] == "dense"]
        return found[0] if found else None

    def of(self, *names: str) -> list[tuple[float, float, str]]:
        """Rows of the named strategies as (cost, figure, setting), by cost."""
        return sorted(
            (line["cost"], line["metrics"][self.metric], line["setting"])
            for line in self.lines
            if line.get("strategy") in names and line.get("cost") is not None
        )

    def best(self, cost: float, *names: str) -> tuple[float, str] | None:
        """The best figure of the named strategies at about this cost, with its setting."""
        slack = SIZES if names == ("resolution",) else SLACK
        there = [(v, s) for c, v, s in self.of(*names) if cost - NEAR < c <= cost + slack]
        return max(there) if there else None


@cache
def tables() -> tuple[Table, ...]:
    """Every table of results, in the order of the files' names."""
    found = []
    for file in sorted(TRUTH.glob("*.jsonl")):
        if file.stem in CHOOSING:
            continue
        lines = [json.loads(text) for text in file.read_text(encoding="utf-8").splitlines() if text.strip()]
        lines = [line for line in lines if line.get("group") in ("search", "headline", "frontier")]
        lines = [line for line in lines if line.get("metrics") and not line.get("reason")]
        parts = dict.fromkeys((line["model"], line["group"], line["images"]) for line in lines)
        for part in parts:
            own = [line for line in lines if (line["model"], line["group"], line["images"]) == part]
            metrics = [m for m in METRICS if any(m in line["metrics"] for line in own)]
            named = [m for m in metrics if not m.endswith("_cosine")] or metrics  # labels say more than likeness
            found += [Table(file.stem, part[2], m, [x for x in own if m in x["metrics"]]) for m in named]
    return tuple(found)


def names_of(name: str) -> tuple[str, ...]:
    """A strategy's name and the published names that stand for it, as results write them."""
    kind = tg.registry()[name]
    return (name, *kind.aliases)


@dataclass(frozen=True)
class Comparison:
    """A strategy's best figure at one cost beside its rivals'."""

    table: Table
    cost: float
    value: float
    setting: str
    rivals: dict[str, float | None]

    @property
    def beaten(self) -> tuple[str, ...]:
        """The rivals whose best figure is lower."""
        return tuple(name for name, value in self.rivals.items() if value is not None and value < self.value)


@cache
def comparisons(name: str) -> tuple[Comparison, ...]:
    """Every cost of every table at which the strategy was measured."""
    own, found = names_of(name), []
    for table in tables():
        for cost in COSTS:
            best = table.best(cost, *own)
            if best is not None:
                others = {r: table.best(cost, r) for r in RIVALS if r not in own}
                rivals = {r: other and other[0] for r, other in others.items()}
                found.append(Comparison(table, cost, *best, rivals))
    return tuple(found)


def verdict(name: str) -> str:
    """Says in one or two sentences where a strategy has a higher figure than its rivals; empty if not measured."""
    found = comparisons(name)
    if not found:
        return ""
    words = []
    for rival, label in RIVALS.items():
        against = [c for c in found if c.rivals.get(rival) is not None]
        won = [c for c in against if rival in c.beaten]
        if rival in names_of(name) or not against:
            continue
        phrase = {"ToMe": "ToMe's best", "AiluRus": "AiluRus's best"}.get(label, "the smaller image")
        if won:
            where = ", ".join(dict.fromkeys(c.table.task for c in won))
            words.append(f"above {phrase} in {len(won)} of {len(against)} comparisons ({where})")
        else:
            words.append(f"**nowhere above {phrase}** ({len(against)} comparisons)")
    if not words:
        return "No rival was measured on the same images at these costs."
    return f"Its best measured setting is {'; '.join(words)}."


def number(value: float | None, metric: str) -> str:
    """A figure as the tables print it; a dash if there is none."""
    if value is None:
        return "–"
    return f"{value:.3f}" if metric.endswith("_cosine") else f"{100 * value:.1f}"
