"""Whole trainings of small networks: all members of one shape in one compiled program.

An epoch is one call of it. Members stand in a table: a row for each seed (S), a column for each
setting of the knobs (learning rate, decay, ...) or of the initialisation (R). Members of one row
share initialisation key, order of the data and augmentation.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax.augment.labelled import Augment, make_augment
from ssl_jax.augment.views import make_normalise
from ssl_jax.data.batches import batch_indices
from ssl_jax.data.dataset import Split
from ssl_jax.errors import UserError
from ssl_jax.experiments.harness.cells import Advance
from ssl_jax.experiments.harness.members import Members, train_members
from ssl_jax.losses import LOSSES
from ssl_jax.models import Classifier
from ssl_jax.optim import Optimizer
from ssl_jax.train.state import init_key
from ssl_jax.train.supervised import SupervisedState, make_supervised_step
from ssl_jax.types import Params

EVAL_BATCH_SIZE = 1000  # images

Normalise = Callable[[Any], jax.Array]  # image (B, H, W, C) uint8 of NumPy or JAX -> float32
Build = Callable[..., Optimizer]  # (**knobs) -> optimizer; each knob a traced scalar
# key -> params, stats, both with the leading axis R of the settings
Start = Callable[[jax.Array], tuple[Params, Params]]


class Setting(NamedTuple):
    """What all members share."""

    classifier: Classifier
    num_classes: int
    train: Split  # images, and labels (N,), or (S, N) where every seed has its own
    eval_splits: dict[str, Split]  # by name, what accuracies are measured on; labels as in `train`
    epochs: int
    batch_size: int
    augment: Augment  # as `augment.labelled` makes it
    normalise: Normalise  # makes the network's input in evaluation mode
    eval_epochs: Sequence[int] | None = None  # after which accuracies are measured; None: each
    loops: bool = True  # whether an epoch is one loop on the device, slow for convolutions on a CPU


def steps_per_epoch(setting: Setting) -> int:
    """Return the number of full batches in an epoch; UserError where there is none."""
    size = len(setting.train.image)
    if not 1 <= setting.batch_size <= size:
        raise UserError(
            f"batch_size: got {setting.batch_size}, takes 1 to the {size} training images"
        )
    return size // setting.batch_size


def train_table(
    setting: Setting,
    build: Build,
    knobs: dict[str, Any],
    seeds: Sequence[int],
    *,
    start: Start | None = None,
    measure: Callable[[SupervisedState], dict[str, jax.Array]] | None = None,
    measure_epochs: Sequence[int] | None = None,
    advance: Advance = lambda steps: None,
) -> dict[str, np.ndarray]:
    """Train members (S seeds, R settings) to the end.

    Args:
        setting: what they share.
        build: (**knobs) -> optimizer, with a scalar of each knob, traced.
        knobs: name -> (R,) numbers.
        seeds: (S,).
        start: (key) -> (params, stats), both with the leading axis R. None: the classifier's own,
            the same for all R.
        measure: (state) -> {name: array} of one member.
        measure_epochs: epochs after which it is asked. None: all, and 0, before training.
        advance: is called with numbers of finished steps.

    Returns:
        Arrays (S, R, epochs, ...): "loss", "NAME_accuracy" for each NAME of `setting.eval_splits`,
        and what `measure` gave.
    """
    evaluate = _make_evaluate(setting, len(seeds))
    measure_all = jax.jit(_over_members(measure)) if measure else None

    def record(states: SupervisedState, epoch: int) -> dict[str, np.ndarray]:
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
    build: Build,
    knobs: dict[str, Any],
    seeds: Sequence[int],
    start: Start | None = None,
) -> Members:
    """Return members (S, R), an epoch or a step of which is one call of a program.

    Args:
        setting: what they share.
        build: (**knobs) -> optimizer, with a scalar of each knob, traced.
        knobs: name -> (R,) numbers.
        seeds: (S,).
        start: as `train_table` takes it.

    Returns:
        The members, as `train_members` takes them.
    """
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


def _training(setting: Setting, build: Build) -> Callable[..., tuple[SupervisedState, jax.Array]]:
    """Return program(state, knobs, keys, data, index (S, steps, B)) -> state, loss (S, R, n)."""
    fixed: dict[str, Any] = {
        "augment": setting.augment,
        "classifier": setting.classifier,
        "loss": LOSSES["softmax"],
    }
    position = jnp.arange(setting.batch_size)

    def member(
        state: SupervisedState,
        knobs: dict[str, jax.Array],
        key: jax.Array,
        data: dict[str, jax.Array],
        index: jax.Array,
    ) -> tuple[SupervisedState, jax.Array]:
        step = make_supervised_step(
            **fixed, optimizer=build(**knobs), num_classes=setting.num_classes
        )

        def one(state: SupervisedState, index: jax.Array) -> tuple[SupervisedState, jax.Array]:
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
    setting: Setting,
    build: Build,
    rates: dict[str, jax.Array],
    keys: jax.Array,
    start: Start | None,
) -> SupervisedState:
    """Return states (S, R) at step 0, as `train.supervised.init_supervised` makes one.

    They are made layer by layer, not compiled: layers of one shape then share a program. In one
    program the many QR decompositions of orthogonal layers wait for each other's threads on a CPU;
    here they run one after the other.
    """
    image = jnp.zeros((2, *setting.train.image.shape[1:]))
    width = len(next(iter(rates.values())))

    def same_for_all(key: jax.Array) -> tuple[Params, Params]:
        started = setting.classifier.init(key, image)
        return jax.tree.map(lambda x: jnp.broadcast_to(x[None], (width, *x.shape)), started)

    def member(params: Params, stats: Params, knobs: dict[str, jax.Array]) -> SupervisedState:
        return SupervisedState(jnp.zeros((), jnp.int32), params, stats, build(**knobs).init(params))

    rows = [(start or same_for_all)(init_key(key)) for key in keys]
    params, stats = jax.tree.map(lambda *row: jnp.stack(row), *rows)
    return jax.jit(jax.vmap(jax.vmap(member), in_axes=(0, 0, None)))(params, stats, rates)


def _make_evaluate(
    setting: Setting, seeds: int
) -> Callable[[SupervisedState], dict[str, np.ndarray]]:
    """Return evaluate(state) -> {"NAME_accuracy": (S, R)} for each NAME of the splits."""

    def hits(state: SupervisedState, image: jax.Array, label: jax.Array) -> jax.Array:
        logits = setting.classifier.logits(state.params, state.stats, setting.normalise(image))
        return jnp.sum(jnp.argmax(logits, axis=-1) == label)

    row = jax.vmap(hits, in_axes=(0, None, None))
    count = jax.jit(jax.vmap(row, in_axes=(0, None, 0)))
    labels = {name: _by_seed(split.label, seeds) for name, split in setting.eval_splits.items()}

    def accuracy(state: SupervisedState, image: np.ndarray, label: np.ndarray) -> np.ndarray:
        parts = [slice(i, i + EVAL_BATCH_SIZE) for i in range(0, len(image), EVAL_BATCH_SIZE)]
        right = [np.asarray(count(state, image[part], label[:, part])) for part in parts]
        return np.sum(right, axis=0) / len(image)

    return lambda state: {
        f"{name}_accuracy": accuracy(state, split.image, labels[name])
        for name, split in setting.eval_splits.items()
    }


def _over_members(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of one member's state as a function of a table of states."""
    return jax.vmap(jax.vmap(function))


def _by_seed(label: np.ndarray, seeds: int) -> np.ndarray:
    """Return labels (N,) or (S, N) as (S, N)."""
    return np.broadcast_to(label, (seeds, label.shape[-1]))


def plain(image_size: int, **fields: Any) -> tuple[Augment, Normalise]:
    """Return (augment, normalise) for pixels in [0, 1], as they are or augmented.

    Args:
        image_size: pixels of a side.
        **fields: augmentations, as `augment.labelled.make_augment` takes them; by default none.
    """
    return make_augment(image_size=image_size, **{"flip": 0.0, **fields}), make_normalise(
        (0.0,), (1.0,)
    )
