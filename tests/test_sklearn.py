"""The encoder as scikit-learn uses it: cloned, pickled, in pipelines and grid searches."""

import pickle
import shutil

import numpy as np
import pytest
from commands import TINY
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils import get_tags
from sklearn.utils.estimator_checks import check_estimator

import ssl_jax
from ssl_jax import runs
from ssl_jax import sklearn as ours
from ssl_jax.data.sources import load_dataset
from ssl_jax.errors import UserError
from ssl_jax.sklearn import Encoder

SMALL = dict(word.removeprefix("--config.").split("=") for word in TINY)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return ssl_jax.train("quickstart", tmp_path_factory.mktemp("run") / "W", **SMALL).workdir


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits", train_size=256)


@pytest.fixture(scope="module")
def expected(workdir, digits):
    with np.load(workdir / "features" / "step-12.npz") as kept:
        return kept["train_x"]


class OfTables(Encoder):
    """The checks of scikit-learn hand over tables: each row is spread over an image."""

    def transform(self, X):
        rows = np.stack([np.resize(row, 64) for row in np.asarray(X, float)])
        return super().transform(np.clip(16 * rows + 128, 0, 255))


@pytest.mark.parametrize("kind", [Encoder, OfTables])
@pytest.mark.slow
def test_checks_of_scikit_learn(kind, workdir):
    """All of them; the plain encoder those that hand over no table."""
    found = check_estimator(kind(workdir), on_fail=None, on_skip=None)
    failed = {r["check_name"]: str(r["exception"]) for r in found if r["status"] == "failed"}
    assert len(found) > 30 and (kind is Encoder or not failed)
    assert all("of shape (" in words for words in failed.values()), failed


def test_features_of_images_in_every_form(workdir, digits, expected):
    image = digits.train.image
    forms = [image, image[..., 0], image.astype(float), image.astype(np.int64)]
    rows = image.reshape(len(image), -1)
    forms += [rows, rows - 0.25 * (rows > 0)]
    forms += [list(image[..., 0])]
    encoder = Encoder(workdir)
    for form in forms:
        np.testing.assert_allclose(encoder.transform(form), expected, rtol=0, atol=1e-6)


def test_larger_images_are_fitted(workdir, digits, expected):
    twice = digits.train.image.repeat(3, axis=1).repeat(3, axis=2)
    found = Encoder(workdir).fit_transform(twice)
    own = runs.open_run(workdir).encoder()(twice)
    np.testing.assert_array_equal(found, own)
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.9


WRONG = {
    "floats from 0 to 1": (lambda x: x / 255, "multiply them by 255"),
    "negative": (lambda x: x - 20.0, "from -20.0 to"),
    "too large": (lambda x: x * 256, "in 0..255"),
    "not finite": (lambda x: np.where(x > 100, np.nan, x), "nan"),
    "rows of another length": (lambda x: x.reshape(-1, 32), "takes (N, H, W, C), (N, H, W) or"),
    "text": (lambda x: x.astype(str), "X: got <U"),
    "five axes": (lambda x: x[None], "shape (1, "),
}


@pytest.mark.parametrize("change, words", WRONG.values(), ids=WRONG)
def test_what_is_no_image(change, words, workdir, digits):
    with pytest.raises(UserError) as caught:
        Encoder(workdir).transform(change(digits.train.image.astype(np.int32)))
    assert words in str(caught.value)


def test_a_pipeline_and_a_grid_search(workdir, digits, expected):
    """The same as with features that were computed before."""
    train, head = digits.train, LogisticRegression(max_iter=200)
    pipeline = make_pipeline(Encoder(workdir), head).fit(train.image, train.label)
    plain = clone(head).fit(expected, train.label)
    assert pipeline.score(train.image, train.label) == plain.score(expected, train.label)
    grid = {"encoder__step": [8, None], "logisticregression__C": [0.01, 1.0]}
    search = GridSearchCV(pipeline, grid, cv=2).fit(train.image, train.label)
    scores = search.cv_results_["mean_test_score"]
    own = GridSearchCV(head, {"C": [0.01, 1.0]}, cv=2).fit(expected, train.label)
    newest = [p["encoder__step"] is None for p in search.cv_results_["params"]]
    np.testing.assert_allclose(scores[newest], own.cv_results_["mean_test_score"], atol=0.02)
    assert len(scores) == 4


def test_copies_share_what_is_loaded(workdir, digits, monkeypatch):
    ours._load.cache_clear()
    loaded, load = [], runs.load_encoder
    monkeypatch.setattr(runs, "load_encoder", lambda *a: loaded.append(a) or load(*a))
    for _ in range(3):
        clone(Encoder(workdir)).fit(digits.train.image).transform(digits.train.image[:2])
    assert len(loaded) == 1


def test_it_is_pickled_by_its_path(workdir, digits, expected):
    encoder = Encoder(workdir, step=12).fit(digits.train.image)
    encoder.transform(digits.train.image[:2])
    stored = pickle.dumps(encoder)
    assert len(stored) < 1000
    again = pickle.loads(stored)
    assert again.get_params() == {"workdir": workdir, "step": 12, "best": False}
    np.testing.assert_allclose(again.transform(digits.train.image), expected, rtol=0, atol=1e-6)


def test_nothing_has_to_be_fitted(workdir, digits):
    encoder = Encoder(workdir)
    assert not get_tags(encoder).requires_fit
    before = dict(vars(encoder))
    fitted = encoder.fit(digits.train.image, digits.train.label)
    assert fitted is encoder and vars(encoder) == before
    names = encoder.get_feature_names_out()
    width = encoder.transform(digits.test.image[:1]).shape[1]
    assert list(names) == [f"encoder{i}" for i in range(width)]


def test_a_run_that_went_on_gives_its_newest_features(workdir, digits, tmp_path):
    """Also in a work directory that was trained anew in between."""
    copy = shutil.copytree(workdir, tmp_path / "copy")
    newest = copy / "checkpoints" / "12"
    newest.rename(tmp_path / "12")
    encoder = Encoder(copy)
    early = encoder.transform(digits.test.image)
    (tmp_path / "12").rename(newest)
    assert np.abs(encoder.transform(digits.test.image) - early).max() > 1e-3


@pytest.mark.parametrize("fields", [{"step": 5}, {"step": 8, "best": True}])
def test_a_wrong_checkpoint_is_found_by_fit(fields, workdir, digits):
    with pytest.raises(UserError, match="step"):
        Encoder(workdir, **fields).fit(digits.train.image)


def test_no_run(tmp_path):
    with pytest.raises(UserError, match="config.json: not found"):
        Encoder(tmp_path).fit(None)
