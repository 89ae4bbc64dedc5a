"""Finds schedules at a wanted cost in families of schedules with one parameter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from tokengraph.evaluate.costs import Anatomy, multiply_adds
from tokengraph.evaluate.settings import Setting, read_setting
from tokengraph.schedule import counts_ahead, tokens_around, tokens_per_layer
from tokengraph.select.base import Select

FAR = 0.03  # a schedule whose cost is farther from the wanted share than this does not count as one at that cost


@dataclass(frozen=True)
class Shape:
    """A family of schedules.

    Args:
        name: For tables.
        text: What follows the strategy's name in a setting, for one position of the knob: schedule and options.
        knob: The positions, of ``(depth, tokens)``.
    """

    name: str
    text: Callable[[int], str]
    knob: Callable[[int, int], Sequence[int]]


def constant() -> Shape:
    """Removes the same number of tokens in every block."""
    return Shape("constant", lambda r: f":{r}", lambda depth, tokens: range(1, max(2, 2 * tokens // depth)))


def linear() -> Shape:
    """Removes most tokens in the first block and none in the last."""
    return Shape("linear", lambda r: f":linear({r})", lambda depth, tokens: range(1, max(2, 2 * tokens // depth)))


def after(layer: int) -> Shape:
    """One cut, to at least a twentieth of the tokens."""
    return Shape(f"after {layer}", lambda keep: f":{{{layer}: {keep}}}", lambda _, n: range(max(1, n // 20), n))


def thirds(depth: int) -> Shape:
    """Three cuts by the same share, inside the first block of the second, third and last quarter; of 12: 4, 7, 10."""
    layers = [depth * i // 4 + 1 for i in (1, 2, 3)]

    def text(percent: int) -> str:
        return f":relative({{{', '.join(f'{layer}: {percent / 100}' for layer in layers)}}})"

    return Shape("thirds", text, lambda *_: range(10, 100))


def clusters(first: int, last: int, options: str = "") -> Shape:
    """Expedite's: square clusters after ``first`` blocks, every patch again after ``last``."""

    def text(side: int) -> str:
        return f":{{{first}: 'cluster', {last}: 'reconstruct'}},clusters=({side}, {side}){options}"

    return Shape(f"{first} to {last}", text, lambda _, tokens: range(2, int(tokens**0.5)))


def counts_of(setting: Setting, depth: int, tokens: int) -> list[int]:
    """Patch tokens before the first block and after each."""
    select = setting.select()
    if select is None:
        return [tokens] * (depth + 1)
    assert isinstance(select, Select)
    sides = getattr(select, "clusters", None)
    inner = None if sides is None else int(sides[0]) * int(sides[1])
    assert setting.schedule is not None
    if select.placement == "around":
        return [tokens, *tokens_around(setting.schedule, depth, tokens, select.fewest, clusters=inner)]
    counts = tokens_per_layer(setting.schedule, depth, tokens, select.fewest, clusters=inner)
    return counts_ahead(counts, tokens) if select.placement == "ahead" else counts


def cost_of(setting: Setting, body: Anatomy, tokens: int) -> float:
    """Multiply-adds of the blocks for an image of ``tokens`` patches, merging included."""
    select = setting.select()
    assert select is None or isinstance(select, Select)
    return multiply_adds(body, counts_of(setting, body.depth, tokens), select)[0]


def at_cost(
    strategy: str, shape: Shape, share: float, body: Anatomy, tokens: int, whole: float, *, options: str = ""
) -> str | None:
    """Returns the setting of a family whose cost is nearest to a share of the dense model's.

    Args:
        strategy: By name.
        shape: The family.
        share: Of ``whole``.
        body: The model.
        tokens: Patches of an image under the setting: fewer than the dense model's at a lower resolution.
        whole: Multiply-adds of the dense model.
        options: Further options of the setting, ``",reduce=mlerp"``.

    Returns:
        The setting's text; ``None`` where no position of the knob comes within 0.03.
    """
    positions = shape.knob(body.depth, tokens)

    def text(index: int) -> str:
        return f"{strategy}{shape.text(positions[index])}{options}"

    @cache
    def share_of(index: int) -> float | None:
        try:
            return cost_of(read_setting(text(index)), body, tokens) / whole
        except ValueError:  # more than the strategy can remove in one step
            return None

    ends = _possible(share_of, len(positions))
    if ends is None:
        return None
    low, high = ends
    rising = share_of(high) > share_of(low)
    while high - low > 1:  # the cost is monotonic in the parameter
        middle = (low + high) // 2
        if (share_of(middle) < share) == rising:
            low = middle
        else:
            high = middle
    nearest = min((low, high), key=lambda index: abs(share_of(index) - share))
    return text(nearest) if abs(share_of(nearest) - share) <= FAR else None


def _possible(value: Callable[[int], float | None], count: int) -> tuple[int, int] | None:
    """First and last index whose value is there; only the first ones may be missing."""
    if not count or value(count - 1) is None:
        return None
    if value(0) is not None:
        return 0, count - 1
    missing, there = 0, count - 1
    while there - missing > 1:
        middle = (missing + there) // 2
        missing, there = (missing, middle) if value(middle) is not None else (middle, there)
    return there, count - 1
