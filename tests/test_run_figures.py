"""Figures come from files alone, and survive what short and broken-off runs leave in them."""

import json

import numpy as np
import pytest
from PIL import Image
from sklearn.decomposition import PCA

from ssl_jax.reports import run_figures
from ssl_jax.workdir import metrics_csv

RESULT = {
    "method": "byol",
    "dataset": "digits",
    "seed": 3,
    "correlation_eigenvalues": [4.0, 1.0, 0.5, 1e-12, -1e-9],
}


@pytest.fixture(autouse=True)
def no_other_sight(monkeypatch):
    """Not a single array of a live run may be asked for: only `draw_run`'s directory is."""
    monkeypatch.setattr("jax.device_get", lambda tree: pytest.fail("a figure looked at a device"))


def write_run(directory, rows: int):
    """The two files of a run with this many rows, the held-out accuracy in every other one."""
    metrics_csv.truncate_after(directory / "metrics.csv", 0)  # the header
    for i in range(1, rows + 1):
        row = {name: 1.0 / i for name in metrics_csv.COLUMNS} | {
            "step": 10 * i,
            "epoch": i / 2,
            "seconds": float(i),
        }
        metrics_csv.append_row(
            directory / "metrics.csv", row if i % 2 == 0 else row | {"knn_validation": float("nan")}
        )
    (directory / "result.json").write_text(json.dumps(RESULT))


def check_picture(path):
    """A whole PNG with more than paper in it."""
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("L"))
    assert min(pixels.shape) > 200 and pixels.std() > 5
    return pixels


@pytest.mark.parametrize("rows", [1, 40])
def test_draw_run_needs_the_two_files_and_nothing_else(tmp_path, rows):
    write_run(tmp_path, rows)
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    run_figures.draw_run(tmp_path)
    assert {p.name for p in (tmp_path / "figures").iterdir()} == {
        "training.png",
        "collapse.png",
        "spectrum.png",
    }
    for path in (tmp_path / "figures").iterdir():
        check_picture(path)
    assert {p: p.read_bytes() for p in before} == before


def test_draw_run_follows_its_files(tmp_path):
    """Other numbers give another picture; the same numbers the same one."""
    pictures = []
    for name, rows in (("a", 4), ("b", 4), ("c", 8)):
        (tmp_path / name).mkdir()
        write_run(tmp_path / name, rows)
        run_figures.draw_run(tmp_path / name)
        pictures.append(check_picture(tmp_path / name / "figures" / "training.png"))
    np.testing.assert_array_equal(pictures[0], pictures[1])
    assert (pictures[0] != pictures[2]).any()


def test_a_line_cut_off_by_a_crash_is_not_drawn(tmp_path):
    write_run(tmp_path, 4)
    run_figures.draw_run(tmp_path)
    whole = check_picture(tmp_path / "figures" / "training.png")
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("50,2.5,99")
    run_figures.draw_run(tmp_path)
    np.testing.assert_array_equal(check_picture(tmp_path / "figures" / "training.png"), whole)


@pytest.mark.parametrize("dead", [[0.0, 0.0], [1e-30, 0.0]])
def test_spectrum_of_a_dead_network(tmp_path, dead):
    write_run(tmp_path, 2)
    (tmp_path / "result.json").write_text(json.dumps(RESULT | {"correlation_eigenvalues": dead}))
    run_figures.draw_run(tmp_path)
    check_picture(tmp_path / "figures" / "spectrum.png")


@pytest.mark.parametrize("classes", [3, 10, 100])
def test_draw_features(tmp_path, classes):
    rng = np.random.default_rng(0)
    label = np.arange(300) % classes
    features = {
        "test_x": rng.normal(size=(300, 8)).astype(np.float32) + label[:, None],
        "test_y": label,
    }
    run_figures.draw_features(
        features, tuple(f"a class called {i}" for i in range(classes)), tmp_path / "deep" / "f.png"
    )
    check_picture(tmp_path / "deep" / "f.png")


def test_draw_features_of_collapsed_features(tmp_path):
    features = {"test_x": np.zeros((20, 4), np.float32), "test_y": np.arange(20) % 2}
    run_figures.draw_features(features, ("a", "b"), tmp_path / "f.png")
    check_picture(tmp_path / "f.png")


def test_principal_components_are_scikit_learns():
    """Up to the sign of each axis, which is nobody's."""
    x = np.random.default_rng(0).normal(size=(50, 6)) @ np.diag([5.0, 3.0, 1.0, 1.0, 0.5, 0.1]) + 7
    ours, theirs = run_figures.principal(x.astype(np.float32)), PCA(2).fit_transform(x)
    np.testing.assert_allclose(np.abs(ours), np.abs(theirs), atol=1e-4)
    assert not run_figures.principal(np.full((9, 3), 2.0)).any()


@pytest.mark.parametrize("channels", [1, 3])
def test_draw_views_shows_the_image_and_undoes_the_normalisation(tmp_path, channels, monkeypatch):
    monkeypatch.undo()  # views are arrays of jax, undone by jax
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (4, 8, 8, channels), dtype=np.uint8)
    mean, std = (0.3,) * channels, (0.5,) * channels
    shown = []
    original = run_figures.save
    monkeypatch.setattr(
        run_figures,
        "save",
        lambda figure, *where: (shown.extend(figure.axes), original(figure, *where)),
    )
    views = tuple(((image / 255 - 0.3) / 0.5).astype(np.float32) for _ in range(2))
    run_figures.draw_views(image, views, mean, std, tmp_path / "v.png")
    check_picture(tmp_path / "v.png")
    pictures = [np.asarray(axis.get_images()[0].get_array()) for axis in shown if axis.get_images()]
    assert len(pictures) == 12
    for i, picture in enumerate(pictures):
        np.testing.assert_allclose(picture, image[i % 4].squeeze() / 255, atol=1e-6)
