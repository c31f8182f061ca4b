"""Which modes collapse: predicted by the theory, measured on two networks.

The networks are the theory's linear twin, and a small network on digits. The grid runs over the
predictor's decay η_p and learning rate α_p, both as the flow has them (`theory.mapping`), without
and with an average of the target. All networks begin with W_p = p I, which is aligned with any
features, and with features whose correlation has the mean eigenvalue s. So every eigenvalue is a
mode for which `theory.collapses` has an answer.

What counts as a living mode was fixed before anything was measured. A mode lives where its
eigenvalue is at least

    twin               ALIVE * s, of F = W Wᵀ; s is the mean at the start
    digits, Euclidean  ALIVE * s, of the centred correlation of projections between two views
    digits, cosine     ALIVE / D, of the same correlation of projections divided by their norms

The cosine loss does not see a scale: there an even sphere has D eigenvalues 1 / D.
A cell has collapsed where fewer than half of its modes live, on average over the seeds.

The digits' network: an encoder of one layer, the projector of all other runs, a linear predictor.
Decay acts on all of its weights. A view is an image plus Gaussian noise in every pixel, as the
theory has it: the crops of the recipe "digits" are stronger than the theory leaves room for (they
begin with σ² about 4, which makes `critical_decay` 0.05).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax.augment.views import RECIPES, normalise, statistics
from ssl_jax.data.batches import batch_indices
from ssl_jax.data.sources import load_dataset
from ssl_jax.dynamics import theory
from ssl_jax.errors import UserError, nearest
from ssl_jax.experiments.harness import linear_network
from ssl_jax.experiments.harness.cells import Advance, Arrays, Cell, in_turn, seeds_of
from ssl_jax.experiments.harness.experiment import Experiment
from ssl_jax.intervals import rounded
from ssl_jax.linalg import matmul
from ssl_jax.losses import OBJECTIVES, unit
from ssl_jax.models import MLPHead, Network, make_encoder, make_network
from ssl_jax.optim import Optimizer
from ssl_jax.predictors import Predictor, make_predictor
from ssl_jax.train.pretrain import Views, example_keys, make_pretrain_step
from ssl_jax.train.state import PretrainState, init_key, init_state
from ssl_jax.types import Config

Settings = dict[str, Any]  # arguments of `two_rates`: scalars of one cell, or float32 (A * E,)

ALIVE = 0.01  # share of the even size from which on a mode counts as living
TARGETS = {"none": False, "average": True}  # name: whether the target is an average
STEPS_PER_CALL = 50  # steps in one call

RANGES: dict[str, tuple[float, float]] = {
    "cells": (2, 1000),
    "learning_rate": (1e-12, 1e6),
    "dim": (2, 1000),
    "twin.time": (1e-12, 1e9),
    "twin.inputs": (1, 10**4),
    "twin.sigma2": (0, 1e6),
    "digits.time": (1e-12, 1e9),
    "digits.batch_size": (2, 10**4),
    "digits.width": (1, 10**4),
    "digits.noise": (0, 1e6),
}


class Parts(NamedTuple):
    """What the cells share."""

    # target -> (S, A, E, D) bool, whether each mode of the twin lives
    predicted: dict[str, np.ndarray]
    digits: "Digits"


def prepare(config: Config) -> Parts:
    # `predict_twin` needs diffrax: where it is missing, this fails before any work
    """Return the predictions, and what the digits' networks share."""
    return Parts(predict_twin(config), build_digits(config))


def plan(config: Config, parts: Parts) -> dict[str, Cell]:
    """Return the cells: the twin and each loss on digits, without and with a target average."""
    cells = {f"twin-{target}": twin_cell(config, averaged) for target, averaged in TARGETS.items()}
    for loss in config.digits.losses:
        cells |= {
            f"{loss}-{target}": digits_cell(config, parts.digits, loss, averaged)
            for target, averaged in TARGETS.items()
        }
    return cells


