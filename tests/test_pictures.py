"""Every kind of picture, held against NumPy in float64 and against Pillow's own operations."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_images

from ssl_jax.data.pictures import DamagedPicture, read_header, read_pixels, scaled_grey

PHOTO = load_sample_images().images[0][:120:3, :180:3]  # (40, 60, 3)
GREY = PHOTO[..., 1]
ALPHA = np.linspace(0, 255, GREY.size).reshape(GREY.shape).astype(np.uint8)
GROUND = (200, 30, 90)


def encoded(picture: Image.Image | np.ndarray, kind: str, **options) -> bytes:
    file = io.BytesIO()
    picture = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    picture.save(file, kind, **options)
    return file.getvalue()


def over_ground(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """alpha c + (1 - alpha) g; colours (H, W, 3), alpha (H, W) 0..255."""
    share = alpha[..., None] / 255
    return share * colours + (1 - share) * np.array(GROUND)


# --- Modes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_grey_of_16_bits_is_scaled_to_8(kind):
    values = np.random.default_rng(0).integers(0, 2**16, (9, 7), np.uint16)
    data = encoded(values, kind)
    np.testing.assert_array_equal(read_pixels(data, 1, None)[..., 0], np.rint(values / 257))
    assert read_header(data) == (7, 9, 1, True)
    colours = read_pixels(data, 3, None)
    assert (colours == colours[..., :1]).all()


def test_grey_of_16_bits_with_the_high_byte_first_is_scaled_to_8():
    values = np.random.default_rng(0).integers(0, 2**16, (9, 7), np.uint16)
    picture = Image.frombytes("I;16B", (7, 9), values.astype(">u2").tobytes())
    found = read_pixels(encoded(picture, "TIFF"), 1, None)[..., 0]
    np.testing.assert_array_equal(found, np.rint(values / 257))


@pytest.mark.parametrize(
    "values, expected",
    [
        (np.float32([[0, 0.5, 1]]), [[0, 128, 255]]),
        (np.float32([[0, 2, 255]]), [[0, 2, 255]]),
        (np.float32([[0, 257, 65535]]), [[0, 1, 255]]),
        (np.float32([[-1, 0, 1]]), [[0, 128, 255]]),
        (np.float32([[0, 1e6, np.inf]]), [[0, 255, 0]]),
        (np.float32([[np.nan, 1, 0.2]]), [[0, 255, 51]]),
        (np.int32([[0, 1, 255]]), [[0, 1, 255]]),
        (np.int32([[0, 257, 65535]]), [[0, 1, 255]]),
        (np.int32([[10, 10 + 10**6, 10 + 2 * 10**6]]), [[0, 128, 255]]),
        (np.float32([[7e5, 7e5, 7e5]]), [[0, 0, 0]]),
    ],
)
def test_values_without_a_white_are_scaled(values, expected):
    np.testing.assert_array_equal(scaled_grey(values), expected)
    data = encoded(values, "TIFF")
    np.testing.assert_array_equal(read_pixels(data, 1, None)[..., 0], expected)
    assert not read_header(data).has_white


def test_transparent_pixels_lie_over_the_background():
    colours = np.dstack([PHOTO, ALPHA])
    grey = np.dstack([GREY, ALPHA])
    for data, opaque in (
        (encoded(colours, "PNG"), PHOTO),
        (encoded(colours, "WEBP", lossless=True, exact=True), PHOTO),
        (encoded(grey, "PNG"), np.dstack([GREY] * 3)),
    ):
        found = read_pixels(data, 3, None, background=GROUND)
        np.testing.assert_allclose(found, over_ground(opaque, ALPHA), atol=1)
    assert read_pixels(encoded(colours, "PNG"), 3, None)[0, 0].tolist() == [0, 0, 0]


def test_transparent_entries_of_a_palette_lie_over_the_background():
    palette = Image.fromarray(PHOTO).quantize(16)
    table, places = np.array(palette.getpalette()).reshape(-1, 3), np.asarray(palette)
    alphas = np.arange(16) * 17
    data = encoded(palette, "PNG", transparency=bytes(alphas.tolist()))
    expected = over_ground(table[places], alphas[places])
    np.testing.assert_allclose(read_pixels(data, 3, None, background=GROUND), expected, atol=1)
    with_alpha = palette.convert("PA")
    with_alpha.putalpha(Image.fromarray(ALPHA))
    data = encoded(with_alpha, "TIFF")
    assert Image.open(io.BytesIO(data)).mode == "PA"
    found = read_pixels(data, 3, None, background=GROUND)
    np.testing.assert_allclose(found, over_ground(table[places], ALPHA), atol=1)


def test_the_transparent_colour_of_a_picture_without_alpha_is_the_background():
    image = np.zeros((2, 2, 3), np.uint8)
    image[0, 0] = 9, 8, 7
    data = encoded(image, "PNG", transparency=(9, 8, 7))
    found = read_pixels(data, 3, None, background=GROUND)
    assert found[0, 0].tolist() == list(GROUND) and found[1, 1].tolist() == [0, 0, 0]


def test_cmyk_and_ycbcr_and_lab_are_colours():
    ink = np.dstack([255 - PHOTO, np.full(GREY.shape, 51, np.uint8)])
    expected = PHOTO.astype(float) * (1 - 51 / 255)
    picture = Image.frombytes("CMYK", GREY.shape[::-1], ink.tobytes())
    np.testing.assert_allclose(read_pixels(encoded(picture, "TIFF"), 3, None), expected, atol=1)
    # JPEG's inverted inks, as Adobe writes them, with JPEG's own losses
    found = read_pixels(encoded(picture, "JPEG", quality=100, subsampling=0), 3, None)
    assert np.abs(found - expected).mean() < 3
    y, cb, cr = np.moveaxis(np.asarray(Image.fromarray(PHOTO).convert("YCbCr"), float), -1, 0)
    # JFIF 1.02, page 4
    rgb = [
        y + 1.402 * (cr - 128),
        y - 0.34414 * (cb - 128) - 0.71414 * (cr - 128),
        y + 1.772 * (cb - 128),
    ]
    data = encoded(Image.fromarray(PHOTO).convert("YCbCr"), "TIFF")
    np.testing.assert_allclose(
        read_pixels(data, 3, None), np.clip(np.stack(rgb, -1), 0, 255), atol=1.5
    )
    lab = encoded(Image.frombytes("LAB", (2, 1), bytes([255, 0, 0, 0, 0, 0])), "TIFF")
    np.testing.assert_allclose(read_pixels(lab, 1, None).ravel(), [255, 0], atol=1)


def test_one_bit_is_black_and_white():
    bits = GREY > 100
    for kind in ("PNG", "TIFF", "BMP", "PPM"):
        data = encoded(Image.fromarray(bits), kind)
        np.testing.assert_array_equal(read_pixels(data, 1, None)[..., 0], bits * 255)
        assert read_header(data).channels == 1


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_an_animated_file_the_first_frame_is_taken(kind):
    first, second = (Image.new("RGB", (8, 6), colour) for colour in ("red", "blue"))
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(first, kind, save_all=True, append_images=[second], **options)
    assert (read_pixels(data, 3, None) == [255, 0, 0]).all()


# --- Orientation and geometry ---------------------------------------------------------------------

UPRIGHT = {  # by the EXIF orientation of what is stored
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: np.rot90(x),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG"])
def test_pictures_are_turned_as_their_exif_data_say(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(PHOTO, kind, exif=exif)
    stored = np.asarray(Image.open(io.BytesIO(encoded(PHOTO, kind))))
    found = read_pixels(data, 3, None)
    np.testing.assert_array_equal(found, UPRIGHT[orientation](stored))
    header = read_header(data)
    assert (header.height, header.width) == found.shape[:2]


def test_damaged_metadata_damage_no_picture():
    data = encoded(PHOTO, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xffno tags at all")
    np.testing.assert_array_equal(
        read_pixels(data, 3, None), read_pixels(encoded(PHOTO, "JPEG"), 3, None)
    )


@pytest.mark.parametrize("size", [None, 16, 40, 64])
@pytest.mark.parametrize("channels", [1, 3])
def test_plain_pictures_are_pillows_fit_bit_for_bit(channels, size):
    """As TFDS sets were always read."""
    plain = Image.fromarray(GREY if channels == 1 else PHOTO)
    fitted = plain if size is None else ImageOps.fit(plain, (size, size), Image.Resampling.BILINEAR)
    found = read_pixels(encoded(plain, "PNG"), channels, size)
    np.testing.assert_array_equal(found.squeeze(), np.asarray(fitted))


def test_the_largest_central_square_is_cropped():
    np.testing.assert_array_equal(read_pixels(PHOTO, 3, 40), PHOTO[:, 10:50])
    tall = PHOTO.swapaxes(0, 1)
    np.testing.assert_array_equal(read_pixels(tall, 3, 40), tall[10:50])


def test_a_padded_picture_is_whole_on_the_background():
    found = read_pixels(PHOTO, 3, 60, "pad", GROUND)
    np.testing.assert_array_equal(found[10:50], PHOTO)
    assert (found[:10] == GROUND).all() and (found[50:] == GROUND).all()
    luma = 0.299 * GROUND[0] + 0.587 * GROUND[1] + 0.114 * GROUND[2]  # ITU-R 601
    grey = read_pixels(GREY, 1, 60, "pad", GROUND)
    np.testing.assert_allclose(grey[:10], luma, atol=1)


def test_a_squashed_picture_is_whole():
    expected = Image.fromarray(PHOTO).resize((20, 20), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(read_pixels(PHOTO, 3, 20, "squash"), np.asarray(expected))


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 900), (900, 1)])
def test_thin_pictures_have_pixels(shape, fit):
    found = read_pixels(np.full((*shape, 3), 77, np.uint8), 3, 8, fit, (77, 77, 77))
    assert found.shape == (8, 8, 3) and (found == 77).all()


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 1), (5, 4, 3)])
def test_pixels_are_read_as_encoded_ones_are(shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    data = encoded(pixels.squeeze(), "PNG")
    for channels in (1, 3):
        for size in (None, 3):
            np.testing.assert_array_equal(
                read_pixels(pixels, channels, size), read_pixels(data, channels, size)
            )
    assert read_header(pixels) == read_header(data)


# --- Damage ---------------------------------------------------------------------------------------


def cut(kind: str) -> bytes:
    data = encoded(PHOTO, kind)
    return data[: len(data) // 2]


DAMAGED = {
    "empty": (b"", "empty"),
    "page": (b"\n<!DOCTYPE html><html><body>404</body></html>", "HTML"),
    "text": (b"no picture at all", "not a picture of a known format"),
    "bomb": (encoded(Image.new("1", (20_000, 20_000)), "PNG"), "decompression bomb"),
    **{f"cut {kind}": (cut(kind), "") for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP")},
    "postscript": (encoded(PHOTO, "EPS"), "not a picture of a known format"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_one_line_with_its_reason(name):
    data, reason = DAMAGED[name]
    with pytest.raises(DamagedPicture) as caught:
        read_pixels(data, 3, 8)
    line = str(caught.value)
    assert reason in line and 0 < len(line) <= 200 and "\n" not in line


def test_a_large_lawful_picture_is_no_bomb(monkeypatch):
    """Pillow warns above its limit, and refuses twice as many pixels."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", GREY.size - 1)
    assert read_pixels(encoded(GREY, "PNG"), 1, 4).shape == (4, 4, 1)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", GREY.size // 2 - 1)
    with pytest.raises(DamagedPicture, match="bomb"):
        read_pixels(encoded(GREY, "PNG"), 1, 4)
