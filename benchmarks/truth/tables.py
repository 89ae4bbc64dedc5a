"""Which settings the search compares: every strategy, cost, family of schedules and option."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import torch

from tokengraph.evaluate.costs import Anatomy, multiply_adds
from tokengraph.evaluate.settings import read_setting
from tokengraph.graph.coarsen import coarsen
from tokengraph.graph.token_graph import TokenGraph
from tokengraph.maps.hard import Assignment
from tokengraph.select.base import Select, registry
from truth.plans import FAR, Shape, after, at_cost, clusters, constant, linear, thirds
from truth.thresholds import COUNTS, LAYERS, SHAPE, own_settings

COSTS = (0.35, 0.5, 0.65, 0.8)
REDUCTIONS = ("", ",reduce=mlerp")
CENTER = ",reduce=center"
HALF = ",prop_attn=half-log"
MEAN = ("", ",reduce=mean")  # of strategies whose default is MLERP or a rule of their own
OWN = {  # options of single strategies, tried in place of REDUCTIONS
    "around": ("", ",sizes=False"),
    "atc": ("", ",reduce=mlerp", ",linkage=single", ",linkage=complete"),
    "ailurus": (*MEAN, CENTER),
    "cubist-merge": MEAN,
    "dpc-knn": (*MEAN, CENTER),
    "k-medoids": MEAN,
    "mctf": ("", ",ahead=True", ",ahead=precise"),
    "tofu": ("", ",reduce=mean", ",reduce=released"),
    "token-transforming": ("", ",keep_self=True"),  # its map is a weighted one, which has no other reduction
    "toma": ("", ",scale=1000"),  # likewise
}
TRAINED = ("avit",)  # reads scores that only a model trained for it has
TEMPERATURES = ("", ",inv_temperature=0.02", ",inv_temperature=20", ",inv_temperature=100")


@dataclass(frozen=True)
class Body:
    """A model and the patches of its images, which all schedules depend on.

    Args:
        anatomy: What costs are counted from.
        side: Patches along an image's side.
        patch: Pixels of a patch's side.
    """

    anatomy: Anatomy
    side: int
    patch: int

    @property
    def whole(self) -> float:
        """Multiply-adds of the dense model."""
        return multiply_adds(self.anatomy, [self.side**2] * (self.anatomy.depth + 1))[0]


@dataclass(frozen=True)
class Candidate:
    """One setting with what it was made from.

    Args:
        setting: As text.
        strategy: Its name.
        shape: Its family of schedules.
        cost: The share that was wanted; 0 for resolutions alone and for strategies with thresholds of their own.
        options: What differs from the strategy's defaults.
    """

    setting: str
    strategy: str
    shape: str
    cost: float
    options: str = ""


def strategies() -> list[str]:
    """All that need no training, by name; EViT beside the TopK that it is."""
    known = [(name, kind) for name, kind in registry().items() if kind.__module__.startswith("tokengraph.select")]
    return sorted({*(name for name, kind in known if not learns(kind)), "evit"})


def learns(kind: type[Select]) -> bool:
    """Whether a strategy must be trained first, or the model for it; where options decide, by the defaults."""
    return kind.name in TRAINED or (kind.learns if isinstance(kind.learns, bool) else kind().learns)


def shapes(strategy: str, depth: int) -> list[Shape]:
    """The families that a strategy is tried with."""
    if strategy == "expedite":
        return [clusters(first, depth) for first in range(2, depth // 2 + 1)]
    cuts = sorted({max(1, round(depth * part / 12)) for part in (1, 2, 3, 4, 5, 6, 8)})
    once = [after(layer) for layer in cuts]
    kind = registry().get(strategy)
    if kind is not None and kind.needs_grid:  # works on the whole grid only, so once
        return once
    return [constant(), linear(), thirds(depth), *once]


def variants(strategy: str) -> list[str]:
    """Options that are tried: pooling and attention of strategies that merge, and options of single strategies."""
    if strategy == "expedite":
        return list(TEMPERATURES)
    kind = registry().get(strategy)
    if kind is None or not kind.merges:
        return [""]
    first = OWN.get(strategy, (*REDUCTIONS, CENTER) if has_centers(strategy) else REDUCTIONS)
    also = [own + HALF for own in ("", ",reduce=mlerp", ",reduce=mean") if own in first and weighs(strategy + own)]
    return [*first, *also]


@cache
def has_centers(strategy: str) -> bool:
    """Whether the strategy's map names the centre of each cluster, which ``reduce="center"`` reads."""
    graph = TokenGraph.from_tokens(torch.randn(1, 16, 8), grid=(4, 4))
    try:
        made = coarsen(graph, strategy, 8).assignment
    except ValueError:  # it reads attention, which only a model has
        return False
    return isinstance(made, Assignment) and made.centers is not None


def weighs(setting: str) -> bool:
    """Whether attention weighs tokens by size under a setting without a schedule."""
    select = read_setting(setting).select()
    return select is not None and select.weighs


def search(body: Body, costs: Sequence[float] = COSTS) -> Iterator[Candidate]:
    """Every strategy at every cost, in every family, with every variant that reaches the cost; and resolutions."""
    for size in resolutions(body):
        yield Candidate(f"resolution:{size}", "resolution", "alone", 0.0)
    yield from thresholds(body)
    for share in costs:
        for strategy in strategies():
            if ragged(strategy):  # the images decide their cost
                continue
            for shape in shapes(strategy, body.anatomy.depth):
                for options in variants(strategy):
                    yield from made(body, strategy, shape, share, options)
        yield from combinations(body, share)


def thresholds(body: Body) -> Iterator[Candidate]:
    """Every strategy with a threshold of its own, at its own layers."""
    for strategy in (name for name in strategies() if name in COUNTS or name in LAYERS):
        for setting in own_settings(strategy, body.anatomy.depth):
            yield Candidate(setting, strategy, SHAPE, 0.0, setting.partition(",")[2])


def nearest_share(cost: float | None) -> float:
    """Returns the share of the tables that a measured cost belongs to; 0 if it is far from all."""
    near = min(COSTS, key=lambda share: abs(share - (cost or 0)))
    return near if abs(near - (cost or 0)) <= FAR else 0.0


def ragged(strategy: str) -> bool:
    """Whether a threshold of its own decides how many tokens each image keeps."""
    kind = registry().get(strategy)
    return kind is not None and kind.ragged


def combinations(body: Body, share: float) -> Iterator[Candidate]:
    """A smaller image and ToMe together, with the mean and with MLERP."""
    for size in resolutions(body):
        for shape in (constant(), linear()):
            for options in REDUCTIONS:
                yield from made(body, "tome", shape, share, options, size)


def resolutions(body: Body) -> list[int]:
    """Smaller images down to half of the side, one patch at a time."""
    return [side * body.patch for side in range(body.side - 1, (body.side - 1) // 2, -1)]


def made(
    body: Body, strategy: str, shape: Shape, share: float, options: str, size: int | None = None
) -> Iterator[Candidate]:
    """One setting of a family at a share of the dense cost, at a smaller image if ``size`` is given; or none."""
    tokens = (size // body.patch if size else body.side) ** 2
    setting = at_cost(strategy, shape, share, body.anatomy, tokens, body.whole, options=options)
    if setting is not None:
        smaller = f"resolution:{size}+" if size else ""
        yield Candidate(read_setting(smaller + setting).name, smaller + strategy, shape.name, share, options)
