"""Swin transformer (Liu et al. 2021, arXiv 2103.14030) down to the average of its last grid.

The computation is timm's. A window is no larger than the grid, and it is shifted only along a side
where the grid is larger. A grid that windows do not divide is padded with zeros, which take part in
the attention. Stochastic depth is left out. Heads have 32 channels. Input (B, H, W, C) float with
sides of at least 4 pixels, output (B, 8 width) float32.
"""

from typing import TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax.models.layers import ACTIVATIONS, check_side, layer_norm, patch_conv, transformer_init

EPSILON = 1e-5
HEAD_CHANNELS = 32
Array = TypeVar("Array", jax.Array, np.ndarray)
Size = tuple[int, int]  # (rows, columns) of a grid, window or shift


def window_and_shift(grid: Size, window: int, shifted: bool) -> tuple[Size, Size]:
    """Compute the window's size on a grid, and its shift.

    Args:
        grid: (H, W) in patches.
        window: side of the window in patches, where the grid is large enough.
        shifted: whether the block shifts its windows.

    Returns:
        (window, shift): the sides of the window, and the shift along each.
    """
    sides = (min(grid[0], window), min(grid[1], window))
    shift = [
        side // 2 if shifted and length > side else 0
        for length, side in zip(grid, sides, strict=True)
    ]
    return sides, (shift[0], shift[1])


def window_partition(x: Array, window: Size) -> Array:
    """Split (B, H, W, C) into windows: (B, windows, pixels of a window, C)."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // window[0], window[0], width // window[1], window[1], channels)
    return x.swapaxes(2, 3).reshape(batch, -1, window[0] * window[1], channels)


def window_reverse(x: jax.Array, window: Size, grid: Size) -> jax.Array:
    """Invert `window_partition`.

    Args:
        x: (B, windows, pixels of a window, C).
        window: sides of a window.
        grid: (H, W).

    Returns:
        (B, H, W, C).
    """
    batch, channels = x.shape[0], x.shape[-1]
    x = x.reshape(batch, grid[0] // window[0], grid[1] // window[1], *window, channels)
    return x.swapaxes(2, 3).reshape(batch, *grid, channels)


def relative_index(window: Size) -> np.ndarray:
    """Return the row of the bias table for each pair of a window's N pixels (N, N); section 3.2."""
    place = np.stack(np.meshgrid(*map(np.arange, window), indexing="ij")).reshape(2, -1)
    apart = place[:, :, None] - place[:, None, :] + np.array(window)[:, None, None] - 1
    return apart[0] * (2 * window[1] - 1) + apart[1]


def attention_mask(grid: Size, window: Size, shift: Size) -> np.ndarray:
    """Compute the mask of shifted windows (figure 4).

    Args:
        grid: (H, W), a multiple of the window.
        window: sides of a window, of N pixels together.
        shift: shift of the windows along each side.

    Returns:
        (windows, N, N) float32: -100 between pixels of a window that come from opposite ends of the
        image, else 0.
    """
    rows, columns = (_regions(*sizes) for sizes in zip(grid, window, shift, strict=True))
    region = window_partition(3 * rows[None, :, None, None] + columns[None, None, :, None], window)
    region = region[0, :, :, 0]
    return np.where(region[:, None, :] == region[:, :, None], 0.0, -100.0).astype(np.float32)


def _regions(length: int, window: int, shift: int) -> np.ndarray:
    """Return the region of each position along a side after the cyclic shift.

    Regions are 0 before the last window, 1 in the last window, and 2 for the positions that were
    shifted in from the other end. A side of one window is one region.
    """
    return np.searchsorted([length - window, length - shift], np.arange(length), side="right")


class RelativePosition(nn.Module):
    """Add a learned bias for each head and each offset to the scores (B, windows, heads, N, N)."""

    window: Size

    @nn.compact
    def __call__(self, scores: jax.Array) -> jax.Array:
        rows = (2 * self.window[0] - 1) * (2 * self.window[1] - 1)
        table = self.param("table", nn.initializers.normal(0.02), (rows, scores.shape[2]))
        bias = jnp.moveaxis(table[relative_index(self.window)], -1, 0)
        return scores + bias.astype(scores.dtype)[None, None]


