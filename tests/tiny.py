"""The smallest step that has all parts: eight images of 8x8, projections of six numbers."""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax.models import MLPHead, Network, make_encoder, make_network
from ssl_jax.models.layers import Norm
from ssl_jax.optim import Optimizer, make_optimizer
from ssl_jax.predictors import Predictor, make_predictor
from ssl_jax.train.pretrain import make_pretrain_step
from ssl_jax.train.state import init_state

BATCH, SIDE, DIM = 8, 8, 6


class Flat(nn.Module):
    """An encoder of one layer, with BatchNorm: compiles in a moment."""

    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(8, use_bias=False, name="linear")(x.reshape(len(x), -1))
        return nn.relu(Norm("batch", self.axis_name, name="norm")(x, train))


class Parts(NamedTuple):
    """What a step is made of."""

    network: Network
    predictor: Predictor
    optimizer: Optimizer
    tau: object


def make_parts(
    kind="linear",
    tau=0.9,
    encoder="flat",
    rate=0.1,
    momentum=0.0,
    decay=0.0,
    axis_name=None,
    **options,
) -> Parts:
    """encoder: a name, or a module. tau: None, or the target's constant rate. options: the
    predictor's.
    """
    if encoder == "flat":
        encoder = Flat(axis_name)
    module = (
        make_encoder(encoder, width=4, axis_name=axis_name) if isinstance(encoder, str) else encoder
    )
    network = make_network(module, MLPHead(8, DIM, axis_name=axis_name))
    options |= {"hidden": 8, "axis_name": axis_name} if kind == "mlp" else {}
    optimizer = make_optimizer("momentum", rate, momentum=momentum, weight_decay=decay)
    return Parts(
        network,
        make_predictor(kind, DIM, **options),
        optimizer,
        None if tau is None else lambda step: tau,
    )


def fresh_state(parts: Parts, key):
    """As a run begins."""
    image = jnp.zeros((2, SIDE, SIDE, 1))
    return init_state(
        key, image, parts.network, parts.predictor, parts.optimizer, parts.tau is not None
    )


@functools.cache
def make_state(parts: Parts, seed=0):
    """As if in the middle of a run: weights, target and statistics each random. Step 0, nothing
    compiled.
    """
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: fresh_state(parts, jax.random.key(0)))

    def noise(tree):
        return jax.tree.map(lambda x: jnp.float32(0.5 * rng.normal(size=x.shape)), tree)

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    params, stats = noise(shapes.params), jax.tree.map(jnp.abs, noise(shapes.stats))
    opt_state = parts.optimizer.init(params)
    return zeros._replace(
        params=params, stats=stats, target=noise(shapes.target), opt_state=opt_state
    )


def make_step(parts: Parts, views=None, axis_name=None, **options):
    """The step, not compiled."""
    return make_pretrain_step(
        views=views or noisy_views,
        network=parts.network,
        predictor=parts.predictor,
        optimizer=parts.optimizer,
        tau=parts.tau,
        axis_name=axis_name,
        **options,
    )


def noisy_views(keys, image):
    """Two views that differ by noise of their keys: quick to compile, as random as real ones."""

    def one(key, image):
        return image[None] / 255 + 0.3 * jax.random.normal(key, (2, *image.shape))

    views = jax.vmap(one)(keys, image.astype(jnp.float32))
    return views[:, 0], views[:, 1]


def make_batch(seed=0, count=BATCH):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (count, SIDE, SIDE, 1), dtype=np.uint8)
    return {"image": image, "position": np.arange(count, dtype=np.int32)}
