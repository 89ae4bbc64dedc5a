"""Builds the rows of a report from figures, costs and measured times."""

from __future__ import annotations

from tokengraph.attach.planner import Standalone
from tokengraph.evaluate.costs import multiply_adds
from tokengraph.evaluate.figures import Scorer
from tokengraph.evaluate.measure import Measured
from tokengraph.evaluate.row import Row
from tokengraph.evaluate.run import DENSE, Runner
from tokengraph.evaluate.settings import Setting
from tokengraph.evaluate.timing import quartiles

Three = tuple[float, float, float]


def make_rows(
    scorer: Scorer, runner: Runner, settings: tuple[list[Setting], list[Setting]], measured: dict[str, Measured]
) -> list[Row]:
    """Returns the dense model's row, then the rows of settings and of controls.

    Args:
        scorer: Computes the figures.
        runner: The runner of the evaluation.
        settings: Settings, and controls.
        measured: Times and memory, by setting.
    """
    whole = _gmacs(scorer, runner, DENSE)[0]
    rows = [_row(scorer, runner, DENSE, "dense", measured, whole)]
    for kind, chosen in zip(("setting", "control"), settings, strict=True):
        rows += [_row(scorer, runner, setting, kind, measured, whole) for setting in chosen]
    return rows


def _row(
    scorer: Scorer, runner: Runner, setting: Setting, kind: str, measured: dict[str, Measured], whole: float | None
) -> Row:
    reason = next((r for part in ("train", "data") if (r := runner.store.reason(part, setting.key))), "")
    if reason:
        return Row(setting.name, kind, reason)
    metrics, intervals, differences = scorer.figures(setting.key)
    gmacs, counted = _gmacs(scorer, runner, setting)
    own, dense = measured.get(setting.key, Measured()), measured.get(DENSE.key, Measured())
    run = own.ms.get("attached") or own.ms.get("plain")
    return Row(
        name=setting.name,
        kind=kind,
        metrics=metrics,
        intervals=intervals,
        differences=differences,
        gmacs=gmacs,
        cost=None if gmacs is None or not whole else gmacs / whole,
        counted=counted,
        counts=tuple(scorer.counts(setting.key) or ()),
        ms={form: quartiles(times) for form, times in own.ms.items()},
        speed=_over(run, dense.ms.get("plain")),
        over_ideal=_over(own.ms.get("attached"), own.ms.get("ideal")),
        peak=own.peak,
    )


def _over(times: list[float] | None, others: list[float] | None) -> Three | None:
    """Divides times round by round, so that common noise cancels."""
    if not times or not others:
        return None
    return quartiles([a / b for a, b in zip(times, others, strict=True)])


def _gmacs(scorer: Scorer, runner: Runner, setting: Setting) -> tuple[float | None, bool]:
    """Returns billions of multiply-adds for an image, and True if choosing is counted."""
    counts = scorer.counts(setting.key)
    body = runner.forms.anatomy(setting) if counts is not None else None
    if body is None or counts is None:
        return None, True
    select = setting.select()
    if isinstance(select, Standalone):  # of a model without plain blocks
        return None, True
    lifts = runner.decode is not None and select is not None
    total, counted = multiply_adds(body, counts, select, lift=lifts)
    return total / 1e9, counted
