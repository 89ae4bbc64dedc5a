"""The search: measures sensitivities, then schedules that the fitted curves propose, and fits again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from tokengraph.evaluate.progress import Progress
from tokengraph.evaluate.settings import Setting
from tokengraph.planning.bench import Bench, Measured
from tokengraph.planning.curves import LEAST, Curve, Row
from tokengraph.planning.family import Family
from tokengraph.planning.record import Plan
from tokengraph.planning.shapes import published
from tokengraph.planning.space import Space

CUTS = 8  # blocks at most whose sensitivity is measured
FIRST = 2  # input sizes at which each strategy is measured first
PICKS = 8  # schedules proposed by the curves before and after the options
CHANGES = (2, 3, 4, 5, 6, 8)  # of 12: blocks after which a composition changes its strategy
GAIN = 0.99  # a proposal is worth measuring if its predicted loss is below this share of the best one


@dataclass(frozen=True, eq=False)
class Trial:
    """A schedule that was measured.

    Args:
        family: The strategy; ``None`` for an input size alone.
        side: Patches along a side.
        tokens: Patch tokens before the first block and after each, as planned.
        predicted: Predicted loss before it was measured; ``None`` without a prediction.
        measured: Its outcome.
    """

    family: Family | None
    side: int
    tokens: tuple[int, ...]
    predicted: float | None
    measured: Measured


@dataclass
class Explorer:
    """The state of a search.

    Args:
        bench: Measures.
        space: What there is to choose from.
        progress: Shows progress.
    """

    bench: Bench
    space: Space
    progress: Progress
    curves: dict[str, Curve] = field(default_factory=dict)
    families: dict[str, Family] = field(default_factory=dict)
    trials: list[Trial] = field(default_factory=list)
    sensitivity: dict[str, list[float | None]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    sides: list[int] = field(default_factory=list)
    _base: dict[int, float] = field(default_factory=dict)
    _known: dict[tuple[str, int, tuple[int, ...]], Trial] = field(default_factory=dict)

    def run(self, families: Sequence[Family]) -> None:
        """Searches; :meth:`best` has the result."""
        self.sides = self.space.sides()
        self._base[self.sides[0]] = 0.0
        for family in families:
            self._begin(family)
        for side in self.sides:
            self._base[side] = self.measure(None, side, self.space.alone(side)).measured.loss
        for family in self.families.values():
            self._cut(family)
        self._shrink()
        self._screen()
        self.descend(PICKS)
        self._vary()
        self.descend(PICKS)

    def plan(self, family: Family | None, side: int, tokens: Sequence[int]) -> Plan:
        """Returns a bare plan of a schedule, to attach."""
        size = self.space.resolution(side)
        setting = Setting(resolution=size) if family is None else family.setting(tokens, size)
        return Plan(setting, tuple(tokens), self.space.target)

    def measure(
        self,
        family: Family | None,
        side: int,
        tokens: Sequence[int],
        predicted: float | None = None,
        *,
        first: bool = False,
        rival: Trial | None = None,
    ) -> Trial:
        """Measures a schedule once, until it falls behind ``rival`` (or the best), and fits the strategy's curve."""
        key = ("" if family is None else family.name, side, tuple(tokens))
        if key in self._known:
            return self._known[key]
        plan, best = self.plan(family, side, tokens), rival or self.best()
        found = self.bench.race(plan, None if best is None else best.measured, first=first)
        trial = Trial(family, side, tuple(tokens), predicted, found)
        self._known[key] = trial
        self.trials.append(trial)
        self.progress.step(note=plan.setting.name[:60])
        if family is not None and family.name in self.curves and any(n < tokens[0] for n in tokens):
            self.curves[family.name].add(self._row(trial))
        return trial

    def best(self) -> Trial | None:
        """Returns the schedule of the least score within the budget, measured on all images; ``None`` if none is."""
        return self._least(lambda trial: True)

    def leaders(self, count: int) -> list[Trial]:
        """Returns the best schedules within the budget of the ``count`` best strategies, one of each."""
        names = dict.fromkeys(t.family.leader for t in self.trials if t.family is not None)
        found = [self._least(lambda t, name=name: t.family is not None and t.family.leader == name) for name in names]
        return sorted((t for t in found if t is not None), key=lambda t: (t.measured.score, t.tokens))[:count]

    def _least(self, among: Callable[[Trial], bool]) -> Trial | None:
        while True:
            there = (t for t in self.trials if among(t) and self._fits(t))
            found = min(there, key=lambda t: t.measured.score, default=None)
            if found is None or found.measured.whole:
                return found
            measured = self.bench.run(self.plan(found.family, found.side, found.tokens))  # what beat it does not count
            whole = replace(found, measured=measured)
            self.trials[self.trials.index(found)] = whole
            self._known["" if found.family is None else found.family.name, found.side, found.tokens] = whole

    def known(self, family: Family, side: int, tokens: Sequence[int]) -> bool:
        """Returns whether a schedule was measured."""
        return (family.name, side, tuple(tokens)) in self._known

    def descend(self, picks: int) -> None:
        """Measures what the curves propose, best first, until nothing better is predicted."""
        for _ in range(picks):
            found = self._proposals()
            best = self.best()
            if not found or best is not None and found[0][0] > GAIN * best.measured.loss:
                return
            predicted, family, side, tokens = found[0]
            self.measure(family, side, tokens, predicted)

    def predict(self, family: Family, side: int, tokens: Sequence[int]) -> float:
        """Predicts the loss of a schedule, its input size included."""
        return self._base[side] + self._bias(family, side) * self._merging(family, tokens)

    def _merging(self, family: Family, tokens: Sequence[int]) -> float:
        """Predicts the loss of a schedule by the curves alone."""
        if family.parts is None:
            return self.curves[family.name].predict(tokens)
        first, layer, later = family.parts
        early, late = [*tokens[: layer + 1], *[tokens[layer]] * (len(tokens) - layer - 1)], list(tokens)
        late[: layer + 1] = [tokens[layer]] * (layer + 1)
        return self.curves[first.name].predict(early) + self.curves[later.name].predict(late)

    def _begin(self, family: Family) -> None:
        """Measures the strategy's published schedules, so that no plan is worse; drops one that cannot run."""
        side = self.sides[0]
        try:
            for tokens in published(self.space, family, side) or [self._halved(family, 1)]:
                self.measure(family, side, tokens)
        except (ValueError, RuntimeError, NotImplementedError) as error:
            self.notes.append(f"{family.name} was left out: {str(error).splitlines()[0]}")
            return
        self.families[family.name] = family

    def _halved(self, family: Family, layer: int) -> list[int]:
        depth, patches = self.space.target.depth, self.space.target.patches
        return [patches] * layer + [max(patches // 2, family.fewest(layer, patches))] * (depth + 1 - layer)

    def _cut(self, family: Family) -> None:
        """Measures the loss of one cut to half of the tokens, block by block, on the first images."""
        depth, patches = self.space.target.depth, self.space.target.patches
        layers = sorted({round(v) for v in np.linspace(1, depth, min(CUTS, depth))})
        rows: dict[int, Row] = {}
        shown: list[float | None] = [None] * depth
        for layer in layers:
            trial = self.measure(family, self.space.target.side, self._halved(family, layer), first=True)
            if trial.measured.counts[-1] < patches - 0.5:
                rows[layer], shown[layer - 1] = self._row(trial), trial.measured.loss
        if rows:
            self.curves[family.name] = Curve.of_cuts(rows, depth, patches)
            self.sensitivity[family.name] = shown
            for trial in [t for t in self.trials if t.family is family and _steps(t.tokens) > 1]:
                self.curves[family.name].add(self._row(trial))

    def _shrink(self) -> None:
        """Measures the first strategy's equal and falling removals on smaller images."""
        self.families = {name: family for name, family in self.families.items() if name in self.curves}
        for family in list(self.families.values())[:1]:
            for side in self.sides[1:]:
                for tokens in published(self.space, family, side, cuts=False):
                    self.measure(family, side, tokens)

    def _screen(self) -> None:
        """Measures each strategy at the input sizes that promise most, and keeps the two best strategies."""
        for family in list(self.families.values()):
            for predicted, _, side, tokens in self._proposals([family])[:FIRST]:
                self.measure(family, side, tokens, predicted)
        reached: dict[str, float] = {}
        for trial in self.trials:
            if trial.family is not None and self._fits(trial):
                name = trial.family.name
                reached[name] = min(reached.get(name, np.inf), trial.measured.loss)
        kept = sorted(reached, key=lambda name: reached[name])[:2]
        self.families = {name: f for name, f in self.families.items() if name in kept}

    def _vary(self) -> None:
        """Tries the best schedule with other options of its strategy, one after the other, keeping what helps."""
        for _ in range(2):
            best = self.best()
            if best is None or best.family is None:
                return
            for family in self._others(best.family):
                trial = self.measure(family, best.side, best.tokens)
                if self.best() is trial:
                    self._adopt(family, trial, best)
            if self.best() is best:
                return

    def _others(self, family: Family) -> list[Family]:
        """Returns variants of a strategy, and compositions of it with each."""
        found = list(family.variants())
        middle = self.space.target.depth // 2
        mixed = [each.until(middle, family) for each in found] if middle else []
        return [*found, *(each for each in mixed if each is not None)]

    def _adopt(self, family: Family, trial: Trial, best: Trial) -> None:
        """Takes a variant into the search; its curves begin as those of the strategy that it varies."""
        assert best.family is not None
        factor = self._row(trial).merging / self._row(best).merging
        ours = [best.family] if best.family.parts is None else [best.family.parts[0], best.family.parts[2]]
        theirs = [family] if family.parts is None else [family.parts[0], family.parts[2]]
        for place, each in enumerate(theirs):
            if each.name not in self.curves:
                self.curves[each.name] = self.curves[ours[min(place, len(ours) - 1)].name].copy(factor)
            self.families.setdefault(each.name, each)

    def _proposals(self, families: Sequence[Family] | None = None) -> list[tuple[float, Family, int, list[int]]]:
        """Returns unmeasured schedules with their predicted loss, best first: one a strategy and input size."""
        found = []
        for family in [*self.families.values(), *self._pairs()] if families is None else families:
            for side in self.sides:
                tokens = self._propose(family, side)
                if tokens is not None and (family.name, side, tuple(tokens)) not in self._known:
                    if any(n < tokens[0] for n in tokens):
                        found.append((self.predict(family, side, tokens), family, side, tokens))
        return sorted(found, key=lambda each: each[0])

    def _pairs(self) -> list[Family]:
        """Returns the compositions of two of the kept strategies, at several blocks."""
        depth, kept = self.space.target.depth, list(self.families.values())
        layers = sorted({max(1, round(depth * part / 12)) for part in CHANGES if round(depth * part / 12) < depth})
        made = [a.until(layer, b) for a in kept for b in kept for layer in layers]
        return [family for family in made if family is not None]

    def _propose(self, family: Family, side: int) -> list[int] | None:
        levels = self.space.levels(side)
        if family.parts is None:
            losses = self.curves[family.name].steps(levels)
        else:
            first, layer, later = family.parts
            early, late = (self.curves[each.name].steps(levels) for each in (first, later))
            losses = np.concatenate([early[:layer], late[layer:]])
        return self.space.best(losses, levels, family, side)

    def _row(self, trial: Trial) -> Row:
        counts = tuple(round(n) for n in trial.measured.counts)
        return Row(counts, trial.measured.loss, self._base[trial.side])

    def _bias(self, family: Family, side: int) -> float:
        """Returns measured over predicted loss at the nearest input size that was measured with this strategy.

        The last three schedules there count. A composition that was not measured takes its parts' mean.
        """
        near = [t for t in self.trials if t.family is not None and t.family.pair == family.pair]
        near = [t for t in near if _steps(t.tokens) > 1 or family.once]
        if not near:
            parts = [] if family.parts is None else [family.parts[0], family.parts[2]]
            return float(np.exp(np.mean([np.log(self._bias(part, side)) for part in parts]))) if parts else 1.0
        nearest = min({t.side for t in near}, key=lambda each: abs(each - side))
        off = []
        for trial in [t for t in near if t.side == nearest][-3:]:
            assert trial.family is not None
            lost = self._row(trial).merging
            off.append(np.log(lost / max(self._merging(trial.family, trial.tokens), LEAST)))
        return float(np.exp(np.mean(off)))

    def _fits(self, trial: Trial) -> bool:
        return self.space.fits(trial.measured.counts, trial.family)


def _steps(tokens: Sequence[int]) -> int:
    return sum(b < a for a, b in zip(tokens[:-1], tokens[1:], strict=True))
