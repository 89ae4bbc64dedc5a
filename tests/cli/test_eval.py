"""tokengraph eval: the command from its arguments to the report."""

import json

import numpy as np
import pytest
from needs import library
from PIL import Image

from tokengraph.__main__ import main


@pytest.fixture
def model():
    timm = library("timm")
    if not timm.is_model("test_vit"):
        pytest.skip("this timm has no model for tests")
    return ["test_vit", "--random-weights", "--quiet", "--batch-size", "4"]


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a/1.png", "a/2.png", "b/3.png", "b/4.png"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)
    return tmp_path / "photos"


def test_eval_writes_and_prints_a_report(model, photos, tmp_path, capsys):
    out = tmp_path / "out"
    run = ["eval", *model, "tome:8", "--data", str(photos), "--labels", "none", "--no-controls", "--out", str(out)]
    assert main(run) == 0
    printed = capsys.readouterr()
    assert "| tome:8 |" in printed.out and "* weights: random" in printed.out and f"Written to {out}" in printed.err
    assert {"report.json", "report.csv", "report.md", "run.json"} <= {f.name for f in out.iterdir()}
    assert main([*run, "--json"]) == 0  # again: nothing is run, the same report
    assert json.loads(capsys.readouterr().out) == json.loads((out / "report.json").read_text())


def test_eval_takes_settings_from_a_file_and_a_probe(model, photos, tmp_path, capsys):
    plans = [{"strategy": "tome", "schedule": 8}, {"resolution": 128}]
    (tmp_path / "plans.json").write_text(json.dumps(plans))
    arguments = ["--no-controls", "--no-time", "--out", str(tmp_path / "out"), "--probe", "knn", "--train", str(photos)]
    assert main(["eval", *model, str(tmp_path / "plans.json"), "--data", str(photos), *arguments, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [r["name"] for r in rows] == ["dense", "tome:8", "resolution:128"]
    assert all({"probe_as_is", "probe_refit"} <= set(r["metrics"]) for r in rows)


def test_eval_ends_with_1_if_every_setting_fails(model, photos, tmp_path, capsys):
    shared = ["--data", str(photos), "--labels", "none", "--no-controls", "--no-time"]
    failing = "ailurus:{2: 0.5, 4: 0.25}"  # it acts once
    assert main(["eval", *model, failing, *shared, "--out", str(tmp_path / "one")]) == 1
    assert "full grid" in capsys.readouterr().out
    assert main(["eval", *model, failing, "tome:8", *shared, "--out", str(tmp_path / "both")]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tomme:8"], "Expected a strategy name (got 'tomme'). Did you mean 'tome'"),
        (["tome:8", "--data", "nowhere"], "Expected a folder of images (got 'nowhere': not there)"),
        (["tome:8", "--batch-size", "0"], "Expected batch_size >= 1 (got 0)"),
        (["tome:8"], "Expected images of the head's 1000 classes (got 2 classes)"),
        (["plan.json"], "Expected a file with a JSON plan"),
        (["tome:8", "--labels", "none", "--device", "cuda:99"], "Expected an available device"),
        (["tome:8", "--labels", "none", "--probe", "knn"], "Expected images with labels for a probe"),
        (["tome:8", "--synsets", "nowhere.txt"], "Expected a file of synsets"),
        (["tome:8", "--labels", "none", "--checkpoint", "nowhere.pt"], "nowhere.pt"),
    ],
)
def test_eval_answers_bad_input_with_one_line(model, photos, tmp_path, capsys, arguments, message):
    data = [] if "--data" in arguments else ["--data", str(photos)]
    assert main(["eval", *model, "--no-time", "--out", str(tmp_path / "out"), *arguments, *data]) == 1
    error = capsys.readouterr().err
    assert error.startswith("tokengraph: ") and message in error and error.count("\n") == 1


def test_eval_needs_data_and_teaches_in_its_help(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["eval", "vit_small_patch16_224", "tome:8"])
    assert "--data" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="0"):
        main(["eval", "--help"])
    printed = capsys.readouterr().out
    assert "resolution:196+tome:10" in printed and "torchrun" in printed


def test_eval_stopped_by_the_user_says_how_to_go_on(model, photos, tmp_path, capsys, monkeypatch):
    from tokengraph.evaluate.run import Runner

    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(Runner, "run", stop)
    run = ["eval", *model, "tome:8", "--data", str(photos), "--labels", "none", "--out", str(tmp_path / "out")]
    assert main(run) == 130
    assert capsys.readouterr().err == "tokengraph: stopped. Repeat the same command to resume.\n"


def test_eval_names_the_file_of_settings_that_is_no_json(model, photos, tmp_path, capsys):
    (tmp_path / "cut.json").write_text('[{"strategy": ')
    assert main(["eval", *model, str(tmp_path / "cut.json"), "--data", str(photos), "--labels", "none"]) == 1
    assert f"Expected settings as JSON in {tmp_path / 'cut.json'} (got " in capsys.readouterr().err
