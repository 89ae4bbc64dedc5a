"""load_photo and normalize: from a file to what a model takes."""

import pytest
import torch

from tokengraph.io.photo import find_photo, load_photo

image = pytest.importorskip("PIL.Image")


def halves(width: int, height: int):
    """An image whose left half is red and whose right half is blue."""
    picture = image.new("RGB", (width, height), (255, 0, 0))
    picture.paste((0, 0, 255), (width // 2, 0, width, height))
    return picture


def test_load_photo_cuts_the_centre_out_of_a_wide_image(tmp_path):
    halves(80, 20).save(tmp_path / "wide.png")
    photo = load_photo(tmp_path / "wide.png", 20)
    assert photo.shape == (3, 20, 20) and photo.dtype == torch.float32
    assert photo[:, 10, 2].tolist() == [1, 0, 0] and photo[:, 10, 17].tolist() == [0, 0, 1]


def test_load_photo_scales_to_the_size(tmp_path):
    halves(12, 24).save(tmp_path / "tall.png")
    photo = load_photo(tmp_path / "tall.png", 48)
    assert photo.shape == (3, 48, 48)
    assert 0 <= photo.min() and photo.max() <= 1 and photo[0, 24, 5] > 0.9 > 0.1 > photo[0, 24, 42]


def test_load_photo_turns_grey_transparent_and_rotated_images_into_upright_rgb(tmp_path):
    image.new("L", (8, 8), 51).save(tmp_path / "grey.png")
    assert load_photo(tmp_path / "grey.png", 8).unique().tolist() == pytest.approx([0.2])
    image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert load_photo(tmp_path / "clear.png", 8).shape == (3, 8, 8)
    exif = image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    halves(16, 16).save(tmp_path / "turned.png", exif=exif)
    assert load_photo(tmp_path / "turned.png", 16)[:, 8, 2].tolist() == [0, 0, 1]


def test_load_photo_takes_one_that_scikit_image_ships():
    pytest.importorskip("skimage")
    assert find_photo().is_file()
    photo = load_photo(size=32)
    assert photo.shape == (3, 32, 32) and photo.std() > 0.1


def test_load_photo_refuses_missing_files_and_files_that_are_no_images(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        load_photo(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("not an image")
    with pytest.raises(ValueError, match="Pillow can read"):
        load_photo(tmp_path / "text.png")
    with pytest.raises(ValueError, match="size >= 1"):
        load_photo(tmp_path / "text.png", 0)
