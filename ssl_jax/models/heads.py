"""The block that serves as projector and as two-layer predictor."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssl_jax.errors import UserError, nearest
from ssl_jax.models.batch_norm import BatchNorm
from ssl_jax.models.layers import Norm, linear_init, standardised_product

HEAD_NORMS = ("batch", "layer", "group", "none")


class MLPHead(nn.Module):
    """Linear(hidden, bias) -> norm without affine -> ReLU -> Linear(out).

    Input (B, D), output (B, out) float32. The head of BYOL as Tian et al. 2021 and Höppe et al.
    2022 use it, with BatchNorm, which absorbs the first bias. "group" with standardised kernels has
    no statistics of the batch (Richemond et al. 2020, arXiv 2010.10241).
    """

    hidden: int  # width of the hidden layer
    out: int  # width of the output
    output_bias: bool = (
        False  # whether the last layer has a bias; the original has, the replication not
    )
    preset: str = "pytorch"  # initialisation, one of layers.INITS
    dtype: jnp.dtype = jnp.float32  # of the computation
    axis_name: str | None = None  # mapped axis over which BatchNorm shares its statistics
    norm: str = "batch"  # one of HEAD_NORMS
    standardise: bool = False  # whether both kernels are standardised, see layers.standardised

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        if self.norm not in HEAD_NORMS:
            raise UserError(f"projector.norm: got {self.norm!r}, {nearest(self.norm, HEAD_NORMS)}")
        product = standardised_product if self.standardise else None
        kernel_init: Callable = linear_init(self.preset)
        bias_init = linear_init(self.preset, bias_fan_in=x.shape[-1])
        x = nn.Dense(
            self.hidden,
            dtype=self.dtype,
            kernel_init=kernel_init,
            bias_init=bias_init,
            dot_general=product,
            name="linear1",
        )(x)
        if self.norm == "batch":
            x = BatchNorm(self.axis_name, affine=False, dtype=self.dtype, name="norm")(
                x, use_running_average=not train
            )
        else:
            x = Norm(self.norm, affine=False, dtype=self.dtype, name="norm")(x, train)
        x = nn.Dense(
            self.out,
            use_bias=self.output_bias,
            dtype=self.dtype,
            kernel_init=kernel_init,
            bias_init=linear_init(self.preset, bias_fan_in=self.hidden),
            dot_general=product,
            name="linear2",
        )(nn.relu(x))
        return x.astype(jnp.float32)
