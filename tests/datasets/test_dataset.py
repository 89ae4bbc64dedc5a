"""Data sets of token graphs: what is written is what is read, by PyG's own means."""

import json
import pickle

import numpy as np
import pytest
import torch
from needs import library
from torch_geometric.data import OnDiskDataset
from torch_geometric.loader import DataLoader
from torch_geometric.transforms import AddSelfLoops

import tokengraph as tg
from tokengraph.datasets import Recipe, write_dataset
from tokengraph.evaluate import Arrays
from tokengraph.evaluate.config import config_of_model
from tokengraph.evaluate.folders import find_images
from tokengraph.evaluate.transform import to_input, to_target
from tokengraph.testing import tiny_vit


def test_dataset_has_the_graph_that_the_library_makes_of_each_image(written, folder):
    dataset, images, model = tg.TokenGraphDataset(written.root), find_images(folder), tiny_vit()
    assert isinstance(dataset, OnDiskDataset) and len(dataset) == written.graphs == 17
    readable = [i for i in range(len(images)) if images.key(i) != "a/5.png"]
    for place in (0, 4, 16):
        number = readable[place]
        batch = to_input(images.image(number), config_of_model(model))[None]
        fine = tg.TokenGraph.from_model(model, batch).connect_knn(4)
        coarse, assignment = tg.coarsen(fine, "ailurus", 0.25)
        graph = dataset[place]
        assert (graph.path, graph.y.tolist()) == (images.key(number), [images.label(number)])
        assert torch.equal(graph.cluster[0], assignment.cluster) and graph.grid == (4, 4)
        for name in ("x", "size", "pos", "edge_index", "edge_weight", "prefix"):
            torch.testing.assert_close(graph[name], torch.as_tensor(getattr(coarse, name)).as_subclass(torch.Tensor))


def test_dataset_knows_labels_paths_and_unreadable_images(written):
    dataset = tg.TokenGraphDataset(written.root)
    assert dataset.labels.tolist() == [0] * 8 + [1] * 9 and dataset.num_classes == 2 and dataset.classes == ("a", "b")
    assert dataset.paths[7:9] == ["a/8.png", "b/0.png"] and dataset[7:9].paths == dataset.paths[7:9]
    assert [path for path, _ in dataset.skipped] == ["a/5.png"] == [path for path, _ in written.skipped]
    assert "cannot identify" in dataset.skipped[0][1]
    assert dataset.num_features == dataset[0].x.size(1) == 32


@pytest.mark.parametrize("workers", [0, 2])
def test_dataset_works_in_loaders_also_as_a_slice(written, workers):
    dataset = tg.TokenGraphDataset(written.root, transform=AddSelfLoops())[10:]
    batches = list(DataLoader(dataset, batch_size=4, num_workers=workers))
    assert [b.num_graphs for b in batches] == [4, 3]
    assert sum([b.path for b in batches], []) == dataset.paths == [f"b/{i}.png" for i in range(2, 9)]
    assert torch.cat([b.y for b in batches]).tolist() == [1] * 7
    assert batches[0].cluster.shape == (4, 16) and batches[0].has_self_loops()
    shuffled = dataset.shuffle()
    assert [shuffled[i].path for i in range(7)] == sum([b.path for b in DataLoader(shuffled, batch_size=4)], [])


def test_dataset_survives_pickling_and_refuses_writes(written):
    dataset = pickle.loads(pickle.dumps(tg.TokenGraphDataset(written.root)))
    assert dataset[3].path == "a/3.png"
    with pytest.raises(TypeError, match="read only"):
        dataset.append(dataset[0])
    with pytest.raises(IndexError, match="below 17"):
        dataset.get(17)
    dataset[0].x.zero_()  # a graph owns its memory
    assert dataset[0].x.abs().sum() > 0


def test_float16_takes_half_the_bytes_and_is_close(folder, quick, tmp_path):
    library("timm")
    found = {}
    for dtype in ("float32", "float16"):
        write_dataset(tiny_vit(embed_dim=384), folder, tmp_path / dtype, Recipe(dtype=dtype), options=quick)
        found[dtype] = tg.TokenGraphDataset(tmp_path / dtype)[0].x
        assert found[dtype].dtype == torch.float32
    assert tg.TokenGraphDataset(tmp_path / "float16", dtype=None)[0].x.dtype == torch.float16
    torch.testing.assert_close(found["float16"], found["float32"], rtol=1e-3, atol=1e-3)
    size = {d: sum(f.stat().st_size for f in (tmp_path / d / "shards").iterdir()) for d in found}
    assert size["float16"] < 0.6 * size["float32"]


def test_float16_refuses_features_that_it_cannot_hold(folder, quick, tmp_path):
    library("timm")
    model = tiny_vit()
    with torch.no_grad():
        model.blocks[-1].mlp.fc2.bias.fill_(1e5)
    with pytest.raises(ValueError, match=r"within float16.*'a/0.png'.*--dtype float32"):
        write_dataset(model, folder, tmp_path / "set", Recipe(dtype="float16"), options=quick)


