"""Results come row by row, a second run adds what is missing, and the page shows what failed."""

import numpy as np
import pytest
from truth import run as runs
from truth.leaders import leaders, main_metric
from truth.library_code import digest, without_words
from truth.report import best_rows, matplotlib, report, scores, table, write_report
from truth.results import commit, line_of, merged, read, versions, write
from truth.run import Place, run
from truth.tables import Candidate
from truth.tasks import Task, alone

from tokengraph.evaluate.config import DataConfig
from tokengraph.evaluate.images import Arrays
from tokengraph.evaluate.options import Options
from tokengraph.evaluate.report import Row
from tokengraph.evaluate.source import Source
from tokengraph.testing import tiny_vit

QUICK = Options(time=False, memory=False, progress=False, resamples=20, workers=0)


def images(_):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    return Arrays(pixels, labels=[0, 1, 2, 0, 1, 2], name="noise")


def source(_):
    return Source("tiny", lambda size: tiny_vit(), DataConfig(32))


TASK = Task("photographs", source, alone(images), says="noise")


def candidates(*settings):
    return [Candidate(text, text.split(":")[0], "constant", 0.5) for text in settings]


def test_run_writes_a_row_for_each_setting_the_dense_first(tmp_path):
    file = run(TASK, "search", candidates("tome:4"), Place(tmp_path, tmp_path / "out"), options=QUICK)
    lines = read(file)
    assert [line["setting"] for line in lines] == ["dense", "tome:4"]


def test_run_goes_on_where_it_was(tmp_path, monkeypatch):
    place = Place(tmp_path, tmp_path / "out")
    monkeypatch.setattr(runs, "AT_ONCE", 1)
    first = read(run(TASK, "search", candidates("tome:4"), place, options=QUICK))
    seen = []
    evaluate = runs.tg.evaluate

    def spy(model, settings, *rest, **options):
        seen.append(list(settings))
        return evaluate(model, settings, *rest, **options)

    monkeypatch.setattr(runs.tg, "evaluate", spy)
    lines = read(run(TASK, "search", candidates("tome:4", "random:4"), place, options=QUICK))
    assert seen == [["random:4"]]
    assert [line["setting"] for line in lines] == ["dense", "tome:4", "random:4"]
    assert lines[:2] == first


def test_run_measures_another_number_of_images_anew(tmp_path):
    place = Place(tmp_path, tmp_path / "out")
    run(TASK, "search", candidates("tome:4"), place, options=QUICK)
    lines = read(run(TASK, "search", candidates("tome:4"), place, limit=3, options=QUICK))
    assert [line["setting"] for line in lines] == ["dense", "tome:4", "dense", "tome:4"]
    assert [line["images"] for line in lines] == [6, 6, 3, 3]


def test_run_tries_a_failed_setting_again(tmp_path):
    place = Place(tmp_path, tmp_path / "out")
    bad = candidates("ailurus:{9: 4}")  # the model has fewer blocks
    lines = read(run(TASK, "search", bad, place, options=QUICK))
    assert "ValueError" in lines[1]["reason"]
    again = read(run(TASK, "search", bad, place, options=QUICK))
    assert len(again) == 2 and "ValueError" in again[1]["reason"]


def test_run_measures_rows_of_other_code_only_where_it_is_told_to(tmp_path, monkeypatch):
    place = Place(tmp_path, tmp_path / "out")
    monkeypatch.setattr(runs, "digest", lambda: "older")
    run(TASK, "search", candidates("tome:4"), place, options=QUICK)
    monkeypatch.setattr(runs, "digest", lambda: "newer")
    lines = read(run(TASK, "search", candidates("tome:4"), place, options=QUICK))
    assert [line["code"] for line in lines] == ["older", "older"]
    lines = read(
        run(TASK, "search", candidates("tome:4"), Place(tmp_path, tmp_path / "out", fresh=True), options=QUICK)
    )
    assert [line["code"] for line in lines] == ["newer", "newer"]
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_digest_changes_with_code_and_not_with_words(tmp_path):
    file = tmp_path / "select" / "a.py"
    file.parent.mkdir()
    file.write_text('def f(x):\n    """One thing."""\n    return x + 1  # why\n')
    first = digest(tmp_path)
    digest.cache_clear()
    file.write_text('def f(x):\n    """Another."""\n\n    return x + 1\n')
    assert digest(tmp_path) == first
    digest.cache_clear()
    file.write_text("def f(x):\n    return x + 2\n")
    assert digest(tmp_path) != first
    digest.cache_clear()


def test_without_words_keeps_a_body_that_is_a_docstring_alone():
    assert without_words('class A:\n    """Words."""\n') == without_words("class A:\n    pass\n")


