"""The whole recipes of the views against torchvision's on Pillow, in distribution.

torchvision is not needed: its operations on 8-bit pictures are calls of Pillow, and its draws are
written down in its documentation. Here they are made again, with NumPy's random numbers.
"""

import jax
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from scipy import stats

from ssl_jax.augment import views

STRENGTHS = {  # ColorJitter's
    "cifar": (0.4, 0.4, 0.4, 0.1),
    "stl10": (0.8, 0.8, 0.8, 0.2),
    "photo": (0.4, 0.4, 0.2, 0.1),
}
# Of each side: the probabilities of blur and solarisation, and the kernel at 24 pixels: a tenth of
# the side for photographs (BYOL, table 6).
BLUR = {"cifar": (0.0, 0.0), "stl10": (1.0, 1.0), "photo": (1.0, 0.1)}
SOLARIZE = {"cifar": (0.0, 0.0), "stl10": (0.0, 0.0), "photo": (0.0, 0.2)}
KERNEL = {"cifar": 9, "stl10": 9, "photo": 3}


def picture(size: int) -> np.ndarray:
    """Colours that change from left to right and from top to bottom, with fine stripes."""
    y, x = np.mgrid[:size, :size] / (size - 1)
    stripes = 0.5 + 0.5 * np.sin(2.5 * size * x * y)
    image = np.stack([0.15 + 0.8 * x, 0.9 - 0.7 * y, 0.2 + 0.35 * stripes + 0.2 * x * y], axis=-1)
    return np.uint8(255 * image)


def crop(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    """RandomResizedCrop: ten draws of an area of 8 to 100 % and a ratio of 3/4 to 4/3."""
    side = image.width
    for _ in range(10):
        area = side**2 * rng.uniform(0.08, 1.0)
        ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        width, height = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
        if 0 < width <= side and 0 < height <= side:
            left, top = rng.integers(side - width + 1), rng.integers(side - height + 1)
            box = (left, top, left + width, top + height)
            return image.crop(box).resize((side, side), Image.Resampling.BILINEAR)
    return image


def shift_hue(image: Image.Image, delta: float) -> Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    turned = (np.asarray(hue).astype(int) + round(255 * delta)) % 256
    merged = Image.merge("HSV", (Image.fromarray(np.uint8(turned)), saturation, value))
    return merged.convert("RGB")


def jitter(rng: np.random.Generator, image: Image.Image, strengths: tuple) -> Image.Image:
    """ColorJitter: four operations in random order."""
    enhance = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for i in rng.permutation(4):
        if i == 3:
            image = shift_hue(image, rng.uniform(-strengths[3], strengths[3]))
        else:
            factor = rng.uniform(max(0.0, 1 - strengths[i]), 1 + strengths[i])
            image = enhance[i](image).enhance(factor)
    return image


def blur(rng: np.random.Generator, image: np.ndarray, width: int) -> np.ndarray:
    """GaussianBlur of `width` pixels with a deviation of 0.1 to 2, edges reflected."""
    half = width // 2
    kernel = np.exp(-0.5 * (np.arange(-half, half + 1) / rng.uniform(0.1, 2.0)) ** 2)
    padded = np.pad(image, ((half, half), (half, half), (0, 0)), mode="reflect")
    for axis in (0, 1):
        windows = np.lib.stride_tricks.sliding_window_view(padded, width, axis=axis)
        padded = windows @ (kernel / kernel.sum())
    return padded


def reference_view(
    rng: np.random.Generator, pixels: np.ndarray, recipe: str, side: int
) -> np.ndarray:
    image = crop(rng, Image.fromarray(pixels))
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() < 0.8:
        image = jitter(rng, image, STRENGTHS[recipe])
    if rng.random() < 0.2:
        image = image.convert("L").convert("RGB")
    view = np.asarray(image) / 255
    if rng.random() < BLUR[recipe][side]:
        view = blur(rng, view, KERNEL[recipe])
    if rng.random() < SOLARIZE[recipe][side]:
        rounded = Image.fromarray(np.uint8(np.round(255 * view)))
        view = np.asarray(ImageOps.solarize(rounded)) / 255
    return view


def statistics(view: np.ndarray) -> dict[str, np.ndarray]:
    """Of views (N, S, S, 3) in [0, 1], each (N,).

    Rounded: what is 0 of a grey picture is 0 up to rounding, and ranks see that.
    """
    luma = view @ [0.299, 0.587, 0.114]
    place = np.linspace(-1, 1, view.shape[1])
    colourful = view.max(axis=-1) - view.min(axis=-1)
    found = {
        **{f"mean of {name}": view[..., c].mean((1, 2)) for c, name in enumerate("RGB")},
        "contrast": luma.std((1, 2)),
        "brightest": luma.max((1, 2)),
        "left to right": (luma * place).mean((1, 2)),
        "top to bottom": (luma * place[:, None]).mean((1, 2)),
        "red less green": (view[..., 0] - view[..., 1]).mean((1, 2)),
        "saturation": colourful.mean((1, 2)),
        "sharpness": np.abs(np.diff(luma, axis=2)).mean((1, 2)),
    }
    return {name: values.round(4) for name, values in found.items()}


@pytest.mark.parametrize(
    "recipe, side", [("cifar", None), ("stl10", None), ("photo", 0), ("photo", 1)]
)
def test_the_views_are_distributed_as_torchvisions(recipe, side):
    """Both sides together where they are alike, else each for itself."""
    count, size = 2400, 24
    pixels, rng = picture(size), np.random.default_rng(0)
    theirs = np.stack([reference_view(rng, pixels, recipe, side or 0) for _ in range(count)])
    own = {"mean": (0.0,), "std": (1.0,)} if recipe == "photo" else {}
    make = jax.jit(views.make_views(views.make_recipe(recipe, **own), size))
    drawn = count // 2 if side is None else count
    keys = jax.random.split(jax.random.key(3), drawn)
    both = make(keys, np.broadcast_to(pixels, (drawn, *pixels.shape)))
    ours = np.concatenate(both) if side is None else np.asarray(both[side])
    if recipe == "cifar":
        ours = ours * [0.2023, 0.1994, 0.2010] + [0.4914, 0.4822, 0.4465]
    found, expected = statistics(ours), statistics(theirs)
    for name in found:
        assert stats.ks_2samp(found[name], expected[name]).pvalue > 0.02, name
    # 8 bits round a grey picture to itself, and floats to a millionth
    grey = (np.ptp(ours, axis=-1).max((1, 2)) < 1e-5).mean()
    assert abs(grey - 0.2) < 3 * np.sqrt(0.2 * 0.8 / count)
