"""Settings of strategies whose own threshold decides how many tokens stay; their costs are known after a run."""

from __future__ import annotations

SHAPE = "own"  # stands in the place of a family of schedules
LAYERS = {  # of 12 blocks; the published ones first
    "mpm": ((2, 5), (2,), (5,), (2, 5, 8), (1, 2, 3, 4, 5, 6)),
    "g2tm": ((2,), (1,), (4,)),
    "algm": ((1, 5), (1, 7), (1,), (1, 3, 5, 7)),
}
COUNTS = {"ats": ("", ",samples=192", ",samples=128", ",samples=96", ",samples=64")}  # settings without layers
TAU = {"g2tm": (0.88, 0.94, 0.8, 0.7, 0.5), "algm": (0.88, 0.94, 0.95, 0.8, 0.7)}


def own_settings(strategy: str, depth: int) -> list[str]:
    """Returns settings with the method's own layers and thresholds, without a schedule; the published one first.

    Args:
        strategy: Its name.
        depth: Blocks of the model; layers keep their place in a model of another depth.

    Raises:
        KeyError: For a strategy that no row of ``LAYERS`` or ``COUNTS`` names.
    """
    if strategy in COUNTS:
        return [strategy + options for options in COUNTS[strategy]]
    found = []
    for of_twelve in LAYERS[strategy]:
        layers = tuple(sorted({max(1, round(depth * layer / 12)) for layer in of_twelve}))
        at = f"layer={layers[0]}" if strategy == "g2tm" else f"layers={layers}"
        found += [f"{strategy},tau={tau},{at}" for tau in TAU[strategy]] if strategy in TAU else [f"{strategy},{at}"]
    return list(dict.fromkeys(found))
