"""The strategies that a planner tries, each with its options."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tokengraph.evaluate.settings import Setting, read_setting
from tokengraph.select.base import Select, registry, resolve

STRATEGIES = ("tome", "dpc-knn,reduce=mlerp", "atc,linkage=complete")  # chosen by measurement; see docs/planning.md
REDUCTIONS = ("mean", "mlerp")
ATTENTION = ("log", "half-log", "none")


@dataclass(frozen=True)
class Family:
    """A strategy with its options, for any schedule.

    Args:
        base: A setting with the strategy and its options.
        select: The strategy with these options.
        parts: For a composition: the first strategy, its last block, and the strategy of later blocks.
    """

    base: Setting
    select: Select = field(compare=False)
    parts: tuple[Family, int, Family] | None = field(default=None, compare=False)

    @property
    def name(self) -> str:
        """Its name in tables: the strategy with its options."""
        return self.base.name

    @property
    def pair(self) -> str:
        """The names of its strategies, without the block where they change."""
        return self.name if self.parts is None else f"{self.parts[0].name} > {self.parts[2].name}"

    @property
    def leader(self) -> str:
        """The name of its strategy, or of the first of two, without options."""
        return str(self.base.strategy)

    @property
    def once(self) -> bool:
        """True if it acts once a model."""
        return self.select.needs_grid

    def setting(self, tokens: Sequence[int], resolution: int | None) -> Setting:
        """Returns the setting of a schedule."""
        removed = [a - b for a, b in zip(tokens[:-1], tokens[1:], strict=True)]
        if not any(removed):
            return Setting(resolution=resolution)
        return replace(self.base, schedule=removed, resolution=resolution)

    def fewest(self, layer: int, tokens: int) -> int:
        """Returns the fewest of ``tokens`` tokens that a step in block ``layer`` (from 1) can leave."""
        return self.select.for_block(layer - 1).fewest(tokens)

    def until(self, layer: int, later: Family) -> Family | None:
        """Returns the composition with ``later`` after block ``layer``; ``None`` if they do not compose."""
        if self.parts is not None or later.parts is not None or later.once or self.name == later.name:
            return None
        if self.base.prop_attn != later.base.prop_attn or not self.select.weighs == later.select.weighs:
            return None
        base = replace(self.base, then={layer + 1: replace(later.base, prop_attn=None).name})
        try:
            made = base.reducing()
        except ValueError:
            return None
        assert made is not None
        return Family(base, made, (self, layer, later))

    def variants(self) -> Iterator[Family]:
        """Yields the strategy with other ways to pool clusters and to weigh attention, one changed at a time.

        Of a composition the first strategy's pooling changes; of one strategy also that of the first half alone.
        """
        if not self.select.merges:
            return
        if self.parts is not None:
            first, layer, later = self.parts
            pairs = [(other, later) for other in first.variants()] + [(first, other) for other in later.variants()]
            made = (a.until(layer, b) for a, b in pairs)
            yield from (family for family in made if family is not None)
            return
        for reduction in REDUCTIONS:
            if reduction != self.select.reduction and "reduction" not in self.base.options:
                yield self._with(options={**self.base.options, "reduce": reduction})
        now = self.base.prop_attn if self.base.prop_attn is not None else self.select.prop_attn
        for power in ATTENTION:
            if power != {True: "log", False: "none"}.get(now, now):  # type: ignore[call-overload]
                yield self._with(prop_attn=power)

    def _with(self, **changes: Any) -> Family:
        base = replace(self.base, **changes)
        made = base.reducing()
        assert made is not None
        return Family(base, made)


def families(strategies: Sequence[str | Setting | Mapping[str, Any]] | str | None) -> list[Family]:
    """Reads the strategies to try.

    Args:
        strategies: Names, or settings without a schedule such as ``"tome,reduce=mlerp"``; ``"all"`` takes every
            registered strategy that needs no training; ``None`` the short list that measured best.

    Raises:
        ValueError: For an unknown strategy, one that learns, one with its own schedule, or a setting with a schedule.
    """
    if strategies is None:
        return [_family(name) for name in STRATEGIES]
    if isinstance(strategies, str) and strategies == "all":
        return [_family(name) for name, kind in sorted(registry().items()) if _fits(kind)]
    given = [strategies] if isinstance(strategies, str | Setting | Mapping) else list(strategies)
    if not given:
        raise ValueError("Expected at least one strategy (got none). For smaller images alone give strategies='none'.")
    return [] if given == ["none"] else list({f.name: f for f in map(_family, given)}.values())


def _fits(kind: type[Select]) -> bool:
    """Whether a schedule says how many tokens the strategy keeps, with nothing to train."""
    try:
        made = kind()
    except TypeError:  # needs arguments
        return False
    return (
        kind.__module__.startswith("tokengraph.")
        and not made.learns
        and made.own_budget is None
        and not made.ragged
        and made.placement != "around"
    )


def _family(given: Any) -> Family:
    setting = read_setting(given)
    select = setting.reducing()
    if select is None or setting.schedule is not None or setting.resolution is not None or setting.model is not None:
        raise ValueError(
            f"Expected a strategy without schedule and resolution, which are planned (got {setting.name!r})."
        )
    if select.learns or setting.weights is not None:
        raise ValueError(f"Expected strategies that need no training (got {setting.name!r}).")
    if resolve(type(select)).own_budget is not None or select.own_budget is not None:
        raise ValueError(f"Expected strategies whose schedule gives the tokens (got {setting.name!r}, with its own).")
    return Family(setting, select)
