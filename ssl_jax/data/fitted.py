"""Pictures in any form, as images in the shape that a network was trained on.

They are decoded and fitted as the run's own were (`pictures.read_image`).
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ssl_jax import files
from ssl_jax.data.pictures import DamagedPicture, read_image
from ssl_jax.errors import UserError

Picture = np.ndarray | Image.Image | str | os.PathLike
Pictures = np.ndarray | Sequence[Picture]
TAKES = (
    "takes (N, H, W, C) uint8 with 1 or 3 channels, or a list of arrays (H, W) or (H, W, C), "
    "Pillow images and paths"
)


def fit_pictures(
    pictures: Pictures,
    shape: tuple[int, int, int],
    chunk: int,
    fit: str = "crop",
    background: tuple[int, int, int] = (0, 0, 0),
) -> Iterator[np.ndarray]:
    """Yield pictures as images of one shape; arrays that have it already stay as they are.

    Args:
        pictures: (N, H, W, C) uint8 with C = 1 or 3; or a sequence of arrays (H, W) or (H, W, C)
            uint8, Pillow images, and paths of picture files, of mixed sizes.
        shape: height and width in pixels, and channels, of the images.
        chunk: how many are decoded at a time.
        fit, background: as `pictures.read_image` takes them.

    Yields:
        (n, *shape) uint8, with n <= chunk.

    Raises:
        UserError: something is no picture; it names the first by its number, or its file.
    """
    if isinstance(pictures, str | bytes | os.PathLike | Image.Image):
        raise UserError(f"images: got one {type(pictures).__name__}; {TAKES}")
    if not isinstance(pictures, Sequence):  # an array, of JAX too
        pictures = np.asarray(pictures)
        if pictures.ndim != 4:
            raise UserError(f"images: got {pictures.dtype} of shape {pictures.shape}; {TAKES}")
    for start in range(0, len(pictures), chunk):
        part = pictures[start : start + chunk]
        if isinstance(part, np.ndarray) and part.dtype == np.uint8 and part.shape[1:] == shape:
            yield part
        else:
            how = shape, fit, background
            yield np.stack([_fit_one(one, start + i, *how) for i, one in enumerate(part)])


def _fit_one(
    picture: Picture,
    number: int,
    shape: tuple[int, int, int],
    fit: str,
    background: tuple[int, int, int],
) -> np.ndarray:
    """Return one picture as an image of the shape; `number` is its own, for messages."""
    name = f"images[{number}]"
    if isinstance(picture, str | os.PathLike):
        path = Path(files.local_path(name, os.fspath(picture)))
        name, encoded = str(path), files.read_bytes(path, "a picture")
    else:
        is_pillow = isinstance(picture, Image.Image)
        encoded = picture if is_pillow else _as_pillow(np.asarray(picture), number)
    try:
        return read_image(encoded, shape, fit, background)
    except DamagedPicture as error:
        raise UserError(f"{name}: is no picture that can be read ({error})") from error


def _as_pillow(pixels: np.ndarray, number: int) -> Image.Image:
    """Return (H, W) or (H, W, C) uint8 as a Pillow image; UserError for any other array."""
    channels = pixels.shape[2:]
    right = pixels.ndim in (2, 3) and channels in ((), (1,), (3,)) and 0 not in pixels.shape
    if pixels.dtype != np.uint8 or not right:
        raise UserError(
            f"images: got {pixels.dtype} of shape {pixels.shape} as number {number}; {TAKES}"
        )
    return Image.fromarray(pixels[..., 0] if channels == (1,) else pixels)
