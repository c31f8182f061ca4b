"""Probes on other sets than the run's own: which images the encoder sees, and the table."""

import json

import numpy as np
import pytest
from commands import ROOT
from sklearn.neighbors import KNeighborsClassifier
from test_archives import cifar_files, random_splits, small, store  # noqa: F401  a fixture
from test_end_to_end import TINY, command, result_of
from test_folder import photo
from test_pictures import encoded

import ssl_jax
from ssl_jax.data.fitted import fit_pictures
from ssl_jax.data.records import Options
from ssl_jax.data.sources import describe, load_dataset
from ssl_jax.tasks import probe
from ssl_jax.tasks.printing import transfer_rows, transfer_table

NAMES = [f"{c}/{n:02}.png" for c in "ab" for n in range(20)]
FEW = "probe.epochs=1 probe.knn_k=3 probe.validation_size=8 probe.ridge=False".split()
ALONE = [*FEW, "probe.protocol=seed", "probe.random_init=False", "probe.few_labels=0"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The work directory of a finished run on the grey 8x8 digits."""
    out = tmp_path_factory.mktemp("runs") / "run"
    fields = [*TINY, *ALONE, "encoder.name=mlp", "encoder.depth=1", "encoder.width=12"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        assert command("quickstart", out, *fields) == 0
    return out


@pytest.fixture(autouse=True)
def drawn(tmp_path, monkeypatch):
    """Its own cache, and the names of the sets whose features would be drawn: it takes seconds."""
    monkeypatch.setenv("SSL_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(ROOT)
    names = []
    monkeypatch.setattr(probe, "draw_representation", lambda data, *_: names.append(data.name))
    return names


@pytest.fixture
def pictures(tmp_path):
    """Coloured pictures that are not square, in folders of two classes, the second one darker."""
    for number, name in enumerate(NAMES):
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shown = photo(number, 40)[:, :30] // (1 if name < "b" else 3)
        path.write_bytes(encoded(shown, "PNG"))
    return tmp_path / "set"


def kept(folder) -> dict[str, np.ndarray]:
    with np.load(folder / "features" / "step-6.npz") as arrays:
        return {name: arrays[name] for name in ("train_x", "train_y", "test_x", "test_y")}


# --- Images in the shape of a network's -----------------------------------------------------------


@pytest.mark.parametrize("shape", [(8, 8, 1), (12, 12, 3), (6, 9, 1)])
@pytest.mark.parametrize("encoded_too", [False, True])
def test_images_are_those_of_the_encoder_s_door(shape, encoded_too, pictures):
    options = Options(image=shape, encoded=encoded_too)
    data = load_dataset("folder", str(pictures), options=options)
    assert data.description == describe("folder", str(pictures), options=options)
    names = [NAMES[row] for row in range(40)]
    expected = np.concatenate(list(fit_pictures([pictures / name for name in names], shape, 100)))
    found = np.concatenate([np.asarray(data.train.image), np.asarray(data.test.image)])
    order = lambda images: images[np.lexsort(images.reshape(len(images), -1).T)]  # noqa: E731
    np.testing.assert_array_equal(order(found), order(expected))


@pytest.mark.parametrize("shape", [(16, 16, 3), (5, 9, 1)])
def test_digits_in_another_shape(shape):
    digits, own = load_dataset("digits", options=Options(image=shape)), load_dataset("digits")
    expected = np.concatenate(list(fit_pictures(own.test.image, shape, 500)))
    np.testing.assert_array_equal(digits.test.image, expected)
    np.testing.assert_array_equal(digits.train.label, own.train.label)
    assert digits.description == describe("digits", options=Options(image=shape))


# --- One set --------------------------------------------------------------------------------------


def test_features_of_another_set_are_the_encoder_s(run, pictures, tmp_path, drawn):
    fields = [f"checkpoint={run}", "data.name=folder", f"data.data_dir={pictures}", *ALONE]
    assert command("probe", tmp_path / "out", *fields) == 0
    result, arrays = result_of(tmp_path / "out"), kept(tmp_path / "out")
    assert (result["dataset"], result["trained_on"]) == ("folder", "digits") == (drawn[0], "digits")
    assert (result["task"], result["method"], result["steps"]) == ("probe", "byol", 6)
    encoder = ssl_jax.open_run(run).encoder()
    features = encoder([pictures / name for name in NAMES])
    labels = np.repeat([0, 1], 20)
    assert len(arrays["test_y"]) == 4 and len(arrays["train_y"]) == 36
    for split in ("train", "test"):
        for x, y in zip(arrays[f"{split}_x"], arrays[f"{split}_y"], strict=True):
            distance = np.abs(features - x).max(axis=1)
            assert distance.min() < 1e-6 and labels[distance.argmin()] == y
    model = KNeighborsClassifier(
        3, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.1)
    )
    x, y, test_x, test_y = (arrays[n].astype(np.float64) for n in arrays)
    assert result["knn_accuracy"] == model.fit(x, y).score(test_x, test_y)


def test_the_run_s_own_set_by_its_name_is_no_other_set(run, tmp_path):
    assert command("probe", tmp_path / "own", f"checkpoint={run}", *ALONE) == 0
    named = ["data.name=digits", "data.train_size=96", "step=best"]
    assert command("probe", tmp_path / "named", f"checkpoint={run}", *ALONE, *named) == 0
    own, other = (result_of(tmp_path / name) for name in ("own", "named"))
    step = other["steps"]
    assert step in (3, 6) and own["steps"] == 6
    if step == 6:
        same = [name for name in own if name.endswith("accuracy") or name == "rankme"]
        assert {n: own[n] for n in same} == {n: other[n] for n in same}
    stored = json.loads((tmp_path / "named" / "config.json").read_text())
    assert stored["step"] == "best" and stored["data"]["name"] == "digits"


@pytest.mark.usefixtures("small")
def test_cifar_100_from_its_authors_archive(run, tmp_path):
    splits = random_splits("cifar100")
    # few of its hundred classes, and each in both splits
    splits = {name: (image, np.array([3, 7, 3, 7])) for name, (image, _) in splits.items()}
    files = cifar_files("cifar100", "binary", splits)
    store(tmp_path / "data", "cifar-100-binary", "", files, packed=False)
    fields = [f"checkpoint={run}", "data.name=cifar100", f"data.data_dir={tmp_path}/data", *ALONE]
    assert command("probe", tmp_path / "out", *fields, "probe.validation_size=1") == 0
    arrays, encoder = kept(tmp_path / "out"), ssl_jax.open_run(run).encoder()
    for split in ("train", "test"):
        expected = encoder(splits[split][0])
        np.testing.assert_allclose(arrays[f"{split}_x"], expected, rtol=0, atol=1e-6)
        assert arrays[f"{split}_y"].tolist() == [3, 7, 3, 7]
    assert result_of(tmp_path / "out")["dataset"] == "cifar100"


def test_a_set_smaller_than_the_run_s_batch_and_without_labels(run, pictures, tmp_path):
    fields = [f"checkpoint={run}", "data.name=folder", f"data.data_dir={pictures}", *ALONE]
    fields += ["data.labels=none", "data.train_size=20"]
    assert command("probe", tmp_path / "out", *fields) == 0
    result = result_of(tmp_path / "out")
    assert not [name for name in result if name.endswith("accuracy")] and result["rankme"] > 0


# --- Several sets ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_several_sets_in_one_table(run, pictures, tmp_path, drawn, capsys):
    fields = [f"checkpoint={run}", *ALONE, "probe.random_init=True", "probe.knn_k=0"]
    several = ["data.name=folder,digits", f"data.data_dir={pictures},", "data.train_size=30"]
    assert command("probe", tmp_path / "out", *fields, *several) == 0
    text, result = capsys.readouterr().out, result_of(tmp_path / "out")
    assert result["dataset"] == "folder,digits" and "linear_accuracy" not in result
    assert [one["dataset"] for one in result["sets"]] == ["folder", "digits"] == drawn
    alone = ["data.name=folder", f"data.data_dir={pictures}", "data.train_size=30"]
    assert command("probe", tmp_path / "alone", *fields, *alone) == 0
    single = result_of(tmp_path / "alone")
    same = [n for n in single if n.endswith("accuracy") or n == "rankme"]
    assert len(same) > 4
    assert {n: result["sets"][0][n] for n in same} == {n: single[n] for n in same}
    arrays = [kept(tmp_path / "out" / "sets" / name) for name in ("1-folder", "2-digits")]
    np.testing.assert_array_equal(arrays[0]["test_x"], kept(tmp_path / "alone")["test_x"])
    assert len(arrays[1]["train_y"]) == 30 and len(arrays[1]["test_y"]) == 500
    table = (tmp_path / "out" / "table.md").read_text()
    for one in result["sets"]:
        cell = f"{100 * one['linear_accuracy']:.1f}"
        cell += f" ({100 * one['random_init_linear_accuracy']:.1f})"
        [line] = [line for line in table.splitlines() if line.startswith(f"| {one['dataset']} |")]
        assert cell in line
        assert any(cell in line and line.startswith(one["dataset"]) for line in text.splitlines())
    assert (tmp_path / "out" / "figures" / "transfer.png").stat().st_size > 1000


def test_the_table_of_sets_that_lack_something():
    results = [
        {"dataset": "a|b", "linear_accuracy": 0.5, "random_init_linear_accuracy": 0.25},
        {"dataset": "c", "knn_accuracy": 1.0, "rankme": None},
    ]
    assert transfer_rows(results) == [
        ["set", "linear", "knn", "RankMe"],
        ["a|b", "50.0 (25.0)", "-", "-"],
        ["c", "-", "100.0", "-"],
    ]
    assert "| a&#124;b | 50.0 (25.0) | - | - |\n" in transfer_table(results)


MISTAKES = {
    ("data.name=cifar100,digits", "data.data_dir=a,b,c"): "got 3 places for the 2 sets",
    ("data.name=digits,folder", "data.data_dir=,~no-such/x"): "data.data_dir: got '~no-such/x'",
    ("data.name=digits,", ""): "data.name: got 'digits,', takes sets with commas between",
    ("data.name=digts", ""): "data.name: got 'digts'",
    ("data.name=folder", ""): "data.data_dir: got none, data.name=folder takes a directory",
    ("data.name=folder", "data_dir=/somewhere"): "data_dir: got '/somewhere', where the run's own",
    ("data.labels=none", ""): "data.labels: got 'none' for the run's own set",
    ("data.data_dir=tests", ""): "for the run's own set digits, which lies in no directory",
    ("data.name=digits", "data.train_size=5000"): "data.train_size: got 5000, takes 1 to 1297",
    ("data.name=digits", "data.test_share=2"): "data.test_share: got 2.0, takes a number from 0",
    ("data.name=digits", "probe.knn_k=1298"): "probe.knn_k: got 1298, takes at most 1297",
    ("step=first", ""): "step: got 'first', takes newest, best or the number of a step",
    ("step=-2", ""): "step: got '-2', takes newest, best",
}


@pytest.mark.parametrize("fields", MISTAKES)
def test_a_mistake_is_one_line_before_any_image_is_read(fields, run, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(probe, "read_dataset", lambda *_: pytest.fail("read the images"))
    given = [f"checkpoint={run}", *ALONE, *filter(None, fields)]
    assert command("probe", tmp_path / "out", *given) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and MISTAKES[fields] in lines[0], lines
    assert not (tmp_path / "out").exists()
