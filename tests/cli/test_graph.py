"""tokengraph graph: from an image or a folder to graphs on disk."""

import json

import numpy as np
import pytest
import torch
from needs import library
from PIL import Image

import tokengraph as tg
from tokengraph.__main__ import main


@pytest.fixture
def model():
    timm = library("timm")
    if not timm.is_model("test_vit"):
        pytest.skip("this timm has no model for tests")
    return ["--model", "test_vit", "--random-weights", "--quiet", "--batch-size", "4"]


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a/1.png", "a/2.png", "b/3.png"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)
    (tmp_path / "photos" / "b" / "4.png").write_bytes(b"")
    return tmp_path / "photos"


def test_graph_of_a_folder_is_a_data_set_and_tells_its_size_and_rate(model, photos, tmp_path, capsys):
    out = tmp_path / "set"
    run = ["graph", str(photos), *model, "--coarsen", "ailurus:0.25", "--dtype", "float16", "--out", str(out)]
    assert main([*run, "--json"]) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert (found["graphs"], found["new"]) == (3, 4) and found["skipped"] == [["b/4.png", "empty file"]]
    assert found["bytes_per_image"] * 3 == pytest.approx(found["bytes"], abs=3) and found["images_per_second"] > 0
    assert printed.err == "skipped b/4.png: empty file\n"
    assert [g.y.item() for g in tg.TokenGraphDataset(out)] == [0, 0, 1]
    assert main(run) == 0
    assert "3 graphs, 1 images skipped; nothing was missing" in capsys.readouterr().out


def test_graph_of_an_image_is_a_file_that_torch_loads(model, photos, tmp_path, capsys):
    out = tmp_path / "one.pt"
    assert main(["graph", str(photos / "a" / "1.png"), *model, "--connect", "knn:3", "--out", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    graph = torch.load(out, weights_only=True)
    assert isinstance(graph, tg.TokenGraph) and found["nodes"] == graph.num_nodes == 100
    assert found["edges"] == graph.num_edges == 300


@pytest.mark.parametrize(
    ("path", "arguments", "message"),
    [
        ("nowhere", [], "Expected an image or a folder"),
        ("b/4.png", [], "Expected an image that can be read"),
        ("", ["--connect", "knm:8"], "Expected edges as knn:8"),
        ("", ["--connect", "knn:1000"], "neighbours"),
        ("", ["--coarsen", "tomme:0.5"], "Did you mean 'tome'"),
        ("", ["--coarsen", "tome:0.25"], "Go step by step"),
        ("", ["--layer", "99"], "99"),
        ("", ["--chunk", "0"], "Expected chunk >= 1"),
        ("b", [], "Expected images that can be read"),
    ],
)
def test_graph_answers_bad_input_with_one_line(model, photos, tmp_path, capsys, path, arguments, message):
    if path == "b":
        (photos / "b" / "3.png").unlink()
    assert main(["graph", str(photos / path), *model, "--out", str(tmp_path / "out"), *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("tokengraph: Expected ") and message in error and error.count("\n") == 1


def test_graph_teaches_in_its_help(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["graph", "--help"])
    printed = capsys.readouterr().out
    assert "ailurus:0.25" in printed and "torchrun" in printed and "TokenGraphDataset" in printed


def test_graph_draws_one_image(model, photos, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    image = next(file for file in sorted(photos.rglob("*.png")) if "broken" not in file.name)
    run = ["graph", str(image), *model, "--out", str(tmp_path / "one.pt"), "--plot", str(tmp_path / "new" / "one.png")]
    for more in ([], ["--coarsen", "dpc-knn:8"], ["--connect", "none"]):
        assert main([*run, *more]) == 0
        assert (tmp_path / "new" / "one.png").read_bytes().startswith(b"\x89PNG")
    assert main(["graph", str(photos), *model, "--plot", str(tmp_path / "many.png")]) == 1
    assert "Expected one image to plot" in capsys.readouterr().err
