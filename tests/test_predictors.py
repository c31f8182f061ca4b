"""Closed-form predictors against NumPy in float64 and by their invariances; the triple for every
kind.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import suites
from suites import check_predictor

from ssl_jax.errors import UserError
from ssl_jax.linalg import frobenius_norm, from_spectrum, symmetric_eigh
from ssl_jax.predictors import KINDS, in_closed_form, make_predictor, recent_correlation
from ssl_jax.predictors.direct import NORMS, direct_copy, direct_pred, direct_set, optimal

DIM = 12
correlation = functools.partial(suites.correlation, dim=DIM)


def reference(corr, eps, eps_mode, floor=1e-4):
    """The formula once more, in float64."""
    s, u = np.linalg.eigh((corr + corr.T) / 2)
    s = np.maximum(s, 0)
    top = s.max()
    if eps_mode == "literal":
        p = np.sqrt(s) + eps * top
    else:
        p = np.sqrt(np.clip(s / top, 0, top if eps_mode == "clipped" else None)) + eps
    return (u * np.maximum(p, floor)) @ u.T


@pytest.mark.parametrize("scale", [1, 0.02])
@pytest.mark.parametrize("eps_mode", ["relative", "clipped", "literal"])
@pytest.mark.parametrize("eps", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("dim", [1, 3, 12, 128])
def test_direct_pred_is_its_formula(eps_mode, eps, dim, scale):
    corr = correlation(dim=dim, scale=scale)
    got = direct_pred(jnp.float32(corr), eps, eps_mode)
    chex.assert_trees_all_close(got, reference(corr, eps, eps_mode), atol=2e-4)


def test_direct_pred_commutes_and_is_symmetric_positive():
    corr = correlation(1)
    w = np.asarray(direct_pred(jnp.float32(corr), 0.1), np.float64)
    chex.assert_trees_all_close(w, w.T, atol=1e-6)
    chex.assert_trees_all_close(w @ corr, corr @ w, atol=1e-4)
    eigenvalues = np.linalg.eigvalsh(w)
    assert eigenvalues.min() >= 0.1 - 1e-5 and abs(eigenvalues.max() - 1.1) < 1e-5


def test_the_clip_acts_below_a_top_of_one_alone():
    """The replication's code: at m = 0.5 and 0.1 the matrices are apart by what its audit found."""
    unit = correlation(2)
    unit = unit / np.linalg.eigvalsh(unit).max()
    for top, apart in ((1.0, False), (7.0, False), (0.5, True), (0.1, True)):
        corr = jnp.float32(top * unit)
        plain, clipped = (direct_pred(corr, 0.1, mode) for mode in ("relative", "clipped"))
        assert (np.linalg.norm(plain - clipped) / np.linalg.norm(plain) > 0.05) == apart
    largest = np.linalg.eigvalsh(direct_pred(jnp.float32(0.25 * unit), 0.1, "clipped")).max()
    assert largest == pytest.approx(0.5 + 0.1, rel=1e-5)  # sqrt(m) + eps


@pytest.mark.parametrize("scale", [1e-6, 1e-2, 1e4])
def test_relative_mode_does_not_see_the_scale_of_f(scale):
    one, other = (direct_pred(jnp.float32(correlation(2, scale=c)), 0.1) for c in (1.0, scale))
    chex.assert_trees_all_close(one, other, atol=1e-4)


def test_literal_mode_is_relative_mode_with_eps_times_root_of_the_top():
    corr = correlation(3, scale=7.0)
    root = np.sqrt(np.linalg.eigvalsh(corr).max())
    literal = direct_pred(jnp.float32(corr), 0.1, "literal")
    chex.assert_trees_all_close(
        literal, root * direct_pred(jnp.float32(corr), 0.1 * root), atol=1e-4
    )


def test_rank_deficient_and_zero_correlation_stay_finite():
    corr = correlation(4, rank=3)
    eigenvalues = np.linalg.eigvalsh(np.asarray(direct_pred(jnp.float32(corr), 0.1), np.float64))
    chex.assert_trees_all_close(eigenvalues[: DIM - 3], np.full(DIM - 3, 0.1), atol=2e-3)
    chex.assert_trees_all_close(
        direct_pred(jnp.zeros((DIM, DIM)), 0.1), 0.1 * np.eye(DIM), atol=1e-6
    )
    floored = np.linalg.eigvalsh(direct_pred(jnp.zeros((DIM, DIM)), 0.0))
    chex.assert_trees_all_close(floored, np.full(DIM, 1e-4, np.float32), rtol=1e-3)


