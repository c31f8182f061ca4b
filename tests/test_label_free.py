"""The label-free measures, each against its formula spelled out in NumPy or SciPy, and against
cases whose value is known.
"""

import itertools
import math

import jax
import numpy as np
import pytest
import scipy.integrate
import scipy.linalg
import scipy.spatial.distance
from tiny import make_parts, make_state, noisy_views

from ssl_jax.data.dataset import Dataset, Split
from ssl_jax.errors import UserError
from ssl_jax.probes import label_free
from ssl_jax.probes.label_free import alignment, alpha_req, lidar, rankme, uniformity

RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(90, 12)) @ np.diag(np.arange(12, 0, -1.0)) + 0.5
VIEWS = FEATURES[:, None] + RNG.normal(size=(90, 3, 12))
MEASURES = {
    "rankme": lambda x: rankme(x[:, 0]),
    "alpha_req": lambda x: alpha_req(x[:, 0]),
    "lidar": lidar,
    "alignment": lambda x: alignment(x[:, 0], x[:, 1]),
    "uniformity": lambda x: uniformity(x[:, 0]),
}


def entropy_rank(values) -> float:
    """exp(-sum p log p) of p = values / sum + 1e-7, term by term."""
    total = math.fsum(values)
    shares = [value / total + 1e-7 for value in values]
    return math.exp(-math.fsum(p * math.log(p) for p in shares))


# --- Each measure is its formula ------------------------------------------------------------------


def test_rankme_is_the_papers():
    """By the eigenvalues of the Gram matrix, not by a singular value decomposition."""
    values = np.sqrt(np.linalg.eigvalsh(FEATURES.T @ FEATURES))
    assert rankme(FEATURES) == pytest.approx(entropy_rank(values), rel=1e-9)


def test_alpha_req_is_a_weighted_line():
    """The normal equations of sum_j (log lambda_j - a + alpha log j)^2 / j over the ranks."""
    values = np.sort(np.linalg.eigvalsh(np.cov(FEATURES.T)))[::-1]
    for first, last in ((6, 100), (2, 7)):
        rank = np.arange(first, min(last, 12) + 1)
        design = np.stack([np.ones(len(rank)), -np.log(rank)], axis=1)
        weighted = design / rank[:, None]
        line = np.linalg.solve(design.T @ weighted, weighted.T @ np.log(values[rank - 1]))
        assert alpha_req(FEATURES, first, last) == pytest.approx(line[1], rel=1e-9)


@pytest.mark.parametrize("delta", [1e-4, 0.5])
@pytest.mark.parametrize("views", [VIEWS, VIEWS[:, :2]], ids=["three views", "two views"])
def test_lidar_is_the_papers(views, delta):
    """The generalised eigenvalues of (Sigma_b, Sigma_w), summed up sample by sample."""
    width = views.shape[2]
    between, within = np.zeros((width, width)), delta * np.eye(width)
    centre = np.mean([view for image in views for view in image], axis=0)
    for image in views:
        mean = image.mean(axis=0)
        between += np.outer(mean - centre, mean - centre) / len(views)
        for view in image:
            within += np.outer(view - mean, view - mean) / views[..., 0].size
    values = scipy.linalg.eigh(between, within, eigvals_only=True)
    assert lidar(views, delta) == pytest.approx(entropy_rank(values), rel=1e-9)


def test_alignment_is_the_papers():
    distances = [math.dist(x / math.hypot(*x), y / math.hypot(*y)) for x, y, _ in VIEWS]
    assert alignment(VIEWS[:, 0], VIEWS[:, 1]) == pytest.approx(np.mean(np.square(distances)))


def test_uniformity_is_the_papers():
    x = FEATURES / np.linalg.norm(FEATURES, axis=1, keepdims=True)
    pairs = scipy.spatial.distance.pdist(x, "sqeuclidean")
    for t in (2.0, 0.5):
        assert uniformity(FEATURES, t) == pytest.approx(np.log(np.mean(np.exp(-t * pairs))))


# --- Known cases ----------------------------------------------------------------------------------


def test_rankme_of_an_isotropic_cloud_and_of_a_line():
    """Random matrix theory: the singular values of 4000 x 20 lie within 1 +- sqrt(20 / 4000)."""
    assert 19.9 < rankme(RNG.normal(size=(4000, 20))) <= 20.001
    assert rankme(np.outer(RNG.normal(size=50), RNG.normal(size=20))) == pytest.approx(1, abs=1e-3)