def check(config: Config) -> None:
    """Check the fields; UserError for the first that the theory or the experiment cannot take."""
    for name in ("alpha_p", "eta_p"):
        ends = config[name]
        if not (len(ends) == 2 and 0 < ends[0] < ends[1] < np.inf):
            raise UserError(
                f"{name}: got {tuple(ends)}, takes two ascending numbers above 0, "
                "the ends of the axis"
            )
    theory.check(eta_s=config.eta_s, p=config.p, s=config.s)
    if not 0 < config.s:
        raise UserError(f"s: got {config.s}, takes a number above 0")
    if not 0 < config.beta * config.learning_rate < 1:
        most = 1 / config.learning_rate
        raise UserError(
            f"beta: got {config.beta}, takes a number above 0 and below {most:g}, "
            "which is 1 / learning_rate"
        )
    if not config.digits.losses or len(set(config.digits.losses)) < len(config.digits.losses):
        raise UserError(
            f"digits.losses: got {tuple(config.digits.losses)}, "
            "takes different losses, at least one"
        )
    for loss in config.digits.losses:
        if loss not in OBJECTIVES:
            raise UserError(f"digits.losses: got {loss!r}, {nearest(loss, OBJECTIVES)}")


# --- The grid -------------------------------------------------------------------------------------


class Grid(NamedTuple):
    """The settings of all cells (A * E,), those of one α_p together, and their flow."""

    alpha_p: np.ndarray
    eta_p: np.ndarray
    settings: Settings


