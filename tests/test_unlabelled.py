"""Runs on a set without labels, from the command to the files: label-free measures stand where the
accuracies would, and nothing else changes.
"""

import json
import math
import shutil

import numpy as np
import pytest
from commands import TINY, finish_command, start_command
from PIL import Image

from ssl_jax.builders.checks import ranking_of
from ssl_jax.builders.defaults import default_config
from ssl_jax.data import sources
from ssl_jax.data.dataset import Dataset, Split
from ssl_jax.data.records import Options
from ssl_jax.data.splits import choose
from ssl_jax.errors import UserError
from ssl_jax.probes.knn import nearest
from ssl_jax.probes.label_free import COLUMNS, RANKINGS
from ssl_jax.reports import run_figures
from ssl_jax.workdir import metrics_csv
from ssl_jax.workdir.checkpoints import steps_in

# A part of the images would be drawn of a set without labels, and the first ones of the digits.
FIELDS = [
    *TINY,
    "--config.data.train_size=0",
    "--config.eval_every=1",
    "--config.probe.random_init=True",
]
NONE = "--config.data.labels=none"


def run(workdir, *words) -> str:
    return finish_command(start_command(workdir, *FIELDS, *words))


def keys_of(content) -> set[str]:
    """All keys of a JSON value, at any depth."""
    if isinstance(content, list):
        return set().union(*map(keys_of, content))
    if isinstance(content, dict):
        return set(content).union(*map(keys_of, content.values()))
    return set()


def read(folder) -> dict:
    return json.loads((folder / "result.json").read_text())


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory):
    """The run, and what it printed."""
    folder = tmp_path_factory.mktemp("unlabelled")
    return folder, run(folder, NONE, "--config.probe.few_labels=3")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """The same run with labels."""
    folder = tmp_path_factory.mktemp("labelled")
    return folder, run(folder)


def check_no_accuracy(result: dict, text: str):
    assert [key for key in keys_of(result) if "accuracy" in key or "knn" in key] == []
    assert "few_label" not in result
    assert "accuracy" not in text and "kNN" not in text


@pytest.mark.slow
def test_no_accuracy_is_printed_or_stored(unlabelled):
    folder, text = unlabelled
    check_no_accuracy(read(folder), text)
    for row in metrics_csv.read_rows(folder / "metrics.csv"):
        assert all(math.isnan(row[name]) for name in row if "accuracy" in name or "knn" in name)
    assert "probe.few_labels: 3 is left out, digits has no labels" in text


@pytest.mark.slow
def test_the_measures_stand_in_their_place(unlabelled):
    folder, text = unlabelled
    result = read(folder)
    assert (result["label_free_split"], result["label_free_images"]) == ("test", 500)
    for name in COLUMNS:
        for key in (name, f"random_init_{name}"):
            assert math.isfinite(result[key])
            assert f"{result[key]:.4g}" in text
    rows = metrics_csv.read_rows(folder / "metrics.csv")
    measured = [row for row in rows if math.isfinite(row["rankme"])]
    assert [row["step"] for row in measured] == [20, 40, 60]
    assert all(math.isfinite(row[name]) for row in measured for name in COLUMNS)


@pytest.mark.slow
def test_labels_take_no_part_in_anything_else(unlabelled, labelled):
    """Loss and signs are the same numbers with and without them, and measures on test images."""
    ours, theirs = (
        metrics_csv.read_rows(folder / "metrics.csv") for folder, _ in (unlabelled, labelled)
    )
    for own, other in zip(ours, theirs, strict=True):
        others = {"knn_validation", "images_per_second", "seconds", *COLUMNS}
        for name in set(own) - others:  # on held-out images, which are others
            np.testing.assert_equal(own[name], other[name], err_msg=name)
    own, other = (read(folder) for folder, _ in (unlabelled, labelled))
    assert {name: own[name] for name in COLUMNS} == {name: other[name] for name in COLUMNS}
    assert other["linear_accuracy"] > 0 and "knn_accuracy" in other


@pytest.mark.slow
def test_every_figure_is_drawn(unlabelled, labelled):
    names = {"training", "collapse", "spectrum", "features", "neighbours", "views"}
    for folder, text in (unlabelled, labelled):
        assert {path.stem for path in (folder / "figures").glob("*.png")} == names
        assert "not drawn" not in text


@pytest.mark.slow
def test_a_checkpoint_keeps_what_may_rank_it(unlabelled, labelled):
    for (folder, _), known in ((unlabelled, set(RANKINGS) - {"knn"}), (labelled, set(RANKINGS))):
        rows = {int(row["step"]): row for row in metrics_csv.read_rows(folder / "metrics.csv")}
        steps = steps_in(folder / "checkpoints")
        for step in steps:
            path = folder / "checkpoints" / str(step) / "metrics" / "metrics"
            kept = json.loads(path.read_text())
            assert set(kept) == {RANKINGS[name].column for name in known}
            for name, value in kept.items():
                assert rows[step][name] == pytest.approx(value, rel=1e-5)


@pytest.mark.slow
def test_a_run_goes_on_by_another_measure(unlabelled, tmp_path):
    """`probe.best` may change, and the checkpoints of before are ranked by the new one, too."""
    folder = tmp_path / "run"
    shutil.copytree(unlabelled[0], folder)
    run(
        folder,
        NONE,
        "--config.epochs=6",
        "--config.probe.best=alignment",
        "--config.schedule.name=constant",
    ) if False else None
    text = run(folder, NONE, "--config.probe.best=alignment")
    assert "error" not in text
    assert read(folder)["rankme"] == read(unlabelled[0])["rankme"]


