import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from besttake.data.picture import read_picture
from besttake.data.video import read_frame, to_uint8

RAMP = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (8, 1))
"""Greys of 16 bits, from black on the left to white."""


def pgm(path, values):
    path.write_bytes(b"P5\n64 8\n65535\n" + values.astype(">u2").tobytes())


def tiff(path, values, kind=1, photometric=1):
    """An uncompressed TIFF of greys; `kind` is 1 for integers, 2 for those with a sign, 3 for floating point."""
    raw = values.tobytes()
    tags = {256: 64, 257: 8, 258: 8 * values.dtype.itemsize, 259: 1, 262: photometric, 273: 8, 277: 1, 278: 8}
    tags |= {279: len(raw), 339: kind}
    listed = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    directory = struct.pack("<H", len(tags)) + listed + bytes(4)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(raw)) + raw + directory)


def save(path, values):
    Image.fromarray(values).save(path)


SIXTEEN = [
    ("a.png", save, RAMP),
    ("a.tif", save, RAMP),
    ("a.jp2", save, RAMP),
    ("a.pgm", pgm, RAMP),
    ("negative.tif", lambda path, values: tiff(path, 65535 - values, photometric=0), RAMP),
]


@pytest.mark.parametrize(("name", "write", "values"), SIXTEEN)
def test_of_sixteen_bits_the_upper_eight_are_kept(tmp_path, name, write, values):
    write(tmp_path / name, values)
    picture = read_picture(tmp_path / name)
    assert picture.shape == (8, 64, 3)
    assert np.array_equal(picture[..., 0], RAMP >> 8)
    assert np.array_equal(picture[..., 1], picture[..., 2])
    assert np.array_equal(to_uint8(read_frame(tmp_path / name, (8, 64))[None])[0].numpy(), picture)


def test_floating_point_is_scaled_from_0_to_1(tmp_path):
    save(tmp_path / "a.tif", (RAMP / 65535).astype(np.float32))
    assert np.array_equal(read_picture(tmp_path / "a.tif")[..., 0], (RAMP / 257).round())


@pytest.mark.parametrize("odd", [-0.5, 1.5, np.nan, np.inf, 255.0])
def test_other_floating_point_is_refused_by_name(tmp_path, odd):
    values = (RAMP / 65535).astype(np.float32)
    values[3, 5] = odd
    save(tmp_path / "a.tif", values)
    with pytest.raises(ValueError, match=r"a\.tif cannot be read .* floating-point values go from .*expected \[0, 1\]"):
        read_picture(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("kind", "dtype", "message"),
    [
        (2, "<i2", r"a\.tif cannot be read as an image: it holds signed or 32-bit integers"),
        (2, "<i4", r"signed or 32-bit integers"),
        (1, "<u4", r"signed or 32-bit integers"),
        (3, "<f2", r"a\.tif .* it is a picture \(tiff\); save it as PNG"),  # FFmpeg would take it for integers
        (3, "<f8", r"a\.tif .* it is a picture \(tiff\); save it as PNG"),
    ],
)
def test_numbers_without_a_brightness_are_refused_by_name(tmp_path, kind, dtype, message):
    tiff(tmp_path / "a.tif", (RAMP >> 9).astype(dtype), kind)
    with pytest.raises(ValueError, match=message):
        read_frame(tmp_path / "a.tif", (8, 8))


def half_seen(mode):
    """200 60 40, or its grey, at an alpha of 128."""
    return Image.new("RGBA", (8, 8), (200, 60, 40, 128)).convert(mode)


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tif"])
def test_transparency_is_laid_over_black(tmp_path, name):
    half_seen("RGBA").save(tmp_path / name, **({"lossless": True} if name == "a.webp" else {}))
    assert read_picture(tmp_path / name)[4, 4].tolist() == [100, 30, 20]


def test_grey_with_transparency_is_laid_over_black(tmp_path):
    half_seen("LA").save(tmp_path / "a.png")
    grey = half_seen("LA").getpixel((4, 4))[0]
    assert read_picture(tmp_path / "a.png")[4, 4].tolist() == [round(grey * 128 / 255)] * 3


@pytest.mark.parametrize("name", ["a.png", "a.gif"])
def test_a_palettes_transparent_colour_is_black(tmp_path, name):
    picture = Image.new("P", (8, 8))
    picture.putpalette([200, 60, 40, 10, 20, 30])
    picture.putpixel((4, 4), 1)
    picture.save(tmp_path / name, transparency=0)
    found = read_picture(tmp_path / name)
    assert (found[0, 0].tolist(), found[4, 4].tolist()) == ([0, 0, 0], [10, 20, 30])


