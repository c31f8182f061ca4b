"""A plain network of 3x3 convolutions: the encoder for two CPU cores.

Its convolutions are matrix products over gathered patches. On the CPU backend those are several times faster in the
backward pass than XLA's own strided or few-channelled convolutions, and keep their speed inside compiled loops.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssl_jax.models.layers import Norm, conv_init


class PatchConv(nn.Module):
    """3x3 convolution without bias, padded by 1, as one matrix product: (B, H, W, C) -> (B, H', W', features).

    Same kernel (3, 3, C, features) and same numbers as `layers.conv(features, 3, stride)`.
    """

    features: int
    stride: int
    preset: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        kernel = self.param("kernel", conv_init(self.preset), (3, 3, channels, self.features))
        patches = gather_patches(x.astype(self.dtype), self.stride)
        return patches @ kernel.astype(self.dtype).reshape(9 * channels, self.features)


def gather_patches(x: jax.Array, stride: int) -> jax.Array:
    """The 3x3 neighbourhood of every stride-th pixel, zeros outside: (B, H, W, C) -> (B, H', W', 9 C)."""
    height, width = x.shape[1:3]
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifted = [x[:, i : i + height : stride, j : j + width : stride] for i in range(3) for j in range(3)]
    return jnp.concatenate(shifted, axis=-1)


class ConvNet(nn.Module):
    """`len(strides)` layers; channels double with every stride of 2; then the global average pool.

    Input (B, H, W, C) float, output (B, features) float32.
    """

    strides: tuple[int, ...]
    width: int = 32
    norm: str = "batch"
    preset: str = "pytorch"
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        channels = self.width
        for i, stride in enumerate(self.strides, start=1):
            channels *= stride if i > 1 else 1
            x = PatchConv(channels, stride, self.preset, self.dtype, name=f"conv{i}")(x)
            x = nn.relu(Norm(self.norm, self.axis_name, self.dtype, name=f"norm{i}")(x, train))
        return jnp.mean(x.astype(jnp.float32), axis=(1, 2))
