"""The step of supervised training: augment, forward, loss, gradients, optimizer. The same loop
drives it.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from ssl_jax.losses import jensen_shannon
from ssl_jax.models import Classifier
from ssl_jax.optim import Optimizer
from ssl_jax.train.pretrain import Step, example_keys, opposing_of_step
from ssl_jax.types import Params, PyTree


class SupervisedState(NamedTuple):
    """step () int32; params {"encoder", "head"}; stats, BatchNorm's running statistics; opt_state."""

    step: jax.Array
    params: Params
    stats: PyTree
    opt_state: PyTree


def init_supervised(
    key: jax.Array, image: jax.Array, classifier: Classifier, optimizer: Optimizer
) -> SupervisedState:
    """A fresh state for images shaped like `image` (B, H, W, C)."""
    params, stats = classifier.init(key, image)
    return SupervisedState(jnp.zeros((), jnp.int32), params, stats, optimizer.init(params))


def make_supervised_step(
    *,
    augment: Callable,
    classifier: Classifier,
    optimizer: Optimizer,
    loss: Callable,
    num_classes: int,
    consistency: float = 0.0,
    opposing: bool = False,
    axis_name: str | None = None,
) -> Step:
    """step(state, batch, key) -> (state, metrics), pure.

    batch: "image" (B, H, W, C) uint8, "label" (B,) int32, "position" (B,) int32 as in pretraining.
    augment(keys, image, target) -> (images, target): one version of each image, or AugMix's three;
    loss(logits, target) -> (B,);
    consistency: weight of the Jensen-Shannon divergence between the versions. opposing: whether to
    measure where the weight decay pushes weights up. metrics: "loss" (), "train_accuracy" () of the
    first version, and "opposing_ratio", "opposing_fraction" () where measured.
    """
    mean = (lambda tree: jax.lax.pmean(tree, axis_name)) if axis_name else (lambda tree: tree)

    def step(state: SupervisedState, batch: dict, key: jax.Array) -> tuple[SupervisedState, dict]:
        target = jax.nn.one_hot(batch["label"], num_classes)
        images, target = augment(
            example_keys(key, state.step, batch["position"]), batch["image"], target
        )
        params = optimizer.pre(state.params, state.opt_state)

        def loss_of(params):
            # All versions pass together: BatchNorm's statistics are those of the whole mixture, as
            # AugMix has it.
            dropout_key = batch_key(key, state.step, axis_name)
            logits, stats = classifier.train(
                params, state.stats, jnp.concatenate(images), dropout_key
            )
            versions = jnp.split(logits, len(images))
            value = jnp.mean(loss(versions[0], target))
            if len(images) > 1:
                value += consistency * jnp.mean(jensen_shannon(versions))
            return value, (stats, versions[0])

        (value, (stats, logits)), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
        grads = mean(grads)
        penalty = opposing_of_step(optimizer, grads, state.opt_state, params) if opposing else {}
        updates, opt_state = optimizer.update(grads, state.opt_state, params)
        params = optax.apply_updates(params, updates)
        right = jnp.argmax(logits, axis=-1) == jnp.argmax(target, axis=-1)
        metrics = (
            mean({"loss": value, "train_accuracy": jnp.mean(right.astype(jnp.float32))}) | penalty
        )
        return SupervisedState(state.step + 1, params, mean(stats), opt_state), metrics

    return step


def batch_key(key: jax.Array, step: jax.Array, axis_name: str | None) -> jax.Array:
    """The key of what is drawn once for a device's share of a batch (dropout), apart from every
    example's.
    """
    key = jax.random.fold_in(jax.random.fold_in(key, step), 2**31 - 1)
    return jax.random.fold_in(key, jax.lax.axis_index(axis_name) if axis_name else 0)
