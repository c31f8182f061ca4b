"""Which modes live under the cosine loss: a small network on digits beside the cosine's theory.

The network, its data and what counts as a living mode are those of `phase_diagram`: a mode lives
where its eigenvalue of the centred correlation between the views of projections over their norms is
at least ALIVE / D. The scans go over what the theory of `dynamics.cosine` says decides:

    balance   r = α_p s / p² without decay: water filling
    decay     η_p / η_s, without and with an average of the target
    eps       of DirectPred, without decay
    grid      the cells of `phase_diagram`

The theory's modes are the eigenvectors v_j of F at the start, of noisy views, uncentred:
f_j = v_j·F v_j, c_j the correlation of the two views, s_j = v_j·W Wᵀ v_j of the projector's last
layer W, p_j = v_j·W_p v_j, and the share of f_j that is the mean's, which the flow keeps. Of these
alone come the forecasts:

    start     steps of the leading order's expected gradient, with the run's rate and decay
    norms     the same steps on spheres, ‖W‖ and ‖W_p‖ as the run had them. The flow's norms do not
              see the loss; those of a run are set by the noise of its batches, which no flow has.
    end       where the flow ends: `cosine.fate`, `cosine.direct_spectrum`
    late      that of `direct_spectrum`, by the c_j that the network has in the end. No forecast.

A mode of the forecast lives where f_j (c_j - mean share) is at least ALIVE / D of all f.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax.data.sources import load_dataset
from ssl_jax.dynamics import cosine
from ssl_jax.errors import UserError
from ssl_jax.experiments import phase_diagram as phases
from ssl_jax.experiments.harness import linear_network
from ssl_jax.experiments.harness.cells import Advance, Arrays, Cell, in_turn
from ssl_jax.experiments.harness.experiment import Experiment
from ssl_jax.experiments.phase_diagram import ALIVE, AXES, Digits, over_seeds_and_cells
from ssl_jax.intervals import rounded
from ssl_jax.losses import unit
from ssl_jax.models import MLPHead, make_encoder, make_network
from ssl_jax.predictors import Predictor, make_predictor
from ssl_jax.predictors.direct import direct_set
from ssl_jax.predictors.predictor import in_closed_form
from ssl_jax.train.state import PretrainState
from ssl_jax.types import Config

RANGES: dict[str, tuple[float, float]] = {
    "points": (2, 1000),
    "noise": (0, 1e6),
    "time": (1e-12, 1e9),
    "early": (1e-6, 1),
    "learning_rate": (1e-12, 1e6),
    "batch_size": (2, 10**4),
    "width": (1, 10**4),
    "dim": (2, 1000),
    "s": (1e-12, 1e9),
    "eta_s": (0, 1e6),
    "grid.seeds": (1, 1000),
    "grid.cells": (2, 1000),
    "grid.p": (1e-12, 1e9),
    "grid.noise": (0, 1e6),
}
ENDS = ("balance", "decay", "eps", "grid.eta_p", "grid.alpha_p")


class Scan(NamedTuple):
    """Settings (M,) that are trained at once."""

    x: np.ndarray  # (M,) what is scanned
    alpha_p: np.ndarray  # (M,) learning rate of W_p over that of W
    eta_p: np.ndarray  # (M,)
    eta_s: float
    p: np.ndarray  # (M,) W_p begins as p I
    eps: np.ndarray | None  # (M,) of DirectPred; None where W_p is learned
    averaged: bool
    noise: float
    seeds: int


def check(config: Config) -> None:
    """Raise a UserError where a field is wrong."""
    for name in ENDS:
        low, *rest = ends = tuple(config[name] if "." not in name else config.grid[name[5:]])
        if len(ends) != 2 or not 0 < low < rest[0] < np.inf:
            raise UserError(f"{name}: got {ends}, takes two ascending numbers above 0")
    if not 0 < config.beta * config.learning_rate < 1:
        raise UserError(
            f"beta: got {config.beta}, takes a number above 0 and below "
            f"{1 / config.learning_rate:g}, which is 1 / learning_rate"
        )
    if not config.noises or any(not 0 <= x < np.inf for x in config.noises):
        raise UserError(f"noises: got {tuple(config.noises)}, takes numbers from 0, at least one")


def scans(config: Config) -> dict[str, Scan]:
    """Return the scans by name."""
    one = np.ones(config.points)
    balance, decay, eps = (
        evenly(config[name], config.points) for name in ("balance", "decay", "eps")
    )
    start = np.sqrt(config.s / balance)  # α_p s / p² is the balance
    found = {
        f"balance-{noise:g}": Scan(
            balance, one, 0 * one, 0.0, start, None, False, noise, config.seeds
        )
        for noise in config.noises
    }
    low = 0.1 * one  # phase_diagram's p
    for averaged, name in ((False, "none"), (True, "average")):
        found[f"decay-{name}"] = Scan(
            decay,
            one,
            decay * config.eta_s,
            config.eta_s,
            low,
            None,
            averaged,
            config.noise,
            config.seeds,
        )
    found["eps-none"] = Scan(eps, one, 0 * one, 0.0, one, eps, False, config.noise, config.seeds)
    grid, cells = config.grid, config.grid.cells
    alpha_p, eta_p = (
        axis.ravel()
        for axis in np.meshgrid(
            evenly(grid.alpha_p, cells), evenly(grid.eta_p, cells), indexing="ij"
        )
    )
    for averaged, name in ((False, "none"), (True, "average")):
        found[f"grid-{name}"] = Scan(
            eta_p / config.eta_s,
            alpha_p,
            eta_p,
            config.eta_s,
            np.full(cells**2, grid.p),
            None,
            averaged,
            grid.noise,
            grid.seeds,
        )
    return found


def evenly(ends: Any, count: int) -> np.ndarray:
    """Return so many numbers between two, evenly on a logarithmic scale."""
    low, high = ends
    return np.geomspace(low, high, count)


def steps_of(config: Config) -> tuple[int, int]:
    """Return the steps after which modes are counted: early, and at the end."""
    steps = max(1, round(config.time / config.learning_rate))
    return max(1, round(config.early * steps)), steps


def plan(config: Config, parts: None) -> dict[str, Cell]:
    """Return a cell for each scan."""
    steps = steps_of(config)[1]
    return {name: Cell(steps, partial(train, config, scan)) for name, scan in scans(config).items()}


# --- Training -------------------------------------------------------------------------------------


def build(config: Config, noise: float) -> Digits:
    """Return what the networks of a scan share; UserError where the batch is too large."""
    image = load_dataset("digits").train.image
    if config.batch_size > len(image):
        raise UserError(f"batch_size: got {config.batch_size}, takes at most {len(image)}")
    return Digits(
        make_network(
            make_encoder("mlp", width=config.width, depth=1), MLPHead(config.width, config.dim)
        ),
        make_predictor("linear", config.dim),
        phases.noisy_views(noise),
        jnp.asarray(image),
    )


def predictor_of(dim: int, eps: Any) -> Predictor:
    """Return a linear predictor, or DirectPred with an eps that may be traced."""
    if eps is None:
        return make_predictor("linear", dim)
    return in_closed_form(dim, lambda corr: direct_set(corr, 0.5, eps, "max"))


def modes_of(parts: Digits, state: PretrainState, key: jax.Array) -> dict[str, jax.Array]:
    """Measure the modes of a network, by descending eigenvalue of F.

    Args:
        parts: what the networks share.
        state: of a network.
        key: draws the views.

    Returns:
        f, c, mean, s, p (D,): eigenvalues of F, correlation of the two views, the mean's share, and
        those of W Wᵀ and W_p there; unit (D, D), the centred correlation between the views of
        projections over their norms; size, size_p (), the norms of W and W_p.
    """
    one, two = parts.project(state, key)
    corr = (one.T @ one + two.T @ two) / (2 * len(one))
    f, v = jnp.linalg.eigh(corr)
    f, v = f[::-1], v[:, ::-1]
    first, second = one @ v, two @ v
    own = (jnp.square(first) + jnp.square(second)).mean(0) / 2
    kernel = state.params["projector"]["linear2"]["kernel"]
    w_p = state.params["predictor"]["linear"]["kernel"].T
    return {
        "f": f,
        "c": (first * second).mean(0) / own,
        "mean": jnp.square((first + second).mean(0) / 2) / own,
        "s": jnp.square(kernel @ v).sum(0),
        "p": jnp.sum(v * (w_p @ v), axis=0),
        "unit": phases.view_correlation(unit(one), unit(two)),
        **sizes(state),
    }


def sizes(state: PretrainState) -> dict[str, jax.Array]:
    """Return the norms of W and W_p."""
    return {
        "size": jnp.linalg.norm(state.params["projector"]["linear2"]["kernel"]),
        "size_p": jnp.linalg.norm(state.params["predictor"]["linear"]["kernel"]),
    }


def train(config: Config, scan: Scan, advance: Advance) -> Arrays:
    """Train the networks of a scan, of all seeds S and settings M at once.

    Args:
        config: the experiment's configuration.
        scan: the settings.
        advance: is called with numbers of finished steps.

    Returns:
        begun_NAME, early_NAME and end_NAME (S, M, ...) of each NAME of `modes_of`, and the norms
        size and size_p (S, M, R) at the steps "at" (R,).
    """
    parts, rate = build(config, scan.noise), config.learning_rate
    seeds = list(range(config.seed, config.seed + scan.seeds))
    keys = jax.vmap(jax.random.key)(jnp.asarray(seeds))
    tau = 1 - config.beta * rate if scan.averaged else 0.0
    settings = {
        "alpha_p": scan.alpha_p,
        "decay_p": scan.eta_p / scan.alpha_p,
        "p": scan.p,
    } | ({} if scan.eps is None else {"eps": scan.eps})
    settings = {name: jnp.asarray(x, jnp.float32) for name, x in settings.items()}

    def optimizer_of(own: dict[str, jax.Array]) -> Any:
        return linear_network.two_rates(
            learning_rate=rate,
            predictor_learning_rate=rate * own["alpha_p"],
            weight_decay=scan.eta_s,
            predictor_weight_decay=own["decay_p"],
        )

    def init(key: jax.Array, own: dict[str, Any]) -> PretrainState:
        of_kind = parts._replace(predictor=predictor_of(config.dim, own.get("eps")))
        return phases.init_digits(
            of_kind, key, optimizer_of(own), scan.averaged, own["p"], config.s
        )

    def some_steps(
        state: PretrainState, own: dict[str, jax.Array], key: jax.Array, index: jax.Array
    ) -> PretrainState:
        of_kind = parts._replace(predictor=predictor_of(config.dim, own.get("eps")))
        average = tau if scan.averaged else None
        return phases.take_steps(of_kind, optimizer_of(own), average, "cosine", state, key, index)

    program = jax.jit(
        over_seeds_and_cells(some_steps, (AXES, None, 0, 0), (AXES, 0, None, None), AXES)
    )
    measure = jax.jit(over_seeds_and_cells(partial(modes_of, parts), (AXES, 0), (AXES, None)))
    norms = jax.jit(over_seeds_and_cells(sizes, (AXES,), (AXES,)))
    state = jax.jit(over_seeds_and_cells(init, (0, None), (None, 0), AXES))(keys, settings)
    found = {f"begun_{name}": x for name, x in measure(state, keys).items()}
    early, total = steps_of(config)
    seen, at, done = [norms(state)], [0], 0
    for steps in [*phases.chunks(early), *phases.chunks(total - early)]:
        index = np.stack(
            [
                phases.batch_order(seed, done, steps, config.batch_size, len(parts.image))
                for seed in seeds
            ]
        )
        state = jax.block_until_ready(program(state, settings, keys, index))
        done += steps
        seen.append(norms(state))
        at.append(done)
        if done == early:
            found |= {f"early_{name}": x for name, x in measure(state, keys).items()}
        advance(steps)
    found |= {f"end_{name}": x for name, x in measure(state, keys).items()}
    found |= {name: jnp.stack([x[name] for x in seen], axis=-1) for name in ("size", "size_p")}
    return {name: np.asarray(x, np.float64) for name, x in found.items()} | {"at": np.array(at)}


# --- Forecasts ------------------------------------------------------------------------------------


def forecast(
    config: Config, scan: Scan, found: Arrays, norms: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return the spectra of F that the leading order's steps lead to from the measured start.

    Args:
        config: the experiment's configuration.
        scan: the settings.
        found: the arrays of `train`.
        norms: whether W and W_p are held at the norms that the run had.

    Returns:
        f (S, M, D) early and at the end, in the order of the modes at the start.
    """
    rate, (early, total) = config.learning_rate, steps_of(config)
    p, s, f, c = (found[f"begun_{name}"] for name in ("p", "s", "f", "c"))
    a, alpha, eta_p = f / s, scan.alpha_p[:, None], scan.eta_p[:, None]
    m = n = np.sqrt(s)
    kept = f
    held = [
        np.exp(interpolated(found["at"], np.log(found[name]), total)) for name in ("size", "size_p")
    ]
    # of the modes' part of the norms: W_p and W Wᵀ have a part beside their diagonals
    parts = [
        np.linalg.norm(x, axis=-1) / size[..., 0] for x, size in zip((m, p), held, strict=True)
    ]
    for step in range(1, total + 1):
        if scan.eps is not None:
            own = m**2 * a
            p = np.sqrt(own / own.max(-1, keepdims=True)) + scan.eps[:, None]
        x = np.sum(p**2 * m**2 * a, -1, keepdims=True)
        z = np.sum(n**2 * a, -1, keepdims=True)
        over = np.sum(p * m * n * a * c, -1, keepdims=True) / x
        kappa = 1 / np.sqrt(x * z)
        by_p, by_m = a * m * (n * c - over * p * m), a * p * (n * c - over * p * m)
        p = p + rate * (alpha * kappa * by_p - eta_p * p)
        m = m + rate * (kappa * by_m - scan.eta_s * m)
        if norms:
            m *= (parts[0] * held[0][..., step] / np.linalg.norm(m, axis=-1))[..., None]
            if scan.eps is None:
                p *= (parts[1] * held[1][..., step] / np.linalg.norm(p, axis=-1))[..., None]
        n = n + config.beta * rate * (m - n) if scan.averaged else m
        if step == early:
            kept = m**2 * a
    return kept, m**2 * a


