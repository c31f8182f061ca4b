"""Does the doctor keep its word? Its verdicts at 10, 25, 50 and 100 % of many runs against the end.

    python benchmarks/doctor.py [--quick] [--out FILE] [--keep FILE.npz]

Small networks on scikit-learn's digits, some of which collapse, are trained here; the other
histories are those of results/doctor/. Each is cut off at these shares of its steps, and the
verdict there is held against the one at its end. A "sure" that the end contradicts is an error.
The second table is what the doctor costs a run for each logged row.
"""

import itertools
import json
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from common import ROOT, finish, parse, say

from ssl_jax.augment.views import RECIPES, make_views, normalise
from ssl_jax.data.batches import batch_indices
from ssl_jax.data.sources import load_dataset
from ssl_jax.diagnosis.facts import Facts
from ssl_jax.dynamics.collapse import collapse_signs
from ssl_jax.losses import OBJECTIVES
from ssl_jax.models import MLPHead, make_encoder, make_network
from ssl_jax.optim import make_optimizer
from ssl_jax.predictors import make_predictor
from ssl_jax.train.pretrain import make_pretrain_step
from ssl_jax.train.state import init_key, init_state

DIM, BATCH, EVERY, MOMENTUM = 32, 64, 10, 0.9
STEPS, QUICK_STEPS = 2000, 500
SHARES = (0.1, 0.25, 0.5, 1.0)


class Program(NamedTuple):
    """What is compiled once for all settings."""

    encoder: str
    kind: str  # of the predictor
    symmetric: bool
    averaged: bool
    loss: str = "cosine"
    noise: float = 0.0  # of the views' pixels, in place of crops
    # Added to all weights into one output of the projector: the run begins with projections that
    # are mostly their mean, as those of a ResNet do.
    lean: float = 0.0


PROGRAMS = (
    Program("mlp", "mlp", False, True),
    Program("mlp", "mlp", False, False),
    Program("mlp", "mlp", True, False),
    Program("mlp", "mlp", True, True),
    Program("mlp", "direct_pred", False, False),
    Program("mlp", "direct_pred", False, True),
    Program("mlp", "linear", False, False),
    Program("mlp", "linear", False, False, "euclidean", 0.3),
    Program("convnet_digits", "mlp", False, True),
    Program("convnet_digits", "mlp", True, False),
    Program("convnet_digits", "direct_pred", False, False),
    Program("mlp", "mlp", False, True, lean=0.5),
    Program("mlp", "mlp", False, False, lean=0.5),
    Program("mlp", "mlp", True, False, lean=0.5),
    Program("mlp", "direct_pred", False, False, lean=0.5),
)
# learning rate, weight decay, whether the rate falls by a cosine
SETTINGS = (
    (0.03, 4e-4, False),
    (0.1, 4e-4, True),
    (0.1, 0.01, False),
    (0.1, 0.05, True),
    (0.3, 0.02, False),
)
# Of the Euclidean loss, from decay too weak to matter to more than any mode survives; the last one
# diverges.
EUCLIDEAN = (
    (0.01, 4e-4, False),
    (0.01, 0.1, True),
    (0.01, 1.0, False),
    (0.01, 4.0, True),
    (0.3, 0.02, False),
)
TAU = 0.99


class Run(NamedTuple):
    """A history with the facts of its configuration."""

    name: str
    history: dict[str, np.ndarray]
    facts: Facts


