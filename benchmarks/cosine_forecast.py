"""What the theory of the cosine loss says of a run with a predictor in closed form, before it runs.

    python benchmarks/cosine_forecast.py [--config quickstart.py] [--methods directpred,...]
        [--fields epochs=50] [--seeds 3] [--out FILE]

Nothing is trained. The network at step 0 projects two views of up to 2000 training images. That
gives F, the correlation c_j of the two views in each mode, the mean's share of each mode, and
s_j = v_j W Wᵀ v_j of the projector's last layer W. The modes' flow to leading order, in the run's
own time, is the forecast; the law's spectrum (`cosine.direct_spectrum`) is where it ends. The trunk
below W is taken as it is at step 0, which training changes: so are the c_j. The columns "matrices"
do without modes: W itself takes the run's steps, with its momentum, rate and decay, down the
leading order's expected gradient for the second moments of the layer below it. (These were added
after runs had been seen; the others were committed before.)
"""

import ast
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import finish, parse, read_config, say

from configs.methods import apply_method
from ssl_jax.augment.views import make_views
from ssl_jax.builders import pretraining
from ssl_jax.builders.data import read_dataset
from ssl_jax.builders.program import fresh_key
from ssl_jax.dynamics import cosine, theory
from ssl_jax.linalg import effective_rank
from ssl_jax.predictors.direct import direct_set
from ssl_jax.train.pretrain import example_keys

IMAGES = 2000
POINTS = 201  # moments of the forecast
NEAR = 0.1  # share of the final effective rank within which a forecast has arrived
LAWS = {"direct_pred": (0.5, "max"), "direct_copy": (1.0, "frobenius")}  # kind: power, norm


def main() -> None:
    args = parse(
        __doc__.splitlines()[0],
        config="quickstart.py",
        methods="directpred,directpred_noema",
        fields="epochs=50",
        seeds=3,
    )
    rows, whole = [], {}
    for seed in range(1 if args.quick else args.seeds):
        for method in args.methods.split(","):
            say(f"{method}, seed {seed}")
            config = read_config(args.config)
            config.update_from_flattened_dict(
                {name: literal(value) for name, value in pairs(args.fields)} | {"seed": seed}
            )
            row, arrays = forecast(apply_method(config, method))
            rows.append({"method": method, "seed": seed} | row)
            whole[f"{method}-{seed}"] = arrays
    say("")
    finish(args, "cosine_forecast", rows, forecasts=whole)


def pairs(fields: str) -> list[list[str]]:
    """Return [name, value] of "name=value,name=value"."""
    return [pair.split("=") for pair in fields.split(",") if pair]


def literal(text: str) -> Any:
    """Return a Python literal, or the text where it is none."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def forecast(config: Any) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """Return the row of a run's forecast, and its modes: c, mean, start, law, end (D,) each."""
    dataset = read_dataset(config)
    prepared = pretraining.prepare(config, dataset.description)
    config, parts = prepared.config, prepared.parts
    state = pretraining.fresh_state(config, pretraining.make_init(parts, dataset.description))
    modes, moments = measure(
        parts, state, fresh_key(config), dataset.pretrain.image, config.batch_size
    )
    steps = prepared.plan.cadence.total
    flow, dt = theory.mapping(
        learning_rate=config.optimizer.learning_rate,
        weight_decay=config.optimizer.weight_decay,
        tau=config.target.tau,
        momentum=config.optimizer.momentum,
        loss_scale=2 * config.loss_scale,
    )
    done = np.linspace(0, 1, POINTS)
    if config.schedule.name == "cosine":
        falls = done / 2 + np.sin(np.pi * done) / (2 * np.pi)
    elif config.schedule.name == "constant":
        falls = done
    else:
        raise ValueError(f"schedule.name: {config.schedule.name} has no time here")
    power, norm = LAWS[config.predictor.kind]
    given = {"power": power, "eps": config.predictor.eps, "norm": norm}
    times = np.append(steps * dt * falls, 1e3 * steps * dt)  # the last: where the flow ends
    curves = cosine.simulate_direct(
        s=modes["s"],
        c=modes["c"],
        variance=modes["f"] / modes["s"],
        times=times,
        beta=flow.beta,
        order="leading",
        **given,
    )
    f = curves.s * modes["f"] / modes["s"]
    ranks = np.array([float(effective_rank(jnp.asarray(x))) for x in f])
    shares = (f * modes["mean"]).sum(1) / f.sum(1)
    law = cosine.direct_spectrum(modes["c"], **given)
    final = float(effective_rank(jnp.asarray(law)))
    arrived = np.abs(ranks[:-1] - final) < NEAR * final
    after = len(arrived) - np.argmin(arrived[::-1]) if not arrived.all() else 0
    matrices = descend(config, parts, moments, steps)
    row = {
        "steps": steps,
        "rank_start": ranks[0],
        "rank_forecast": ranks[-2],
        "rank_flow_end": ranks[-1],
        "rank_law": final,
        "arrives_at_step": float(steps * done[after]) if after < len(done) else None,
        "alive_law": int((law > 0).sum()),
        "mean_share_start": shares[0],
        "mean_share_forecast": shares[-2],
        "mean_share_law": float((law * modes["mean"]).sum() / law.sum()),
        "c_2": float(np.sort(modes["c"])[-2]),
        "c_median": float(np.median(modes["c"])),
    } | {f"matrices_{name}": values[-1] for name, values in matrices.items()}
    arrays = {"c": modes["c"], "mean": modes["mean"], "start": f[0], "end": f[-2], "law": law}
    scaled = {n: x / x.max() if n in ("start", "end", "law") else x for n, x in arrays.items()}
    at = np.unique(np.geomspace(1, steps, 40).round().astype(int))
    scaled |= {f"matrices_{name}": np.array(x)[at - 1] for name, x in matrices.items()}
    scaled |= {"at": at}
    return row, {name: [round(float(x), 5) for x in values] for name, values in scaled.items()}


