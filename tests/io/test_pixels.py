"""load_photo on files of every mode: nothing is clipped, nothing turns black or white without a word."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch

from tokengraph.io.photo import load_photo

image = pytest.importorskip("PIL.Image")

RAMP = np.linspace(0, 1, 64).reshape(8, 8)
WIDE = ("I;16", "I;16L", "I;16B", "I", "F")


def close(path, expected, atol=0.003):
    """Whether the file shows grey values ``expected [8, 8]`` in all three channels."""
    photo = load_photo(path, 8)
    assert photo.shape == (3, 8, 8) and torch.equal(photo[0], photo[1]) and torch.equal(photo[0], photo[2])
    return np.allclose(photo[0], expected, atol=atol)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(values: np.ndarray, colour: int, *extra: tuple[bytes, bytes]) -> bytes:
    """A PNG of 16 bits a channel; Pillow itself writes none in colour."""
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0))
    body = b"".join(chunk(*one) for one in extra) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + head + body


# Modes


def test_load_photo_scales_16_bit_png_by_its_range(tmp_path):
    image.fromarray((RAMP * 65535).astype(np.uint16)).save(tmp_path / "grey.png")
    assert close(tmp_path / "grey.png", RAMP)
    image.fromarray((RAMP * 30000).astype(np.uint16)).save(tmp_path / "dim.png")
    assert close(tmp_path / "dim.png", RAMP * 30000 / 65535)


def test_load_photo_keeps_floats_of_the_unit_range_as_they_are(tmp_path):
    image.fromarray((0.2 + 0.5 * RAMP).astype(np.float32)).save(tmp_path / "unit.tiff")
    assert close(tmp_path / "unit.tiff", 0.2 + 0.5 * RAMP)


@pytest.mark.parametrize(
    "values",
    [(RAMP * 7 - 3).astype(np.float32), (RAMP * 200).astype(np.float32), (RAMP * 1e6 - 3e5).astype(np.int32)],
    ids=["negative", "of bytes", "whole"],
)
def test_load_photo_stretches_other_wide_values_from_lowest_to_highest(values, tmp_path):
    image.fromarray(values).save(tmp_path / "wide.tiff")
    assert close(tmp_path / "wide.tiff", RAMP)


def test_load_photo_shows_one_wide_value_as_grey(tmp_path):
    image.fromarray(np.full((8, 8), 9.0, np.float32)).save(tmp_path / "flat.tiff")
    assert close(tmp_path / "flat.tiff", 0.5)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_load_photo_refuses_floats_that_are_not_finite(wrong, tmp_path):
    values = RAMP.astype(np.float32)
    values[0, :3] = wrong
    image.fromarray(values).save(tmp_path / "holes.tiff")
    with pytest.raises(ValueError, match=r"holes\.tiff.*3 that are NaN or infinite"):
        load_photo(tmp_path / "holes.tiff", 8)


@pytest.mark.parametrize("dtype", ["<u2", ">u2", "<i2", ">i2", "<u4", "<i4", ">i4", "<f4", ">f4", "<i1"])
def test_load_photo_reads_every_tiff_of_one_channel_that_pillow_opens(dtype, tmp_path):
    tifffile = pytest.importorskip("tifffile")
    kind = np.dtype(dtype)
    low, high = (0, 1) if kind.kind == "f" else (np.iinfo(kind).min, np.iinfo(kind).max)
    values = (low + RAMP * (float(high) - low)).round(3 if kind.kind == "f" else 0).clip(low, high).astype(kind)
    tifffile.imwrite(tmp_path / "any.tiff", values, byteorder=dtype[0])
    assert close(tmp_path / "any.tiff", RAMP, atol=0.005)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_load_photo_turns_tiffs_round_in_which_zero_is_white(dtype, tmp_path):
    tifffile = pytest.importorskip("tifffile")
    values = RAMP.astype(dtype) if dtype is np.float32 else (RAMP * np.iinfo(dtype).max).astype(dtype)
    tifffile.imwrite(tmp_path / "white.tiff", values, photometric="miniswhite")
    assert close(tmp_path / "white.tiff", 1 - RAMP, atol=0.005)


def test_load_photo_scales_pgm_by_the_maximum_in_its_head(tmp_path):
    for top in (4095, 65535):
        (tmp_path / "grey.pgm").write_bytes(b"P5 8 8 %d\n" % top + (RAMP * top).astype(">u2").tobytes())
        assert close(tmp_path / "grey.pgm", RAMP)


def test_load_photo_takes_black_and_white(tmp_path):
    checks = np.indices((8, 8)).sum(0) % 2
    image.fromarray((checks * 255).astype(np.uint8)).convert("1").save(tmp_path / "bits.png")
    assert close(tmp_path / "bits.png", checks)


@pytest.mark.parametrize("mode", ["RGB", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"])
def test_load_photo_shows_red_as_red_in_every_colour_mode(mode, tmp_path):
    red = image.new("RGB", (16, 16), (255, 0, 0))
    if mode == "LAB":
        image.new("LAB", (16, 16), (136, 208, 195)).save(tmp_path / "red.tiff")
    elif mode in ("HSV", "RGBX"):  # no format stores them: through the function below
        from tokengraph.io.pixels import to_light

        assert to_light(red.convert(mode)).getpixel((0, 0)) == (255, 0, 0)
        return
    else:
        red.convert(mode).save(tmp_path / "red.tiff")
        try:
            image.open(tmp_path / "red.tiff").load()
        except OSError as error:  # Pillow 12.3 with YCbCr
            pytest.skip(f"this Pillow does not read what it wrote: {error}")
    colour = load_photo(tmp_path / "red.tiff", 16)[:, 8, 8]
    assert colour[0] > 0.93 and colour[1:].max() < 0.07


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr"])
def test_load_photo_reads_jpegs_of_print(mode, tmp_path):
    image.new("RGB", (16, 16), (255, 0, 0)).convert(mode).save(tmp_path / "print.jpg", quality=95)
    colour = load_photo(tmp_path / "print.jpg", 16)[:, 8, 8]
    assert colour[0] > 0.95 and colour[1:].max() < 0.05


def test_load_photo_reads_jpegs_of_print_in_luma_and_chroma(tmp_path):
    """YCCK, as Photoshop writes it: the same planes with a 2 in Adobe's marker, which Pillow itself never writes."""
    stored = io.BytesIO()
    planes = (179, 171, 1, 255)  # luma, chroma and black of red, turned round
    image.new("CMYK", (16, 16), tuple(255 - value for value in planes)).save(stored, "JPEG", quality=95)
    data = bytearray(stored.getvalue())
    data[data.index(b"Adobe") + 11] = 2
    (tmp_path / "print.jpg").write_bytes(data)
    colour = load_photo(tmp_path / "print.jpg", 16)[:, 8, 8]
    assert colour[0] > 0.95 and colour[1:].max() < 0.05


