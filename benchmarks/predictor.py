"""What the closed-form predictors cost: their matrix by its size, and their share of a whole
training step.

    python benchmarks/predictor.py [--quick] [--config NAME.py:METHOD] [--dims=128,512] [--steps=0]
    [--out FILE]

--dims: sizes of the matrices; --steps=0: no whole steps.

Target on a GPU: a DirectPred step with an eigendecomposition every time takes at most 15% longer
than BYOL's.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from common import alternate, finish, parse, table, wait
from setup_step import base_config, changed, compiled

from ssl_jax.linalg import matmul, symmetric_eigh
from ssl_jax.predictors.direct import direct_copy, direct_pred

KINDS = [("mlp", 1), ("linear", 1), *itertools.product(("direct_pred", "direct_copy"), (1, 5, 10))]
QUICK_KINDS = [
    ("mlp", 1),
    ("linear", 1),
    ("direct_pred", 1),
    ("direct_pred", 10),
    ("direct_copy", 1),
]
TARGET = 1.15  # DirectPred's step in BYOL's, on a GPU


def main() -> None:
    args = parse(__doc__.splitlines()[0], config="", dims="64,128,256,512,1024", steps=1)
    repeats = 5 if args.quick else 15
    steps = steps_by_kind(args, repeats) if args.steps else []
    matrices = [row for dim in args.dims.split(",") for row in matrices_of(int(dim), repeats)]
    print(table(matrices) + "\n")
    finish(args, "predictor", steps, matrices=matrices, target_ratio=TARGET)


# --- The matrix alone -----------------------------------------------------------------------------


def newton_schulz(corr: jax.Array, iterations: int = 15) -> jax.Array:
    """sqrt(F) by matrix products alone: Y -> Y T and Z -> T Z with T = (3 I - Z Y) / 2, from Y = F
    / |F|_F, Z = I.

    Y tends to the root and Z to its inverse (Higham 2008, "Functions of Matrices", eq. 6.35). An
    eigenvalue s of the start needs some log(1 / s) / (2 log 1.5) iterations before it converges.
    """
    identity, norm = jnp.eye(len(corr), dtype=corr.dtype), jnp.linalg.norm(corr)

    def iterate(_, pair):
        y, z = pair
        t = (3 * identity - matmul(z, y)) / 2
        return matmul(y, t), matmul(t, z)

    return jnp.sqrt(norm) * jax.lax.fori_loop(0, iterations, iterate, (corr / norm, identity))[0]


def root_by_eigh(corr: jax.Array) -> jax.Array:
    s, vectors = symmetric_eigh(corr)
    return matmul(vectors * jnp.sqrt(jnp.maximum(s, 0)), vectors.T)


def jacobi(corr: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Eigenvalues and eigenvectors by Jacobi's rotations, on a GPU cuSOLVER's."""
    return jax.lax.linalg.eigh(
        corr, symmetrize_input=False, implementation=jax.lax.linalg.EighImplementation.JACOBI
    )


CLOSED_FORMS = {
    "eigh": symmetric_eigh,
    "direct_pred": direct_pred,
    "direct_copy": direct_copy,
    "newton_schulz": newton_schulz,
}


def matrices_of(dim: int, repeats: int) -> list[dict]:
    """A row for each closed form at this size; the error of the two ways to a square root against
    float64.
    """
    corr = jnp.asarray(correlation(dim), jnp.float32)
    # small ones many times over, to be more than the clock's grain
    calls = max(1, (512 // dim) ** 2)

    def repeated(function):
        function = jax.jit(function)
        return lambda: wait([function(corr) for _ in range(calls)])

    # LAPACK has none for XLA
    forms = CLOSED_FORMS | ({} if jax.default_backend() == "cpu" else {"jacobi": jacobi})
    times = alternate({name: repeated(function) for name, function in forms.items()}, repeats)
    errors = {
        "eigh": root_error(root_by_eigh, corr),
        "newton_schulz": root_error(newton_schulz, corr),
    }
    base = times["direct_pred"]["median_s"]
    return [
        {"dim": dim, "what": name}
        | {f"{end}_ms": 1e3 * time[f"{end}_s"] / calls for end in ("median", "min", "max")}
        | {
            "to_direct_pred": time["median_s"] / base,
            "root_error": errors.get(name),
            "calls": calls,
        }
        for name, time in times.items()
    ]


def correlation(dim: int, vectors: int = 256, power: float = 1.0) -> np.ndarray:
    """F as one batch gives it: the mean of z z^T of unit vectors, coordinate j scaled by j^-power
    before.
    """
    rng = np.random.default_rng(dim)
    z = rng.normal(size=(vectors, dim)) * np.arange(1, dim + 1) ** -power
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    rotation = np.linalg.qr(rng.normal(size=(dim, dim)))[0]  # no real spectrum lies along the axes
    return rotation.T @ (z.T @ z / vectors) @ rotation


def root_error(root, corr: jax.Array) -> float:
    """|root - sqrt(F)|_F / |sqrt(F)|_F, with the square root in float64."""
    s, vectors = np.linalg.eigh(np.asarray(corr, np.float64))
    exact = (vectors * np.sqrt(s.clip(min=0))) @ vectors.T
    return float(np.linalg.norm(np.asarray(jax.jit(root)(corr)) - exact) / np.linalg.norm(exact))


# --- The whole step -------------------------------------------------------------------------------


def steps_by_kind(args, repeats: int) -> list[dict]:
    """A row for each predictor at D = 128: time of a training step, and its ratio to the first,
    BYOL's.
    """
    config = changed(base_config(args), {"projector.out": 128})
    kinds = QUICK_KINDS if args.quick else KINDS
    count = 10 if jax.default_backend() == "cpu" else 100  # a multiple of every `every`
    trainings = {
        f"{kind} {every}": compiled(
            changed(config, {"predictor.kind": kind, "predictor.every": every}), count
        )
        for kind, every in kinds
    }
    times = alternate({name: training.run for name, training in trainings.items()}, repeats)
    base = times["mlp 1"]["median_s"]
    return [
        {"kind": kind, "every": every, "encoder": config.encoder.name, "batch": config.batch_size}
        | {
            f"{end}_ms": 1e3 * times[f"{kind} {every}"][f"{end}_s"] / count
            for end in ("median", "min", "max")
        }
        | {"to_byol": times[f"{kind} {every}"]["median_s"] / base}
        for kind, every in kinds
    ]


if __name__ == "__main__":
    main()