@pytest.mark.slow
def test_probe_doctor_and_report_run_over_it(unlabelled, tmp_path):
    folder, _ = unlabelled
    words = [f"--config.checkpoint={folder}", "--config.probe.epochs=1"]
    words += [f"--config.probe.{field}" for field in ("few_labels=2", "random_init=False")]
    text = finish_command(start_command(tmp_path / "probe", *words, config="probe"))
    result = read(tmp_path / "probe")
    check_no_accuracy(result, text)
    assert {name: result[name] for name in COLUMNS} == pytest.approx(
        {name: read(folder)[name] for name in COLUMNS}, rel=1e-5
    )
    assert (tmp_path / "probe" / "figures" / "neighbours.png").exists()
    finish_command(start_command(tmp_path / "doctor", f"--config.run={folder}", config="doctor"))
    check_no_accuracy(read(tmp_path / "doctor"), "")
    stored = tmp_path / "store" / "table1" / "mini" / "byol" / "seed-0.json"
    stored.parent.mkdir(parents=True)
    shutil.copy(folder / "result.json", stored)
    words = f"--config.runs={tmp_path / 'store'}"
    text = finish_command(start_command(tmp_path / "report", words, config="report"), status=2)
    assert "linear_accuracy" in text and "Traceback" not in text


# --- What is refused, in one line -----------------------------------------------------------------


@pytest.mark.parametrize(
    "words, line",
    [
        (["--config.data.labels=non"], "data.labels: got 'non', did you mean 'none'"),
        ([NONE, "--config.probe.best=knn"], "probe.best: got 'knn', which needs labels"),
        (["--config.probe.best=rank"], "probe.best: got 'rank'"),
    ],
)
def test_wrong_values_are_one_line(tmp_path, words, line):
    text = finish_command(start_command(tmp_path / "run", *FIELDS, *words), status=2)
    assert len(text.splitlines()) == 1 and text.startswith("error: ") and line in text
    assert not (tmp_path / "run").exists()


def test_the_supervised_task_needs_labels(tmp_path):
    words = [NONE, "--config.data.name=digits", "--config.data.validation_size=64"]
    text = finish_command(start_command(tmp_path / "run", *words, config="supervised"), status=2)
    assert len(text.splitlines()) == 1
    assert text.startswith("error: data.labels: digits has no labels (got 'none')")


# --- The parts ------------------------------------------------------------------------------------


def test_a_set_without_labels_is_what_the_contract_says():
    options = Options(labels="none")
    ours, with_labels = (sources.load_dataset("digits", options=o) for o in (options, Options()))
    assert (ours.num_classes, ours.label_names) == (0, ())
    for split in (ours.train, ours.test, ours.pretrain):
        assert split.label.dtype == np.int32 and (split.label == -1).all()
    np.testing.assert_array_equal(ours.test.image, with_labels.test.image)
    assert sources.describe("digits", options=options) == ours.description
    some = sources.load_dataset("digits", train_size=100, options=options)
    assert sources.describe("digits", train_size=100, options=options) == some.description
    np.testing.assert_array_equal(
        some.train.image, with_labels.train.image[choose(ours.train.label, 100)]
    )


def test_the_images_of_pretraining_are_all_training_images():
    """As STL-10 has: further images without labels are like the others now."""
    train, more = (
        Split(np.full((n, 2, 2, 1), n, np.uint8), np.arange(n, dtype=np.int32)) for n in (3, 5)
    )
    found = sources._without_labels(Dataset("made", train, train, more, 3, ("a", "b", "c")))
    assert len(found.train.image) == len(found.train.label) == 5


def test_what_chooses_where_nothing_is_said():
    probe = default_config().probe
    assert ranking_of(probe, 10).column == "knn_validation"
    assert ranking_of(probe, 0).column == "rankme"
    probe.best = "uniformity"
    assert ranking_of(probe, 10) == ranking_of(probe, 0) == RANKINGS["uniformity"]
    probe.best = "knn"
    with pytest.raises(UserError, match=r"probe\.best"):
        ranking_of(probe, 0)


def test_nearest_are_those_of_the_largest_cosine():
    rng = np.random.default_rng(0)
    bank, query = rng.normal(size=(40, 6)), rng.normal(size=(3, 6))
    for q, row in zip(query, nearest(bank, query, 5), strict=True):
        cosine = [x @ q / math.hypot(*x) / math.hypot(*q) for x in bank]
        assert list(row) == sorted(range(40), key=lambda i: -cosine[i])[:5]


def test_features_without_labels_have_no_colours(tmp_path):
    """One colour beside white; with labels several."""
    x = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)
    hues = []
    for names, y in (((), np.full(60, -1)), (("a", "b"), np.arange(60) % 2)):
        path = tmp_path / f"{len(names)}.png"
        run_figures.draw_features({"test_x": x, "test_y": y}, names, path)
        pixels = np.asarray(Image.open(path).convert("HSV")).reshape(-1, 3)
        vivid = pixels[pixels[:, 1] > 100][:, 0]
        hues.append(int(vivid.max()) - int(vivid.min()))
    assert hues[0] < 10 < hues[1]
