"""A plain network of 3x3 convolutions: the encoder for two CPU cores.

It leaves out the parts of a ResNet whose backward pass is slowest on a CPU: layers at full
resolution, and a stride on many channels.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssl_jax.models.layers import Style


class ConvNet(nn.Module):
    """One layer for each stride, then the global average pool.

    Channels double with every stride of 2 after the first layer. Input (B, H, W, C) float, output
    (B, features) float32.
    """

    strides: tuple[int, ...]  # 1 or 2 for each layer
    width: int = 32  # channels of the first layer
    style: Style = Style()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        channels = self.width
        for i, stride in enumerate(self.strides, start=1):
            channels *= stride if i > 1 else 1
            x = self.style.conv(channels, 3, stride, name=f"conv{i}")(x)
            x = self.style.activate(self.style.normalise(x, train, name=f"norm{i}"))
        return jnp.mean(x.astype(jnp.float32), axis=(1, 2))