def interpolated(at: np.ndarray, values: np.ndarray, total: int) -> np.ndarray:
    """Return values (..., R) at the steps `at` as values (..., total + 1) at every step."""
    flat = values.reshape(-1, values.shape[-1])
    steps = np.arange(total + 1)
    return np.stack([np.interp(steps, at, row) for row in flat]).reshape(
        *values.shape[:-1], total + 1
    )


def ends(scan: Scan, found: Arrays) -> np.ndarray | None:
    """Return the spectra of F (S, M, D) where the flow ends; None where decay leaves it no end."""
    p, s, f, c = (found[f"begun_{name}"] for name in ("p", "s", "f", "c"))
    c = np.clip(c, 0, 1)
    if scan.eps is not None:
        return cosine.direct_spectrum(c, eps=scan.eps)
    if scan.eta_s > 0 or scan.eta_p.any():
        return None
    return cosine.fate(p, s, c, scan.alpha_p).s * f / s


def alive(f: np.ndarray, found: Arrays, when: str = "begun") -> np.ndarray:
    """Return which modes of a forecast live, (S, M, D).

    Args:
        f: eigenvalues of F, (S, M, D).
        found: the arrays of `train`.
        when: whose c and mean's share count, "begun" or "end".

    Returns:
        Whether each lives.
    """
    content = f * (found[f"{when}_c"] - found[f"{when}_mean"])
    return content >= ALIVE / f.shape[-1] * f.sum(-1, keepdims=True)