def test_alpha_of_a_power_law_is_found():
    """Features whose covariance has exactly the eigenvalues j^-alpha."""
    q = np.linalg.qr(RNG.normal(size=(400, 120)) - RNG.normal(size=(400, 120)).mean(0))[0]
    q = np.linalg.qr(q - q.mean(axis=0))[0]
    turn = np.linalg.qr(RNG.normal(size=(120, 120)))[0]
    for alpha in (0.3, 1.0, 2.5):
        x = q * np.arange(1.0, 121) ** (-alpha / 2) @ turn
        assert alpha_req(x) == pytest.approx(alpha, abs=1e-6)


def test_lidar_counts_directions_that_differ_between_images_alone():
    """Of 12 directions, 3 have information; with many views the others weigh 1 / (q - 1) each."""
    count, q, told = 600, 40, 3
    x = RNG.normal(size=(count, q, 12))
    x[..., :told] += 30 * RNG.normal(size=(count, 1, told))
    assert lidar(x) == pytest.approx(told, abs=0.1)


@pytest.mark.parametrize("q", [2, 5])
def test_views_alone_weigh_what_the_docstring_says(q):
    """Without any information all directions have the eigenvalue 1 / (q - 1), whatever it is."""
    x = RNG.normal(size=(20_000, q, 4))
    means = x.mean(axis=1)
    within = np.mean((x - means[:, None]) ** 2, axis=(0, 1)) + 1e-4
    np.testing.assert_allclose(means.var(axis=0) / within, 1 / (q - 1), rtol=0.05)
    assert lidar(x) == pytest.approx(4, rel=0.01)


def test_alignment_runs_from_0_to_4():
    x = RNG.normal(size=(30, 5))
    assert alignment(x, 7 * x) == pytest.approx(0, abs=1e-12)
    assert alignment(x, -x) == pytest.approx(4)
    assert alignment(x, -x, alpha=1) == pytest.approx(2)


@pytest.mark.parametrize("dim", [3, 8])
def test_uniformity_of_a_uniform_sphere_is_its_integral(dim):
    """E exp(-2 |x - y|^2) = E exp(4 c - 4); cosines have the density (1 - c^2)^((d - 3) / 2)."""
    x = RNG.normal(size=(3000, dim))

    def density(c):
        return (1 - c**2) ** ((dim - 3) / 2)

    mean = scipy.integrate.quad(lambda c: density(c) * math.exp(4 * c - 4), -1, 1)[0]
    integral = mean / scipy.integrate.quad(density, -1, 1)[0]
    assert uniformity(x) == pytest.approx(math.log(integral), abs=0.02)


def test_one_point_is_collapse_by_every_measure():
    x = np.ones((50, 2, 9), np.float32) * np.arange(1, 10, dtype=np.float32)
    found = {name: measure(x) for name, measure in MEASURES.items()}
    assert found["rankme"] == pytest.approx(1, abs=1e-3)
    assert found["lidar"] == pytest.approx(1, abs=1e-3)
    assert found["alignment"] == pytest.approx(0, abs=1e-12)
    assert found["uniformity"] == pytest.approx(0, abs=1e-12)
    assert math.isnan(found["alpha_req"])


def test_zeros_and_one_image_are_answered():
    zeros = {name: measure(np.zeros((5, 2, 4))) for name, measure in MEASURES.items()}
    assert zeros["rankme"] == zeros["lidar"] == pytest.approx(1, abs=1e-3)
    assert zeros["alignment"] == zeros["uniformity"] == 0 and math.isnan(zeros["alpha_req"])
    one = {name: measure(VIEWS[:1]) for name, measure in MEASURES.items()}
    assert one["rankme"] == pytest.approx(1, abs=1e-3)
    assert one["lidar"] == pytest.approx(1, abs=1e-3)
    assert math.isnan(one["uniformity"]) and math.isnan(one["alpha_req"])


def test_rounding_of_float32_makes_no_ranks():
    """Five directions turned into forty: what float32 rounds off is no sixth eigenvalue."""
    x = RNG.normal(size=(200, 5)) @ RNG.normal(size=(5, 40)) + 3
    assert math.isnan(alpha_req(x.astype(np.float32)))


@pytest.mark.parametrize("scale", [1e30, 1e-30])
def test_no_scale_overflows(scale):
    """What is free of the scale stays as it is; delta alone has a scale of its own."""
    x = np.float32(VIEWS) * np.float32(scale)
    assert np.isfinite(x).all() and x.dtype == np.float32
    for name in ("rankme", "alpha_req", "alignment", "uniformity"):
        assert MEASURES[name](x) == pytest.approx(MEASURES[name](np.float32(VIEWS)), rel=1e-5)
    expected = lidar(np.float32(VIEWS), 1e-4 / scale**2)
    assert lidar(x) == pytest.approx(expected, rel=1e-5)