def axes_of(config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Return α_p (A,) and η_p (E,), both evenly on a logarithmic scale."""
    (low, high), (weak, strong) = config.alpha_p, config.eta_p
    return np.geomspace(low, high, config.cells), np.geomspace(weak, strong, config.cells)


def make_grid(config: Config) -> Grid:
    """Return the settings of all cells.

    Decay is coupled to the gradients of J itself: η_s is the weight decay, η_p is α_p times that of
    the predictor.
    """
    alpha_p, eta_p = (axis.ravel() for axis in np.meshgrid(*axes_of(config), indexing="ij"))
    rates = {
        "predictor_learning_rate": alpha_p * config.learning_rate,
        "predictor_weight_decay": eta_p / alpha_p,
    }
    return Grid(alpha_p, eta_p, {name: value.astype(np.float32) for name, value in rates.items()})


def shared(config: Config, averaged: bool) -> dict[str, Any]:
    """Return the settings that all cells share, by `theory.mapping`'s names."""
    rate = config.learning_rate
    tau = 1 - config.beta * rate if averaged else 0.0
    return {"learning_rate": rate, "weight_decay": config.eta_s, "tau": tau}


def steps_of(config: Config, network: str) -> int:
    """Return the number of steps that a network's time takes; network: "twin" or "digits"."""
    return max(1, round(config[network].time / config.learning_rate))


def on_grid(config: Config, values: np.ndarray) -> np.ndarray:
    """Return values (..., A * E, D) as (..., A, E, D)."""
    return values.reshape(*values.shape[:-2], config.cells, config.cells, values.shape[-1])


def predict(config: Config, s: np.ndarray, sigma2: np.ndarray, averaged: bool) -> np.ndarray:
    """Predict which modes live for ever.

    Args:
        config: the experiment's configuration.
        s: eigenvalues (S, D) at the start.
        sigma2: σ² (S,), the noise.
        averaged: whether the target is an average.

    Returns:
        (S, A, E, D) bool.
    """
    grid = make_grid(config)
    flow = {
        "alpha_p": grid.alpha_p[None, :, None],
        "eta_p": grid.eta_p[None, :, None],
        "eta_s": config.eta_s,
    }
    begin = {"p": config.p, "s": s[:, None, :], "sigma2": sigma2[:, None, None]}
    return on_grid(
        config, ~theory.collapses(**begin, **flow, beta=config.beta if averaged else None)
    )


# --- The linear twin ------------------------------------------------------------------------------


def twin_start(config: Config) -> np.ndarray:
    """Return W (S, D, N) of each seed: Gaussian, with mean eigenvalue s of W Wᵀ."""
    shape = config.dim, config.twin.inputs
    w = np.stack([np.random.default_rng(seed).normal(size=shape) for seed in seeds_of(config)])
    return w * np.sqrt(config.s * config.dim / (w**2).sum((1, 2), keepdims=True))


def predict_twin(config: Config) -> dict[str, np.ndarray]:
    """Return {target: (S, A, E, D)}, whether each mode lives, by ascending s."""
    w = twin_start(config)
    s, sigma2 = np.linalg.eigvalsh(w @ np.swapaxes(w, 1, 2)), np.full(len(w), config.twin.sigma2)
    return {target: predict(config, s, sigma2, averaged) for target, averaged in TARGETS.items()}


def twin_cell(config: Config, averaged: bool) -> Cell:
    """Return the cell of all twins of one kind of target."""
    return Cell(steps_of(config, "twin"), partial(train_twins, config, averaged))


def train_twins(config: Config, averaged: bool, advance: Advance) -> Arrays:
    """Train the twins of all seeds and settings.

    Args:
        config: the experiment's configuration.
        averaged: whether the target is an average.
        advance: is called with numbers of finished steps.

    Returns:
        "spectrum" (S, A, E, D): s along the eigenvectors that F had at the start, in the order of
        `predict_twin`.
    """
    start, one = twin_start(config), np.eye(config.twin.inputs)
    image = jnp.asarray(linear_network.exact_moments(one, config.twin.sigma2 * one, config.seed))
    begin = partial(
        linear_network.make_twin, w_p=config.p * jnp.eye(config.dim), **shared(config, averaged)
    )

    def init(w: jax.Array, settings: Settings) -> PretrainState:
        return begin(w, **settings)[0]

    def train_steps(
        steps: int, state: PretrainState, w: jax.Array, settings: Settings
    ) -> PretrainState:
        return linear_network.advance(
            state, begin(w, **settings)[1], image, jax.random.key(0), steps
        )

    w, settings = jnp.asarray(start, jnp.float32), make_grid(config).settings
    state = jax.jit(over_seeds_and_cells(init, (0, None), (None, 0)))(w, settings)
    calls = chunks(steps_of(config, "twin"))
    programs = {
        n: jax.jit(over_seeds_and_cells(partial(train_steps, n), (0, 0, None), (0, None, 0)))
        for n in set(calls)
    }
    for steps in calls:
        state = jax.block_until_ready(programs[steps](state, w, settings))
        advance(steps)
    kernel = np.asarray(state.params["encoder"]["linear"]["kernel"], np.float64)  # (S, A * E, N, D)
    basis = np.linalg.eigh(start @ np.swapaxes(start, 1, 2))[1]
    return {"spectrum": on_grid(config, np.square(kernel @ basis[:, None]).sum(-2))}


def chunks(steps: int) -> list[int]:
    """Return the number of steps of every call."""
    whole, rest = divmod(steps, STEPS_PER_CALL)
    return [STEPS_PER_CALL] * whole + [rest] * (rest > 0)


def over_seeds_and_cells(
    function: Callable[..., Any], seeds: tuple[Any, ...], cells: tuple[Any, ...], out: Any = 0
) -> Callable[..., Any]:
    """Map a function of one member over seeds (the outer axis) and cells (the inner one).

    Args:
        function: of one member.
        seeds: axes of its arguments along which seeds stand, as `vmap` takes them.
        cells: axes of its arguments along which cells stand.
        out: axes of the result, the same for both.

    Returns:
        The function of all members.
    """
    return jax.vmap(jax.vmap(function, cells, out), seeds, out)


# --- The network on digits ------------------------------------------------------------------------


class Digits(NamedTuple):
    """What all members share."""

    network: Network
    predictor: Predictor
    views: Views
    image: jax.Array  # (N, H, W, C) uint8, all training images

    def project(self, state: PretrainState, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the projections (N, D) of two new views of every image.

        BatchNorm uses the statistics of all images.
        """
        keys = example_keys(key, state.step, jnp.arange(len(self.image)))
        one, two = (
            self.network.train(state.params, state.stats, view)[0]
            for view in self.views(keys, self.image)
        )
        return one, two


# Cells share the number of the step, and with it their views, which are so made once for all.
AXES: Any = PretrainState(*(0,) * 6)._replace(step=None)  # pyright: ignore[reportArgumentType]


def digits_cell(config: Config, parts: Digits, loss: str, averaged: bool) -> Cell:
    """Return the cell of all networks on digits of one loss and kind of target.

    Args:
        config: the experiment's configuration.
        parts: what all members share.
        loss: a key of OBJECTIVES.
        averaged: whether the target is an average.

    Returns:
        The cell, with the arrays of `train_digits`.
    """
    return Cell(steps_of(config, "digits"), partial(train_digits, config, parts, loss, averaged))


def build_digits(config: Config) -> Digits:
    """Return what all networks on digits share; UserError where the batch is too large."""
    dataset = load_dataset("digits")
    if config.digits.batch_size > len(dataset.train.image):
        raise UserError(
            f"digits.batch_size: got {config.digits.batch_size}, "
            f"takes at most {len(dataset.train.image)}"
        )
    width = config.digits.width
    return Digits(
        make_network(make_encoder("mlp", width=width, depth=1), MLPHead(width, config.dim)),
        make_predictor("linear", config.dim),
        noisy_views(config.digits.noise),
        jnp.asarray(dataset.train.image),
    )


def noisy_views(noise: float) -> Views:
    """Return views(keys, image uint8): normalised images with noise of that standard deviation."""
    recipe = RECIPES["digits"]

    def views(keys: jax.Array, image: jax.Array) -> tuple[jax.Array, jax.Array]:
        clean = normalise(image, *statistics(recipe))
        drawn = jax.vmap(lambda key: jax.random.normal(key, (2, *image.shape[1:])))(keys)
        return clean + noise * drawn[:, 0], clean + noise * drawn[:, 1]

    return views


def train_digits(
    config: Config, parts: Digits, loss: str, averaged: bool, advance: Advance
) -> Arrays:
    """Train the networks on digits of all seeds and settings.

    Args:
        config: the experiment's configuration.
        parts: what all members share.
        loss: a key of OBJECTIVES.
        averaged: whether the target is an average.
        advance: is called with numbers of finished steps.

    Returns:
        "spectrum" (S, A, E, D) of the trained projections, by ascending size; "scale" (S, A, E),
        the mean squared norm of projections over that at the start; "begun" (S, D), the spectrum of
        projections without normalisation at the start, and its "sigma2" (S,).
    """
    seeds, settings = seeds_of(config), make_grid(config).settings
    keys, rates = jax.vmap(jax.random.key)(jnp.asarray(seeds)), shared(config, averaged)
    tau = rates.pop("tau")

    def init(key: jax.Array, settings: Settings) -> PretrainState:
        return init_digits(
            parts, key, linear_network.two_rates(**rates, **settings), averaged, config.p, config.s
        )

    def train_steps(
        state: PretrainState, settings: Settings, key: jax.Array, index: jax.Array
    ) -> PretrainState:
        optimizer = linear_network.two_rates(**rates, **settings)
        return take_steps(parts, optimizer, tau if averaged else None, loss, state, key, index)

    program = jax.jit(
        over_seeds_and_cells(train_steps, (AXES, None, 0, 0), (AXES, 0, None, None), AXES)
    )
    measure = jax.jit(
        over_seeds_and_cells(partial(view_statistics, parts), (AXES, 0), (AXES, None))
    )
    state = jax.jit(over_seeds_and_cells(init, (0, None), (None, 0), AXES))(keys, settings)
    begun, done = measure(state, keys), 0
    for steps in chunks(steps_of(config, "digits")):
        index = np.stack(
            [
                batch_order(seed, done, steps, config.digits.batch_size, len(parts.image))
                for seed in seeds
            ]
        )
        state = jax.block_until_ready(program(state, settings, keys, index))
        done += steps
        advance(steps)
    return digits_arrays(config, loss, begun, measure(state, keys))


def take_steps(
    parts: Digits,
    optimizer: Optimizer,
    tau: jax.Array | float | None,
    loss: str,
    state: PretrainState,
    key: jax.Array,
    index: jax.Array,
) -> PretrainState:
    """Train one member for some steps.

    Args:
        parts: what all members share.
        optimizer: of the member.
        tau: of the target's average; None: there is none.
        loss: a name in `OBJECTIVES`.
        state: its state.
        key: its key.
        index: (steps, B) examples of each batch.

    Returns:
        The state after them.
    """
    step = make_pretrain_step(
        views=parts.views,
        network=parts.network,
        predictor=parts.predictor,
        optimizer=optimizer,
        tau=None if tau is None else lambda step: tau,
        objective=OBJECTIVES[loss],
        loss_scale=0.5,  # of both directions of the views, so that it is the theory's J
    )
    position = jnp.arange(index.shape[1], dtype=jnp.int32)

    def one(state: PretrainState, index: jax.Array) -> tuple[PretrainState, None]:
        return step(state, {"image": parts.image[index], "position": position}, key)[0], None

    return jax.lax.scan(one, state, index)[0]


def init_digits(
    parts: Digits, key: jax.Array, optimizer: Optimizer, averaged: bool, p: float, s: float
) -> PretrainState:
    """Initialise a network with W_p = p I and a scaled last layer of the projector.

    Args:
        parts: what all members share.
        key: of this member.
        optimizer: of this member.
        averaged: whether the target is an average.
        p: the predictor's eigenvalue.
        s: mean eigenvalue of the correlation of projections.

    Returns:
        The state at step 0.
    """
    state = init_state(
        init_key(key), parts.image[:2] / 255, parts.network, parts.predictor, optimizer, averaged
    )
    factor = jnp.sqrt(s / jnp.mean(jnp.diagonal(view_statistics(parts, state, key)["centred"])))
    projector = state.params["projector"]
    last = {"kernel": factor * projector["linear2"]["kernel"]}
    trunk = {"encoder": state.params["encoder"], "projector": projector | {"linear2": last}}
    predictor = {"linear": {"kernel": p * jnp.eye(len(last["kernel"].T))}}
    return state._replace(params=trunk | {"predictor": predictor}, target=trunk if averaged else {})


def batch_order(seed: int, first: int, steps: int, batch_size: int, size: int) -> np.ndarray:
    """Return the examples of some steps.

    Args:
        seed: of the order of the data.
        first: the first step.
        steps: number of steps.
        batch_size: B.
        size: number of training images.

    Returns:
        (steps, B) int32 indices.
    """
    return np.stack(
        [batch_indices(seed, step, size, batch_size) for step in range(first, first + steps)]
    )


def view_statistics(parts: Digits, state: PretrainState, key: jax.Array) -> dict[str, jax.Array]:
    """Measure what the projections of two views have in common.

    Args:
        parts: what all members share.
        state: of a member.
        key: draws the views.

    Returns:
        "centred" (D, D), the centred correlation between both views; "unit" (D, D), the same of
        projections over their norms; "square" (), the mean squared norm; "own" (), the variance of
        one view's projections, summed over D.
    """
    one, two = parts.project(state, key)
    centred = view_correlation(one, two)
    own = (jnp.var(one, axis=0).sum() + jnp.var(two, axis=0).sum()) / 2
    square = (jnp.square(one).sum() + jnp.square(two).sum()) / (2 * len(one))
    return {
        "centred": centred,
        "unit": view_correlation(unit(one), unit(two)),
        "square": square,
        "own": own,
    }


def view_correlation(one: jax.Array, two: jax.Array) -> jax.Array:
    """Return the symmetric part (D, D) of the covariance of two views' projections (N, D).

    It estimates the covariance of the views' means.
    """
    one, two = (z - z.mean(axis=0, keepdims=True) for z in (one, two))
    product = matmul(one.T, two) / len(one)
    return (product + product.T) / 2


def digits_arrays(
    config: Config, loss: str, begun: dict[str, jax.Array], ended: dict[str, jax.Array]
) -> Arrays:
    """Return the arrays of `train_digits`.

    Args:
        config: the experiment's configuration.
        loss: a key of OBJECTIVES.
        begun: `view_statistics` of all members (S, A * E, ...) at the start.
        ended: the same at the end.

    Returns:
        The arrays of a cell.
    """
    start, end = (
        {name: np.asarray(x, np.float64) for name, x in seen.items()} for seen in (begun, ended)
    )
    kept = end["centred" if OBJECTIVES[loss].sees_scale else "unit"]
    first = start["centred"][:, 0]  # all cells begin with the same network
    total = np.trace(first, axis1=1, axis2=2)
    return {
        "spectrum": on_grid(config, spectrum(kept)),
        "scale": on_grid(config, (end["square"] / start["square"])[..., None])[..., 0],
        "begun": np.maximum(spectrum(first), 0),
        "sigma2": np.maximum(start["own"][:, 0] / total - 1, 0),
    }


def spectrum(matrices: np.ndarray) -> np.ndarray:
    """Return ascending eigenvalues (..., D); NaN of a member that diverged."""
    fine = np.asarray(np.isfinite(matrices).all((-2, -1)))[..., None, None]
    return np.where(fine[..., 0], np.linalg.eigvalsh(np.where(fine, matrices, 0)), np.nan)


# --- Results -------------------------------------------------------------------------------------


def summarise(config: Config, parts: Parts, results: dict[str, Arrays]) -> dict[str, Any]:
    """Compare the shares of living modes over the grid with the predictions.

    Args:
        config: the experiment's configuration.
        parts: holds the predictions of the twin.
        results: arrays by the names of `plan`.

    Returns:
        The entries of result.json.
    """
    alpha_p, eta_p = axes_of(config)
    result: dict[str, Any] = {
        "dataset": "digits",
        "alpha_p": rounded(alpha_p),
        "eta_p": rounded(eta_p),
    }
    result["steps"] = {network: steps_of(config, network) for network in ("twin", "digits")}
    for target, averaged in TARGETS.items():
        alive = results[f"twin-{target}"]["spectrum"] >= ALIVE * config.s
        result[f"twin-{target}"] = compare(parts.predicted[target], alive) | {
            # mode by mode: prediction and measurement have the same order
            "modes_alike": rounded(np.mean(alive == parts.predicted[target]))
        }
        for loss in config.digits.losses:
            cell = results[f"{loss}-{target}"]
            floor = ALIVE * config.s if OBJECTIVES[loss].sees_scale else ALIVE / config.dim
            expected = predict(config, cell["begun"], cell["sigma2"], averaged)
            result[f"{loss}-{target}"] = compare(expected, cell["spectrum"] >= floor) | {
                "scale": rounded(
                    np.exp(np.mean(np.log(np.maximum(cell["scale"], 1e-30)), axis=0)), 3
                ),
                "effective_rank": rounded(effective_ranks(cell["spectrum"]).mean(0), 3),
                "diverged": int(np.isnan(cell["spectrum"]).any(-1).sum()),
                "sigma2": rounded(cell["sigma2"], 3),
                "begun": rounded(cell["begun"], 3),
            }
    return result


def compare(predicted: np.ndarray, measured: np.ndarray) -> dict[str, Any]:
    """Return shares of living modes over seeds and modes, and how well they agree.

    Both arguments are (S, A, E, D). "agreement" is the share of cells in which both say that half
    of the modes live, or both that they do not; "difference" is the mean absolute difference of the
    shares.
    """
    predicted_share, seen = predicted.mean((0, 3)), measured.mean((0, 3))
    return {
        "predicted": rounded(predicted_share, 4),
        "measured": rounded(seen, 4),
        "agreement": rounded(np.mean((predicted_share >= 0.5) == (seen >= 0.5))),
        "difference": rounded(np.abs(predicted_share - seen).mean()),
    }


def effective_ranks(spectra: np.ndarray) -> np.ndarray:
    """Return exp of the entropy of spectra (..., D), as `linalg.effective_rank` does; (...)."""
    share = np.maximum(spectra, 1e-30)
    share = share / share.sum(-1, keepdims=True)
    return np.exp(-(share * np.log(share)).sum(-1))


EXPERIMENT = Experiment([in_turn(plan)], summarise, prepare, check, RANGES)
