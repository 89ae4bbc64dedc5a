"""Strategies beside their rivals, from rows of results."""

import pytest

from website import measured
from website.curves import curve, front
from website.measured import Table, comparisons, verdict


def row(strategy, cost, value):
    return {
        "kind": "setting",
        "strategy": strategy,
        "cost": cost,
        "setting": f"{strategy}:{cost}",
        "metrics": {"top1": value},
    }


@pytest.fixture
def table(monkeypatch):
    dense = {"kind": "dense", "setting": "dense", "cost": 1.0, "metrics": {"top1": 0.9}}
    rows = [row("tome", 0.5, 0.8), row("tome", 0.49, 0.7), row("atc", 0.51, 0.85), row("resolution", 0.5, 0.86)]
    found = Table("made up", 9, "top1", [dense, *rows, row("ailurus", 0.2, 0.99)])
    monkeypatch.setattr(measured, "tables", lambda: (found,))
    comparisons.cache_clear()
    yield found
    comparisons.cache_clear()


def test_best_takes_the_best_row_near_a_cost(table):
    assert table.best(0.5, "tome") == (0.8, "tome:0.5") and table.dense == 0.9
    assert table.best(0.8, "tome") is None and table.best(0.5, "ailurus") is None


def test_comparisons_name_the_rivals_that_are_below(table):
    only = next(c for c in comparisons("atc") if c.cost == 0.5)
    assert (only.cost, only.value, only.beaten) == (0.5, 0.85, ("tome",))
    assert only.rivals == {"tome": 0.8, "ailurus": None, "resolution": 0.86}


def test_verdict_says_plainly_what_is_nowhere_above(table):
    assert verdict("atc") == (
        "Its best measured setting is above ToMe's best in 1 of 1 comparisons (made up); "
        "**nowhere above the smaller image** (1 comparisons)."
    )
    assert verdict("gtp") == ""


def test_front_leaves_out_what_a_cheaper_setting_beats():
    assert front([(0.5, 0.8), (0.4, 0.7), (0.6, 0.75)]) == [(0.4, 0.7), (0.5, 0.8)]


def test_curve_has_a_line_for_each_rival_and_none_without_rows(table):
    drawn = curve(table, "atc", "ATC")
    assert drawn.startswith("<svg") and all(f">{name}<" in drawn for name in ("ATC", "ToMe", "smaller image", "dense"))
    assert curve(table, "gtp", "GTP") == ""
