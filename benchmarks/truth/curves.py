"""Settings that vary one parameter at a time, to choose defaults."""

from __future__ import annotations

from collections.abc import Iterator

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
    "topk": {"fuse": (False, True), "score": ("class", "norm")},
}
SCHEDULES = {  # of 12 blocks and 256 tokens: one hard cut and a mild one, or many small ones
    "ailurus": ("{5: 0.25}", "{4: 0.5}"),
    "dpc-knn": ("{5: 0.25}", "{4: 0.5}"),
    "gtp": ("8", "16"),
    "token-migration": ("{3: 0.7, 6: 0.49, 9: 0.343}", "{6: 0.5}"),
    "topk": ("{4: 0.7, 7: 0.49, 10: 0.343}", "{6: 0.5}"),
}
TEMPERATURES = (0.02, "auto", 1, 2, 5, 10, 20, 50, 100, 1000)


def curves(body: Body) -> Iterator[Candidate]:
    """Yields every curve, for a model of 12 blocks.

    Raises:
        ValueError: For another depth, because schedules name blocks.
    """
    if body.anatomy.depth != 12:
        raise ValueError(f"Expected a model of 12 blocks (got {body.anatomy.depth}).")
    for strategy, parameters in ONE.items():
        for parameter, values in parameters.items():
            for schedule in SCHEDULES[strategy]:
                for value in values:
                    yield _one(f"{strategy}:{schedule},{parameter}={value}", strategy, parameter)
    for side in (8, 14):
        for first in (3, 5):
            for value in TEMPERATURES:
                text = f"expedite:{{{first}: 'cluster', 12: 'reconstruct'}},clusters=({side}, {side})"
                yield _one(f"{text},inv_temperature={value}", "expedite", "inv_temperature")
    yield from _attention()
    yield from _reduction()


def _attention() -> Iterator[Candidate]:
    """The size bias by layer, for one cut to a half, and for many small ones."""
    for strategy in MERGING:
        for power in POWERS:
            for layer in LAYERS:
                yield _one(f"{strategy}:{{{layer}: 0.5}},prop_attn={power}", strategy, "prop_attn")
    for power in POWERS:
        for removed in (8, 16):
            yield _one(f"tome:{removed},prop_attn={power}", "tome", "prop_attn")


def _reduction() -> Iterator[Candidate]:
    """How clusters are pooled, by layer and by share."""
    known = [name for name in REDUCTIONS if name != "sum"]  # a sum is no token
    for strategy in MERGING:
        for reduction in known:
            if reduction == "center" and not has_centers(strategy):
                continue
            for layer in (2, 4, 5, 6):
                for share in (0.25, 0.5):
                    if strategy != "tome" or share == 0.5:  # ToMe keeps at least half
                        yield _one(f"{strategy}:{{{layer}: {share}}},reduce={reduction}", strategy, "reduce")
    for reduction in (name for name in known if name != "center"):
        for removed in (8, 12, 16, 19):
            yield _one(f"tome:{removed},reduce={reduction}", "tome", "reduce")


def _one(text: str, strategy: str, parameter: str) -> Candidate:
    return Candidate(read_setting(text).name, strategy, parameter, 0.0)
