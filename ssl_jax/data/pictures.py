"""Encoded pictures to pixels, with Pillow: the one decoder of every source.

A picture is turned as its EXIF orientation says; of an animated file the first frame is taken.
Transparent pixels lie over the background, and their hidden colours are not seen. Grey of 16 bits
is scaled to 8. Integers of 32 bits and floats have no declared white: `scaled_grey` says how they
are scaled. Everything else Pillow converts to grey or RGB.
"""

import functools
import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

MODES = {1: "L", 3: "RGB"}  # channels -> Pillow's name
# Of a picture in these modes red, green and blue are equal.
GREY = ("1", "L", "LA", "La", "I", "F")
WITHOUT_WHITE = ("I", "F")  # 32-bit integers, floats
# What is opened at all: no format that starts another program (EPS) or holds no photograph (PDF).
FORMATS = "JPEG MPO PNG GIF BMP DIB TIFF WEBP AVIF JPEG2000 PPM PCX TGA SGI ICO".split()
ORIENTATION = 0x0112  # tag of EXIF
TURNS = {  # EXIF 2.32, section 4.6.4: what shows the stored picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
FITS = ("crop", "pad", "squash")
BILINEAR = Image.Resampling.BILINEAR


class DamagedPicture(ValueError):
    """Bytes that cannot be decoded; the message is the reason, in a few words."""


class Header(NamedTuple):
    """The properties of a picture that are known without its pixels."""

    width: int  # pixels, upright
    height: int
    channels: int  # 1 where it is grey, else 3
    has_white: bool  # False: 32-bit integers or floats, see `scaled_grey`


def read_pixels(
    encoded: bytes | np.ndarray | Image.Image,
    channels: int,
    image_size: int | None,
    fit: str = "crop",
    background: tuple[int, int, int] = (0, 0, 0),
) -> np.ndarray:
    """Return the pixels of a picture.

    Args:
        encoded: bytes of a format that Pillow reads, or (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)
            uint8, or a picture of Pillow's.
        channels: C, 1 or 3.
        image_size: side in pixels, as `fit_square` takes it; None: as stored.
        fit: "crop" | "pad" | "squash", as `fit_square` takes it.
        background: red, green and blue, 0..255, under transparent pixels and around padded ones.

    Returns:
        (H, W, C) uint8.

    Raises:
        DamagedPicture: no picture can be made of the bytes.
    """
    with _damage(encoded):
        picture = _flat(_open(encoded), channels, background)
        pixels = fit_square(picture, image_size, fit, background)
        return pixels.reshape(*pixels.shape[:2], channels)


def read_image(
    encoded: bytes | np.ndarray | Image.Image,
    shape: tuple[int, int, int],
    fit: str = "crop",
    background: tuple[int, int, int] = (0, 0, 0),
) -> np.ndarray:
    """Return the pixels of a picture in the shape of a network's images.

    Args:
        encoded, fit, background: as `read_pixels` takes them. Where the shape is not square, the
            largest central part of its proportions is resized, bilinear.
        shape: height and width in pixels, and channels, 1 or 3.

    Returns:
        (H, W, C) uint8.

    Raises:
        DamagedPicture: no picture can be made of the bytes.
    """
    height, width, channels = shape
    side = height if height == width else None
    pixels = read_pixels(encoded, channels, side, fit, background)
    if side is None:
        whole = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
        pixels = np.asarray(ImageOps.fit(whole, (width, height), BILINEAR))
    return pixels.reshape(shape)


def read_header(encoded: bytes | np.ndarray) -> Header:
    """Return size and channels of a picture; its pixels are not decoded.

    Raises:
        DamagedPicture: the bytes begin like no picture.
    """
    with _damage(encoded):
        picture = _open(encoded)
        # Pillow loads a whole PNG to look for EXIF data at its end; a TIFF's size is upright.
        lazy = picture.format != "TIFF" and (picture.format != "PNG" or "exif" in picture.info)
        sideways = lazy and _orientation(picture) >= 5
        width, height = picture.size[::-1] if sideways else picture.size
        grey = picture.mode in GREY or picture.mode.startswith("I;16")
        return Header(width, height, 1 if grey else 3, not _lacks_white(picture))


def fit_square(
    picture: Image.Image,
    size: int | None,
    fit: str = "crop",
    background: tuple[int, int, int] = (0, 0, 0),
) -> np.ndarray:
    """Return a picture as (size, size) pixels, bilinear.

    Args:
        picture: grey or RGB.
        size: side in pixels; None: the whole picture, not resized.
        fit: "crop", the largest central square; "pad", the whole picture on a square of the
            background; or "squash", the whole picture, each side resized on its own.
        background: red, green and blue, 0..255.

    Returns:
        (size, size) or (size, size, 3) uint8.
    """
    if size is None:
        return np.asarray(picture)
    if fit == "crop":
        return np.asarray(ImageOps.fit(picture, (size, size), BILINEAR))
    if fit == "squash":
        return np.asarray(picture.resize((size, size), BILINEAR))
    longer = max(picture.size)
    width, height = (max(1, round(side * size / longer)) for side in picture.size)
    square = Image.new("RGB", (size, size), background).convert(picture.mode)
    place = (size - width) // 2, (size - height) // 2
    square.paste(picture.resize((width, height), BILINEAR), place)
    return np.asarray(square)


def scaled_grey(values: np.ndarray) -> np.ndarray:
    """Return grey without a declared white as (H, W) uint8.

    The white of the picture is the smallest of 1 (floats only), 255 and 65535 that no value
    exceeds. Where there is none, or a value is negative, the smallest value becomes 0 and the
    largest 255. What is not finite becomes 0.

    Args:
        values: (H, W) int32 or float32.
    """
    floats = values.dtype.kind == "f"
    finite = np.isfinite(values)
    values = np.where(finite, values, 0).astype(np.float64)
    low, high = values.min(initial=0), values.max(initial=0)
    whites = [white for white in (1, 255, 65535)[not floats :] if low >= 0 and high <= white]
    if whites:
        low, high = 0, whites[0]
    else:
        low = values.min(where=finite, initial=np.inf)
    scaled = np.rint((values - low) * (255 / max(high - low, 1e-300)))
    return np.where(finite, scaled, 0).astype(np.uint8)


@functools.cache
def _formats() -> tuple[str, ...]:
    """Return those of FORMATS that this Pillow has."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


class _Quiet:
    """A context without warnings: of odd metadata, and of large but lawful pictures.

    Filters belong to the process. Threads that decode at once share one `catch_warnings`: each
    with its own would put back what it found, the filters of another, for good.
    """

    def __init__(self) -> None:
        self._lock, self._inside, self._filters = threading.Lock(), 0, ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._filters.enter_context(warnings.catch_warnings())
                warnings.simplefilter("ignore")
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._filters.close()


_QUIET = _Quiet()


@contextmanager
def _damage(encoded: bytes | np.ndarray | Image.Image) -> Iterator[None]:
    """Turn whatever a decoder raises within this context into one `DamagedPicture`."""
    try:
        with _QUIET:
            yield
    except DamagedPicture:
        raise
    except Image.UnidentifiedImageError:
        raise DamagedPicture(_not_a_picture(encoded)) from None
    except Image.DecompressionBombError as error:
        raise DamagedPicture("too many pixels, a decompression bomb") from error
    except MemoryError as error:
        raise DamagedPicture("too large for the memory") from error
    except Exception as error:  # each of Pillow's decoders has its own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DamagedPicture(reason[:200]) from error


def _not_a_picture(encoded: bytes | np.ndarray | Image.Image) -> str:
    if isinstance(encoded, Image.Image):
        return "damaged"
    if not len(encoded):
        return "an empty file"
    start = bytes(encoded[:1000]).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head")):
        return "an HTML page, not a picture"
    return "not a picture of a known format, or damaged at its beginning"


def _open(encoded: bytes | np.ndarray | Image.Image) -> Image.Image:
    if isinstance(encoded, Image.Image):
        return encoded
    if isinstance(encoded, np.ndarray):
        return Image.fromarray(encoded[..., 0] if encoded.shape[2:] == (1,) else encoded)
    return Image.open(io.BytesIO(encoded), formats=_formats())


def _orientation(picture: Image.Image) -> int:
    try:
        return int(picture.getexif().get(ORIENTATION, 1))
    except Exception:  # damaged metadata of a picture that may be sound
        return 1


def _lacks_white(picture: Image.Image) -> bool:
    """Return whether no white is declared: PNG and PPM in mode I have 16 bits."""
    return picture.mode in WITHOUT_WHITE and not (
        picture.mode == "I" and picture.format in ("PNG", "PPM")
    )


def _flat(picture: Image.Image, channels: int, background: tuple[int, int, int]) -> Image.Image:
    """Return a picture upright, without transparency, in the mode of so many channels."""
    mode = MODES[channels]
    picture.load()
    turn = TURNS.get(_orientation(picture))
    if turn is not None:
        picture = picture.transpose(turn)
    if picture.mode.startswith("I;16") or picture.mode in WITHOUT_WHITE:
        values = np.asarray(picture)
        if _lacks_white(picture):
            values = scaled_grey(values)
        else:
            values = np.rint(values.clip(0, 65535) / 257).astype(np.uint8)
        picture = Image.fromarray(values)
    elif picture.has_transparency_data:
        colours = picture.convert("RGBA")
        ground = Image.new("RGBA", colours.size, (*background, 255))
        picture = Image.alpha_composite(ground, colours).convert("RGB")
    elif picture.mode == "LAB":  # Pillow converts it to colours alone
        picture = picture.convert("RGB")
    return picture if picture.mode == mode else picture.convert(mode)