class Attention(nn.Module):
    """Compute softmax(q kᵀ / sqrt(d) + bias + mask) v in each window (equation 4).

    Input and output are (B, windows, N, C), the mask (windows, N, N).
    """

    window: Size
    preset: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, mask: np.ndarray | None) -> jax.Array:
        channels = x.shape[-1]
        options = {"dtype": self.dtype, "kernel_init": transformer_init(self.preset)}
        qkv = nn.Dense(3 * channels, name="qkv", **options)(x)
        q, k, v = jnp.moveaxis(
            qkv.reshape(*x.shape[:3], 3, channels // HEAD_CHANNELS, HEAD_CHANNELS), 3, 0
        )
        scores = jnp.einsum("bwnhd,bwmhd->bwhnm", q, k) / HEAD_CHANNELS**0.5
        scores = RelativePosition(self.window, name="position")(scores.astype(jnp.float32))
        if mask is not None:
            scores = scores + mask[None, :, None]
        y = jnp.einsum("bwhnm,bwmhd->bwnhd", nn.softmax(scores).astype(self.dtype), v)
        return nn.Dense(channels, name="proj", **options)(y.reshape(x.shape))


class Block(nn.Module):
    """Attention in windows, then an MLP (equation 3).

    Each works on its normalised input and is added to it.
    """

    window: int  # side of a window in patches
    shifted: bool  # whether the windows are shifted
    preset: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        options = {"dtype": self.dtype, "kernel_init": transformer_init(self.preset)}
        x = x + self._attend(layer_norm(EPSILON, dtype=self.dtype, name="norm1")(x))
        y = layer_norm(EPSILON, dtype=self.dtype, name="norm2")(x)
        y = ACTIVATIONS["gelu"](nn.Dense(4 * x.shape[-1], name="linear1", **options)(y))
        return x + nn.Dense(x.shape[-1], name="linear2", **options)(y)

    def _attend(self, x: jax.Array) -> jax.Array:
        height, width = x.shape[1:3]
        window, shift = window_and_shift((height, width), self.window, self.shifted)
        x = jnp.roll(x, (-shift[0], -shift[1]), axis=(1, 2)) if any(shift) else x
        x = jnp.pad(x, ((0, 0), (0, -height % window[0]), (0, -width % window[1]), (0, 0)))
        grid = x.shape[1], x.shape[2]
        mask = attention_mask(grid, window, shift) if any(shift) else None
        y = Attention(window, self.preset, self.dtype, name="attention")(
            window_partition(x, window), mask
        )
        y = window_reverse(y, window, grid)[:, :height, :width]
        return jnp.roll(y, shift, axis=(1, 2)) if any(shift) else y


class Merge(nn.Module):
    """Merge 2x2 neighbours into one patch with twice the channels.

    Input (B, H, W, C), output (B, H / 2, W / 2, 2 C), rounded up.
    """

    preset: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
        batch, height, width, channels = x.shape
        x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
        x = x.transpose(0, 1, 3, 4, 2, 5)  # column, then row
        x = layer_norm(EPSILON, dtype=self.dtype, name="norm")(
            x.reshape(*x.shape[:3], 4 * channels)
        )
        kernel_init = transformer_init(self.preset)
        return nn.Dense(
            2 * channels, use_bias=False, dtype=self.dtype, kernel_init=kernel_init, name="linear"
        )(x)


class Swin(nn.Module):
    """Patches of 4x4, four stages of blocks at width, 2, 4 and 8 times width, norm, average."""

    depths: tuple[int, ...]  # blocks per stage
    width: int = 96  # channels of the first stage
    window: int = 7  # side of a window in patches
    preset: str = "pytorch"  # initialisation, one of layers.INITS
    dtype: jnp.dtype = jnp.float32  # of the computation

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        check_side(x, 4)
        kernel_init = transformer_init(self.preset)
        x = patch_conv(self.width, 4, dtype=self.dtype, kernel_init=kernel_init, name="stem_conv")(
            x
        )
        x = layer_norm(EPSILON, dtype=self.dtype, name="stem_norm")(x)
        for stage, depth in enumerate(self.depths, start=1):
            if stage > 1:
                x = Merge(self.preset, self.dtype, name=f"stage{stage}_merge")(x)
            for i in range(1, depth + 1):
                shifted = i % 2 == 0
                x = Block(
                    self.window, shifted, self.preset, self.dtype, name=f"stage{stage}_block{i}"
                )(x)
        return jnp.mean(layer_norm(EPSILON, name="norm")(x.astype(jnp.float32)), axis=(1, 2))
