"""Whole trainings of small networks, all members of one shape in one compiled program.

Members stand in a table: a row for each seed, a column for each setting of the knobs (learning rate, decay, ...) or of
the initialisation. Members of one row share initialisation key, order of the data and augmentation.
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
from ssl_jax.losses import LOSSES
from ssl_jax.models import Classifier
from ssl_jax.optim import Optimizer
from ssl_jax.train.state import init_key
from ssl_jax.train.supervised import SupervisedState, make_supervised_step

JUDGED_TOGETHER = 1000  # images


class Setting(NamedTuple):
    """What all members share.

    judged: images by a name, on which all members' accuracies are taken after the epochs `judged_after` (None: each);
    images by name and their labels (N,), or (seeds, N) where every seed has its own, as `train` may have, too.
    normalise(image uint8) -> what the network sees in evaluation mode; augment: as `augment.labelled` makes it.
    loops: whether an epoch is one loop on the device, which convolutions on the CPU do badly.
    """

    classifier: Classifier
    num_classes: int
    train: Split
    judged: dict[str, Split]
    epochs: int
    batch_size: int
    augment: Callable
    normalise: Callable
    judged_after: Sequence[int] | None = None
    loops: bool = True


def steps_per_epoch(setting: Setting) -> int:
    """Full batches in an epoch; UserError where there is none."""
    size = len(setting.train.image)
    if not 1 <= setting.batch_size <= size:
        raise UserError(f"batch_size: got {setting.batch_size}, takes 1 to the {size} training images")
    return size // setting.batch_size


def train_members(
    setting: Setting,
    build: Callable[..., Optimizer],
    knobs: dict[str, Any],
    seeds: Sequence[int],
    *,
    start: Callable | None = None,
    watch: Callable[[SupervisedState], dict] | None = None,
    watched_after: Sequence[int] | None = None,
    advance: Callable[[int], object] = lambda steps: None,
) -> dict[str, np.ndarray]:
    """Trains members (S seeds, R settings) to the end; what was seen of them, each array (S, R, epochs, ...).

    build(**knobs) -> optimizer, with a scalar of each knob (R,), traced. start(key) -> (params, stats), both with the
    leading axis R; None: the classifier's own, the same for all R. watch(state) -> {name: array} of one member, after
    the epochs `watched_after` (None: all, and 0, before training). advance(steps) hears of progress.
    Arrays: "loss", and "NAME_accuracy" for each NAME of `judged`.
    """
    steps, rates = steps_per_epoch(setting), {name: jnp.asarray(value, float) for name, value in knobs.items()}
    keys, label = jax.vmap(jax.random.key)(jnp.asarray(seeds)), _by_seed(setting.train.label, len(seeds))
    data = {"image": jnp.asarray(setting.train.image), "label": jnp.asarray(label)}
    state = _fresh(setting, build, rates, keys, start)
    program, judge = _training(setting, build), _judging(setting, len(seeds))
    look = jax.jit(_over_members(watch)) if watch else None
    seen: dict[str, list] = {}
    _note(seen, look, state, 0, watched_after)
    for epoch in range(1, setting.epochs + 1):
        index = np.stack([_epoch_indices(seed, epoch - 1, setting, steps) for seed in seeds])
        size, losses = (steps if setting.loops else 1), []
        for first in range(0, steps, size):
            state, loss = program(state, rates, keys, data, index[:, first : first + size])
            losses.append(loss)
        scores = {"loss": np.concatenate(losses, axis=-1).mean(-1)}
        if setting.judged_after is None or epoch in setting.judged_after:
            scores |= judge(state)
        for name, value in scores.items():
            seen.setdefault(name, []).append(value)
        _note(seen, look, state, epoch, watched_after)
        advance(steps)
    return {name: np.stack(values, axis=2) for name, values in seen.items()}


def _training(setting: Setting, build: Callable) -> Callable:
    """program(state, knobs, keys, data, index (S, steps, B)) -> (state, loss (S, R, steps))."""
    fixed: dict[str, Any] = {"augment": setting.augment, "classifier": setting.classifier, "loss": LOSSES["softmax"]}
    position = jnp.arange(setting.batch_size)

    def member(state, knobs, key, data, index):
        step = make_supervised_step(**fixed, optimizer=build(**knobs), num_classes=setting.num_classes)

        def one(state, index):
            batch = {"image": data["image"][index], "label": data["label"][index], "position": position}
            state, metrics = step(state, batch, key)
            return state, metrics["loss"]

        if len(index) == 1:  # no loop: on a CPU, XLA's own convolution inside one is some thirty times slower
            state, loss = one(state, index[0])
            return state, loss[None]
        return jax.lax.scan(one, state, index)

    row = jax.vmap(member, in_axes=(0, 0, None, None, None))
    return jax.jit(jax.vmap(row, in_axes=(0, None, 0, {"image": None, "label": 0}, 0)), donate_argnums=0)


def _fresh(setting: Setting, build: Callable, rates: dict, keys: jax.Array, start: Callable | None) -> SupervisedState:
    """States (S, R) at step 0, as `train.supervised.init_supervised` makes one.

    Layer by layer, not compiled: layers of one shape then share a program, and the many QR decompositions of orthogonal
    layers, which wait for each other's threads on a CPU where they are one program, come one after the other.
    """
    image = jnp.zeros((2, *setting.train.image.shape[1:]))
    width = len(next(iter(rates.values())))

    def alike(key):
        started = setting.classifier.init(key, image)
        return jax.tree.map(lambda x: jnp.broadcast_to(x[None], (width, *x.shape)), started)

    def member(params, stats, knobs):
        return SupervisedState(jnp.zeros((), jnp.int32), params, stats, build(**knobs).init(params))

    rows = [(start or alike)(init_key(key)) for key in keys]
    params, stats = jax.tree.map(lambda *row: jnp.stack(row), *rows)
    return jax.jit(jax.vmap(jax.vmap(member), in_axes=(0, 0, None)))(params, stats, rates)


def _judging(setting: Setting, seeds: int) -> Callable:
    """judge(state) -> {"NAME_accuracy": (S, R)}."""

    def hits(state, image, label):
        logits = setting.classifier.logits(state.params, state.stats, setting.normalise(image))
        return jnp.sum(jnp.argmax(logits, axis=-1) == label)

    row = jax.vmap(hits, in_axes=(0, None, None))
    count = jax.jit(jax.vmap(row, in_axes=(0, None, 0)))
    labels = {name: _by_seed(split.label, seeds) for name, split in setting.judged.items()}

    def accuracy(state, image, label):
        parts = [slice(i, i + JUDGED_TOGETHER) for i in range(0, len(image), JUDGED_TOGETHER)]
        return sum(np.asarray(count(state, image[part], label[:, part])) for part in parts) / len(image)

    return lambda state: {
        f"{name}_accuracy": accuracy(state, split.image, labels[name]) for name, split in setting.judged.items()
    }


def _over_members(function: Callable) -> Callable:
    """The function of one member's state, of a table of states."""
    return jax.vmap(jax.vmap(function))


def _note(seen: dict[str, list], look: Callable | None, state, epoch: int, wanted: Sequence[int] | None) -> None:
    if look is not None and (wanted is None or epoch in wanted):
        for name, value in look(state).items():
            seen.setdefault(name, []).append(np.asarray(value))


def _by_seed(label: np.ndarray, seeds: int) -> np.ndarray:
    """(N,) or (S, N) -> (S, N)."""
    return np.broadcast_to(label, (seeds, label.shape[-1]))


def _epoch_indices(seed: int, epoch: int, setting: Setting, steps: int) -> np.ndarray:
    """(steps, B) int32: the examples of an epoch, those that any other training with this seed takes."""
    size, first = len(setting.train.image), epoch * steps
    return np.stack([batch_indices(seed, first + i, size, setting.batch_size) for i in range(steps)])


def plain(image_size: int, **fields: Any) -> tuple[Callable, Callable]:
    """(augment, normalise) for pixels in [0, 1] as they are, or with the augmentations that `fields` name."""
    return make_augment(image_size=image_size, **{"flip": 0.0, **fields}), make_normalise((0.0,), (1.0,))
