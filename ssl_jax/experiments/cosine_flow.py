"""The linear network under the cosine loss, beside the theory's exact flow.

The network is the linear twin, trained by the training step itself. Its settings are random: with
and without target average, symmetric predictor, momentum, three kinds of decay, none, equal and
unequal, separate learning rates. It begins aligned with its data, or anywhere ("matrices").

Every step has a new random batch. Finite steps err by the step in first order. The noise of batches
averages over the steps of a time: its variance goes as step / batch. A large batch that stays the
same would not do: its error is that of its own size for ever.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax.dynamics import cosine, theory
from ssl_jax.errors import UserError
from ssl_jax.experiments.harness import linear_network
from ssl_jax.experiments.harness.cells import Advance, Arrays, Cell, in_turn
from ssl_jax.experiments.harness.experiment import Experiment
from ssl_jax.intervals import rounded
from ssl_jax.train.state import PretrainState
from ssl_jax.types import Config

RECORDS = 6  # moments at which network and flow are compared
# What makes a program of its own: target average, symmetric predictor, aligned start, and options
# of the optimizer.
KINDS: dict[str, tuple[bool, bool, bool, dict[str, Any]]] = {
    "simsiam": (False, False, True, {"decay": "coupled"}),
    "simsiam, symmetric": (False, True, True, {"decay": "decoupled"}),
    "byol": (True, False, True, {"decay": "coupled", "momentum": 0.5}),
    "byol, symmetric": (True, True, True, {"decay": "pre", "decay_scale": "literal"}),
    "simsiam, matrices": (False, False, False, {"decay": "coupled"}),
    "byol, symmetric, matrices": (True, True, False, {"decay": "pre", "decay_scale": "literal"}),
}
NOISY = "simsiam"  # the kind that small batches are tried on
RANGES = {
    "settings": (4, 1000),
    "dim": (2, 64),
    "inputs": (2, 64),
    "time": (1e-3, 1e4),
    "batch_size": (1, 2**20),
}


class Setting(NamedTuple):
    """Settings of one kind, each entry with the settings as its first axis, and their flow."""

    w: np.ndarray  # (M, D, N)
    w_p: np.ndarray  # (M, D, D)
    x: np.ndarray  # (M, N, N)
    x_prime: np.ndarray  # (M, N, N)
    p: np.ndarray  # (M, D) of an aligned start
    s: np.ndarray  # (M, D)
    left: np.ndarray  # (D, D), the modes' directions by column
    c: np.ndarray  # (M, D)
    variance: np.ndarray  # (M, D)
    flow: dict[str, Any]  # arguments of the theory, (M,) each


def check(config: Config) -> None:
    """Raise a UserError where numbers of steps or batches do not fit."""
    for steps in config.steps:
        if steps < 1 or steps % RECORDS:
            raise UserError(f"steps: got {steps}, takes multiples of {RECORDS}")
    if len(config.steps) < 2 or list(config.steps) != sorted(set(config.steps)):
        raise UserError(f"steps: got {tuple(config.steps)}, takes two or more ascending numbers")
    for batch in config.batch_sizes:
        if batch < 1:
            raise UserError(f"batch_sizes: got {batch}, takes numbers from 1")
    if config.inputs < config.dim:
        raise UserError(f"inputs: got {config.inputs}, takes at least dim ({config.dim})")


def plan(config: Config, parts: None) -> dict[str, Cell]:
    """Return the cells: each kind at each number of steps, and small batches of each size."""
    large = config.batch_size
    cells = {
        f"{kind.replace(', ', '-')}-{steps}": Cell(
            steps, partial(measure, config, kind, steps, large)
        )
        for kind in KINDS
        for steps in config.steps
    }
    return cells | {
        f"batch-{batch}-{steps}": Cell(steps, partial(measure, config, NOISY, steps, batch))
        for batch in config.batch_sizes
        for steps in config.steps
    }


def draw_settings(config: Config, kind: str) -> Setting:
    """Return the random settings of a kind: three without decay, one with that of W_p alone.

    Args:
        config: the experiment's configuration.
        kind: a key of KINDS.

    Returns:
        The settings.
    """
    averaged, symmetric, aligned, _ = KINDS[kind]
    rng = np.random.default_rng([config.seed, list(KINDS).index(kind)])
    many, size, wide = config.settings, config.dim, config.inputs
    p, s = rng.uniform(0.2, 1, (many, size)), rng.uniform(0.1, 1, (many, size))
    c, variance = rng.uniform(0.3, 1, (many, size)), rng.uniform(0.5, 1.5, (many, size))
    left = np.linalg.qr(rng.normal(size=(size, size)))[0]
    right = np.linalg.qr(rng.normal(size=(wide, wide)))[0][:, :size]
    if aligned:
        w = np.einsum("ij,mj,nj->min", left, np.sqrt(s), right)
        w_p = np.einsum("ij,mj,kj->mik", left, p, left)
        x = np.einsum("ij,mj,kj->mik", right, c * variance, right)
        x_prime = np.einsum("ij,mj,kj->mik", right, (1 - c) * variance, right)
    else:
        w = rng.normal(size=(many, size, wide)) / 2
        w_p = rng.normal(size=(many, size, size)) / 3 + np.eye(size) / 2
        w_p = (w_p + w_p.swapaxes(1, 2)) / 2 if symmetric else w_p
        roots = rng.normal(size=(2, many, wide, wide)) / np.sqrt(wide)
        x, x_prime = roots @ roots.swapaxes(-1, -2)
    eta, eta_p = rng.uniform(0.02, 0.2, (2, many))
    eta[:4], eta_p[:3] = 0, 0
    flow = {"alpha_p": rng.uniform(0.3, 3, many), "eta_p": eta_p, "eta_s": eta}
    flow["beta"] = rng.uniform(0.3, 2, many) if averaged else None
    return Setting(w, w_p, x, x_prime, p, s, left, c, variance, flow)


def columns(setting: Setting, kind: str, dt: float) -> dict[str, np.ndarray]:
    """Return the training settings, (M,) each, of which `theory.mapping` makes the flow.

    Args:
        setting: of the kind.
        kind: a key of KINDS.
        dt: the flow's time that one step takes.

    Returns:
        Arguments of `linear_network.make_twin` by name.
    """
    averaged, _, _, fixed = KINDS[kind]
    flow, rest = setting.flow, 1 - fixed.get("momentum", 0.0)
    rate, literal = dt * rest, "decay_scale" in fixed
    found = {
        "predictor_learning_rate": rate * flow["alpha_p"],
        "weight_decay": flow["eta_s"] * (dt if literal else 1),
        "predictor_weight_decay": flow["eta_p"] * dt
        if literal
        else flow["eta_p"] / flow["alpha_p"],
    } | ({"tau": 1 - flow["beta"] * dt} if averaged else {})
    found["learning_rate"] = np.full_like(flow["alpha_p"], rate)
    for row in range(len(rate * flow["alpha_p"])):
        mapped, time = theory.mapping(
            **{name: float(value[row]) for name, value in found.items()}, **fixed
        )
        expected = [flow[n][row] for n in ("alpha_p", "eta_p", "eta_s")]
        np.testing.assert_allclose([*mapped[:3], time], [*expected, dt], rtol=1e-9, atol=1e-12)
    return found


def measure(config: Config, kind: str, steps: int, batch: int, advance: Advance) -> Arrays:
    """Train the networks of a kind, and compare them with the flow.

    Args:
        config: the experiment's configuration.
        kind: a key of KINDS.
        steps: in the time of the configuration.
        batch: size of the batches.
        advance: is called with the number of steps, at the end.

    Returns:
        "largest", "rms" (M,): error over records and entries, in units of the largest value at the
        start; "next", "leading" (M,): the largest error of the flow of these orders, for aligned
        starts; "moved" (M,): the largest change of the flow.
    """
    setting = draw_settings(config, kind)
    found = train(config, setting, kind, steps, batch)
    aligned = KINDS[kind][2]
    orders = cosine.ORDERS if aligned else ("exact",)
    flows = {order: flow_of(config, setting, kind, order) for order in orders}
    seen = along(setting, found) if aligned else found
    errors = {order: difference(setting, seen, flow, aligned) for order, flow in flows.items()}
    start = jax.tree.map(lambda x: x[:, :1], flows["exact"])
    moved = difference(setting, start, flows["exact"], aligned)
    advance(steps)
    return {
        "largest": np.abs(errors["exact"]).max(1),
        "rms": np.sqrt(np.square(errors["exact"]).mean(1)),
        "moved": np.abs(moved).max(1),
    } | {name: np.abs(errors[name]).max(1) for name in ("next", "leading") if name in errors}


def flow_of(config: Config, setting: Setting, kind: str, order: str) -> tuple[np.ndarray, ...]:
    """Return what the theory says at the records.

    Args:
        config: the experiment's configuration.
        setting: of the kind.
        kind: a key of KINDS.
        order: of the theory.

    Returns:
        p, s and m n (M, R, D) of an aligned start; else W, W_p and W_a (M, R, ...).
    """
    _, symmetric, aligned, _ = KINDS[kind]
    times = np.linspace(0, config.time, RECORDS + 1)
    if aligned:
        data = {"c": setting.c, "variance": setting.variance}
        curves = cosine.simulate(
            p=setting.p, s=setting.s, times=times, order=order, **data, **setting.flow
        )
        return curves.p, curves.s, curves.m * curves.n
    return cosine.simulate_matrices(
        setting.w,
        setting.w_p,
        times=times,
        x=setting.x,
        x_prime=setting.x_prime,
        nodes=24,
        symmetric=symmetric,
        **setting.flow,
    )


def along(setting: Setting, found: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    """Return p, s and m n (M, R, D) of W, W_p and W_a along the modes' directions."""
    w, w_p, w_a = found
    turned = np.swapaxes(w, -1, -2)
    return tuple(
        np.einsum("ij,...ik,kj->...j", setting.left, x, setting.left)
        for x in (w_p, w @ turned, w_a @ turned)
    )


