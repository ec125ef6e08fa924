"""Every kind of image file becomes uint8 RGB, upright, or is refused by name."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from fgvc_jax.data.sources import read_image
from fgvc_jax.errors import UserError

RAMP = np.arange(256, dtype=np.uint8).reshape(8, 32)
# Four colours, one a quadrant: top left, top right, bottom left, bottom right.
QUADRANTS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 0]]], np.uint8)
UPRIGHT = QUADRANTS.repeat(16, 0).repeat(24, 1)


def read(tmp_path, image, name, **save):
    path = tmp_path / name
    image.save(path, **save)
    pixels = read_image(path)
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
    assert pixels.flags.writeable  # a plain array, not a view of Pillow's buffer
    return pixels


def refusal(path):
    with pytest.raises(UserError) as error:
        read_image(path)
    assert str(path) in str(error.value)
    return str(error.value)


def stored(orientation):
    """UPRIGHT as a camera would store it under an EXIF orientation, from the EXIF 2.3 table of
    which sides the 0th row and 0th column are."""
    up = UPRIGHT
    return {
        1: up,  # row 0 top, column 0 left
        2: up[:, ::-1],  # top, right
        3: up[::-1, ::-1],  # bottom, right
        4: up[::-1],  # bottom, left
        5: up.transpose(1, 0, 2),  # left, top
        6: np.rot90(up, 1),  # right, top
        7: np.rot90(up, 2).transpose(1, 0, 2),  # right, bottom
        8: np.rot90(up, -1),  # left, bottom
    }[orientation]


@pytest.mark.parametrize("kind", ["png", "jpg", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    save = {"exif": exif} | {
        "jpg": {"quality": 95, "subsampling": 0},
        "webp": {"lossless": True},
    }.get(kind, {})
    pixels = read(tmp_path, Image.fromarray(stored(orientation).copy()), f"x.{kind}", **save)
    assert pixels.shape == UPRIGHT.shape
    centres = pixels[[8, 8, 24, 24], [12, 36, 12, 36]].astype(int)
    expected = QUADRANTS.reshape(4, 3).astype(int)
    assert np.abs(centres - expected).max() <= (8 if kind == "jpg" else 0)  # JPEG is lossy


def test_damaged_exif_does_not_cost_the_image(tmp_path):
    pixels = read(tmp_path, Image.fromarray(UPRIGHT), "x.png", exif=b"Exif\0\0not a TIFF header")
    np.testing.assert_array_equal(pixels, UPRIGHT)


@pytest.mark.parametrize("kind", ["png", "gif", "bmp", "tif"])
def test_grey_and_palette(tmp_path, kind):
    grey = Image.fromarray(RAMP)
    np.testing.assert_array_equal(read(tmp_path, grey, f"g.{kind}"), np.stack([RAMP] * 3, -1))
    palette = Image.fromarray(UPRIGHT).quantize(8)
    np.testing.assert_array_equal(read(tmp_path, palette, f"p.{kind}"), UPRIGHT)


def test_one_bit(tmp_path):
    bits = Image.fromarray(RAMP > 127)
    np.testing.assert_array_equal(
        read(tmp_path, bits, "x.png")[..., 0], np.where(RAMP > 127, 255, 0)
    )


def test_alpha_is_laid_over_white(tmp_path):
    alpha = RAMP
    colour = np.broadcast_to(np.array([200, 50, 0], np.uint8), (*RAMP.shape, 3))
    rgba = Image.fromarray(np.dstack([colour, alpha]))
    a = alpha[..., None] / 255
    got = read(tmp_path, rgba, "x.png")
    np.testing.assert_allclose(got, colour * a + 255 * (1 - a), atol=1)  # rounding

    la = Image.fromarray(np.dstack([np.full_like(RAMP, 40), alpha]), "LA")
    np.testing.assert_allclose(
        read(tmp_path, la, "y.png"), np.broadcast_to(40 * a + 255 * (1 - a), got.shape), atol=1
    )


def test_transparent_palette_entry_and_transparent_colour_are_white(tmp_path):
    palette = Image.fromarray(UPRIGHT).quantize(8)
    index = palette.getpixel((0, 0))
    got = read(tmp_path, palette, "x.gif", transparency=index)
    assert (got[:16, :24] == 255).all()
    np.testing.assert_array_equal(got[16:], UPRIGHT[16:])
    got = read(tmp_path, Image.fromarray(UPRIGHT), "x.png", transparency=(255, 0, 0))
    assert (got[:16, :24] == 255).all()
    np.testing.assert_array_equal(got[16:], UPRIGHT[16:])


def test_cmyk_jpeg_keeps_its_colours(tmp_path):
    cmyk = Image.fromarray(UPRIGHT).convert("CMYK")
    for kind in ("jpg", "tif"):
        save = {"quality": 95, "subsampling": 0} if kind == "jpg" else {}
        got = read(tmp_path, cmyk, f"x.{kind}", **save).astype(int)
        centres = got[[8, 8, 24, 24], [12, 36, 12, 36]]
        assert np.abs(centres - QUADRANTS.reshape(4, 3)).max() <= 8  # JPEG is lossy


def png16(channels, samples, claim=None):
    """A 16-bit PNG written by hand: Pillow cannot write 16-bit colour."""
    height, width = claim or samples.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 3: 2}[channels], 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_keep_their_range(tmp_path, channels):
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    samples = ramp if channels == 1 else np.stack([ramp, ramp[::-1], ramp[:, ::-1]], -1)
    path = tmp_path / "x.png"
    path.write_bytes(png16(channels, samples))
    expected = samples / 257
    expected = np.stack([expected] * 3, -1) if channels == 1 else expected
    np.testing.assert_allclose(read_image(path), expected, atol=1)  # high byte, not rounded


def test_sixteen_bit_tiff_of_either_byte_order(tmp_path):
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    for mode in ("I;16", "I;16B"):
        data = ramp.astype("<u2" if mode == "I;16" else ">u2").tobytes()
        image = Image.frombytes(mode, (8, 8), data)
        got = read(tmp_path, image, "x.tif")
        np.testing.assert_allclose(got[..., 0], ramp / 257, atol=1)


def test_kinds_without_a_grey_range_are_refused(tmp_path):
    Image.fromarray(RAMP.astype(np.float32)).save(tmp_path / "f.tif")
    assert "floats" in refusal(tmp_path / "f.tif")
    Image.fromarray(RAMP.astype(np.int32)).save(tmp_path / "i.tif")
    assert "32-bit integers" in refusal(tmp_path / "i.tif")


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (5, 5), c) for c in ("red", "blue")]
    got = read(tmp_path, frames[0], "x.gif", save_all=True, append_images=frames[1:])
    assert (got == (255, 0, 0)).all()


def test_one_pixel(tmp_path):
    assert read(tmp_path, Image.new("RGB", (1, 1), "red"), "x.png").tolist() == [[[255, 0, 0]]]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"])
def test_truncated_is_refused_by_name(tmp_path, kind):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, kind)
    path = tmp_path / f"half.{kind.lower()}"
    path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    assert "cannot be read as an image: " in refusal(path)


def test_empty_missing_and_foreign_files(tmp_path):
    (tmp_path / "empty.jpg").touch()
    assert "the file is empty" in refusal(tmp_path / "empty.jpg")
    assert "no such file" in refusal(tmp_path / "gone.jpg")
    (tmp_path / "page.jpg").write_text("<html>404</html>")
    assert "not an image of a known format" in refusal(tmp_path / "page.jpg")


def test_decompression_bomb_is_refused(tmp_path):
    # A header that claims 40,000 x 40,000 pixels.
    path = tmp_path / "bomb.png"
    path.write_bytes(png16(3, np.zeros((2, 2, 3), np.uint16), claim=(40000, 40000)))
    text = refusal(path)
    assert "far more pixels" in text and "1600000000" in text
