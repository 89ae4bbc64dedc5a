"""The data sets: splits, labels, letterboxes and composed scenes, on tiny inputs."""

import random

import numpy as np
import pytest

Image = pytest.importorskip("PIL.Image")

from truth import scenes  # noqa: E402
from truth.clipart import files, fingerprint, in_test, letterbox, series  # noqa: E402
from truth.elpv import Elpv, label_of, read_rows  # noqa: E402
from truth.photographs import boxes  # noqa: E402
from truth.pictures import open_png, png_size  # noqa: E402
from truth.scenes import Scenes, compose, usable  # noqa: E402
from truth.tasks import part  # noqa: E402

from tokengraph.evaluate.images import Arrays  # noqa: E402


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("rana01_architetto_01.png", "rana architetto"),
        ("dog_drawn_with_strai_02.png", "dog drawn with strai"),
        ("Dog-drawn.with_STRAI_17.png", "dog drawn with strai"),
    ],
)
def test_series_leaves_out_numbers(name, same):
    assert series(name) == same


def test_in_test_keeps_a_series_on_one_side_and_halves_the_rest():
    assert len({in_test(f"cavallo_{n:02}.png") for n in range(20)}) == 1
    words = ["".join(random.Random(n).choices("abcdefgh", k=6)) for n in range(400)]
    assert 0.4 < np.mean([in_test(w + ".png") for w in words]) < 0.6


def test_letterbox_puts_the_whole_picture_on_white():
    picture = letterbox(Image.new("RGBA", (8, 4), (255, 0, 0, 255)), 8)
    assert picture.shape == (8, 8, 3)
    assert picture[:2].min() == 255 and picture[6:].min() == 255
    assert (picture[2:6] == [255, 0, 0]).all()


def test_letterbox_shows_white_through_transparent_places():
    assert letterbox(Image.new("RGBA", (4, 4), (0, 0, 0, 0)), 4).min() == 255


def test_fingerprint_knows_a_picture_again_and_tells_others_apart():
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert fingerprint(noise) == fingerprint(noise.copy())
    assert fingerprint(noise) != fingerprint(noise[:, ::-1])


def test_files_leaves_out_the_folders_inside_that_are_classes_of_their_own(tmp_path):
    for name in ("transportation/car.png", "transportation/roadsigns/stop.png", "people/smilies/a.png", "food/b.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [(label, path.name) for label, path in files(tmp_path)]
    assert found == [(3, "car.png"), (14, "stop.png")]


def test_open_png_reads_only_files_whose_sides_are_in_range(tmp_path):
    Image.new("RGB", (20, 10)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    assert png_size(tmp_path / "a.png") == (20, 10) and png_size(tmp_path / "b.png") == (0, 0)
    assert open_png(tmp_path / "a.png", 10, 20).mode == "RGBA"
    assert open_png(tmp_path / "a.png", 11, 20) is None and open_png(tmp_path / "a.png", 10, 19) is None
    assert open_png(tmp_path / "b.png", 1, 20) is None


def test_elpv_labels_count_a_half_and_more_as_a_defect():
    rows = read_rows("images/a.png   0.0 mono\n\nimages/b.png 0.6666666666666666  poly\nimages/c.png 0.333 mono\n")
    assert rows[0] == ("images/a.png", 0.0, "mono") and len(rows) == 3
    assert [label_of(p, kind, "defect") for _, p, kind in rows] == [0, 1, 0]
    assert [label_of(p, kind, "kind-defect") for _, p, kind in rows] == [2, 1, 2]


def test_elpv_names_the_tasks_it_knows(tmp_path):
    with pytest.raises(ValueError, match="Expected a task of ELPV: defect, kind-defect"):
        Elpv(tmp_path, "defekt")


def test_boxes_are_squares_inside_the_photograph():
    for box in boxes(451, 300):
        left, top, right, bottom = box
        assert right - left == bottom - top and 0 <= left and right <= 451 and 0 <= top and bottom <= 300
    assert len(set(boxes(451, 300))) == 4


RED = Image.new("RGBA", (16, 8), (255, 0, 0, 255))
GROUND = Image.new("RGB", (64, 48), (0, 0, 255))


def test_compose_marks_exactly_the_pixels_of_the_cutouts():
    image, labels = compose(random.Random(0), [GROUND], [[RED]], 32)
    red = (image == [255, 0, 0]).all(axis=2)
    assert labels.shape == (32, 32) and 0 < red.sum() < red.size
    assert np.array_equal(labels == 1, red)


def test_compose_gives_what_lies_on_top_the_last_kind():
    green = Image.new("RGBA", (16, 16), (0, 255, 0, 255))
    for seed in range(8):
        image, labels = compose(random.Random(seed), [GROUND], [[RED], [green]], 32, most=4)
        assert np.array_equal(labels == 1, (image == [255, 0, 0]).all(axis=2))
        assert np.array_equal(labels == 2, (image == [0, 255, 0]).all(axis=2))


def test_compose_takes_cutouts_as_large_as_the_scene():
    _, labels = compose(random.Random(1), [GROUND], [[RED]], 16, scale=(1.0, 1.0))
    assert (labels == 1).any()


def test_usable_wants_some_ground_and_some_thing():
    half = Image.new("RGBA", (4, 4))
    half.paste((1, 2, 3, 255), (0, 0, 2, 4))
    assert usable(half) and not usable(RED) and not usable(Image.new("RGBA", (4, 4)))


def test_scenes_are_the_same_however_many_there_are(monkeypatch, tmp_path):
    monkeypatch.setattr(scenes, "photographs", lambda: {"blue": GROUND})
    monkeypatch.setattr(scenes, "cutouts", lambda folder: ((RED,),))
    few, many = Scenes(tmp_path, 2, side=24), Scenes(tmp_path, 9, side=24)
    assert np.array_equal(few.image(1), many.image(1)) and not np.array_equal(many.image(1), many.image(2))
    assert set(np.unique(few.mask(1))) == {0, 1}
    other = Scenes(tmp_path, 2, seed=1, side=24)
    assert not np.array_equal(few.image(1), other.image(1))
    assert len({few.key(1), other.key(1), few.key(0), Scenes(tmp_path, 2, side=32).key(1)}) == 4


def test_cutouts_says_which_folders_are_empty(tmp_path):
    scenes.cutouts.cache_clear()
    with pytest.raises(FileNotFoundError, match="Fetch the packages first"):
        scenes.cutouts(tmp_path)


def test_part_draws_the_same_images_each_time_in_their_order():
    images = Arrays(np.zeros((20, 2, 2), np.uint8), labels=list(range(20)))
    drawn = part(images, 5)
    labels = [drawn.label(i) for i in range(5)]
    assert labels == sorted(labels) == [part(images, 5).label(i) for i in range(5)]
    assert part(images, None) is images and part(images, 20) is images
