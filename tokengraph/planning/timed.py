"""Budgets of time: the clock of a device, and the correction of predicted times by measured ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from tokengraph.planning.clock import Clock, time_plans
from tokengraph.planning.explore import PICKS, Explorer, Trial
from tokengraph.planning.family import Family
from tokengraph.planning.record import Plan

LATE = 1.02  # a plan may take this much longer than its budget, which is about what timing resolves
CORRECTIONS = 4  # of the predicted time


def start_clock(explorer: Explorer, tried: Sequence[Family], batch: Tensor) -> None:
    """Measures the plain model at several input sizes, and one step a block of each strategy."""
    space, own = explorer.space, explorer.space.target.side
    sides = sorted({own, *(max(1, round(own * share)) for share in (0.85, 0.7, 0.55))} if space.pixels else {own})[::-1]
    plans = [explorer.plan(None, side, space.alone(side)) for side in sides]
    first = len(plans)
    patches, depth = space.target.patches, space.target.depth
    kept = []
    for family in tried:
        fall = [patches] + [patches - 1] * depth if family.once else [max(1, patches - i) for i in range(depth + 1)]
        kept.append((family, fall))
        plans.append(explorer.plan(family, own, fall))
    found = times(explorer, plans, batch)
    known = [(side, t) for side, t in zip(sides, found[:first], strict=True) if t is not None]
    if not known or known[0][0] != own:
        raise ValueError("Expected a model that can be timed (got errors in every run).")
    space.clock = Clock.fit([space.share(space.alone(side), None) for side, _ in known], [t for _, t in known])
    for (family, fall), spent in zip(kept, found[first:], strict=True):
        if spent is not None:
            ideal = space.clock.fixed + space.clock.rate * space.share(fall, family)
            space.steps[family.name] = max(spent - ideal, 0.0) / max(1, len(set(fall)) - 1)


def times(explorer: Explorer, plans: Sequence[Plan], batch: Tensor) -> list[float | None]:
    """Returns the median milliseconds of a batch under each plan; ``None`` where it cannot run."""
    return time_plans(explorer.bench.model, plans, batch)


def in_time(explorer: Explorer, batch: Tensor) -> Trial | None:
    """Measures the best schedule's time, corrects the predicted one, and searches again until it is met."""
    space = explorer.space
    refused: dict[str, float] = {}
    for _ in range(CORRECTIONS):
        best = explorer.best()
        if best is None:
            break
        family, name = best.family, "" if best.family is None else best.family.pair
        plain = explorer.plan(None, space.target.side, space.alone(space.target.side))
        found = times(explorer, [plain, explorer.plan(family, best.side, best.tokens)], batch)
        if found[0] is None or found[1] is None:
            break
        assert space.clock is not None
        space.clock = replace(space.clock, plain=found[0])
        late = found[1] / space.limit
        if late <= LATE:
            return best
        refused[name] = found[1]
        space.pace[name] = space.pace.get(name, 1.0) * found[1] / space.spent(best.tokens, family)
        explorer.descend(PICKS // 2)
    told = f" (measured: {min(refused.values()):.1f} ms for {space.limit:.1f} ms)" if refused else ""
    explorer.notes.append(
        f"Nothing pays here: no plan meets the budget on this device at this batch size{told}. The plain model "
        "stays as it is."
    )
    return None