# --- Results --------------------------------------------------------------------------------------


def summarise(config: Config, parts: None, results: dict[str, Arrays]) -> dict[str, Any]:
    """Compare counts of living modes with the forecasts.

    Args:
        config: the experiment's configuration.
        parts: nothing.
        results: arrays by the names of `plan`.

    Returns:
        The entries of result.json.
    """
    found: dict[str, Any] = {"dataset": "digits", "steps": list(steps_of(config)), "scans": {}}
    for name, scan in scans(config).items():
        cell = results[name]
        forecasts = {
            "start": forecast(config, scan, cell, norms=False),
            "norms": forecast(config, scan, cell, norms=True),
        }
        end = ends(scan, cell)
        part: dict[str, Any] = {
            "x": rounded(scan.x, 6),
            "alpha_p": rounded(scan.alpha_p, 6),
            "c": rounded(cell["begun_c"][:, 0], 4),
            "mean": rounded(cell["begun_mean"][:, 0], 4),
            "c_end": rounded(np.median(cell["end_c"], axis=0), 4),
        }
        for column, when in enumerate(("early", "end")):
            seen = phases.spectrum(cell[f"{when}_unit"]) >= ALIVE / config.dim
            of_f = np.sort(np.maximum(cell[f"{when}_f"], 0), -1)
            part[when] = {
                "alive": rounded(seen.mean(-1), 4),  # (S, M)
                "rank": rounded(phases.effective_ranks(of_f), 3),
                "forecasts": {
                    kind: compared(seen, of_f, f[column], cell) for kind, f in forecasts.items()
                }
                | ({} if end is None else {"end": compared(seen, of_f, end, cell)}),
            }
        if scan.eps is not None:
            law = cosine.direct_spectrum(np.clip(cell["end_c"], 0, 1), eps=scan.eps)
            part["end"]["forecasts"]["late"] = compared(seen, of_f, law, cell, "end")
        found["scans"][name] = part
    return found


