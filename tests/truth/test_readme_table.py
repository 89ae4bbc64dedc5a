"""The README's table of results comes from the files of results."""

import json
from pathlib import Path

import pytest
from truth.readme import BEGIN, END, IN_README, readme_table, write_readme
from truth.run import RESULTS, ROOT


def line(setting, strategy, value, wanted=0.5, cost=0.5, low=-0.1, high=-0.05, **more):
    return {
        "model": "m",
        "group": "headline",
        "images": 9,
        "kind": "setting",
        "setting": setting,
        "strategy": strategy,
        "wanted": wanted,
        "cost": cost,
        "metrics": {"top1": value},
        "differences": {"top1": {"value": low, "low": low, "high": high}},
    } | more


@pytest.fixture
def results(tmp_path):
    lines = [
        line("dense", "", 0.9, wanted=None, cost=1.0, kind="dense"),
        line("tome:20", "tome", 0.8),
        line("pitome:20", "pitome", 0.85, low=-0.1, high=0.0),
        line("resolution:20+tome:3", "resolution:20+tome", 0.7),
        line("resolution:18", "resolution", 0.6),
        line("random:20", "random", 0.99, reason="it broke"),
        line("tome:20", "tome", 0.1, group="search"),
    ]
    (tmp_path / "fashion.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    return tmp_path


def test_readme_table_has_the_best_of_each_group_with_a_star_for_no_proved_loss(results):
    head, _, row = readme_table(results).splitlines()
    assert row.split(" | ")[1:3] == ["90.0", "0.5"] and row.startswith("| fashion (9 images): top-1")
    assert row.endswith("| 85.0 * `pitome:20` | 70.0 `resolution:20+tome:3` | 60.0 `resolution:18` | - |")
    assert head.count("|") == row.count("|")


def test_write_readme_changes_nothing_outside_of_its_marks(results, tmp_path):
    page = tmp_path / "README.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    assert write_readme(results, page)
    text = page.read_text()
    assert text.startswith(f"before\n{BEGIN}\n| task") and text.endswith(f"|\n{END}\nafter\n") and "old" not in text
    page.write_text("no marks")
    assert not write_readme(results, page) and page.read_text() == "no marks"
    assert readme_table(tmp_path / "nothing") == ""


def test_readme_has_the_table_of_the_stored_results():
    table = readme_table(Path(RESULTS), IN_README)
    inside = (ROOT / "README.md").read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0].strip()
    assert inside == table, "make readme"
