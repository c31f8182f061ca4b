"""The step of supervised training: augment, forward, loss, gradients, optimizer.

The same loop drives it.
"""

# JAX and Optax leave the types of leaves, and of functions over them, unknown.
# pyright: reportUnknownMemberType=false, reportUnknownLambdaType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from ssl_jax.losses import jensen_shannon
from ssl_jax.models import Classifier
from ssl_jax.optim import Optimizer
from ssl_jax.train.accumulate import in_micro_batches
from ssl_jax.train.pretrain import example_keys, opposing_of_step
from ssl_jax.types import Batch, Mean, Metrics, Params, PyTree, Step

# keys (B,), images (B, H, W, C), targets (B, K) -> versions of the images (B, H, W, C), targets
Augment = Callable[[jax.Array, jax.Array, jax.Array], tuple[Sequence[jax.Array], jax.Array]]


class SupervisedState(NamedTuple):
    """The state of supervised training, all that a checkpoint holds."""

    step: jax.Array  # () int32, steps taken so far
    params: Params  # {"encoder", "head"}
    stats: PyTree  # BatchNorm's running statistics
    opt_state: PyTree  # the optimizer's


def init_supervised(
    key: jax.Array, image: jax.Array, classifier: Classifier, optimizer: Optimizer
) -> SupervisedState:
    """Draw a fresh state.

    Args:
        key: draws the weights.
        image: images (B, H, W, C) in the shape of those to come.
        classifier: encoder and head.
        optimizer: gives the state that belongs to the parameters.

    Returns:
        The state at step 0.
    """
    params, stats = classifier.init(key, image)
    return SupervisedState(jnp.zeros((), jnp.int32), params, stats, optimizer.init(params))


def make_supervised_step(
    *,
    augment: Augment,
    classifier: Classifier,
    optimizer: Optimizer,
    loss: Callable[[jax.Array, jax.Array], jax.Array],
    num_classes: int,
    consistency: float = 0.0,
    penalty: str = "",
    accumulate: int = 1,
    axis_name: str | None = None,
) -> Step:
    """Build the pure function step(state, batch, key) -> (state, metrics).

    Its batch holds "image" (B, H, W, C) uint8, "label" (B,) int32 and "position" (B,) int32. The
    positions and the key are those of pretraining.

    Args:
        augment: makes one version of each image, or AugMix's three, and their targets (B, K).
        classifier: encoder and head.
        optimizer: makes the step of a gradient.
        loss: logits (B, K), targets (B, K) -> (B,).
        num_classes: K.
        consistency: weight of the Jensen-Shannon divergence between the versions.
        penalty: the kind of the weight decay, of which `opposing_of_step` measures where it pushes
            weights up. "": nothing is measured.
        accumulate: number of micro-batches that a device's batch passes in, see `in_micro_batches`.
            `augment` mixes images of the same micro-batch.
        axis_name: the mapped device axis. None: a single device.

    Returns:
        The step. Its metrics are
        loss (): mean over the batch, with the consistency.
        train_accuracy (): that of the first version.
        The entries of `opposing_of_step`, where there is a `penalty`.
    """
    mean: Mean = (lambda tree: jax.lax.pmean(tree, axis_name)) if axis_name else (lambda tree: tree)

    def step(
        state: SupervisedState, batch: Batch, key: jax.Array
    ) -> tuple[SupervisedState, Metrics]:
        params = optimizer.pre(state.params, state.opt_state)
        dropout_key = batch_key(key, state.step, axis_name)

        def loss_of(
            params: Params, images: Sequence[jax.Array], target: jax.Array, dropout_key: jax.Array
        ) -> tuple[jax.Array, tuple[PyTree, jax.Array]]:
            # All versions pass together: BatchNorm's statistics are those of the whole mixture, as
            # AugMix has it.
            logits, stats = classifier.train(
                params, state.stats, jnp.concatenate(images), dropout_key
            )
            versions = jnp.split(logits, len(images))
            value = jnp.mean(loss(versions[0], target))
            if len(images) > 1:
                value += consistency * jnp.mean(jensen_shannon(versions))
            return value, (stats, versions[0])

        def gradient_of(
            batch: Batch, n: jax.Array | int
        ) -> tuple[tuple[Params, jax.Array, PyTree], tuple[jax.Array, jax.Array]]:
            images, target = augment(
                example_keys(key, state.step, batch["position"]),
                batch["image"],
                jax.nn.one_hot(batch["label"], num_classes),
            )
            own_key = dropout_key if accumulate == 1 else jax.random.fold_in(dropout_key, n)
            gradient = jax.value_and_grad(loss_of, has_aux=True)
            (value, (stats, logits)), grads = gradient(params, images, target, own_key)
            return (grads, value, stats), (logits, target)

        (grads, value, stats), (logits, target) = in_micro_batches(gradient_of, batch, accumulate)
        grads: Params = mean(grads)
        opposing: Metrics = (
            opposing_of_step(optimizer, grads, state.opt_state, params, penalty) if penalty else {}
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, params)
        params: Params = optax.apply_updates(params, updates)
        right = jnp.argmax(logits, axis=-1) == jnp.argmax(target, axis=-1)
        metrics: Metrics = (
            mean({"loss": value, "train_accuracy": jnp.mean(right.astype(jnp.float32))}) | opposing
        )
        return SupervisedState(state.step + 1, params, mean(stats), opt_state), metrics

    return step


def batch_key(key: jax.Array, step: jax.Array, axis_name: str | None) -> jax.Array:
    """Return the key of what is drawn once for a device's share of a batch, such as dropout.

    Args:
        key: the run's.
        step: (), steps taken before this one.
        axis_name: the mapped device axis. None: a single device.

    Returns:
        A key apart from that of every example.
    """
    key = jax.random.fold_in(jax.random.fold_in(key, step), 2**31 - 1)
    return jax.random.fold_in(key, jax.lax.axis_index(axis_name) if axis_name else 0)
