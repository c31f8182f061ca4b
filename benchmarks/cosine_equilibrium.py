"""The spectrum that decay and the noise of batches leave under the cosine loss, and its law.

    python benchmarks/cosine_equilibrium.py [--quick] [--out results/cosine/equilibrium.json]
        [--figure docs/figures/cosine_equilibrium.png]

Two linear layers W and W_p of 8 features see two Gaussian views, whose correlation is c_j in
direction j, and take plain steps of SGD on the cosine loss, with decay, from an aligned and from
random W. Four networks a setting; settings of one batch size and one rate x decay are one program.
What is kept is the share σ_j of each direction in ‖W‖², |W e_j|² / ‖W‖², over the last two thirds.

The law (`cosine.equilibrium`, with its derivation) says before any step that σ depends on c and
η_p/η_s alone where x = rate sqrt(η_s η_p) / (1 - momentum) is small. Where it should begin to fail,
with ‖W‖⁴ = rate E|g|²/(2 η) and |g|² as 1/batch:

* a step of the flow at that norm is of the size sqrt(x batch): it must be below 1;
* the square of the fast directions' own fluctuation is sqrt(x / batch) of the weights'.

The law was written down after six settings of plain SGD at x = .002 had been measured (c_bad over
c_good .3, .5, .7, .9, and η_p/η_s 1/4, 4) and before all others.

What is stored already is not run again: --out FILE goes on with FILE. `--quick` runs a tenth of the
steps of the first program.
"""

import json
import time
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import finish, parse, say

from ssl_jax.dynamics import cosine
from ssl_jax.reports import pyplot as plt
from ssl_jax.reports.figure import save

SIZE, NETWORKS = 8, 4
LIVES = 12  # length of a run in lives of the start, 1 / (2 x) steps each
EVERY = 10  # steps from one record to the next
WIDE = tuple(np.linspace(0.95, 0.08, SIZE).round(4).tolist())


def two(good: float, bad: float, many: int = 2) -> tuple[float, ...]:
    """Return the c of `many` good modes and of bad ones."""
    return (good,) * many + (bad,) * (SIZE - many)


# (batch, x): settings, dicts of what differs from c two(.95, .475) and ratio, alpha_p, rate 1
PROGRAMS: dict[tuple[int, float], list[dict[str, Any]]] = {
    (8, 0.0005): [
        {"c": two(0.95, 0.285)},
        {},
        {"c": two(0.95, 0.665)},
        {"c": two(0.95, 0.855)},
        {"ratio": 0.25},
        {"ratio": 4.0},
        {"c": two(0.6, 0.3)},
        {"c": two(0.95, 0.475, 4)},
        {"c": WIDE, "ratio": 0.25},
        {"c": WIDE},
        {"c": WIDE, "ratio": 4.0},
        {"alpha_p": 0.1},
        {"alpha_p": 10.0},
        {"rate": 0.1},
        {"momentum": 0.5},
        {"momentum": 0.9},
        {"momentum": 0.9, "rate": 0.1},
    ],
    (8, 5e-05): [{}, {"c": WIDE}, {"ratio": 0.25}, {"ratio": 4.0}],
    (8, 0.004): [{}, {"ratio": 0.25}, {"ratio": 4.0}],
    (1, 0.0005): [{}],
    (1, 0.004): [{}, {"ratio": 0.25}, {"ratio": 4.0}],
    (64, 0.0005): [{}],
    (64, 0.004): [{}, {"ratio": 0.25}, {"ratio": 4.0}],
}


def main() -> None:
    args = parse(__doc__.splitlines()[0], figure="")
    rows = []
    if args.out and args.out.is_file():
        rows = json.loads(args.out.read_text())["rows"]
    for (batch, x), settings in PROGRAMS.items():
        if args.quick and rows:
            break
        known = [row["setting"] for row in rows if (row["batch"], row["x"]) == (batch, x)]
        settings = [setting for setting in settings if text(setting) not in known]
        if not settings:
            continue
        say(f"batch {batch}, x {x}")
        rows += run(batch, x, settings, LIVES / 10 if args.quick else LIVES)
        if args.out:
            args.out.write_text(json.dumps({"rows": rows}), encoding="utf-8")
    say("")
    finish(args, "cosine_equilibrium", rows)
    if args.figure:
        draw(rows, Path(args.figure))


def text(setting: dict[str, Any]) -> str:
    """Return a setting in words."""
    return ", ".join(f"{name} {value}" for name, value in setting.items()) or "plain"


