"""Vanishing and exploding gradients: depth x activation x initialisation of an MLP.

The norm of the loss's gradient by each layer's weights, on one fixed batch, before and during
training (Glorot & Bengio 2010, "Understanding the difficulty of training deep feedforward neural
networks"; He et al. 2015, arXiv 1502.01852). All initialisations and seeds of one depth and
activation are one program.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax.data.dataset import Dataset
from ssl_jax.experiments.harness.cells import Advance, Arrays, Cell, in_turn, seeds_of
from ssl_jax.experiments.harness.experiment import Experiment
from ssl_jax.experiments.harness.stacked import Setting, plain, steps_per_epoch, train_table
from ssl_jax.intervals import mean_and_interval, rounded
from ssl_jax.losses import cross_entropy
from ssl_jax.models import Classifier, make_classifier, make_encoder
from ssl_jax.optim import make_optimizer
from ssl_jax.train.supervised import SupervisedState
from ssl_jax.types import Config, Params

LOWEST = 1e-37  # about the smallest float32 above 0: a norm below it counts as 0


def plan(config: Config, dataset: Dataset) -> dict[str, Cell]:
    """Return the cells, one for each depth and activation."""
    setting = partial(_setting, config, dataset)
    watched = epochs_watched(config.epochs)
    cells = {}
    for depth in config.depths:
        for activation in config.activations:
            networks = [
                classifier(config, dataset, depth, activation, init) for init in config.inits
            ]
            common = setting(networks[0])
            make = partial(_train, config, common, networks, depth, watched)
            cells[f"depth-{depth}-{activation}"] = Cell(
                config.epochs * steps_per_epoch(common), make
            )
    return cells


def classifier(
    config: Config, dataset: Dataset, depth: int, activation: str, init: str
) -> Classifier:
    """Return a multi-layer perceptron with a linear head.

    Args:
        config: the experiment's configuration.
        dataset: the data set.
        depth: number of hidden layers.
        activation: a key of `models.layers.ACTIVATIONS`.
        init: the preset of the initialisation.

    Returns:
        The classifier's functions.
    """
    encoder = make_encoder(
        "mlp", width=config.width, depth=depth, activation=activation, norm=config.norm, init=init
    )
    return make_classifier(encoder, dataset.num_classes, init=init)


def epochs_watched(epochs: int) -> list[int]:
    """Return the epochs at which gradients are measured: 0, 1, 2, 5, 10, ... and the last."""
    marks = (digit * 10**power for power in range(7) for digit in (1, 2, 5))
    return sorted({0, epochs} | {mark for mark in marks if mark < epochs})


def gradient_norms(
    network: Classifier,
    depth: int,
    image: jax.Array,
    label: jax.Array,
    num_classes: int,
    state: SupervisedState,
) -> dict[str, jax.Array]:
    """Measure the gradient's norm by each layer's weights.

    Args:
        network: of `classifier`.
        depth: its hidden layers.
        image: a normalised batch (B, H, W, C).
        label: (B,).
        num_classes: number K of classes.
        state: of the network.

    Returns:
        "gradient" (depth + 1,), the norm of d loss / d kernel of each hidden layer and of the head.
    """
    target = jax.nn.one_hot(label, num_classes)

    def loss(params: Params) -> jax.Array:
        return jnp.mean(cross_entropy(network.logits(params, state.stats, image), target))

    grads = jax.grad(loss)(state.params)
    kernels = [grads["encoder"][f"linear{i}"]["kernel"] for i in range(1, depth + 1)] + [
        grads["head"]["kernel"]
    ]
    # Scaled before it is squared: the square of 1e-20 is 0 in float32.
    largest = [jnp.maximum(jnp.max(jnp.abs(k)), LOWEST) for k in kernels]
    return {
        "gradient": jnp.stack(
            [s * jnp.linalg.norm(k / s) for k, s in zip(kernels, largest, strict=True)]
        )
    }


def _setting(config: Config, dataset: Dataset, network: Classifier) -> Setting:
    augment, normalise = plain(dataset.side)
    eval_splits = {"train": dataset.train, "test": dataset.test}
    sizes = config.epochs, config.batch_size, augment, normalise, (config.epochs,)
    return Setting(network, dataset.num_classes, dataset.train, eval_splits, *sizes)


def _train(
    config: Config,
    setting: Setting,
    networks: Sequence[Classifier],
    depth: int,
    watched: Sequence[int],
    advance: Advance,
) -> Arrays:
    """Train networks of one depth and activation, one for each initialisation."""
    image = jnp.zeros((2, *setting.train.image.shape[1:]))

    def start(key: jax.Array) -> tuple[Params, Params]:
        started = [network.init(key, image) for network in networks]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *started)

    first = slice(0, config.watched_images)
    batch = setting.normalise(setting.train.image[first]), jnp.asarray(setting.train.label[first])
    return train_table(
        setting,
        partial(make_optimizer, config.optimizer),
        {"learning_rate": [config.learning_rate] * len(networks)},
        seeds_of(config),
        start=start,
        measure=partial(gradient_norms, networks[0], depth, *batch, setting.num_classes),
        measure_epochs=watched,
        advance=advance,
    )


def summarise(config: Config, dataset: Dataset, cells: dict[str, Arrays]) -> dict[str, Any]:
    """Return gradient norms and accuracies of every network.

    Args:
        config: the experiment's configuration.
        dataset: the data set.
        cells: arrays by the names of `plan`.

    Returns:
        The entries of result.json. Norms are geometric means over the seeds, as base-10 logarithms.
    """
    members = []
    for depth in config.depths:
        for activation in config.activations:
            cell = cells[f"depth-{depth}-{activation}"]
            # (inits, epochs, layers)
            logs = np.log10(np.maximum(cell["gradient"], LOWEST)).mean(axis=0)
            for i, init in enumerate(config.inits):
                members.append(
                    {"depth": depth, "activation": activation, "init": init}
                    | {
                        name: mean_and_interval(cell[f"{name}_accuracy"][:, i, -1])
                        for name in ("train", "test")
                    }
                    | {"log10_gradient": rounded(logs[i], 4)}
                )
    return {"epochs_watched": epochs_watched(config.epochs), "members": members}


EXPERIMENT = Experiment(
    [in_turn(plan)], summarise, ranges={"width": (1, 10**5), "watched_images": (1, 10**6)}
)
