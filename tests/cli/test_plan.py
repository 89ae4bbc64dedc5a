"""tokengraph plan: from images to a file that attaches and evaluates."""

import json

import numpy as np
import pytest
from needs import library
from PIL import Image

import tokengraph as tg
from tokengraph.__main__ import main


@pytest.fixture
def model():
    timm = library("timm")
    if not timm.is_model("test_vit"):
        pytest.skip("this timm has no model for tests")
    return ["test_vit", "--random-weights", "--quiet"]


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(4):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


def test_plan_writes_a_file_that_eval_takes(model, photos, tmp_path, capsys):
    file = tmp_path / "plan.json"
    run = ["plan", *model, "--data", str(photos), "--cost", "0.6", "--strategies", "tome", "--no-resolution"]
    assert main([*run, "--out", str(file)]) == 0
    printed = capsys.readouterr()
    assert "cost=0.6, class" in printed.out and "held-out" in printed.out
    assert "skipped" in printed.err and "broken.png" in printed.err and f"Written to {file}" in printed.err
    assert tg.Plan.load(file).measured.cost <= 0.6
    assert main([*run, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"] == list(tg.Plan.load(file).tokens)
    out = ["--labels", "none", "--no-time", "--no-controls", "--out", str(tmp_path / "out")]
    assert main(["eval", *model, str(file), "--data", str(photos), *out]) == 0
    assert "| tome:" in capsys.readouterr().out


def test_plan_explains_budgets_and_images(model, photos, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["plan", *model, "--data", str(photos)])
    assert "--speedup --time --cost --tokens is required" in capsys.readouterr().err
    assert main(["plan", *model, "--data", str(photos), "--cost", "2"]) == 1
    assert "Expected cost as a share in (0, 1]" in capsys.readouterr().err
    assert main(["plan", *model, "--data", str(tmp_path / "none"), "--cost", "0.5"]) == 1
    assert "Traceback" not in capsys.readouterr().err


def test_plan_refuses_a_file_that_it_cannot_write_before_it_searches(model, photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("tokengraph.planning.plan", None)  # a search would fail
    (tmp_path / "plans").write_text("a file")
    for out in (tmp_path, tmp_path / "plans" / "plan.json"):
        assert main(["plan", *model, "--data", str(photos), "--cost", "0.6", "--out", str(out)]) == 1
        assert f"Expected a file to write the plan to (got '{out}'" in capsys.readouterr().err