def test_read_leaves_out_a_line_that_was_cut_off(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"setting": "dense"}\n{"setting": "to')
    assert read(tmp_path / "a.jsonl") == [{"setting": "dense"}] and read(tmp_path / "none.jsonl") == []


def test_write_rounds_and_says_null_for_what_is_not_finite(tmp_path):
    write(tmp_path / "b" / "a.jsonl", [{"a": 1 / 3, "b": float("nan"), "c": (1, 2)}])
    assert read(tmp_path / "b" / "a.jsonl") == [{"a": 0.333333, "b": None, "c": [1, 2]}]


def line(setting, **fields):
    return {"model": "m", "group": "g", "images": 2, "setting": setting, "kind": "setting", **fields}


def test_merged_puts_a_new_row_in_the_old_one_s_place():
    old = [line("a", cost=1), line("b", cost=2)]
    assert merged(old, [line("a", cost=3)]) == [line("a", cost=3), line("b", cost=2)]


def test_line_of_leaves_out_what_is_empty():
    found = line_of(Row("tome:8", "setting", metrics={"top1": 0.5}), {"group": "g"})
    assert found == {"group": "g", "setting": "tome:8", "kind": "setting", "metrics": {"top1": 0.5}, "counted": True}


def test_scores_leaves_out_failures():
    both = {"class_cosine": 0.9, "patch_cosine": 0.7}
    lines = [line("a", metrics=both), line("b", reason="no", metrics=both), line("c")]
    assert scores(lines) == {"a": pytest.approx(0.8)}


def test_best_rows_keep_one_of_each_strategy_and_cost_and_all_resolutions():
    def row(setting, strategy, cosine, wanted=0.5):
        return line(setting, strategy=strategy, wanted=wanted, metrics={"class_cosine": cosine, "patch_cosine": cosine})

    rows = [
        {**line("dense"), "kind": "dense"},
        row("tome:8", "tome", 0.8),
        row("tome:linear(8)", "tome", 0.9),
        row("tome:4", "tome", 0.7, wanted=0.8),
        row("resolution:168", "resolution", 0.1, wanted=0.0),
        row("resolution:196", "resolution", 0.2, wanted=0.0),
        row("resolution:196+tome:4", "resolution:196+tome", 0.5),
        row("resolution:182+tome:4", "resolution:182+tome", 0.6),
    ]
    names = [found["setting"] for found in best_rows(rows)]
    assert names == ["dense", "tome:linear(8)", "tome:4", "resolution:168", "resolution:196", "resolution:182+tome:4"]


def test_table_shows_dense_first_then_by_cost_with_intervals_and_reasons():
    rows = [
        line("late", cost=0.5, reason="ValueError: too many"),
        line(
            "tome:8",
            cost=0.8,
            shape="constant",
            metrics={"top1": 0.805},
            intervals={"top1": (0.79, 0.82)},
            differences={"top1": {"value": -0.01, "low": -0.02, "high": 0.0, "p": 0.0312}},
        ),
        {**line("dense", cost=1.0, metrics={"top1": 0.815}), "kind": "dense"},
    ]
    text = table(rows).splitlines()
    assert [row.split(" | ")[0] for row in text[2:]] == ["| `dense`", "| `tome:8`", "| `late`"]
    assert "80.5 [79.0, 82.0] | -1.0 [-2.0, +0.0], p = 0.031" in text[3]
    assert "failed: ValueError: too many" in text[4]
    assert len({row.count("|") for row in text}) == 1


def led(setting, strategy, top1, low, high, cost=0.5):
    differences = {"top1": {"value": (low + high) / 2, "low": low, "high": high}}
    return line(setting, strategy=strategy, wanted=cost, metrics={"top1": top1}, differences=differences)


def test_leaders_sets_the_best_beside_its_controls_at_each_cost():
    rows = [
        led("tome:8", "tome", 0.7, -0.02, 0.01),
        led("evit:8", "evit", 0.6, -0.2, -0.1),
        led("resolution:168", "resolution", 0.65, -0.1, -0.05),
        led("resolution:196+tome:8", "resolution:196+tome", 0.72, -0.02, -0.01),
        led("gtp:20", "gtp", 0.5, -0.3, -0.2, cost=0.35),
        line("broken", strategy="tome", wanted=0.5, reason="no"),
    ]
    assert main_metric(rows) == "top1"
    found = leaders(rows).splitlines()
    assert found[2] == "| 0.5 | `tome:8` 70.0 * | `resolution:196+tome:8` 72.0 | `resolution:168` 65.0 |  |"
    assert found[3] == "| 0.35 | `gtp:20` 50.0 |  |  |  |"
    assert leaders([line("dense", metrics={"top1": 0.8})]) == ""


def test_table_shows_time_where_it_was_measured():
    rows = [line("a", cost=0.5, metrics={}, speed=[0.6, 0.55, 0.65]), line("b", cost=0.4, metrics={})]
    assert table(rows).splitlines()[0].endswith("| time / dense |")
    assert table(rows).splitlines()[2].endswith("| 0.60 [0.55, 0.65] |")


def test_report_has_a_table_for_each_group_and_names_model_and_licence(tmp_path):
    run(TASK, "headline", candidates("tome:4"), Place(tmp_path, tmp_path / "out"), options=QUICK)
    text = report(tmp_path / "out")
    assert "### headline, 6 images" in text and "Tiny." in text and "CC BY-NC-SA" in text
    assert write_report(tmp_path / "out").read_text() == text
    if matplotlib():
        assert (tmp_path / "out" / "photographs-headline.png").stat().st_size > 5000


def test_commit_is_empty_outside_git(tmp_path):
    assert commit(tmp_path) == ""


def test_versions_name_what_figures_depend_on():
    assert {"tokengraph", "torch", "timm"} <= set(versions())
