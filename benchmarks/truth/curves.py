"""Settings that vary one parameter at a time, to choose defaults."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tokengraph.attention.size_bias import POWERS
from tokengraph.evaluate.settings import read_setting
from tokengraph.maps.pool import REDUCTIONS
from tokengraph.select.migration.redundancy import REPLENISH
from tokengraph.select.parts.scores.attention import SCORES
from truth.tables import Body, Candidate, has_centers

MERGING = ("tome", "ailurus", "dpc-knn", "grid-pool")
LAYERS = (1, 2, 3, 4, 5, 6, 8)  # of 12
ONE = {  # strategy: parameter: values
    "ailurus": {"k": (1, 3, 5, 10, 20), "lam": (9, 25, 50, 100), "alpha": (0.3, 0.5, 0.7, 0.9, 1.0)},
    "dpc-knn": {"k": (1, 3, 5, 10, 20)},
    "gtp": {
        "graph": ("spatial", "semantic", "mixed"),
        "alpha": (0.0, 0.05, 0.1, 0.2, 0.4),
        "score": SCORES,
        "neighbors": (4, 8, 16),
        "scales": (True, False),
    },
    "token-migration": {"replenish": REPLENISH, "similarity": ("keys", "tokens"), "split": ("rank", "checkerboard")},
    "topk": {"fuse": (False, True, "average"), "score": ("class", "norm")},
}
TEMPERATURES = (0.02, "auto", 1, 2, 5, 10, 20, 50, 100, 1000)
Scale = Callable[[int], int]


def curves(body: Body) -> Iterator[Candidate]:
    """Yields every curve. Layers are those of 12 blocks, and removed tokens those of 256, scaled to the model."""

    def layer(of_twelve: int) -> int:
        """A layer at the same share of the depth, inside the model."""
        return min(max(1, round(of_twelve * body.anatomy.depth / 12)), body.anatomy.depth - 1)

    def removed(of_each: int) -> int:
        """Tokens a block that remove the same share of all tokens over the depth."""
        return max(1, round(of_each * 12 / 256 * body.side**2 / body.anatomy.depth))

    found = [*_parameters(layer, removed), *_temperatures(body, layer), *_attention(layer, removed)]
    found += _reduction(layer, removed)
    yield from {c.setting: c for c in reversed(found)}.values()


def _schedules(layer: Scale, removed: Scale) -> dict[str, tuple[str, ...]]:
    """One hard cut and a mild one, or many small ones."""
    hard, mild, thirds = f"{{{layer(5)}: 0.25}}", f"{{{layer(4)}: 0.5}}", {4: 0.7, 7: 0.49, 10: 0.343}
    half = f"{{{layer(6)}: 0.5}}"
    return {
        "ailurus": (hard, mild),
        "dpc-knn": (hard, mild),
        "gtp": (str(removed(8)), str(removed(16))),
        "token-migration": (str({layer(at - 1): share for at, share in thirds.items()}), half),
        "topk": (str({layer(at): share for at, share in thirds.items()}), half),
    }


def _parameters(layer: Scale, removed: Scale) -> Iterator[Candidate]:
    schedules = _schedules(layer, removed)
    for strategy, parameters in ONE.items():
        for parameter, values in parameters.items():
            for schedule in schedules[strategy]:
                for value in values:
                    yield _one(f"{strategy}:{schedule},{parameter}={value}", strategy, parameter)


def _temperatures(body: Body, layer: Scale) -> Iterator[Candidate]:
    for half in (8, 14):  # of 16
        side = round(half * body.side / 16)
        for first in (3, 5):
            for value in TEMPERATURES:
                text = f"expedite:{{{layer(first)}: 'cluster', {body.anatomy.depth}: 'reconstruct'}}"
                yield _one(f"{text},clusters=({side}, {side}),inv_temperature={value}", "expedite", "inv_temperature")


def _attention(layer: Scale, removed: Scale) -> Iterator[Candidate]:
    """The size bias by layer, for one cut to a half, and for many small ones."""
    for strategy in MERGING:
        for power in POWERS:
            for of_twelve in LAYERS:
                yield _one(f"{strategy}:{{{layer(of_twelve)}: 0.5}},prop_attn={power}", strategy, "prop_attn")
    for power in POWERS:
        for count in (8, 16):
            yield _one(f"tome:{removed(count)},prop_attn={power}", "tome", "prop_attn")


def _reduction(layer: Scale, removed: Scale) -> Iterator[Candidate]:
    """How clusters are pooled, by layer and by share."""
    known = [name for name in REDUCTIONS if name != "sum"]  # a sum is no token
    for strategy in MERGING:
        own = [name for name in known if name not in ("center", "released-mlerp") or has_centers(strategy)]
        for reduction in own:
            for of_twelve in (2, 4, 5, 6):
                for share in (0.25, 0.5):
                    if strategy != "tome" or share == 0.5:  # ToMe keeps at least half
                        yield _one(f"{strategy}:{{{layer(of_twelve)}: {share}}},reduce={reduction}", strategy, "reduce")
            for count in (8, 12, 16, 19) if strategy == "tome" else ():
                yield _one(f"tome:{removed(count)},reduce={reduction}", "tome", "reduce")


def _one(text: str, strategy: str, parameter: str) -> Candidate:
    return Candidate(read_setting(text).name, strategy, parameter, 0.0)