def difference(
    setting: Setting, one: tuple[np.ndarray, ...], two: tuple[np.ndarray, ...], aligned: bool
) -> np.ndarray:
    """Return all differences (M, entries), those of each array over its largest start.

    Args:
        setting: of a kind.
        one: arrays (M, R, ...).
        two: arrays that broadcast with these.
        aligned: whether they are p, s and m n; else W, W_p and W_a.

    Returns:
        The differences, relative to the largest entry of p and s, or W and W_p, at the start.
    """
    first, second = (setting.p, setting.s) if aligned else (setting.w, setting.w_p)
    sizes = [np.abs(x).reshape(len(x), -1).max(1) for x in (first, second)]
    sizes.append(sizes[1] if aligned else sizes[0])
    return np.concatenate(
        [
            (np.asarray(a, np.float64) - b).reshape(len(size), -1) / size[:, None]
            for a, b, size in zip(one, two, sizes, strict=True)
        ],
        axis=1,
    )


def train(
    config: Config, setting: Setting, kind: str, steps: int, batch: int
) -> tuple[np.ndarray, ...]:
    """Train the networks of a kind.

    Args:
        config: the experiment's configuration.
        setting: of the kind.
        kind: a key of KINDS.
        steps: in the time of the configuration.
        batch: size of the batches.

    Returns:
        W, W_p and W_a (M, RECORDS + 1, ...) float64.
    """
    _, symmetric, _, fixed = KINDS[kind]
    numbers = {
        name: jnp.asarray(value, jnp.float32)
        for name, value in columns(setting, kind, config.time / steps).items()
    }

    def one(
        w: jax.Array, w_p: jax.Array, roots: jax.Array, numbers: dict[str, jax.Array]
    ) -> tuple[jax.Array, ...]:
        def views(keys: jax.Array, image: jax.Array) -> tuple[jax.Array, jax.Array]:
            normal = jax.vmap(lambda key: jax.random.normal(key, (3, w.shape[1])))(keys)
            drawn = jnp.einsum("bkn,knm->bkm", normal, roots, precision="highest")
            return linear_network.exact_views(keys, drawn)

        state, step = linear_network.make_twin(
            w, w_p, symmetric=symmetric, views=views, loss="cosine", **numbers, **fixed
        )

        def stretch(state: PretrainState, _: None) -> tuple[PretrainState, tuple[jax.Array, ...]]:
            state = linear_network.advance(
                state, step, image, jax.random.key(config.seed), steps // RECORDS
            )
            return state, matrices(state)

        _, seen = jax.lax.scan(stretch, state, length=RECORDS)
        return jax.tree.map(
            lambda first, rest: jnp.concatenate([first[None], rest]), matrices(state), seen
        )

    image = jnp.zeros((batch, 1))  # only its length counts
    roots = np.stack(
        [linear_network.roots(x, y) for x, y in zip(setting.x, setting.x_prime, strict=True)]
    )
    start = (jnp.asarray(x, jnp.float32) for x in (setting.w, setting.w_p, roots))
    found = jax.device_get(jax.jit(jax.vmap(one))(*start, numbers))
    return tuple(np.asarray(x, np.float64) for x in found)


