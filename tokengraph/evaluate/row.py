"""One row of a report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tokengraph.evaluate.statistics import Difference


@dataclass(frozen=True)
class Row:
    """What one setting gave.

    Args:
        name: Of the setting.
        kind: ``"dense"``, ``"setting"`` or ``"control"``.
        reason: Why it failed; empty if it did not. A failed row has no figures.
        metrics: Figures by name: ``top1``, ``top5``, ``miou``, ``biou``, ``agreement``, ``kl``, ``class_cosine``,
            ``class_worst``, ``patch_cosine``, ``patch_worst``, ``probe_as_is``, ``probe_refit``; with a
            probe on patches ``miou`` and ``biou`` are its as it is, ``miou_refit`` and ``biou_refit`` fitted again.
        intervals: 95 % intervals of figures, by bootstrap over images.
        differences: Figures minus the dense model's, paired.
        gmacs: Billions of multiply-adds of the blocks for an image, merging included; ``None``: not known.
        cost: The same as a share of the dense model's.
        counted: Whether the strategy says what its choice costs; if not, its choice is missing in ``gmacs``.
        counts: Mean patch tokens before the first block and after each.
        ms: Median and quartiles of the milliseconds of a batch, by ``"plain"``, ``"attached"``, ``"ideal"``.
        speed: Time over the dense model's, round by round: median and quartiles.
        over_ideal: Time over the ideal's, likewise.
        peak: Bytes that a run holds at its worst moment.
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