def train_runs(program: Program, steps: int, seed: int) -> list[Run]:
    """Return the runs of one program, one for each setting."""
    image = jnp.asarray(load_dataset("digits").train.image)
    index = np.stack([batch_indices(seed, i, len(image), BATCH) for i in range(steps)])
    index = index.reshape(steps // EVERY, EVERY, BATCH)
    settings = EUCLIDEAN if program.loss == "euclidean" else SETTINGS
    columns = zip(*settings, strict=True)
    run = jax.vmap(make_run(program, image, index, seed), in_axes=(0, 0, 0))
    rows = jax.jit(run)(*(jnp.asarray(column) for column in columns))
    runs = []
    for i, (rate, decay, cosine) in enumerate(settings):
        history = {name: np.asarray(column[i], np.float64) for name, column in rows.items()}
        facts = Facts(
            dim=DIM,
            tau=TAU if program.averaged else 0.0,
            symmetric=program.symmetric,
            kind=program.kind,
            learning_rate=rate,
            predictor_learning_rate=None,
            weight_decay=decay,
            predictor_weight_decay=None,
            momentum=MOMENTUM,
            decay="coupled",
            decay_scale="lr",
            loss_scale=1.0,
            loss=program.loss,
            total_steps=steps,
        )
        runs.append(Run(name_of(program, rate, decay, cosine), history, facts))
    return runs


def name_of(program: Program, rate: float, decay: float, cosine: bool) -> str:
    """Return a name that says what a run was."""
    words = [program.encoder, program.kind]
    words += ["symmetric"] * program.symmetric + ["averaged"] * program.averaged
    words += [program.loss] * (program.loss != "cosine") + ["leaning"] * (program.lean > 0)
    return " ".join([*words, f"{rate:g}", f"{decay:g}", "cosine" if cosine else "constant"])


def make_run(program: Program, image: jax.Array, index: np.ndarray, seed: int):
    """Return run(rate, decay, cosine) -> the columns of metrics.csv, arrays (rows,)."""
    steps = index.shape[0] * index.shape[1]
    width = 8 if program.encoder == "convnet_digits" else 64
    encoder = make_encoder(program.encoder, width=width, **({"depth": 1} if width == 64 else {}))
    network = make_network(encoder, MLPHead(64, DIM))
    options = {"hidden": 64} if program.kind == "mlp" else {}
    if program.kind != "direct_pred":
        options["symmetric"] = program.symmetric
    predictor = make_predictor(program.kind, DIM, **options)
    views = noisy(program.noise) if program.noise else make_views(RECIPES["digits"], 8)
    key, position = jax.random.key(seed), jnp.arange(BATCH)

    def run(rate, decay, cosine):
        def schedule(step):
            return rate * jnp.where(cosine, (1 + jnp.cos(jnp.pi * step / steps)) / 2, 1.0)

        optimizer = make_optimizer("momentum", schedule, momentum=MOMENTUM, weight_decay=decay)
        step = make_pretrain_step(
            views=views,
            network=network,
            predictor=predictor,
            optimizer=optimizer,
            tau=(lambda step: TAU) if program.averaged else None,
            objective=OBJECTIVES[program.loss],
        )

        def one(state, index):
            return step(state, {"image": image[index], "position": position}, key)

        def row(state, indices):
            state, metrics = jax.lax.scan(one, state, indices)
            matrix = predictor.matrix(state.params["predictor"])
            signs = collapse_signs(state.memory["correlation"], matrix)
            last = {name: metrics[name][-1] for name in ("loss", "relative_spread")}
            return state, last | signs | {"step": state.step}

        state = init_state(
            init_key(key), image[:2] / 255, network, predictor, optimizer, program.averaged
        )
        state = state._replace(params=leaning(state.params, program.lean))
        if program.averaged:
            state = state._replace(target=leaning(state.target, program.lean))
        return jax.lax.scan(row, state, jnp.asarray(index))[1]

    return run


def leaning(params, lean: float):
    """Return the parameters with `lean` added to all weights into the projector's first output."""
    projector = params["projector"]
    kernel = projector["linear2"]["kernel"].at[:, 0].add(lean)
    return params | {"projector": projector | {"linear2": {"kernel": kernel}}}


def noisy(noise: float):
    """Return views(keys, images) that adds Gaussian noise to every pixel."""
    recipe = RECIPES["digits"]

    def views(keys, image):
        clean = normalise(image, recipe.mean, recipe.std)
        drawn = jax.vmap(lambda key: jax.random.normal(key, (2, *image.shape[1:])))(keys)
        return clean + noise * drawn[:, 0], clean + noise * drawn[:, 1]

    return views