def test_a_line_of_any_length_is_one_direction():
    """Rounding leaves something in the other directions, and over a tiny delta it would be much."""
    x = np.outer(RNG.normal(size=100), RNG.normal(size=20)).reshape(50, 2, 20)
    for scale in (1.0, 1e15, 1e30):
        assert lidar(x * scale) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(name, bad):
    x = VIEWS.copy()
    x[3, 0, 2] = bad
    with pytest.raises(UserError, match="features: got 1 values that are not finite"):
        MEASURES[name](x)


def test_lidar_takes_two_views():
    with pytest.raises(UserError, match="lidar: got 1 view"):
        lidar(VIEWS[:, :1])


# --- From a network's views -----------------------------------------------------------------------


def images(count):
    return np.random.default_rng(1).integers(0, 256, (count, 8, 8, 1), dtype=np.uint8)


def test_measure_passes_every_image_once_and_with_the_same_views(monkeypatch):
    """Batches of 4 over 10 images: features in one piece, from keys of the places alone. Before
    each it asks for a stop.
    """
    monkeypatch.setattr(label_free, "BATCH", 4)
    seen, asked = [], []
    monkeypatch.setattr(label_free.stops, "check", lambda: asked.append(1))
    monkeypatch.setattr(label_free, "measure_views", lambda *pair: seen.append(pair) or {})
    parts, key, image = make_parts(), jax.random.key(5), images(10)
    state = make_state(parts)
    measure = label_free.make_measure(parts.network, noisy_views, key)
    for _ in range(2):
        measure(state.params, state.stats, image)
    assert len(asked) == 2 * 3
    own = jax.random.fold_in(key, label_free.VIEWS_KEY)
    keys = jax.vmap(lambda i: jax.random.fold_in(own, i))(np.arange(10))
    for k, view in enumerate(noisy_views(keys, image)):
        outputs = parts.network.outputs(state.params, state.stats, view)
        for call in seen:
            for found, expected in zip(call, outputs, strict=True):
                np.testing.assert_allclose(found[:, k], expected, rtol=1e-4, atol=1e-5)
    features = parts.network.features(state.params, state.stats, view)
    np.testing.assert_allclose(outputs[0], features, rtol=1e-5, atol=1e-6)
    for first, second in zip(*seen, strict=True):
        np.testing.assert_array_equal(first, second)


def test_measure_views_gives_each_its_name():
    projections = VIEWS[..., :5] ** 2
    found = label_free.measure_views(VIEWS, projections)
    assert tuple(found) == label_free.COLUMNS
    for name, measure in MEASURES.items():
        for prefix, x in (("", VIEWS), ("projection_", projections)):
            if f"{prefix}{name}" not in found:
                continue
            expected = measure(x)
            if name == "uniformity":
                expected = (expected + uniformity(x[:, 1])) / 2
            assert found[f"{prefix}{name}"] == expected


def test_the_views_are_no_steps():
    """Training folds the step into the run's key; a run has at most 2**31 - 1 steps."""
    assert label_free.VIEWS_KEY > 2**31 - 1


@pytest.mark.parametrize("tests, expected", [(0, "validation"), (3000, "test")])
def test_held_out_images(tests, expected):
    train, test = (Split(images(n), np.zeros(n, np.int32)) for n in (30, tests))
    dataset = Dataset("made", train, test, train, 0, ())
    found = label_free.held_out_images(dataset, 20)
    assert found.split == expected and len(found.image) == {0: 20, 3000: label_free.MOST}[tests]
    if not tests:
        np.testing.assert_array_equal(found.image, train.image[-20:])
    np.testing.assert_array_equal(
        label_free.validation_images(dataset, 50).image, train.image
    )  # more than there are


def test_spaced_places_reach_from_end_to_end():
    for count, most in itertools.product((1, 7, 100), (1, 7, 12)):
        places = label_free.spaced(count, most)
        assert len(set(places)) == len(places) == min(count, most) and places[0] == 0
        assert len(places) == 1 or places[-1] == count - 1


def test_every_ranking_prefers_what_is_better():
    better = {
        "knn": (0.9, 0.1),
        "rankme": (30, 3),
        "lidar": (30, 3),
        "alpha_req": (1.1, 0.5),
        "alignment": (0.1, 0.9),
        "uniformity": (-3.0, -1.0),
    }
    assert set(better) == set(label_free.RANKINGS)
    for name, (good, bad) in better.items():
        score = label_free.RANKINGS[name].score
        assert score(good) > score(bad)
    score = label_free.RANKINGS["alpha_req"].score
    assert score(1.1) > score(2.5) and score(1.0) > score(0.9)
