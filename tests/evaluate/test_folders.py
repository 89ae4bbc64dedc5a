"""Images in folders: classes, synsets, no labels, masks."""

import numpy as np
import pytest
from needs import library
from PIL import Image

from tokengraph.evaluate.folders import find_images
from tokengraph.evaluate.hub import Hub, find_hub
from tokengraph.evaluate.images import Arrays, limited


def put(path, value=0, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (8, 8), value).save(path)


def test_find_images_numbers_class_folders_by_name(tmp_path):
    for name in ("dog/b.png", "cat/a.jpg", "cat/deep/c.PNG"):
        put(tmp_path / name)
    (tmp_path / "cat/notes.txt").write_text("no image")
    (tmp_path / "empty").mkdir()
    (tmp_path / ".cache").mkdir()
    found = find_images(tmp_path)
    assert [found.key(i) for i in range(len(found))] == ["cat/a.jpg", "cat/deep/c.PNG", "dog/b.png"]
    assert [found.label(i) for i in range(3)] == [0, 0, 1] and found.classes == ["cat", "dog", "empty"]
    assert found.notes == ("class folder 'empty' holds no image", "1 files with other suffixes are not images")
    assert found.image(0).size == (8, 8)


def test_find_images_takes_a_folder_without_labels(tmp_path):
    put(tmp_path / "b.png")
    put(tmp_path / "a.png")
    found = find_images(tmp_path)
    assert [found.key(i) for i in range(2)] == ["a.png", "b.png"] and not found.has_labels
    put(tmp_path / "class/c.png")
    assert len(find_images(tmp_path, labels="none")) == 3
    assert len(find_images(tmp_path)) == 1  # folders are classes where there are any


def test_find_images_numbers_synsets_by_their_file(tmp_path):
    for name in ("n02", "n01"):
        put(tmp_path / f"val/{name}/x.png")
    (tmp_path / "synsets.txt").write_text("n03 third, one\nn02 dog, hound\nn01 cat\n")
    found = find_images(tmp_path, synsets=tmp_path / "synsets.txt")  # val is looked into
    assert [(found.key(i), found.label(i)) for i in range(2)] == [("n01/x.png", 2), ("n02/x.png", 1)]
    assert found.classes == ["third, one", "dog, hound", "cat"]
    put(tmp_path / "val/n09/x.png")
    with pytest.raises(ValueError, match="Expected every folder in .*synsets.txt.*got 'n09'"):
        find_images(tmp_path, synsets=tmp_path / "synsets.txt")


def test_find_images_knows_the_order_of_imagenet(tmp_path):
    library("timm")
    for name in ("n01443537", "n15075141"):  # goldfish and toilet paper: classes 1 and 999
        put(tmp_path / f"{name}/x.png")
    found = find_images(tmp_path)
    assert [found.label(0), found.label(1)] == [1, 999] and len(found.classes) == 1000


def test_find_images_pairs_masks_by_name(tmp_path):
    for name in ("a", "b", "c"):
        put(tmp_path / f"images/{name}.jpg")
    for name in ("b", "a"):
        mask = Image.fromarray(np.full((8, 8), 3, dtype=np.uint8))
        mask.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
        (tmp_path / "masks").mkdir(exist_ok=True)
        mask.save(tmp_path / f"masks/{name}.png")
    found = find_images(tmp_path)
    assert found.has_masks and not found.has_labels and len(found) == 2
    assert found.mask(1).tolist() == np.full((8, 8), 3).tolist()  # numbers of the palette, not colours
    assert found.notes == ("1 images without a mask of their name are left out",)


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (lambda p: None, {"root": "nowhere"}, "Expected a folder of images .got .*nowhere.: not there"),
        (lambda p: put(p / "x.png"), {"root": "x.png"}, "a file"),
        (lambda p: None, {"root": "."}, "Expected images in .*got none"),
        (lambda p: put(p / "x.png"), {"root": ".", "labels": "yes"}, "Expected labels to be auto"),
        (lambda p: put(p / "x.png"), {"root": ".", "labels": "masks"}, "Expected folders 'images' and one of masks"),
        (lambda p: (put(p / "images/x.png"), put(p / "masks/y.png")), {"root": "."}, "got none that fits"),
    ],
)
def test_find_images_says_what_is_wrong(tmp_path, monkeypatch, make, arguments, message):
    monkeypatch.chdir(tmp_path)
    make(tmp_path)
    with pytest.raises(ValueError, match=message):
        find_images(**arguments)


def test_stamp_tells_a_mended_file_from_the_broken_one(tmp_path):
    (tmp_path / "x.png").write_bytes(b"")
    before = find_images(tmp_path).stamp(0)
    put(tmp_path / "x.png")
    assert find_images(tmp_path).stamp(0) != before


class ClassLabel:
    names = ["cat", "dog"]


class Value:
    dtype = "int64"


class Rows:
    """A stand-in for datasets.Dataset: the same few calls."""

    def __init__(self, **features):
        self.features = features

    def __len__(self):
        return 2

    def __getitem__(self, key):
        if isinstance(key, str):
            return [0, 1]
        return {c: None if key else Image.new("L", (8, 8)) for c in self.features}


IMAGE = type("Image", (), {})()


def test_hub_finds_images_labels_and_masks():
    found = Hub(Rows(image=IMAGE, label=ClassLabel()), "x")
    assert found.classes == ["cat", "dog"] and [found.label(i) for i in range(2)] == [0, 1]
    assert Hub(Rows(img=IMAGE, labels=Value()), "x").has_labels
    scenes = Hub(Rows(image=IMAGE, annotation=IMAGE), "x")
    assert scenes.has_masks and not scenes.has_labels and np.asarray(scenes.mask(0)).shape == (8, 8)
    with pytest.raises(ValueError, match="no image in this row"):
        found.image(1)
    with pytest.raises(ValueError, match="Expected a data set with a column of images .got columns text"):
        Hub(Rows(text=Value()), "x")


def test_find_hub_names_the_extra_or_what_is_missing(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises((ImportError, ValueError), match=r"tokengraph\[eval\]|Expected a data set that loads"):
        find_hub("no/such:test")


def test_arrays_check_their_lengths():
    images = np.zeros((2, 8, 8, 3), dtype=np.uint8)
    assert [Arrays(images, [1, 0], names=["a", "b"]).key(i) for i in range(2)] == ["a", "b"]
    with pytest.raises(ValueError, match="Expected 2 labels, one for each image .got 3"):
        Arrays(images, [0, 1, 2])
    with pytest.raises(ValueError, match="Expected labels of at least 0"):
        Arrays(images, [0, -1])


def test_limited_draws_the_same_images_each_time():
    images = Arrays(np.zeros((50, 8, 8), dtype=np.uint8), list(range(50)))
    one, two = limited(images, 10, 0), limited(images, 10, 0)
    assert [one.label(i) for i in range(10)] == [two.label(i) for i in range(10)] == sorted(one.indices)
    assert limited(images, 10, 1).indices != one.indices and limited(images, None, 0) is images
    with pytest.raises(ValueError, match="Expected limit >= 1"):
        limited(images, 0, 0)


def test_stamp_of_arrays_is_the_same_in_every_process():
    one = Arrays(np.full((1, 2, 2, 3), 7, dtype=np.uint8))
    assert one.stamp(0) == "2e2ea093"
    masked = Arrays(np.full((1, 2, 2, 3), 7, dtype=np.uint8), masks=[np.zeros((2, 2), np.uint8)])
    assert masked.stamp(0) != one.stamp(0)