def test_direct_copy_is_its_formula():
    corr = correlation(5)
    expected = corr / np.sqrt(np.sum(corr**2)) + 0.3 * np.eye(DIM)
    chex.assert_trees_all_close(direct_copy(jnp.float32(corr), 0.3), expected, atol=1e-6)
    chex.assert_trees_all_close(
        direct_copy(jnp.zeros((DIM, DIM)), 0.3), 0.3 * np.eye(DIM), atol=1e-6
    )


@pytest.mark.parametrize("scale", [1e-30, 1e-25, 1e-19, 1e20, 1e35])
def test_direct_copy_does_not_see_the_scale_of_f(scale):
    corr = correlation(5)
    expected = corr / np.sqrt(np.sum(corr**2)) + 0.3 * np.eye(DIM)
    chex.assert_trees_all_close(direct_copy(jnp.float32(scale * corr), 0.3), expected, atol=1e-6)


NORM = {"max": np.max, "frobenius": np.linalg.norm, "trace": np.sum, "none": lambda s: 1.0}


@pytest.mark.parametrize("scale", [1.0, 0.02])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("power", [0.5, 0.25, 1.0, 2.0])
def test_direct_set_is_its_formula(power, norm, scale):
    corr = correlation(6, scale=scale)
    s, u = np.linalg.eigh(corr)
    for eps, floor in ((0.0, 0.0), (0.2, 0.0), (0.0, 0.3)):
        p = np.maximum((np.maximum(s, 0) / NORM[norm](s)) ** power + eps, floor)
        found = direct_set(jnp.float32(corr), power, eps, norm, floor)
        chex.assert_trees_all_close(found, (u * p) @ u.T, atol=3e-5 * p.max())


def test_direct_pred_and_direct_copy_are_rows_of_direct_set():
    """To the last bit what the two formulas give, written out."""
    for seed in range(3):
        corr = jnp.float32(correlation(seed))
        s, vectors = symmetric_eigh(corr)
        p = jnp.sqrt(jnp.maximum(s, 0) / s[-1]) + 0.1
        pred = from_spectrum(vectors, jnp.maximum(p, 1e-4))
        copy = corr / frobenius_norm(corr) + 0.3 * jnp.eye(DIM)
        for found, other, expected in (
            (direct_pred(corr), direct_set(corr, 0.5, 0.1, "max", 1e-4), pred),
            (direct_copy(corr), direct_set(corr, 1.0, 0.3, "frobenius"), copy),
        ):
            np.testing.assert_array_equal(found, expected)
            np.testing.assert_array_equal(other, expected)


@pytest.mark.parametrize("norm", NORMS)
def test_direct_set_of_nothing_is_eps(norm):
    for power in (0.5, 1.0):
        found = direct_set(jnp.zeros((DIM, DIM)), power, 0.2, norm)
        chex.assert_trees_all_close(found, 0.2 * np.eye(DIM), atol=1e-6)


# --- What is averaged beside F --------------------------------------------------------------------


def projections(seed):
    """(z, t), the projections and the target's of two views, (9, DIM) each, with a mean."""
    rng = np.random.default_rng(seed)
    views = rng.normal(size=(4, 9, DIM)) * np.geomspace(2, 0.3, DIM) + np.linspace(1, -1, DIM)
    z1, z2, t1, t2 = (jnp.float32(x) for x in views)
    return (z1, z2), (t1, t2)


def second(z):
    stacked = np.concatenate([np.float64(one) for one in z])
    return stacked.T @ stacked / len(stacked)


def three_steps(predictor):
    """(params, memory, pairs) after three batches, as the step feeds them."""
    params, memory = predictor.init(jax.random.key(0))
    pairs = [projections(step) for step in range(3)]
    for step, (z, t) in enumerate(pairs):
        if predictor.observe:
            memory = predictor.observe(memory, z, t, step, suites.alone)
        params, memory = predictor.update(params, memory, jnp.float32(second(z)), step)
    return params, memory, pairs


def averaged(values, rho=0.3):
    """v_0, then rho of the old and 1 - rho of the new."""
    old = values[0]
    for new in values[1:]:
        old = rho * old + (1 - rho) * new
    return old


@pytest.mark.parametrize("kind", ["direct_pred", "direct_copy", "direct_set"])
def test_a_centred_predictor_is_of_f_less_the_average_mean(kind):
    """The average of all m mᵀ less that of the averaged m is no less than 0: nothing is negative,
    and a mean that changes leaves a part of itself in the covariance."""
    predictor = make_predictor(kind, DIM, centre=True)
    params, memory, pairs = three_steps(predictor)
    f = averaged([second(z) for z, _ in pairs])
    means = [np.mean(np.concatenate(z), axis=0, dtype=np.float64) for z, _ in pairs]
    m = averaged(means)
    covariance = f - np.outer(m, m)
    chex.assert_trees_all_close(memory, {"correlation": f, "mean": m}, atol=1e-5)
    assert np.linalg.eigvalsh(covariance).min() > 0
    write = {"direct_pred": direct_pred, "direct_copy": direct_copy, "direct_set": direct_set}[kind]
    expected = write(jnp.float32(covariance))
    chex.assert_trees_all_close(predictor.matrix(params), expected, atol=1e-4)
    assert np.abs(expected - write(jnp.float32(f))).max() > 0.05  # it matters