def matrices(state: PretrainState) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return W (D, N), W_p (D, D) and W_a (D, N), which is W where no average is kept."""
    w = state.params["encoder"]["linear"]["kernel"].T
    w_p = state.params["predictor"]["linear"]["kernel"].T
    return w, w_p, state.target["encoder"]["linear"]["kernel"].T if state.target else w


# --- Results --------------------------------------------------------------------------------------


def summarise(config: Config, parts: None, results: dict[str, Arrays]) -> dict[str, Any]:
    """Return how errors go with step and batch.

    Args:
        config: the experiment's configuration.
        parts: nothing.
        results: arrays by the names of `plan`.

    Returns:
        The entries of result.json.
    """
    kinds = {}
    for kind in KINDS:
        cells = [results[f"{kind.replace(', ', '-')}-{steps}"] for steps in config.steps]
        largest = np.stack([cell["largest"] for cell in cells])
        kinds[kind] = {
            "largest": rounded(largest.max(1), 5),
            "median": rounded(np.median(largest, axis=1), 5),
            "ratio": rounded(np.quantile(largest[-2] / largest[-1], (0, 0.5, 1)), 3),
            "moved": rounded([cells[0]["moved"].min(), cells[0]["moved"].max()], 3),
        } | {
            order: rounded(np.median(cells[-1][order]), 5)
            for order in ("next", "leading")
            if order in cells[-1]
        }
    dt = config.time / np.array(config.steps, float)
    rms = {
        str(batch): rms_of([results[f"batch-{batch}-{steps}"] for steps in config.steps])
        for batch in config.batch_sizes
    } | {str(config.batch_size): rms_of([results[f"{NOISY}-{steps}"] for steps in config.steps])}
    bias, noise = fit_errors(dt, rms)
    return {
        "kinds": kinds,
        "step": rounded(dt, 5),
        "rms": {batch: rounded(values, 6) for batch, values in rms.items()},
        "bias": rounded(bias, 4),
        "noise": rounded(noise, 4),
    }


def fit_errors(dt: np.ndarray, rms: dict[str, np.ndarray]) -> tuple[float, float]:
    """Return a and b of rms² = (a dt)² + b² dt / batch, by least squares of relative errors.

    Args:
        dt: steps, (S,).
        rms: errors (S,) by size of the batch.

    Returns:
        a and b; 0 where the fit is below it.
    """
    rows = [
        (np.array([step**2, step / int(batch)]) / value**2)
        for batch, values in rms.items()
        for step, value in zip(dt, values, strict=True)
    ]
    found = np.linalg.lstsq(np.array(rows), np.ones(len(rows)), rcond=None)[0]
    bias, noise = np.sqrt(np.maximum(found, 0))
    return float(bias), float(noise)


def rms_of(cells: list[Arrays]) -> np.ndarray:
    """Return the root of the mean squared error over settings, of each cell."""
    return np.array([np.sqrt(np.square(cell["rms"]).mean()) for cell in cells])


EXPERIMENT = Experiment([in_turn(plan)], summarise, lambda config: None, check, RANGES)
