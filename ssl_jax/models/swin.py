"""Swin transformer (Liu et al. 2021, arXiv 2103.14030) down to the average of its normalised last grid.

As timm computes it: a window is no larger than the grid and is shifted only on a larger one; a grid that windows do
not divide is padded with zeros, which take part in the attention. Stochastic depth is left out. Heads have 32
channels. Input (B, H, W, C) float, output (B, 8 width) float32.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax.models.layers import ACTIVATIONS, check_side, layer_norm, patch_conv, transformer_init

EPSILON = 1e-5
HEAD_CHANNELS = 32
Window = tuple[int, int]


def fit_window(grid: Window, window: int, shifted: bool) -> tuple[Window, Window]:
    """The window's sides on this grid, and by how much it is shifted along each."""
    sides = (min(grid[0], window), min(grid[1], window))
    shift = [side // 2 if shifted and length > side else 0 for length, side in zip(grid, sides, strict=True)]
    return sides, (shift[0], shift[1])


def split(x, window: Window):
    """(B, H, W, C) -> (B, windows, pixels of a window, C)."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // window[0], window[0], width // window[1], window[1], channels)
    return x.swapaxes(2, 3).reshape(batch, -1, window[0] * window[1], channels)


def join(x: jax.Array, window: Window, grid: Window) -> jax.Array:
    """The inverse of `split`: back to (B, *grid, C)."""
    batch, channels = x.shape[0], x.shape[-1]
    x = x.reshape(batch, grid[0] // window[0], grid[1] // window[1], *window, channels)
    return x.swapaxes(2, 3).reshape(batch, *grid, channels)


def relative_index(window: Window) -> np.ndarray:
    """(N, N): which row of the bias table belongs to a pair of the window's N pixels; section 3.2."""
    place = np.stack(np.meshgrid(*map(np.arange, window), indexing="ij")).reshape(2, -1)
    apart = place[:, :, None] - place[:, None, :] + np.array(window)[:, None, None] - 1
    return apart[0] * (2 * window[1] - 1) + apart[1]


def shift_mask(grid: Window, window: Window, shift: Window) -> np.ndarray:
    """(windows, N, N): -100 between pixels of a shifted window that are no neighbours in the image; figure 4."""
    rows, columns = (_regions(*sizes) for sizes in zip(grid, window, shift, strict=True))
    of = split(3 * rows[None, :, None, None] + columns[None, None, :, None], window)[0, :, :, 0]
    return np.where(of[:, None, :] == of[:, :, None], 0.0, -100.0).astype(np.float32)


def _regions(length: int, window: int, shift: int) -> np.ndarray:
    """0 before the last window, 1 in it, 2 what came round from the other end; one region where one window is all."""
    return np.searchsorted([length - window, length - shift], np.arange(length), side="right")


class RelativePosition(nn.Module):
    """Adds to the scores (B, windows, heads, N, N) a learned bias for each head and each distance."""

    window: Window

    @nn.compact
    def __call__(self, scores: jax.Array) -> jax.Array:
        rows = (2 * self.window[0] - 1) * (2 * self.window[1] - 1)
        table = self.param("table", nn.initializers.normal(0.02), (rows, scores.shape[2]))
        bias = jnp.moveaxis(table[relative_index(self.window)], -1, 0)
        return scores + bias.astype(scores.dtype)[None, None]


class Attention(nn.Module):
    """softmax(q kᵀ / sqrt(d) + bias + mask) v in each window (equation 4): (B, windows, N, C) -> the same."""

    window: Window
    preset: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, mask: np.ndarray | None) -> jax.Array:
        channels = x.shape[-1]
        options = {"dtype": self.dtype, "kernel_init": transformer_init(self.preset)}
        qkv = nn.Dense(3 * channels, name="qkv", **options)(x)
        q, k, v = jnp.moveaxis(qkv.reshape(*x.shape[:3], 3, channels // HEAD_CHANNELS, HEAD_CHANNELS), 3, 0)
        scores = jnp.einsum("bwnhd,bwmhd->bwhnm", q, k) / HEAD_CHANNELS**0.5
        scores = RelativePosition(self.window, name="position")(scores.astype(jnp.float32))
        if mask is not None:
            scores = scores + mask[None, :, None]
        y = jnp.einsum("bwhnm,bwmhd->bwnhd", nn.softmax(scores).astype(self.dtype), v)
        return nn.Dense(channels, name="proj", **options)(y.reshape(x.shape))


class Block(nn.Module):
    """Attention in windows, shifted or not, then an MLP, each on normalised input and added to it: equation 3."""

    window: int
    shifted: bool
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
        window, shift = fit_window((height, width), self.window, self.shifted)
        x = jnp.roll(x, (-shift[0], -shift[1]), axis=(1, 2)) if any(shift) else x
        x = jnp.pad(x, ((0, 0), (0, -height % window[0]), (0, -width % window[1]), (0, 0)))
        grid = x.shape[1], x.shape[2]
        mask = shift_mask(grid, window, shift) if any(shift) else None
        y = Attention(window, self.preset, self.dtype, name="attention")(split(x, window), mask)
        y = join(y, window, grid)[:, :height, :width]
        return jnp.roll(y, shift, axis=(1, 2)) if any(shift) else y


class Merge(nn.Module):
    """Four neighbours become one with twice the channels: (B, H, W, C) -> (B, H / 2, W / 2, 2 C), rounded up."""

    preset: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
        batch, height, width, channels = x.shape
        x = x.reshape(batch, height // 2, 2, width // 2, 2, channels).transpose(0, 1, 3, 4, 2, 5)  # column, then row
        x = layer_norm(EPSILON, dtype=self.dtype, name="norm")(x.reshape(*x.shape[:3], 4 * channels))
        kernel_init = transformer_init(self.preset)
        return nn.Dense(2 * channels, use_bias=False, dtype=self.dtype, kernel_init=kernel_init, name="linear")(x)


class Swin(nn.Module):
    """Patches of 4x4, four stages of blocks at width, 2, 4 and 8 times width, norm, average."""

    depths: tuple[int, ...]
    width: int = 96
    window: int = 7
    preset: str = "pytorch"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        check_side(x, 4)
        kernel_init = transformer_init(self.preset)
        x = patch_conv(self.width, 4, dtype=self.dtype, kernel_init=kernel_init, name="stem_conv")(x)
        x = layer_norm(EPSILON, dtype=self.dtype, name="stem_norm")(x)
        for stage, depth in enumerate(self.depths, start=1):
            if stage > 1:
                x = Merge(self.preset, self.dtype, name=f"stage{stage}_merge")(x)
            for i in range(1, depth + 1):
                shifted = i % 2 == 0
                x = Block(self.window, shifted, self.preset, self.dtype, name=f"stage{stage}_block{i}")(x)
        return jnp.mean(layer_norm(EPSILON, name="norm")(x.astype(jnp.float32)), axis=(1, 2))