def test_an_optimal_predictor_is_ridge_regression():
    """NumPy's least squares of the other view's targets, over both directions: rows of
    sqrt(penalty) I beside the projections' are the ridge."""
    predictor = make_predictor("optimal", DIM, rho=0.0, ridge=0.05)
    params, memory, pairs = three_steps(predictor)
    (z1, z2), (t1, t2) = pairs[-1]  # rho 0 forgets all others
    z, t = np.concatenate([z1, z2]), np.concatenate([t2, t1])
    rows = np.sqrt(len(z) * 0.05 * np.mean(np.square(z).sum(1)) / DIM) * np.eye(DIM)
    expected = np.linalg.lstsq(
        np.vstack([z, rows]).astype(np.float64), np.vstack([t, np.zeros((DIM, DIM))]), rcond=None
    )[0].T
    chex.assert_trees_all_close(predictor.matrix(params), np.float32(expected), atol=1e-4)
    assert np.abs(expected - expected.T).max() > 0.05  # which the other side would transpose


@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1e6])
def test_an_optimal_predictor_does_not_see_the_scale(scale):
    corr, cross = correlation(1), correlation(2)
    one = optimal(jnp.float32(corr), jnp.float32(cross))
    chex.assert_trees_all_close(
        optimal(jnp.float32(scale * corr), jnp.float32(scale * cross)), one, rtol=1e-3, atol=1e-4
    )
    assert not np.any(optimal(jnp.zeros((DIM, DIM)), jnp.zeros((DIM, DIM))))


@pytest.mark.parametrize("kind, options", [("direct_pred", {"centre": True}), ("optimal", {})])
def test_what_is_averaged_is_of_the_whole_batch_on_four_devices(kind, options):
    predictor = make_predictor(kind, DIM, **options)
    memory = predictor.init(jax.random.key(0))[1]
    whole = jax.tree.map(lambda x: jnp.concatenate([x[:8]]), projections(0))
    split = jax.tree.map(lambda x: x.reshape(4, 2, DIM), whole)

    def on_device(pairs):
        def mean(tree):
            return jax.lax.pmean(tree, "devices")

        return predictor.observe(memory, *pairs, 3, mean)

    shared = jax.pmap(on_device, "devices")(split)
    one = predictor.observe(memory, *whole, 3, suites.alone)
    for device in range(4):
        chex.assert_trees_all_close(jax.tree.map(lambda x: x[device], shared), one, atol=1e-6)  # noqa: B023


# --- All kinds ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_what_its_record_promises(kind):
    check_predictor(kind)


@pytest.mark.parametrize("kind", ["linear", "direct_pred", "direct_copy", "direct_set", "optimal"])
def test_matrix_is_what_apply_multiplies_by(kind):
    predictor = make_predictor(kind, DIM)
    params, memory = predictor.init(jax.random.key(0))
    z = np.random.default_rng(0).normal(size=(5, DIM)).astype(np.float32)
    expected = z @ np.asarray(predictor.matrix(params)).T
    chex.assert_trees_all_close(predictor.apply(params, memory, z), expected, atol=1e-5)


@pytest.mark.parametrize("every, phase", [(None, 0), (1, 0), (5, 0), (5, 4)])
def test_hybrid_sets_at_its_phase_of_the_steps(every, phase):
    given = {"every": every, "phase": phase} if every else {}  # by default, at every step
    predictor = make_predictor("direct_pred", DIM, **given)
    params, memory = predictor.init(jax.random.key(0))
    update = jax.jit(predictor.update)
    for step in range(11):
        marked = jax.tree.map(lambda w: w + 1.0, params)  # what the optimizer would have left
        corr = jnp.float32(correlation(step))
        params, memory = update(marked, memory, corr, step)
        if step in range(phase, 11, every or 1):
            chex.assert_trees_all_close(
                predictor.matrix(params), direct_pred(memory["correlation"], 0.1), atol=1e-5
            )
        else:
            chex.assert_trees_all_equal(params, marked)


