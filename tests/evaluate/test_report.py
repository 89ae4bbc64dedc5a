"""Reports as files, and their picture."""

import csv
import io
import json

import pytest

from tokengraph.evaluate.report import Report
from tokengraph.evaluate.row import Row
from tokengraph.evaluate.statistics import Difference
from tokengraph.viz.pareto import family, plot_pareto, smaller

DENSE = Row("dense", "dense", metrics={"top1": 0.8}, intervals={"top1": (0.78, 0.82)}, gmacs=4.5, cost=1.0)
TOME = Row(
    "tome:13",
    "setting",
    metrics={"top1": 0.79, "kl": float("nan")},
    intervals={"top1": (0.77, 0.81)},
    differences={"top1": Difference(-0.01, -0.02, 0.001, 0.04)},
    gmacs=2.7,
    cost=0.6,
    counted=False,
    ms={"attached": (10.0, 9.0, 11.0), "ideal": (9.0, 8.0, 10.0)},
    speed=(0.7, 0.6, 0.8),
    over_ideal=(1.1, 1.0, 1.2),
    peak=5 * 2**20,
)
FAILED = Row("a|b:1", "control", reason="ValueError: no | good")
REPORT = Report((DENSE, TOME, FAILED), (("x.png", "empty file"),), {"model": "m", "data": "d", "images": 10})


def test_report_as_markdown_says_what_a_reader_needs():
    text = REPORT.markdown()
    assert text.startswith("# m on d\n")
    assert "| **dense** | 1.00 | 80.00 [78.00, 82.00] | - |" in text
    assert "| tome:13 | 0.60 + choice | 79.00 [77.00, 81.00] | -1.00 [-2.00, +0.10], p = 0.04 |" in text
    assert "0.70 (0.60 to 0.80) | 1.10 (1.00 to 1.20) | 5 |" in text
    assert "| a/b:1 (control) | ValueError: no / good |" in text  # a bar would break the table
    assert "1 images could not be read" in text and "* x.png: empty file" in text


def test_report_as_json_and_csv_holds_every_number():
    rows = json.loads(text := REPORT.json())["rows"]
    assert rows[1]["differences"]["top1"] == {"value": -0.01, "low": -0.02, "high": 0.001, "p": 0.04}
    assert rows[1]["metrics"]["kl"] is None and "NaN" not in text
    lines = list(csv.DictReader(io.StringIO(REPORT.csv())))
    assert [line["name"] for line in lines] == ["dense", "tome:13", "a|b:1"]
    assert lines[1]["top1_diff_low"] == "-0.02" and lines[0]["top1_diff"] == "" and lines[2]["reason"]


def test_report_finds_rows_by_name():
    assert REPORT.row("tome:13") is TOME and REPORT.main == "top1"
    with pytest.raises(ValueError, match="Expected one of dense, tome:13, .*got 'tome'"):
        REPORT.row("tome")


def test_report_saves_all_its_forms(tmp_path):
    pytest.importorskip("matplotlib")
    files = REPORT.save(tmp_path / "new")
    assert [f.name for f in files] == ["report.json", "report.csv", "report.md", "pareto.png"]
    assert all(f.stat().st_size > 100 for f in files)


def test_report_saves_without_matplotlib(tmp_path, monkeypatch):
    import tokengraph.viz.pareto as pareto

    def missing(*arguments, **named):
        raise ImportError("Expected matplotlib to be installed")

    monkeypatch.setattr(pareto, "plot_pareto", missing)
    assert [f.name for f in REPORT.save(tmp_path)] == ["report.json", "report.csv", "report.md"]


def test_plot_pareto_shows_each_row_that_has_figures():
    pytest.importorskip("matplotlib")
    figure = plot_pareto(REPORT.rows, "top1", title="m", subtitle="s")
    ax = figure.axes[0]
    points = [tuple(round(float(v), 6) for v in c.get_offsets()[0]) for c in ax.collections]
    assert points == [(1.0, 80.0), (0.6, 79.0)] and "top-1" in ax.get_ylabel()
    with pytest.raises(ValueError, match="Expected rows with a cost and 'miou'"):
        plot_pareto(REPORT.rows, "miou")


def test_family_groups_settings_by_strategy():
    names = ["tome:13", "resolution:196+tome:10,reduce=mlerp", "resolution:168", "ToMe(k=1):13", "dense", "model:x"]
    assert [family(n) for n in names] == ["tome", "tome", "resolution", "tome", "dense", "model"]
    assert [smaller(n) for n in names] == [False, True, False, False, False, False]