def test_masks_are_cut_like_their_images(quick, tmp_path):
    library("timm")
    rng = np.random.default_rng(0)
    masks = [rng.integers(0, 300, (32, 32)) for _ in range(3)]
    images = Arrays(rng.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8), masks=masks)
    write_dataset(tiny_vit(), images, tmp_path / "set", options=quick)
    graph = tg.TokenGraphDataset(tmp_path / "set")[1]
    assert torch.equal(graph.mask[0], to_target(masks[1], config_of_model(tiny_vit()))) and "y" not in graph


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format 1 .got 2.. Update tokengraph"),
        ({"format": 0}, "format 1 .got 0.. Make it again"),
        ({"kind": "other"}, "of a data set of token graphs"),
        ({"channels": "32"}, "channels >= 1"),
        ({"recipe": {"layer": "last"}}, "layer as a whole number"),
        ({"recipe": {"colour": 1}}, "Expected a recipe"),
        ({"backend": "mysql"}, "Expected backend: sqlite, rocksdb"),
        ({"counts": [1]}, "counts of 5 shards"),
        ({"counts": None}, "finished data set"),
        ({"extra": 1}, "unknown 'extra'"),
    ],
)
def test_dataset_refuses_what_it_cannot_read(written, change, message):
    file = written.root / "dataset.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        tg.TokenGraphDataset(written.root)


def test_dataset_names_what_is_missing_or_damaged(written, tmp_path):
    with pytest.raises(ValueError, match="has no dataset.json"):
        tg.TokenGraphDataset(tmp_path / "nowhere")
    (written.root / "shards" / "000001.db").write_bytes(b"x" * 5000)
    with pytest.raises(ValueError, match="000001.db.*Delete this file and repeat"):
        tg.TokenGraphDataset(written.root)[5]
    (written.root / "shards" / "000001.db").unlink()
    with pytest.raises(ValueError, match="000001.db.*got none"):
        tg.TokenGraphDataset(written.root)[5]
    (written.root / "dataset.json").write_text("{")
    with pytest.raises(ValueError, match="as JSON"):
        tg.TokenGraphDataset(written.root)


def test_rocksdb_holds_what_sqlite_holds(written, folder, quick, tmp_path):
    pytest.importorskip("rocksdict")
    recipe = Recipe(connect="knn:4", coarsen="ailurus:0.25")
    write_dataset(tiny_vit(), folder, tmp_path / "rocks", recipe, backend="rocksdb", options=quick)
    ours, theirs = tg.TokenGraphDataset(tmp_path / "rocks"), tg.TokenGraphDataset(written.root)
    assert (ours.paths, ours.skipped, ours.labels.tolist()) == (theirs.paths, theirs.skipped, theirs.labels.tolist())
    for a, b in zip(*(DataLoader(d, batch_size=5, num_workers=2) for d in (ours, theirs)), strict=True):
        assert torch.equal(a.x, b.x) and torch.equal(a.edge_index, b.edge_index)


def test_a_run_that_fails_before_its_first_graph_leaves_the_folder_as_it_was(folder, quick, tmp_path):
    library("timm")
    with pytest.raises(ValueError, match="Expected a layer"):
        write_dataset(tiny_vit(), folder, tmp_path / "set", Recipe(layer=99), options=quick)
    assert not (tmp_path / "set").exists()
    (tmp_path / "set" / "shards").mkdir(parents=True)
    (tmp_path / "set" / "shards" / "notes.txt").write_text("mine")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "x.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="Expected images that can be read"):
        write_dataset(tiny_vit(), tmp_path / "broken", tmp_path / "set", options=quick)
    assert (tmp_path / "set" / "shards" / "notes.txt").read_text() == "mine"
    assert not (tmp_path / "set" / "dataset.json").exists()
    done = write_dataset(tiny_vit(), folder, tmp_path / "set", options=quick)
    assert done.graphs == 17


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_run_is_resumed(error, folder, quick, tmp_path, monkeypatch):
    library("timm")

    def stop(*args):
        raise error

    with monkeypatch.context() as patch, pytest.raises(error):
        patch.setattr("tokengraph.datasets.write.Maker.add", stop)
        write_dataset(tiny_vit(), folder, tmp_path / "set", options=quick)
    assert (tmp_path / "set" / "dataset.json").exists()
    assert write_dataset(tiny_vit(), folder, tmp_path / "set", options=quick).graphs == 17


def test_a_run_that_fails_over_another_data_set_leaves_it(written, folder, quick):
    before = {path: path.read_bytes() for path in written.root.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="Expected a folder of the same data set"):
        write_dataset(tiny_vit(), folder, written.root, Recipe(layer=1), options=quick)
    assert {path: path.read_bytes() for path in written.root.rglob("*") if path.is_file()} == before
