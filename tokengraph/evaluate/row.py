"""One row of a report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tokengraph.evaluate.statistics import Difference


@dataclass(frozen=True)
class Row:
    """The results of one setting.

    Args:
        name: Name of the setting.
        kind: ``"dense"``, ``"setting"`` or ``"control"``.
        reason: The error of a failed setting, which has no figures; otherwise empty.
        metrics: Figures by name: ``top1``, ``top5``, ``miou``, ``biou``, ``agreement``, ``kl``, ``class_cosine``,
            ``class_worst``, ``patch_cosine``, ``patch_worst``, ``probe_as_is``, ``probe_mapped``
            (the same probe after :func:`tokengraph.realign`), ``probe_refit``; with a probe on patches ``miou`` and
            ``biou`` use the dense model's probe, ``miou_refit`` and ``biou_refit`` a refitted one.
        intervals: 95 % intervals of figures, by bootstrap over images.
        differences: Figures minus the dense model's, paired.
        gmacs: Billions of multiply-adds of the blocks for an image, merging included; ``None`` if unknown.
        cost: The same as a share of the dense model's.
        counted: True if ``gmacs`` includes the cost of the strategy's choice.
        counts: Mean patch tokens before the first block and after each.
        ms: Median and quartiles of the milliseconds of a batch, by ``"plain"``, ``"attached"``, ``"ideal"``.
        speed: Time divided by the dense model's in each round: median and quartiles.
        over_ideal: Time divided by the ideal's in each round: median and quartiles.
        peak: Peak memory of a run in bytes.
    """

    name: str
    kind: str
    reason: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    differences: Mapping[str, Difference] = field(default_factory=dict)
    gmacs: float | None = None
    cost: float | None = None
    counted: bool = True
    counts: tuple[float, ...] = ()
    ms: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)
    speed: tuple[float, float, float] | None = None
    over_ideal: tuple[float, float, float] | None = None
    peak: int | None = None