def run(batch: int, x: float, settings: list[dict], lives: float) -> list[dict[str, Any]]:
    """Return a row for each setting."""

    def column(name: str, default: float) -> np.ndarray:
        return np.array([setting.get(name, default) for setting in settings])

    c = np.array([setting.get("c", two(0.95, 0.475)) for setting in settings])
    ratio, momentum, rate = column("ratio", 1), column("momentum", 0), column("rate", 1)
    eta_s = x * (1 - momentum) / rate / np.sqrt(ratio)
    numbers = (c, rate, eta_s, eta_s * ratio, column("alpha_p", 1), momentum)
    rng = np.random.default_rng(0)
    w = rng.normal(size=(len(settings), NETWORKS, SIZE, SIZE)) / np.sqrt(SIZE)
    w[:, ::2] = np.eye(SIZE)
    begin = time.perf_counter()
    w, w_p = train(
        jax.random.key(0),
        jnp.asarray(w, jnp.float32),
        tuple(jnp.asarray(number, jnp.float32) for number in numbers),
        batch=batch,
        records=int(lives / (2 * x)) // EVERY,
    )
    seconds = time.perf_counter() - begin
    w, w_p = (np.asarray(array, np.float64)[len(array) // 3 :] for array in (w, w_p))
    gram = w.mT @ w  # (T, settings, NETWORKS, SIZE, SIZE)
    size = np.diagonal(gram, axis1=-2, axis2=-1)
    share = (size / size.sum(-1, keepdims=True)).mean(0)
    # p_j where W_p W = W diag(p): the column of W_p W on that of W
    p = (np.sum(w * (w_p @ w), -2) / size).mean((0, 2))
    values = np.linalg.eigvalsh(gram)
    values /= values.sum(-1, keepdims=True)
    rank = np.exp(-np.sum(values * np.log(np.maximum(values, 1e-30)), -1)).mean(0)
    rows = []
    for i, setting in enumerate(settings):
        law_s, law_p = predict(tuple(c[i].tolist()), float(ratio[i]))
        rows.append(
            {
                "setting": text(setting),
                "batch": batch,
                "x": x,
                "weakest / strongest": significant(weakest(together(share[i].mean(0), c[i]))),
                "law": significant(weakest(law_s)),
                "rank": significant(rank[i].mean()),
                "law's rank": significant(np.exp(-np.sum(law_s * np.log(law_s)))),
                "p < 0": int((np.linalg.eigvals(w_p[-1, i]).real.min(-1) < 0).sum()),
                "c": list(map(float, c[i])),
                "share": significant(share[i].mean(0)),
                "law's share": significant(law_s),
                "share by network": significant(share[i]),
                "p": significant(p[i] / np.linalg.norm(p[i])),
                "law's p": significant(law_p),
                "seconds": round(seconds / len(settings), 1),
            }
        )
    return rows


@cache
def predict(c: tuple[float, ...], ratio: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the law's s and p, means over modes of one c: by symmetry they are equal there."""
    law = cosine.equilibrium(np.array(c), decay_ratio=ratio, steps=200)
    return together(law.s, c), together(law.p, c)


def together(values: np.ndarray, c: Sequence[float]) -> np.ndarray:
    """Return each value's mean over the modes of its c."""
    return np.array([np.mean(values[np.array(c) == one]) for one in c])


def weakest(share: np.ndarray) -> float:
    """Return the last mode's share over the first one's."""
    return share[-1] / share[0]


def significant(values: Any) -> Any:
    """Return numbers with four digits, in lists."""
    return np.vectorize(lambda value: float(f"{value:.4g}"))(np.asarray(values)).tolist()


@partial(jax.jit, static_argnames=("batch", "records"))
def train(
    key: jax.Array, w: jax.Array, numbers: tuple[jax.Array, ...], *, batch: int, records: int
) -> tuple[jax.Array, jax.Array]:
    """Return W and W_p at each record, (records, settings, NETWORKS, SIZE, SIZE) each.

    Networks of one number see the same batches in all settings.

    Args:
        key: of the batches.
        w: W at the start; W_p starts as the identity.
        numbers: c (settings, SIZE), rate, η_s, η_p, α_p and momentum (settings,).
        batch: examples a step.
        records: of EVERY steps each.
    """

    def move(state: tuple, noise: jax.Array, numbers: tuple) -> tuple:
        w, w_p, w_speed, w_p_speed = state
        c, rate, eta_s, eta_p, alpha_p, momentum = numbers
        x_1, x_2 = (jnp.sqrt(c) * noise[0] + jnp.sqrt(1 - c) * noise[i] for i in (1, 2))
        projection = x_1 @ w.T
        u, z = projection @ w_p.T, x_2 @ w.T
        u_size, z_size = (jnp.linalg.norm(one, axis=1, keepdims=True) for one in (u, z))
        u, z = u / u_size, z / z_size
        h = (z - u * jnp.sum(u * z, 1, keepdims=True)) / u_size  # gradient of the cosine by u
        w_speed = momentum * w_speed + (h @ w_p).T @ x_1 / batch - eta_s * w
        w_p_speed = momentum * w_p_speed + alpha_p * h.T @ projection / batch - eta_p * w_p
        return w + rate * w_speed, w_p + rate * w_p_speed, w_speed, w_p_speed

    every = jax.vmap(jax.vmap(move, (0, 0, None)), (0, None, 0))

    def step(state: tuple, key: jax.Array) -> tuple[tuple, None]:
        return every(state, jax.random.normal(key, (NETWORKS, 3, batch, SIZE)), numbers), None

    def record(state: tuple, key: jax.Array) -> tuple[tuple, tuple]:
        state, _ = jax.lax.scan(step, state, jax.random.split(key, EVERY))
        return state, state[:2]

    eye = jnp.broadcast_to(jnp.eye(SIZE), w.shape)
    start = (w, eye, jnp.zeros_like(w), jnp.zeros_like(w))
    return jax.lax.scan(record, start, jax.random.split(key, records))[1]


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw shares by the law's, the ratio by what departs from small x, and spectra of a wide c."""
    colours = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12.6, 4), layout="constrained")
    small = [row for row in rows if (row["batch"], row["x"]) == (8, 0.0005)]
    left.plot([1e-4, 1], [1e-4, 1], color="0.5", lw=0.8)
    for row in small:
        colour = colours[2] if row["c"] == list(WIDE) else colours[0]
        left.plot(row["law's share"], row["share"], "o", color=colour, ms=4, mfc="none")
    left.plot([], [], "o", color=colours[0], mfc="none", ms=4, label="two groups of c")
    left.plot([], [], "o", color=colours[2], mfc="none", ms=4, label="c from .95 to .08")
    left.set(
        xscale="log",
        yscale="log",
        xlim=(3e-4, 1),
        ylim=(3e-4, 1),
        xlabel="share of $‖W‖^2$, law",
        ylabel="measured",
    )
    left.set_title(f"{len(small)} settings, one point a mode", fontsize=10)
    for ratio, colour in zip((0.25, 1.0, 4.0), colours, strict=False):
        name = "plain" if ratio == 1 else f"ratio {ratio}"
        shown = [row for row in rows if row["setting"] == name]
        shown = [row for row in shown if row["c"] == list(two(0.95, 0.475))]
        middle.axhline(shown[0]["law"], color=colour, lw=1)
        for row in shown:
            mark = {1: "s", 8: "o", 64: "^"}[row["batch"]]
            at = np.sqrt(row["x"] / row["batch"])
            middle.plot(at, row["weakest / strongest"], mark, color=colour, ms=6, mfc="none")
        middle.plot([], [], color=colour, label=f"law, $η_p/η_s$ = {ratio:g}")
    for batch, mark in ((1, "s"), (8, "o"), (64, "^")):
        middle.plot([], [], mark, color="0.3", mfc="none", label=f"batch {batch}")
    middle.set(
        xscale="log",
        xticks=[0.003, 0.01, 0.03],
        xticklabels=["0.003", "0.01", "0.03"],
        xlabel="sqrt(rate · decay / batch)",
        ylabel="$s_{bad}/s_{good}$",
    )
    middle.set_title("$c_{bad}/c_{good}$ = .475 / .95, two good of eight", fontsize=10)
    middle.set_ylim(0, 0.4)
    middle.minorticks_off()
    wide = [row for row in small if row["c"] == list(WIDE)]
    for row, colour in zip(wide, colours, strict=False):
        ratio = row["setting"].rpartition("ratio ")[2] if "ratio" in row["setting"] else "1"
        right.plot(WIDE, row["law's share"], color=colour, lw=1.2, label=f"$η_p/η_s$ = {ratio}")
        right.plot(WIDE, row["share"], "o", color=colour, ms=5, mfc="none")
    right.set(xlabel="$c_j$: what two views share", ylabel="share of $‖W‖^2$")
    right.set_title("a wide range of c: law (lines) and networks", fontsize=10)
    for axis in (left, middle, right):
        axis.grid(alpha=0.25)
        axis.legend(fontsize=7.5)
    figure.suptitle("The spectrum that decay and the noise of batches leave", fontsize=11)
    save(figure, path, 120)


if __name__ == "__main__":
    main()
