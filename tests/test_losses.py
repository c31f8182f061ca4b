"""The losses against their formulas in float64, scikit-learn and SciPy, and where their gradients
go.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.spatial import distance
from sklearn import metrics

from ssl_jax.losses import LOSSES, jensen_shannon, negative_cosine, unit


def pair(seed=0, shape=(6, 5)):
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape), rng.normal(size=shape)


def test_is_minus_the_cosine():
    p, z = pair()
    expected = -np.sum(p * z, axis=1) / np.linalg.norm(p, axis=1) / np.linalg.norm(z, axis=1)
    chex.assert_trees_all_close(
        negative_cosine(jnp.float32(p), jnp.float32(z)), expected, atol=1e-6
    )


@pytest.mark.parametrize("size", [1e-8, 1e-11, 3e-13, 1e-15])
def test_the_norm_is_floored_as_by_torchs_normalize(size):
    """x / max(|x|, 1e-12)."""
    x = size * np.array([0.6, -0.8])
    expected = x / max(np.linalg.norm(x), 1e-12)
    np.testing.assert_allclose(unit(jnp.float32(x)), expected, rtol=1e-5)


def test_same_direction_is_minus_one_and_scale_does_not_matter():
    p, _ = pair()
    chex.assert_trees_all_close(
        negative_cosine(jnp.float32(p), jnp.float32(300 * p)), -np.ones(6), atol=1e-6
    )


def test_gradient_is_analytic_in_p_and_none_in_z():
    p, z = pair()
    in_p, in_z = jax.grad(lambda p, z: negative_cosine(p, z).sum(), (0, 1))(
        jnp.float32(p), jnp.float32(z)
    )
    norm, zu = (
        np.linalg.norm(p, axis=1, keepdims=True),
        z / np.linalg.norm(z, axis=1, keepdims=True),
    )
    pu = p / norm
    chex.assert_trees_all_close(
        in_p, -(zu - pu * np.sum(pu * zu, axis=1, keepdims=True)) / norm, atol=1e-6
    )
    chex.assert_trees_all_equal(in_z, jnp.zeros_like(in_z))


def test_zero_vector_has_finite_loss_and_gradient():
    z = jnp.ones((2, 3))
    value, grad = jax.value_and_grad(lambda p: negative_cosine(p, z).sum())(jnp.zeros((2, 3)))
    assert value == 0 and jnp.all(jnp.isfinite(grad))
    chex.assert_trees_all_close(unit(jnp.zeros(3)), jnp.zeros(3))


def test_wrong_shapes_are_refused():
    with pytest.raises(AssertionError):
        negative_cosine(jnp.zeros((2, 3)), jnp.zeros((3, 3)))


# --- Losses of an image and its class -------------------------------------------------------------

CLASSES = 4


def scores_and_targets(kind, seed=1, count=7):
    """Scores, some of them tied at the top, and targets: float64."""
    rng = np.random.default_rng(seed)
    scores, one_hot = (
        2 * rng.normal(size=(count, CLASSES)),
        np.eye(CLASSES)[rng.integers(0, CLASSES, count)],
    )
    scores[0, :2] = 5.0
    return scores, one_hot if kind == "one-hot" else rng.dirichlet(np.ones(CLASSES), count)


def crammer_singer(s, k):
    return max(0.0, 1 + max(s[j] for j in range(len(s)) if j != k) - s[k])


REFERENCES = {
    "softmax": lambda s, t: -np.sum(t * (s - np.log(np.sum(np.exp(s))))),
    "squared": lambda s, t: np.linalg.norm(s - t) ** 2 / 2,
    "hinge": lambda s, t: sum(t[k] * crammer_singer(s, k) for k in range(len(s))),
}


@pytest.mark.parametrize("kind", ["one-hot", "mixed"])
@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradient_are_the_formulas(name, kind):
    """The gradient is that of central differences, at scores without ties."""
    scores, target = scores_and_targets(kind)
    found = LOSSES[name](jnp.float32(scores), jnp.float32(target))
    expected = [REFERENCES[name](s, t) for s, t in zip(scores, target, strict=True)]
    chex.assert_trees_all_close(found, np.array(expected), rtol=1e-5, atol=1e-6)
    s, t = scores[1], target[1]
    assert LOSSES[name](jnp.float32(s), jnp.float32(t)).shape == ()
    steps = 1e-5 * np.eye(CLASSES)
    slope = [(REFERENCES[name](s + e, t) - REFERENCES[name](s - e, t)) / 2e-5 for e in steps]
    chex.assert_trees_all_close(
        jax.grad(LOSSES[name])(jnp.float32(s), jnp.float32(t)), np.array(slope), atol=1e-5
    )


def test_mean_losses_of_one_hot_targets_are_scikit_learns():
    scores, target = scores_and_targets("one-hot", count=60)
    label = target.argmax(axis=1)
    found = {
        name: float(loss(jnp.float32(scores), jnp.float32(target)).mean())
        for name, loss in LOSSES.items()
    }
    softmax = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    assert found["softmax"] == pytest.approx(metrics.log_loss(label, softmax), rel=1e-5)
    assert found["hinge"] == pytest.approx(metrics.hinge_loss(label, scores), rel=1e-5)
    assert found["squared"] == pytest.approx(
        CLASSES / 2 * metrics.mean_squared_error(target, scores), rel=1e-5
    )


@pytest.mark.parametrize("name", ["softmax", "hinge"])
def test_a_mixed_target_has_the_mixed_loss(name):
    """What mixup relies on: loss(s, a t + b u) = a loss(s, t) + b loss(s, u)."""
    scores, t = map(jnp.float32, scores_and_targets("one-hot"))
    u, loss = t[::-1], LOSSES[name]
    chex.assert_trees_all_close(
        loss(scores, 0.3 * t + 0.7 * u), 0.3 * loss(scores, t) + 0.7 * loss(scores, u), rtol=1e-5
    )


@pytest.mark.parametrize("count", [2, 3])
def test_jensen_shannon_is_scipys(count):
    """SciPy has it for two distributions (as a distance, its root) and the entropies for any
    number.
    """
    logits = 2 * np.random.default_rng(2).normal(size=(count, 5, CLASSES))
    p = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    expected = stats.entropy(p.mean(axis=0), axis=-1) - stats.entropy(p, axis=-1).mean(axis=0)
    if count == 2:
        chex.assert_trees_all_close(distance.jensenshannon(*p, axis=-1) ** 2, expected, atol=1e-12)
    chex.assert_trees_all_close(jensen_shannon(list(jnp.float32(logits))), expected, atol=1e-6)


def test_jensen_shannon_of_equals_is_zero_of_opposites_log_n_and_always_smooth():
    far = 200 * jnp.eye(3)[:, None, :]  # three networks, each sure of another class
    value, grad = jax.jit(jax.value_and_grad(lambda x: jensen_shannon(list(x)).sum()))(far)
    assert float(value) == pytest.approx(np.log(3), rel=1e-6) and jnp.all(jnp.isfinite(grad))
    chex.assert_trees_all_close(jensen_shannon([far[0], far[0], far[0]]), jnp.zeros(1), atol=1e-6)


@pytest.mark.parametrize("loss", LOSSES.values())
def test_a_target_of_another_shape_is_refused(loss):
    with pytest.raises(AssertionError):
        loss(jnp.zeros((2, 3)), jnp.zeros(3))
