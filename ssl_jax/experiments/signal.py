"""Vanishing and exploding gradients seen: depth x activation x initialisation of a multi-layer
perceptron.

The gradient of the loss by each layer's weights, its norm, on one fixed batch: before training and
while it goes on (Glorot & Bengio 2010, "Understanding the difficulty of training deep feedforward
neural networks"; He et al. 2015, arXiv 1502.01852). All initialisations and seeds of one depth and
activation are one program.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax.experiments.harness.cells import Cell, in_turn, seeds_of
from ssl_jax.experiments.harness.experiment import Experiment
from ssl_jax.experiments.harness.stacked import Setting, plain, steps_per_epoch, train_table
from ssl_jax.intervals import mean_and_interval, rounded
from ssl_jax.losses import cross_entropy
from ssl_jax.models import make_classifier, make_encoder
from ssl_jax.optim import make_optimizer

LOWEST = 1e-37  # about the smallest of float32: what is less has vanished altogether


def plan(config, dataset):
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


def classifier(config, dataset, depth: int, activation: str, init: str):
    encoder = make_encoder(
        "mlp", width=config.width, depth=depth, activation=activation, norm=config.norm, init=init
    )
    return make_classifier(encoder, dataset.num_classes, init=init)


def epochs_watched(epochs: int) -> list[int]:
    """0, 1, 2, 5, 10, 20, 50, ... and the last."""
    marks = (digit * 10**power for power in range(7) for digit in (1, 2, 5))
    return sorted({0, epochs} | {mark for mark in marks if mark < epochs})


def gradient_norms(network, depth: int, image, label, num_classes: int, state) -> dict:
    """{"gradient": (depth + 1,)}, the norm of d loss / d kernel of each hidden layer and of the
    head.
    """
    target = jax.nn.one_hot(label, num_classes)

    def loss(params):
        return jnp.mean(cross_entropy(network.logits(params, state.stats, image), target))

    grads = jax.grad(loss)(state.params)
    kernels = [grads["encoder"][f"linear{i}"]["kernel"] for i in range(1, depth + 1)] + [
        grads["head"]["kernel"]
    ]
    # Scaled before it is squared: the square of 1e-20 is nothing in float32.
    largest = [jnp.maximum(jnp.max(jnp.abs(k)), LOWEST) for k in kernels]
    return {
        "gradient": jnp.stack(
            [s * jnp.linalg.norm(k / s) for k, s in zip(kernels, largest, strict=True)]
        )
    }


def _setting(config, dataset, network) -> Setting:
    augment, normalise = plain(dataset.side)
    eval_splits = {"train": dataset.train, "test": dataset.test}
    sizes = config.epochs, config.batch_size, augment, normalise, (config.epochs,)
    return Setting(network, dataset.num_classes, dataset.train, eval_splits, *sizes)


def _train(config, setting: Setting, networks, depth: int, watched, advance):
    image = jnp.zeros((2, *setting.train.image.shape[1:]))

    def start(key):
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


def summarise(config, dataset, cells):
    """Norms are geometric means over the seeds, as base-10 logarithms."""
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