def compared(
    seen: np.ndarray,
    spectra: np.ndarray,
    forecast: np.ndarray,
    found: Arrays,
    when: str = "begun",
) -> dict[str, Any]:
    """Return a forecast beside what was seen.

    Args:
        seen: which modes live, (S, M, D).
        spectra: eigenvalues of F, (S, M, D).
        forecast: the same, forecast.
        found: the arrays of `train`.
        when: as `alive` takes it.

    Returns:
        "alive" and "rank" (S, M) of the forecast; "agreement", the share of cells in which both say
        that half of the modes live, on average over the seeds, or both that they do not;
        "difference" and "rank_difference", mean absolute differences over seeds and cells;
        "correlation", Spearman's of the ranks of F over the cells, 0 where one side is constant.
    """
    lives = alive(forecast, found, when)
    share, there = lives.mean((0, 2)), seen.mean((0, 2))
    ranks, right = phases.effective_ranks(forecast), phases.effective_ranks(spectra)
    return {
        "alive": rounded(lives.mean(-1), 4),
        "rank": rounded(ranks, 3),
        "agreement": rounded(np.mean((share >= 0.5) == (there >= 0.5))),
        "difference": rounded(np.abs(lives.mean(-1) - seen.mean(-1)).mean()),
        "rank_difference": rounded(np.abs(ranks - right).mean()),
        "correlation": rounded(spearman(ranks.mean(0), right.mean(0))),
    }


def spearman(one: np.ndarray, two: np.ndarray) -> float:
    """Return Spearman's correlation of two arrays (M,) without ties; 0 where one is constant."""
    if np.ptp(one) == 0 or np.ptp(two) == 0:
        return 0.0
    first, second = (x.argsort().argsort().astype(float) for x in (one, two))
    return float(np.corrcoef(first, second)[0, 1])


EXPERIMENT = Experiment([in_turn(plan)], summarise, lambda config: None, check, RANGES)