def descend(
    config: Any, parts: pretraining.Parts, moments: dict[str, np.ndarray], steps: int
) -> dict[str, list[float]]:
    """Return what becomes of W under the run's steps on the leading order of the loss.

    Args:
        config: of the run.
        parts: of the run.
        moments: of `measure`.
        steps: of the run.

    Returns:
        rank (effective, of F), mean_share, top (F's largest eigenvalue over that at the start) and
        c_top (what the views share of its mode), a number each step.
    """
    own, shared, mean = (jnp.asarray(moments[x], jnp.float32) for x in ("own", "shared", "mean"))
    optimizer, kept = config.optimizer, optimizer_momentum(config)
    power, norm = LAWS[config.predictor.kind]

    def step(carry: Any, at: jax.Array) -> tuple[Any, Any]:
        w, w_a, speed, corr = carry
        w_p = direct_set(corr, power, config.predictor.eps, norm)

        def loss(w: jax.Array) -> jax.Array:
            u = w_p @ w
            sizes = jnp.sum(u @ own * u) * jnp.sum(w_a @ own * w_a)
            return -2 * config.loss_scale * jnp.sum(u @ shared * w_a) / jnp.sqrt(sizes)

        rate = optimizer.learning_rate
        if config.schedule.name == "cosine":
            rate = rate * (1 + jnp.cos(jnp.pi * at / steps)) / 2
        speed = kept * speed + jax.grad(loss)(w) + optimizer.weight_decay * w
        w = w - rate * speed
        tau = config.target.tau
        w_a = tau * w_a + (1 - tau) * w if tau else w
        f = w @ own @ w.T
        rho = config.predictor.rho
        corr = rho * corr + (1 - rho) * f
        v = jnp.linalg.eigh(f)[1][:, -1] @ w
        seen = effective_rank(jnp.linalg.eigvalsh(f)), jnp.sum((w @ mean) ** 2) / jnp.trace(f)
        return (w, w_a, speed, corr), (*seen, v @ own @ v, v @ shared @ v / (v @ own @ v))

    w = jnp.asarray(moments["w"], jnp.float32)
    first = w, w, 0 * w, w @ own @ w.T
    rank, share, top, c = jax.jit(lambda first: jax.lax.scan(step, first, jnp.arange(steps))[1])(
        first
    )
    start = np.linalg.eigvalsh(np.asarray(first[3]))[-1]
    found = {"rank": rank, "mean_share": share, "top": top / start, "c_top": c}
    return {name: [float(x) for x in values] for name, values in found.items()}


def optimizer_momentum(config: Any) -> float:
    """Return the momentum of heavy ball, 0 of plain gradient descent."""
    return config.optimizer.momentum if config.optimizer.name == "momentum" else 0.0


def measure(
    parts: pretraining.Parts, state: Any, key: jax.Array, image: np.ndarray, batch: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return the modes of a network, by descending eigenvalue of F, and what W sees.

    Args:
        parts: of the run.
        state: of the run.
        key: draws the views.
        image: the training images.
        batch: images whose statistics BatchNorm shares.

    Returns:
        f, c, mean (the share of the projections' mean in each mode) and s, (D,) each. And w (D, N),
        W; own, shared (N, N), second moments of the N features below it in one view and between
        both; mean (N,).
    """
    order = np.random.default_rng(0).permutation(len(image))[:IMAGES]
    views = make_views(parts.recipe, image.shape[1])

    kernel = np.asarray(state.params["projector"]["linear2"]["kernel"], np.float64)
    wide, size = kernel.shape
    picks = np.pad(np.eye(wide), ((0, 0), (0, -wide % size))).reshape(wide, -1, size)

    @jax.jit
    def project(some: jax.Array, first: jax.Array) -> jax.Array:
        keys = example_keys(key, first, jnp.arange(batch))
        both = views(keys, some)

        def below(x: jax.Array) -> jax.Array:  # through kernels that pick features
            parted = [
                parts.network.train(
                    state.params
                    | {
                        "projector": state.params["projector"]
                        | {"linear2": {"kernel": jnp.asarray(picks[:, i], jnp.float32)}}
                    },
                    state.stats,
                    x,
                )[0]
                for i in range(picks.shape[1])
            ]
            return jnp.concatenate(parted, axis=1)[:, :wide]

        return jnp.stack([below(x) for x in both])

    found = [
        project(jnp.asarray(image[order[i : i + batch]]), jnp.asarray(i))
        for i in range(0, len(order) - batch + 1, batch)
    ]
    h = np.concatenate(found, axis=1).astype(np.float64)
    z = h @ kernel
    total = np.einsum("kbi,kbj->ij", z, z) / (2 * z.shape[1])
    f, v = np.linalg.eigh(total)
    f, v = f[::-1], v[:, ::-1]
    one, two = z @ v
    cross = h[0].T @ h[1] / h.shape[1]
    moments = {
        "w": kernel.T,
        "own": np.einsum("kbi,kbj->ij", h, h) / (2 * h.shape[1]),
        "shared": (cross + cross.T) / 2,
        "mean": h.mean((0, 1)),
    }
    modes = {
        "f": f,
        "c": np.clip((one * two).mean(0) / f, 0, 1),
        "mean": np.square(np.concatenate([one, two]).mean(0)) / f,
        "s": np.square(kernel @ v).sum(0),
    }
    return modes, moments


if __name__ == "__main__":
    main()
