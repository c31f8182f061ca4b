"""encoder.stablehlo: images in, features out, as one program that jax alone can run.

It holds the weights and the normalisation, takes any number of images, and serves three platforms.
`jax.export.deserialize` reads it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from ssl_jax.models.cpu.native import portable

NAME = "encoder.stablehlo"
PLATFORMS = ("cpu", "cuda", "tpu")


def to_bytes(apply: Callable[[jax.Array], jax.Array], image: tuple[int, int, int]) -> bytes:
    """Return the program of an encoder.

    Args:
        apply: apply(images (B, H, W, C) uint8) -> features (B, F) float32; it holds its weights.
        image: H, W and C.

    Returns:
        What the file holds.
    """
    batch = jax.ShapeDtypeStruct((*export.symbolic_shape("b"), *image), jnp.uint8)
    # a new function: one that was traced before may have the CPU's own convolutions in it
    program = jax.jit(lambda images: apply(images))
    with portable(), no_locations():
        return bytes(export.export(program, platforms=PLATFORMS)(batch).serialize())


@contextmanager
def no_locations() -> Iterator[None]:
    """Lower programs without the lines of code that they come from: paths of this machine."""
    field = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, field)
    jax.config.update(field, 0)
    try:
        yield
    finally:
        jax.config.update(field, before)


def features(content: bytes, images: np.ndarray) -> np.ndarray:
    """Return what the program in a file makes of images (B, H, W, C) uint8: (B, F) float32."""
    return np.asarray(export.deserialize(bytearray(content)).call(images))
