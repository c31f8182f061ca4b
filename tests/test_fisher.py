"""Natural gradient with the empirical Fisher matrix, against NumPy in float64 and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.optim.fisher import FisherState, scale_by_fisher, solve_block

BLOCK = 6
# Below the block's size, as large, one larger; a square, whose diagonal has the array's own shape;
# a scalar.
SHAPES = {"below": (2, 2), "equal": (6,), "above": (7,), "square": (3, 3), "scalar": ()}


def gradients(steps: int, seed=0) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [
        {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
        for _ in range(steps)
    ]


def numpy_natural(gradients, rho: float, damping: float) -> list[np.ndarray]:
    """(F + damping I)^-1 g of one array, after each of its gradients: F the weighted mean of all so
    far.
    """
    steps, seen = [], [g.astype(np.float64).ravel() for g in gradients]
    for t, g in enumerate(seen):
        weight = rho ** np.arange(t, -1, -1.0)
        fisher = sum(w * np.outer(h, h) for w, h in zip(weight / weight.sum(), seen, strict=False))
        if g.size > BLOCK:
            fisher = np.diag(np.diag(fisher))
        step = np.linalg.solve(fisher + damping * np.eye(g.size), g)
        steps.append(step.reshape(gradients[t].shape))
    return steps


@pytest.mark.parametrize("rho, damping", [(0.95, 1e-3), (0.5, 0.1), (0.0, 1.0)])
def test_steps_are_those_of_the_weighted_mean_of_outer_products(rho, damping):
    seen, natural = gradients(5), scale_by_fisher(rho, damping, BLOCK)
    state, update = natural.init(seen[0]), jax.jit(natural.update)
    found = []
    for g in seen:
        step, state = update(g, state)
        found.append(step)
    for name in SHAPES:
        expected = numpy_natural([g[name] for g in seen], rho, damping)
        for one, other in zip([step[name] for step in found], expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=5e-3, atol=1e-4 * np.abs(other).max())
    assert state.count == 5 and state.count.dtype == jnp.int32


def test_what_is_kept_is_a_block_or_a_diagonal():
    state = scale_by_fisher(block=BLOCK).init(gradients(1)[0])
    assert isinstance(state, FisherState)
    assert {name: f.shape for name, f in state.fisher.items()} == {
        "below": (4, 4),
        "equal": (6, 6),
        "above": (7,),
        "square": (3, 3),
        "scalar": (1, 1),
    }
    assert not any(f.any() for f in jax.tree.leaves(state.fisher)) and state.count == 0
    larger = scale_by_fisher().init({"at": jnp.zeros((8, 8)), "beyond": jnp.zeros(65)})
    assert larger.fisher["at"].shape == (64, 64) and larger.fisher["beyond"].shape == (65,)


@pytest.mark.parametrize("rho", [0.0, 0.95])
def test_the_first_step_has_a_closed_form(rho):
    """F = g g^T whatever rho, as its start at zero is corrected: g / (|g|^2 + damping), by Sherman
    and Morrison.
    """
    (g,) = gradients(1, seed=3)
    natural = scale_by_fisher(rho, 0.1, BLOCK)
    step, _ = natural.update(g, natural.init(g))
    for name in ("below", "equal", "scalar"):
        np.testing.assert_allclose(step[name], g[name] / (np.sum(g[name] ** 2) + 0.1), rtol=1e-4)
    for name in ("above", "square"):
        np.testing.assert_allclose(step[name], g[name] / (g[name] ** 2 + 0.1), rtol=1e-4)


def test_a_rotation_of_the_parameters_rotates_the_steps():
    """What the whole block is for: its step does not depend on the axes. A diagonal's does."""
    rng = np.random.default_rng(1)
    rotation = np.linalg.qr(rng.normal(size=(6, 6)))[0].astype(np.float32)
    seen = rng.normal(size=(4, 6)).astype(np.float32)

    def last_step(block, rows):
        natural = scale_by_fisher(0.9, 0.01, block)
        state, step = natural.init(rows[0]), None
        for g in rows:
            step, state = natural.update(g, state)
        return np.asarray(step)

    np.testing.assert_allclose(
        last_step(6, seen @ rotation), last_step(6, seen) @ rotation, rtol=1e-3, atol=1e-4
    )
    assert np.abs(last_step(5, seen @ rotation) - last_step(5, seen) @ rotation).max() > 0.01


def test_half_precision_gradients_are_averaged_in_float32():
    natural = scale_by_fisher(0.9, 1e-3, 4)
    seen = {"block": jnp.full(3, 0.1, jnp.bfloat16), "diagonal": jnp.full(5, 0.1, jnp.bfloat16)}
    state = natural.init(seen)
    step, state = natural.update(seen, state)
    assert {f.dtype for f in state.fisher.values()} == {jnp.dtype(jnp.float32)}
    assert {u.dtype for u in step.values()} == {jnp.dtype(jnp.bfloat16)}
    g = np.float64(seen["block"][0])
    np.testing.assert_allclose(np.float64(step["block"]), g / (3 * g**2 + 1e-3), rtol=1e-2)
    np.testing.assert_allclose(np.float64(step["diagonal"]), g / (g**2 + 1e-3), rtol=1e-2)


@pytest.mark.parametrize("shape", [(), (4,), (2, 3), (2, 1, 2)])
def test_solve_block_is_numpys(shape):
    rng = np.random.default_rng(2)
    size = int(np.prod(shape))
    factor, g = rng.normal(size=(size, size)), rng.normal(size=shape).astype(np.float32)
    fisher = (factor @ factor.T).astype(np.float32)
    found = solve_block(jnp.asarray(fisher), jnp.asarray(g), 0.5)
    expected = np.linalg.solve(
        fisher.astype(np.float64) + 0.5 * np.eye(size), g.astype(np.float64).ravel()
    )
    assert found.shape == shape
    np.testing.assert_allclose(found, expected.reshape(shape), rtol=1e-4, atol=1e-6)


def test_solve_block_takes_a_singular_matrix_and_refuses_one_of_another_size():
    np.testing.assert_allclose(
        solve_block(jnp.zeros((3, 3)), jnp.arange(3.0), 0.25), [0, 4, 8], rtol=1e-6
    )
    with pytest.raises(AssertionError, match="3"):
        solve_block(jnp.zeros((3, 3)), jnp.zeros(4), 0.1)