def test_the_transparent_value_of_16_bits_is_black(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "a.png", transparency=65535)
    assert np.array_equal(read_picture(tmp_path / "a.png")[..., 0], np.where(RAMP == 65535, 0, RAMP >> 8))


@pytest.mark.parametrize(
    ("mode", "value", "seen", "name"),
    [
        ("1", 1, [255, 255, 255], "a.png"),
        ("L", 7, [7, 7, 7], "a.png"),
        ("CMYK", (0, 255, 255, 0), [255, 0, 0], "a.tif"),
        ("YCbCr", (100, 128, 128), [100, 100, 100], "a.tif"),
    ],
)
def test_other_colours(tmp_path, mode, value, seen, name):
    Image.new(mode, (8, 8), value).save(tmp_path / name)
    assert read_picture(tmp_path / name)[4, 4].tolist() == seen


@pytest.mark.parametrize("values", [RAMP, (RAMP >> 8).astype(np.uint8)])
def test_pictures_are_turned_upright(tmp_path, values):
    exif = Image.Exif()
    exif[0x112] = 6  # the camera was turned to the left
    Image.fromarray(values).save(tmp_path / "a.png", exif=exif)
    found = read_picture(tmp_path / "a.png")
    assert found.shape == (64, 8, 3)
    assert (found[0, 0, 0], found[-1, 0, 0]) == (0, 255)


@pytest.mark.parametrize(("name", "options"), [("a.gif", {}), ("a.webp", {"lossless": True}), ("a.png", {})])
def test_of_an_animation_the_first_picture_is_taken(tmp_path, name, options):
    first, second = Image.new("RGB", (8, 8), (200, 60, 40)), Image.new("RGB", (8, 8), (0, 0, 255))
    first.save(tmp_path / name, save_all=True, append_images=[second], **options)
    assert read_picture(tmp_path / name)[4, 4].tolist() == [200, 60, 40]


def with_cicp(png, *codes):
    """A PNG with a cICP chunk: primaries, transfer, matrix, range."""
    chunk = b"cICP" + bytes(codes)
    before = png.index(b"IDAT") - 4
    return png[:before] + struct.pack(">I", 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + png[before:]


def test_hdr_pictures_are_refused_by_name(tmp_path):
    path = tmp_path / "a.png"
    save(path, RAMP)
    png = path.read_bytes()
    for code, name in ((16, "PQ"), (18, "HLG")):
        path.write_bytes(with_cicp(png, 9, code, 0, 1))
        with pytest.raises(ValueError, match=rf"a\.png cannot .* an image: it is HDR \({name}.*save it as sRGB"):
            read_picture(path)
    path.write_bytes(with_cicp(png, 1, 13, 0, 1))  # sRGB
    assert np.array_equal(read_picture(path)[..., 0], RAMP >> 8)


def test_hdr_of_an_avif(tmp_path):
    path = tmp_path / "a.avif"
    Image.new("RGB", (8, 8)).save(path)
    avif = path.read_bytes()
    place = avif.index(b"colrnclx") + 10
    path.write_bytes(avif[:place] + struct.pack(">H", 16) + avif[place + 2 :])
    with pytest.raises(ValueError, match=r"a\.avif cannot be read as an image: it is HDR \(PQ"):
        read_picture(path)


def test_content_decides_not_the_name(tmp_path):
    Image.new("RGB", (8, 8), (200, 60, 40)).save(tmp_path / "a.png")
    (tmp_path / "a.mp4").write_bytes((tmp_path / "a.png").read_bytes())
    assert read_picture(tmp_path / "a.mp4")[4, 4].tolist() == [200, 60, 40]
    (tmp_path / "text.png").write_text("no picture")
    assert read_picture(tmp_path / "text.png") is None
    with pytest.raises(ValueError, match=r"text\.png cannot be read as a video.*nor is it an image"):
        read_frame(tmp_path / "text.png", (8, 8))


def test_damaged_missing_and_huge_pictures_are_named(tmp_path, monkeypatch):
    save(tmp_path / "a.png", RAMP)
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:-60])
    with pytest.raises(ValueError, match=r"cut\.png cannot be read as an image"):
        read_picture(tmp_path / "cut.png")
    with pytest.raises(ValueError, match=r"gone\.png is not a file"):
        read_picture(tmp_path / "gone.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"a\.png cannot be read as an image"):
        read_picture(tmp_path / "a.png")