def test_load_photo_keeps_fine_steps_of_16_bits(tmp_path):
    values = np.repeat(np.arange(1000, 1008, dtype=np.uint16)[None], 8, axis=0)  # all one byte value
    image.fromarray(values).save(tmp_path / "fine.png")
    assert load_photo(tmp_path / "fine.png", 8).unique().numel() == 8


def test_to_light_keeps_every_mode_within_its_range():
    from tokengraph.io.pixels import to_light

    for mode in (*WIDE, "1", "L", "P", "RGB", "RGBA", "RGBX", "RGBa", "LA", "La", "PA", "CMYK", "YCbCr", "LAB", "HSV"):
        light = to_light(image.new(mode, (4, 4)))
        assert light.mode == ("F" if mode in WIDE else "RGB"), mode
        assert 0 <= np.asarray(light).min() and np.asarray(light).max() <= (1 if mode in WIDE else 255), mode


# Transparency


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_load_photo_lays_transparent_pixels_on_white(mode, tmp_path):
    logo = image.new(mode, (8, 8), (0,) * len(mode))
    logo.paste((0,) * (len(mode) - 1) + (255,), (0, 0, 4, 8))
    logo.paste((0,) * (len(mode) - 1) + (128,), (4, 4, 8, 8))
    logo.save(tmp_path / "logo.png")
    photo = load_photo(tmp_path / "logo.png", 8)
    assert photo[:, :, :4].max() == 0 and photo[:, :4, 4:].min() == 1
    assert photo[:, 4:, 4:].unique().tolist() == pytest.approx([127 / 255])


def test_load_photo_lays_transparent_palette_entries_on_white(tmp_path):
    picture = image.new("P", (8, 8), 1)
    picture.putpalette([255, 0, 0, 0, 0, 0, 0, 0, 255])
    picture.paste(2, (4, 0, 8, 8))
    picture.save(tmp_path / "one.png", transparency=1)
    picture.save(tmp_path / "each.png", transparency=bytes([255, 0, 255]))
    picture.save(tmp_path / "one.gif", transparency=1)
    for name in ("one.png", "each.png", "one.gif"):
        photo = load_photo(tmp_path / name, 8)
        assert photo[:, 4, 1].tolist() == [1, 1, 1] and photo[:, 4, 6].tolist() == [0, 0, 1], name


