"""Encoded pictures to pixels, with Pillow."""

import io

import numpy as np
from PIL import Image, ImageOps

MODES = {1: "L", 3: "RGB"}  # channels -> Pillow's name


def read_pixels(encoded: bytes, channels: int, image_size: int | None) -> np.ndarray:
    """Return the pixels of an encoded picture.

    Args:
        encoded: bytes of a format that Pillow reads.
        channels: C, 1 or 3.
        image_size: side in pixels, as `fit_square` takes it; None: as stored.

    Returns:
        (H, W, C) uint8.
    """
    picture = Image.open(io.BytesIO(encoded))
    picture = picture if picture.mode == MODES[channels] else picture.convert(MODES[channels])
    pixels = fit_square(picture, image_size)
    return pixels.reshape(*pixels.shape[:2], channels)


def fit_square(picture: Image.Image, size: int | None) -> np.ndarray:
    """Return the largest central square of a picture as (size, size) pixels, bilinear.

    The whole picture, not resized, where `size` is None.
    """
    method = Image.Resampling.BILINEAR
    return np.asarray(picture if size is None else ImageOps.fit(picture, (size, size), method))