def test_in_closed_form_writes_at_every_step_unless_told_otherwise():
    """Of the average that keeps 0.3 of the old correlation, as DirectPred's paper does."""
    predictor = in_closed_form(DIM, lambda corr: 2 * corr)
    params, memory = predictor.init(jax.random.key(0))
    average = correlation(0)
    for step in range(3):
        average = 0.3 * average + 0.7 * correlation(step)  # at step 0, the batch's own
        marked = jax.tree.map(lambda w: w + 1.0, params)
        params, memory = predictor.update(marked, memory, jnp.float32(correlation(step)), step)
        chex.assert_trees_all_close(memory["correlation"], np.float32(average), atol=1e-5)
        chex.assert_trees_all_close(predictor.matrix(params), 2 * memory["correlation"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rho", [0.0, 0.5, 0.51, 0.99])
def test_what_is_recent_is_of_the_last_batches_however_long_the_memory(kind, rho):
    _, memory, pairs = three_steps(make_predictor(kind, DIM, rho=rho))
    batches = [second(z) for z, _ in pairs]
    chex.assert_trees_all_close(
        memory["correlation"], np.float32(averaged(batches, rho)), atol=1e-5
    )
    recent = averaged(batches, 0.3 if rho > 0.5 else rho)
    chex.assert_trees_all_close(recent_correlation(memory), np.float32(recent), atol=1e-5)


@pytest.mark.parametrize("kind", ["mlp", "linear"])
def test_a_learned_predictor_is_left_as_the_optimizer_made_it(kind):
    """Unless it is to be symmetric."""
    predictor = make_predictor(kind, DIM)
    params, memory = predictor.init(jax.random.key(0))
    updated, _ = predictor.update(params, memory, jnp.float32(correlation()), 3)
    chex.assert_trees_all_equal(updated, params)
    w = np.asarray(predictor.matrix(updated))
    assert np.abs(w - w.T).max() > 1e-2


def test_symmetric_projections():
    for kind in ("linear", "mlp"):
        predictor = make_predictor(kind, DIM, symmetric=True)
        params, memory = predictor.init(jax.random.key(1))
        new, _ = predictor.update(params, memory, jnp.eye(DIM), 0)
        w = np.asarray(predictor.matrix(new))
        chex.assert_trees_all_close(w, w.T, atol=1e-6)
        again, _ = predictor.update(new, memory, jnp.eye(DIM), 1)
        chex.assert_trees_all_close(again, new, atol=1e-6)  # a projection
        if kind == "linear":
            old = np.asarray(predictor.matrix(params))
            chex.assert_trees_all_close(w, (old + old.T) / 2, atol=1e-6)
        else:
            w1, w2 = (np.asarray(params[name]["kernel"]).T for name in ("linear1", "linear2"))
            v = (w1 + w2.T) / 2
            chex.assert_trees_all_close(w, v.T @ v, atol=1e-5)
            assert np.linalg.eigvalsh(w).min() > -1e-5
            chex.assert_trees_all_equal(new["linear1"]["bias"], params["linear1"]["bias"])


def test_parameter_counts():
    def count(kind):
        return sum(
            x.size for x in jax.tree.leaves(make_predictor(kind, 128).init(jax.random.key(0))[0])
        )

    # 128 * 512 + 512 + 512 * 128, no output bias: the replication's two-layer predictor; and 128 *
    # 128.
    assert (count("mlp"), count("linear"), count("direct_pred")) == (131_584, 16_384, 16_384)


@pytest.mark.parametrize(
    "kind, options, words",
    [
        ("direct_prad", {}, "did you mean 'direct_pred'"),
        ("direct_pred", {"eps": -0.1}, "predictor.eps: got -0.1"),
        ("direct_copy", {"eps": 2.0}, "predictor.eps: got 2.0"),
        ("direct_pred", {"eps_mode": "absolute"}, "predictor.eps_mode: got 'absolute'"),
        ("direct_pred", {"rho": 1.0}, "predictor.rho: got 1.0"),
        ("linear", {"rho": -0.5}, "predictor.rho: got -0.5"),
        ("direct_pred", {"phase": 1}, "predictor.phase: got 1, takes 0 to 0"),
        ("direct_copy", {"every": 5, "phase": 5}, "predictor.phase: got 5, takes 0 to 4"),
        ("direct_pred", {"every": 0}, "predictor.every: got 0"),
        ("direct_set", {"eps": 1.5}, "predictor.eps: got 1.5"),
        ("direct_set", {"power": 0.0}, "predictor.power: got 0.0, takes a number above 0"),
        ("direct_set", {"norm": "spectral"}, "predictor.norm: got 'spectral'"),
        ("optimal", {"ridge": 0.0}, "predictor.ridge: got 0.0, takes a number above 0"),
        ("mlp", {"symmetric": True, "standardise": True}, "predictor.symmetric: got True"),
    ],
)
def test_mistakes_are_named(kind, options, words):
    with pytest.raises(UserError, match=words):
        make_predictor(kind, DIM, **options)