def test_load_photo_lays_one_transparent_colour_on_white(tmp_path):
    for mode, black, white in (("L", 0, 255), ("RGB", (0, 0, 0), (255, 255, 255))):
        picture = image.new(mode, (8, 8), black)
        picture.paste(white, (0, 0, 2, 8))
        picture.save(tmp_path / "clear.png", transparency=black)
        assert load_photo(tmp_path / "clear.png", 8).min() == 1, mode


def test_load_photo_lays_transparent_16_bit_values_on_white(tmp_path):
    grey = np.full((8, 8), 40000)
    grey[:, :4] = 1234
    (tmp_path / "grey.png").write_bytes(png(grey, 0, (b"tRNS", struct.pack(">H", 1234))))
    photo = load_photo(tmp_path / "grey.png", 8)
    assert photo[0, 4, 1] == 1 and photo[0, 4, 6].item() == pytest.approx(40000 / 65535, abs=1e-3)
    colours = np.repeat(grey[..., None], 3, axis=2)
    (tmp_path / "rgb.png").write_bytes(png(colours, 2, (b"tRNS", struct.pack(">HHH", 1234, 1234, 1234))))
    photo = load_photo(tmp_path / "rgb.png", 8)
    assert photo[0, 4, 1] == 1 and photo[0, 4, 6].item() == pytest.approx(40000 / 65535, abs=4e-3)
    for colour, depth in ((4, 2), (6, 4)):  # grey or colours, and alpha
        values = np.zeros((8, 8, depth))
        values[:, 4:, -1] = 65535
        (tmp_path / "alpha.png").write_bytes(png(values, colour))
        photo = load_photo(tmp_path / "alpha.png", 8)
        assert photo[:, 4, 1].tolist() == [1, 1, 1] and photo[:, 4, 6].tolist() == [0, 0, 0]


# Files


@pytest.mark.parametrize("suffix", ["png", "jpg", "tiff", "webp"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_load_photo_turns_by_exif_whatever_the_format(turn, suffix, tmp_path):
    from PIL import ImageOps

    pixels = np.zeros((16, 24, 3), np.uint8)
    pixels[:8, :12] = 255  # white in one corner
    exif = image.Exif()
    exif[0x0112] = turn
    stored = image.fromarray(pixels)
    stored.save(tmp_path / f"turned.{suffix}", exif=exif)
    stored.getexif()[0x0112] = turn
    expected = np.asarray(ImageOps.fit(ImageOps.exif_transpose(stored), (16, 16)))[..., 0] > 127
    assert np.array_equal(load_photo(tmp_path / f"turned.{suffix}", 16)[0].numpy() > 0.5, expected)


def test_load_photo_takes_the_first_image_of_animations_and_of_pages(tmp_path):
    frames = [image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    for name in ("moves.gif", "pages.tiff", "moves.png", "moves.webp"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        photo = load_photo(tmp_path / name, 8)
        assert photo[0].min() > 0.95 and photo[2].max() < 0.05, name


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "tiff", "webp", "bmp"])
def test_load_photo_refuses_files_that_were_cut_off(suffix, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    whole = io.BytesIO()
    image.fromarray(noise).save(whole, {"jpg": "JPEG"}.get(suffix, suffix.upper()))
    for count in (0, 10, len(whole.getvalue()) // 2):
        (tmp_path / f"cut.{suffix}").write_bytes(whole.getvalue()[:count])
        with pytest.raises(ValueError, match=r"Pillow can read \(got .*cut\."):
            load_photo(tmp_path / f"cut.{suffix}", 8)


def test_load_photo_refuses_bombs_with_what_to_do(tmp_path, monkeypatch):
    image.new("L", (64, 64)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"safe to open \(got .*bomb\.png.*4096 pixels.*MAX_IMAGE_PIXELS"):
        load_photo(tmp_path / "bomb.png", 8)


@pytest.mark.parametrize(
    ("name", "message"),
    [(".", "a folder"), ("", "a folder"), ("a\0b", "null"), ("x" * 5000, "too long"), ("/dev/null", "no regular file")],
)
def test_load_photo_refuses_paths_that_are_no_files(name, message):
    with pytest.raises(ValueError, match=f"path of an image file .*{message}"):
        load_photo(name)


def test_load_photo_refuses_other_kinds():
    with pytest.raises(TypeError, match=r"path of an image file \(got Tensor\)"):
        load_photo(torch.ones(3, 8, 8))
    for size in (8.5, True, "8"):
        with pytest.raises(TypeError, match="size as a whole number"):
            load_photo("any.png", size)


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (3, 2)])
def test_load_photo_takes_images_of_any_sides(shape, tmp_path):
    image.fromarray(np.full(shape, 51, np.uint8)).save(tmp_path / "thin.png")
    assert load_photo(tmp_path / "thin.png", 32).unique().tolist() == pytest.approx([0.2])
