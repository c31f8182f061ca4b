"""A plain network of 3x3 convolutions: the encoder for two CPU cores.

It leaves out what a CPU pays most for in the backward pass of a ResNet: layers at full resolution, and a stride on
many channels.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssl_jax.models.layers import Norm, conv, conv_init


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
            x = conv(channels, 3, stride, dtype=self.dtype, kernel_init=conv_init(self.preset), name=f"conv{i}")(x)
            x = nn.relu(Norm(self.norm, self.axis_name, self.dtype, name=f"norm{i}")(x, train))
        return jnp.mean(x.astype(jnp.float32), axis=(1, 2))
