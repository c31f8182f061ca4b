"""Whole trainings of small networks, all members of one shape in one compiled program, an epoch in
one call of it.

Members stand in a table: a row for each seed, a column for each setting of the knobs (learning
rate, decay, ...) or of the initialisation. Members of one row share initialisation key, order of
the data and augmentation.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax.augment.labelled import make_augment
from ssl_jax.augment.views import make_normalise
from ssl_jax.data.batches import batch_indices
from ssl_jax.data.dataset import Split
from ssl_jax.errors import UserError
from ssl_jax.experiments.harness.members import Members, train_members
from ssl_jax.losses import LOSSES
from ssl_jax.models import Classifier
from ssl_jax.optim import Optimizer
from ssl_jax.train.state import init_key
from ssl_jax.train.supervised import SupervisedState, make_supervised_step

EVAL_BATCH_SIZE = 1000  # images


class Setting(NamedTuple):
    """What all members share.

    due: images by a name, on which all members' accuracies are taken after the epochs
    `eval_epochs` (None: each); images by name and their labels (N,), or (seeds, N) where every
    seed has its own, as `train` may have, too. normalise(image uint8) -> what the network sees in
    evaluation mode; augment: as `augment.labelled` makes it.
    loops: whether an epoch is one loop on the device, which convolutions on the CPU do badly.
    """

    classifier: Classifier
    num_classes: int
    train: Split
    eval_splits: dict[str, Split]
    epochs: int
    batch_size: int
    augment: Callable
    normalise: Callable
    eval_epochs: Sequence[int] | None = None
    loops: bool = True


def steps_per_epoch(setting: Setting) -> int:
    """Full batches in an epoch; UserError where there is none."""
    size = len(setting.train.image)
    if not 1 <= setting.batch_size <= size:
        raise UserError(
            f"batch_size: got {setting.batch_size}, takes 1 to the {size} training images"
        )
    return size // setting.batch_size


def train_table(
    setting: Setting,
    build: Callable[..., Optimizer],
    knobs: dict[str, Any],
    seeds: Sequence[int],
    *,
    start: Callable | None = None,
    measure: Callable[[SupervisedState], dict] | None = None,
    measure_epochs: Sequence[int] | None = None,
    advance: Callable[[int], object] = lambda steps: None,
) -> dict[str, np.ndarray]:
    """Trains members (S seeds, R settings) to the end; what was seen of them, each array (S, R,
    epochs, ...).

    Args:
        setting: what they share.
        build: (**knobs) -> optimizer, with a scalar of each knob, traced.
        knobs: name -> (R,) numbers.
        seeds: (S,).
        start: (key) -> (params, stats), both with the leading axis R; None: the classifier's own,
            the same for all R.
        measure: (state) -> {name: array} of one member.
        measure_epochs: epochs after which it is asked; None: all, and 0, before training.
        advance: hears of so many more finished steps.

    Returns:
        "loss", "NAME_accuracy" for each NAME of `setting.eval_splits`, and what `measure` gave.
    """
    evaluate = _make_evaluate(setting, len(seeds))
    measure_all = jax.jit(_over_members(measure)) if measure else None

    def record(states, epoch: int) -> dict[str, np.ndarray]:
        due = epoch > 0 and (setting.eval_epochs is None or epoch in setting.eval_epochs)
        measured = measure_all is not None and (measure_epochs is None or epoch in measure_epochs)
        return (evaluate(states) if due else {}) | (
            measure_all(states) if measure_all and measured else {}
        )

    def report_steps(steps: int) -> bool:
        advance(steps)
        return False

    size = len(setting.train.image)
    trained = train_members(
        stacked(setting, build, knobs, seeds, start),
        lambda seed, step: batch_indices(seed, step, size, setting.batch_size),
        epochs=setting.epochs,
        steps_per_epoch=steps_per_epoch(setting),
        record=record,
        stop=report_steps,
    )
    assert trained is not None
    return trained[1]


def stacked(
    setting: Setting,
    build: Callable[..., Optimizer],
    knobs: dict[str, Any],
    seeds: Sequence[int],
    start: Callable | None = None,
) -> Members:
    """Members (S, R), the arguments being those of `train_table`."""
    rates = {name: jnp.asarray(value, float) for name, value in knobs.items()}
    keys, label = (
        jax.vmap(jax.random.key)(jnp.asarray(seeds)),
        _by_seed(setting.train.label, len(seeds)),
    )
    data, program = (
        {"image": jnp.asarray(setting.train.image), "label": jnp.asarray(label)},
        _training(setting, build),
    )
    return Members(
        seeds=list(seeds),
        axes=2,
        init=lambda: _fresh(setting, build, rates, keys, start),
        call=lambda states, index: program(states, rates, keys, data, index),
        mean=lambda losses: np.concatenate(losses, axis=-1).mean(-1),
        steps_per_call=lambda epoch: epoch if setting.loops else 1,
    )


def _training(setting: Setting, build: Callable) -> Callable:
    """program(state, knobs, keys, data, index (S, steps, B)) -> (state, loss (S, R, steps))."""
    fixed: dict[str, Any] = {
        "augment": setting.augment,
        "classifier": setting.classifier,
        "loss": LOSSES["softmax"],
    }
    position = jnp.arange(setting.batch_size)

    def member(state, knobs, key, data, index):
        step = make_supervised_step(
            **fixed, optimizer=build(**knobs), num_classes=setting.num_classes
        )

        def one(state, index):
            batch = {
                "image": data["image"][index],
                "label": data["label"][index],
                "position": position,
            }
            state, metrics = step(state, batch, key)
            return state, metrics["loss"]

        # no loop: on a CPU, XLA's own convolution inside one is some thirty times slower
        if len(index) == 1:
            state, loss = one(state, index[0])
            return state, loss[None]
        return jax.lax.scan(one, state, index)

    row = jax.vmap(member, in_axes=(0, 0, None, None, None))
    return jax.jit(
        jax.vmap(row, in_axes=(0, None, 0, {"image": None, "label": 0}, 0)), donate_argnums=0
    )


def _fresh(
    setting: Setting, build: Callable, rates: dict, keys: jax.Array, start: Callable | None
) -> SupervisedState:
    """States (S, R) at step 0, as `train.supervised.init_supervised` makes one.

    Layer by layer, not compiled: layers of one shape then share a program, and the many QR
    decompositions of orthogonal layers, which wait for each other's threads on a CPU where they are
    one program, come one after the other.
    """
    image = jnp.zeros((2, *setting.train.image.shape[1:]))
    width = len(next(iter(rates.values())))

    def same_for_all(key):
        started = setting.classifier.init(key, image)
        return jax.tree.map(lambda x: jnp.broadcast_to(x[None], (width, *x.shape)), started)

    def member(params, stats, knobs):
        return SupervisedState(jnp.zeros((), jnp.int32), params, stats, build(**knobs).init(params))

    rows = [(start or same_for_all)(init_key(key)) for key in keys]
    params, stats = jax.tree.map(lambda *row: jnp.stack(row), *rows)
    return jax.jit(jax.vmap(jax.vmap(member), in_axes=(0, 0, None)))(params, stats, rates)


def _make_evaluate(setting: Setting, seeds: int) -> Callable:
    """evaluate(state) -> {"NAME_accuracy": (S, R)}."""

    def hits(state, image, label):
        logits = setting.classifier.logits(state.params, state.stats, setting.normalise(image))
        return jnp.sum(jnp.argmax(logits, axis=-1) == label)

    row = jax.vmap(hits, in_axes=(0, None, None))
    count = jax.jit(jax.vmap(row, in_axes=(0, None, 0)))
    labels = {name: _by_seed(split.label, seeds) for name, split in setting.eval_splits.items()}

    def accuracy(state, image, label):
        parts = [slice(i, i + EVAL_BATCH_SIZE) for i in range(0, len(image), EVAL_BATCH_SIZE)]
        return sum(np.asarray(count(state, image[part], label[:, part])) for part in parts) / len(
            image
        )

    return lambda state: {
        f"{name}_accuracy": accuracy(state, split.image, labels[name])
        for name, split in setting.eval_splits.items()
    }


def _over_members(function: Callable) -> Callable:
    """The function of one member's state, of a table of states."""
    return jax.vmap(jax.vmap(function))


def _by_seed(label: np.ndarray, seeds: int) -> np.ndarray:
    """(N,) or (S, N) -> (S, N)."""
    return np.broadcast_to(label, (seeds, label.shape[-1]))


def plain(image_size: int, **fields: Any) -> tuple[Callable, Callable]:
    """(augment, normalise) for pixels in [0, 1] as they are, or with the augmentations that
    `fields` name.
    """
    return make_augment(image_size=image_size, **{"flip": 0.0, **fields}), make_normalise(
        (0.0,), (1.0,)
    )
