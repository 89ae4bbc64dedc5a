"""Controls that a strategy must beat at its own cost: random pruning, grid pooling, and a smaller image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tokengraph.attach.planner import Standalone
from tokengraph.evaluate.costs import Anatomy, multiply_adds
from tokengraph.evaluate.forms import Forms
from tokengraph.evaluate.images import Images
from tokengraph.evaluate.own import find_own
from tokengraph.evaluate.settings import Setting
from tokengraph.schedule import Schedule, tokens_per_layer
from tokengraph.select.grid_pool import GridPool

CLOSE = 0.12  # a smaller image is a control if its cost is within this share of the dense model's


def with_controls(settings: Sequence[Setting], forms: Forms, images: Images) -> list[Setting]:
    """Returns the controls of settings that remove tokens, each once, without those that are settings already.

    For each setting: ``random`` with the same tokens after each block; ``grid-pool`` in one reduction at the same cost,
    at the setting's layer if it has one, else where half of its removed tokens have gone; and the resolution with the
    nearest cost. Where the images decide how many tokens stay, controls have the mean number over some of the images.
    A setting that cannot be planned has no controls; its row has the reason.
    """
    known = {s.key for s in settings}
    found: dict[str, Setting] = {}
    for setting in settings:
        if setting.strategy is None or setting.model is not None:
            continue
        try:
            made = _controls(setting, forms, images)
        except Exception:  # the setting's own row reports the error
            continue
        for control in made:
            if control.key not in known:
                found.setdefault(control.key, control)
    return list(found.values())


def _controls(setting: Setting, forms: Forms, images: Images) -> list[Setting]:
    select = setting.select()
    body = forms.anatomy(setting)
    if body is None or isinstance(select, Standalone):
        return []
    counts = forms.counted(setting, images)
    cost = multiply_adds(body, counts, select)[0]
    made = []
    if counts[-1] < counts[0]:
        made.append(_random(setting, counts))
    if min(counts) < counts[0]:
        made.append(_grid_pool(setting, counts, cost, body))
    made.append(_smaller(cost, forms))
    own = type(select).name if select is not None else ""
    return [control for control in made if control is not None and control.strategy != own]


def _random(setting: Setting, counts: list[int]) -> Setting | None:
    schedule = setting.schedule
    if schedule is None or not _plans(schedule, counts):
        removed = [a - b for a, b in zip(counts[:-1], counts[1:], strict=True)]
        schedule = removed if min(removed) >= 0 else None
    return None if schedule is None else Setting("random", schedule, resolution=setting.resolution)


def _plans(schedule: Schedule, counts: list[int]) -> bool:
    """Whether random pruning by the schedule keeps these tokens; it acts inside blocks and returns none."""
    if isinstance(schedule, Mapping) and (0 in schedule or any(isinstance(v, str) for v in schedule.values())):
        return False
    return tokens_per_layer(schedule, len(counts) - 1, counts[0]) == counts


def _grid_pool(setting: Setting, counts: list[int], cost: float, body: Anatomy) -> Setting | None:
    cuts = [layer for layer in range(1, len(counts)) if counts[layer] < counts[layer - 1]]
    if len(cuts) == 1 and counts[-1] == counts[cuts[0]]:
        return Setting("grid-pool", {cuts[0]: counts[-1]}, resolution=setting.resolution)
    half = (counts[0] + min(counts)) / 2
    layer = next(layer for layer, count in enumerate(counts) if count <= half)
    layer = min(layer, len(counts) - 2)

    def of(keep: int) -> float:
        return multiply_adds(body, [counts[0]] * layer + [keep] * (len(counts) - layer), GridPool())[0]

    best = min(range(1, counts[0]), key=lambda keep: abs(of(keep) - cost), default=None)
    return None if best is None or not layer else Setting("grid-pool", {layer: best}, resolution=setting.resolution)


def _smaller(cost: float, forms: Forms) -> Setting | None:
    body, size = forms.anatomy(), forms.config().size
    core, adapter = find_own(forms.model(), forms.source.adapter)
    grid = adapter.grid(core)
    if body is None or len(grid) != 2 or size % grid[0] or grid[0] != grid[1]:
        return None
    patch = size // grid[0]
    whole = multiply_adds(body, [grid[0] ** 2] * (body.depth + 1))[0]
    of = {side: multiply_adds(body, [side * side] * (body.depth + 1))[0] for side in range(1, grid[0])}
    best = min(of, key=lambda side: abs(of[side] - cost), default=None)
    if best is None or abs(of[best] - cost) > CLOSE * whole:
        return None
    return Setting(resolution=best * patch)
