"""The supervised task: its step against NumPy in float64, and whole runs on the digits through the
door.
"""

import json
import shutil
import signal
from importlib.util import find_spec
from pathlib import Path

import chex
import event_reader
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import last_parameters
from PIL import Image
from tiny import Flat, make_batch

from configs import supervised as configuration
from ssl_jax import launch
from ssl_jax.builders.checks import WATCHED
from ssl_jax.builders.data import read_dataset
from ssl_jax.builders.supervised import build_classifier
from ssl_jax.data.dataset import Dataset, Split
from ssl_jax.data.splits import hold_out, redraw
from ssl_jax.errors import UserError
from ssl_jax.losses import cross_entropy
from ssl_jax.models import make_classifier
from ssl_jax.optim import make_optimizer
from ssl_jax.runtime import stops
from ssl_jax.tasks import registry, supervised
from ssl_jax.train import parallel
from ssl_jax.train.supervised import init_supervised, make_supervised_step
from ssl_jax.workdir import checkpoints, metrics_csv

ROOT = Path(__file__).parent.parent
KEY, CLASSES = jax.random.key(7), 3


def scaled(keys, image, target):
    """An augmentation that does nothing but scale."""
    return (jnp.asarray(image, jnp.float32) / 255,), target


def labelled_batch(seed=0):
    batch = make_batch(seed)
    return batch | {
        "label": np.random.default_rng(seed).integers(0, CLASSES, len(batch["position"]), np.int32)
    }


def make_parts(axis_name=None, **options):
    classifier = make_classifier(Flat(axis_name), CLASSES)
    return classifier, make_optimizer("sgd", 0.5, **options)


def make_step(classifier, optimizer, augment=scaled, **options):
    return make_supervised_step(
        augment=augment,
        classifier=classifier,
        optimizer=optimizer,
        loss=cross_entropy,
        num_classes=CLASSES,
        **options,
    )


def fresh(classifier, optimizer):
    return init_supervised(KEY, jnp.zeros((2, 8, 8, 1)), classifier, optimizer)


# --- The step -------------------------------------------------------------------------------------


def test_the_first_loss_and_accuracy_are_those_of_the_logits():
    classifier, optimizer = make_parts()
    state, batch = fresh(classifier, optimizer), labelled_batch()
    after, got = jax.jit(make_step(classifier, optimizer))(state, batch, KEY)
    logits, _ = classifier.train(
        state.params, state.stats, scaled(None, batch["image"], None)[0][0], KEY
    )
    logits = np.asarray(logits, np.float64)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    np.testing.assert_allclose(got["loss"], -log_p[np.arange(8), batch["label"]].mean(), rtol=1e-5)
    np.testing.assert_allclose(got["train_accuracy"], np.mean(logits.argmax(1) == batch["label"]))
    assert after.step == 1 and set(got) == {"loss", "train_accuracy"}


@pytest.mark.parametrize("decay", ["coupled", "decoupled", "realtime", "pre"])
def test_the_head_moves_by_the_formula_of_its_decay(decay):
    """The head's gradient is mean of features (softmax - target); eta 0.5, lambda 0.4: d = 0.2 of a
    weight.
    """
    classifier, optimizer = make_parts(weight_decay=0.4, decay=decay)
    state, batch = fresh(classifier, optimizer), labelled_batch()
    after, _ = jax.jit(make_step(classifier, optimizer))(state, batch, KEY)
    shrunk = jax.tree.map(lambda p: 0.8 * p, state.params) if decay == "pre" else state.params
    kernel, bias = (np.asarray(shrunk["head"][name], np.float64) for name in ("kernel", "bias"))
    x = (
        batch["image"].reshape(8, -1)
        / 255.0
        @ np.asarray(shrunk["encoder"]["linear"]["kernel"], np.float64)
    )
    norm = {
        name: np.asarray(p, np.float64) for name, p in shrunk["encoder"]["norm"]["batch"].items()
    }
    x = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) * norm["scale"] + norm["bias"]
    features = np.maximum(x, 0)
    logits = features @ kernel + bias
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    gradient = features.T @ (p - np.eye(CLASSES)[batch["label"]]) / 8
    theta = np.asarray(state.params["head"]["kernel"], np.float64)
    expected = {
        "coupled": theta - 0.5 * (gradient + 0.4 * theta),
        "decoupled": theta - 0.5 * gradient - 0.2 * theta,
        "realtime": 0.8 * (theta - 0.5 * gradient),
        "pre": 0.8 * theta - 0.5 * gradient,
    }[decay]
    np.testing.assert_allclose(after.params["head"]["kernel"], expected, atol=2e-5)


def test_consistency_weighs_the_divergence_of_the_versions():
    def versions(keys, image, target):
        x = scaled(keys, image, target)[0][0]
        return (x, 1 - x, x * x), target

    classifier, optimizer = make_parts()
    state, batch = fresh(classifier, optimizer), labelled_batch()
    losses = [
        float(
            jax.jit(make_step(classifier, optimizer, versions, consistency=c))(state, batch, KEY)[
                1
            ]["loss"]
        )
        for c in (0.0, 1.0, 12.0)
    ]
    assert losses[1] > losses[0]
    assert losses[2] - losses[0] == pytest.approx(12 * (losses[1] - losses[0]), rel=1e-4)


def test_the_opposing_penalty_is_that_of_the_step():
    classifier, optimizer = make_parts(weight_decay=1.0, decay="decoupled")
    state, batch = fresh(classifier, optimizer), labelled_batch()
    plain = jax.jit(make_step(classifier, make_parts()[1]))(state, batch, KEY)[0]
    _, got = jax.jit(make_step(classifier, optimizer, penalty="decoupled"))(state, batch, KEY)
    theta, moved = (
        np.concatenate([np.ravel(p) for p in jax.tree.leaves(tree.params)])
        for tree in (state, plain)
    )
    opposes = (moved - 0.5 * theta) ** 2 > moved**2
    np.testing.assert_allclose(
        got["opposing_ratio"], np.abs(theta)[opposes].sum() / np.abs(theta).sum(), rtol=1e-3
    )
    assert 0 < got["opposing_fraction"] == pytest.approx(opposes.mean(), abs=2 / len(theta))


@pytest.mark.parametrize("decay", ["realtime", "pre"])
def test_a_decay_that_never_opposes_says_so_and_names_what_wd_would_have_done(decay):
    """One step of RWD and of PWD in NumPy: no weight is larger for its decay, some would be for
    WD's.
    """
    classifier, optimizer = make_parts(weight_decay=1.0, decay=decay)
    state, batch = fresh(classifier, optimizer), labelled_batch()
    _, got = jax.jit(make_step(classifier, optimizer, penalty=decay))(state, batch, KEY)
    start = optimizer.pre(state.params, state.opt_state)  # where the gradient is taken
    plain = make_parts()[1]
    at = state._replace(params=start, opt_state=plain.init(start))
    moved = jax.jit(make_step(classifier, plain))(at, batch, KEY)[0].params
    theta, moved = (
        np.concatenate([np.ravel(p) for p in jax.tree.leaves(tree)]) for tree in (start, moved)
    )
    opposes = (moved - 0.5 * theta) ** 2 > moved**2
    assert got["opposing_ratio"] == got["opposing_fraction"] == 0
    np.testing.assert_allclose(
        got["wd_opposing_ratio"], np.abs(theta)[opposes].sum() / np.abs(theta).sum(), rtol=1e-3
    )
    assert 0 < got["wd_opposing_fraction"] == pytest.approx(opposes.mean(), abs=2 / len(theta))


def test_four_devices_compute_what_one_computes():
    batches = [labelled_batch(n) for n in range(3)]
    ends = []
    for count in (1, 4):
        classifier, optimizer = make_parts(parallel.AXIS, weight_decay=0.1, decay="pre")
        step = make_step(classifier, optimizer, axis_name=parallel.AXIS)
        run = parallel.parallelise(step, lambda data, batch: batch["image"], jax.devices()[:count])
        state = fresh(*make_parts(weight_decay=0.1, decay="pre"))
        for batch in batches:
            state, got = run(state, {}, jax.tree.map(lambda x: x[None], batch), KEY)
        ends.append((state.params, got["loss"]))
    chex.assert_trees_all_close(*ends, atol=1e-5)


# --- Data -----------------------------------------------------------------------------------------


def test_the_last_training_images_are_held_out():
    image = np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1)
    label = np.array([1, 0] * 5, np.int32)
    split = Split(image, label)
    dataset = Dataset("counted", split, split, split, 2, tuple("01"))
    train, validation = hold_out(dataset, 3)
    assert train.image.ravel().tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert validation.image.ravel().tolist() == [7, 8, 9]
    for part in (train, validation):
        np.testing.assert_array_equal(part.label, label[part.image.ravel()])
    assert hold_out(dataset, 0) == (split, None)
    with pytest.raises(
        UserError, match="data.validation_size: got 10, takes 0 to less than the 10"
    ):
        hold_out(dataset, 10)


def test_random_labels_are_drawn_anew_in_the_share_asked_for():
    label = np.full(20_000, 4, np.int32)
    assert np.array_equal(redraw(label, 0.0, 10, 0), label)
    half, whole = (redraw(label, share, 10, 0) for share in (0.5, 1.0))
    # a tenth of those drawn are as they were
    assert np.mean(half != 4) == pytest.approx(0.45, abs=0.01)
    assert np.bincount(whole, minlength=10) / len(label) == pytest.approx(
        np.full(10, 0.1), abs=0.01
    )
    assert np.array_equal(whole, redraw(label, 1.0, 10, 0))
    assert not np.array_equal(whole, redraw(label, 1.0, 10, 1))
    assert whole.dtype == label.dtype


# --- Whole runs -----------------------------------------------------------------------------------

EVENTS = find_spec("tensorboardX") is not None
TINY = {
    "data.name": "digits",
    "data.train_size": 160,
    "data.validation_size": 32,
    "devices": 1,
    "epochs": 4,
    "batch_size": 64,
    "log_every": 1,
    "checkpoint_every": 1,
    "encoder.width": 8,
    "encoder.depth": 1,
    "augment.flip": 0.0,
    "augment.mean": (0.3,),
    "augment.std": (0.4,),
    "optimizer.learning_rate": 0.01,
}


def tiny_config(**changes):
    config = configuration.get_config("mlp")
    config.update_from_flattened_dict(TINY | changes)
    return config


def train(out: Path, stop_after: int | None = None, **changes) -> dict | None:
    """A run in `out`, or what it does until it is interrupted after so many calls."""
    calls = []

    def interrupted():
        calls.append(None)
        return stop_after is not None and len(calls) >= stop_after

    registry.run_task(tiny_config(**changes), str(out), interrupted)
    return json.loads((out / "result.json").read_text()) if (out / "result.json").exists() else None


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "mlp"
    return out, train(out, tensorboard=EVENTS)


def test_result_names_each_accuracy(finished):
    out, result = finished
    rows = [
        row
        for row in metrics_csv.read_rows(out / "metrics.csv")
        if row["test_accuracy"] == row["test_accuracy"]
    ]
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert result["test_accuracy"] == rows[-1]["test_accuracy"]
    assert result["mean_of_best_10_epochs_test_accuracy"] == pytest.approx(
        np.mean([r["test_accuracy"] for r in rows])
    )
    best = max(rows, key=lambda row: row["validation_accuracy"])
    assert result["best_validation_epoch_test_accuracy"] == best["test_accuracy"]
    assert (result["task"], result["method"], result["steps"], result["stopped_early"]) == (
        "supervised",
        "mlp",
        8,
        False,
    )
    assert (out / "figures" / "training.png").stat().st_size > 1000
    assert (out / "figures" / "opposing.png").stat().st_size > 1000
    assert result["test_accuracy"] > 0.15, "nothing was learned"


@pytest.mark.skipif(not EVENTS, reason="tensorboardX is not installed")
def test_the_event_file_has_the_numbers_of_metrics_csv(finished):
    out, _ = finished
    found = event_reader.scalars(out)
    assert event_reader.as_text(found) == event_reader.spelled(out / "metrics.csv")
    assert [step for step, _ in found] == list(range(1, 9))
    values = [value for event in event_reader.read_events(out) for value in event.summary.value]
    images = {value.tag: value.image for value in values if value.HasField("image")}
    assert set(images) == {"figures/opposing", "figures/training"}
    for tag, image in images.items():
        picture = (out / f"{tag}.png").read_bytes()
        assert image.encoded_image_string == picture
        with Image.open(out / f"{tag}.png") as drawn:
            assert (image.width, image.height) == drawn.size


def test_the_ten_best_epochs_are_ten():
    rows = [
        {"test_accuracy": n / 100, "validation_accuracy": -n / 100, "epoch": n}
        for n in range(1, 16)
    ]
    summary = supervised.summary(
        [*rows, {"test_accuracy": float("nan"), "validation_accuracy": 0.9, "epoch": 99}]
    )
    assert summary["mean_of_best_10_epochs_test_accuracy"] == pytest.approx(
        np.mean(np.arange(6, 16)) / 100
    )
    assert summary["std_of_best_10_epochs"] == pytest.approx(np.std(np.arange(6, 16), ddof=1) / 100)
    assert (summary["best_validation_epoch"], summary["best_validation_epoch_test_accuracy"]) == (
        1,
        0.01,
    )
    assert summary["test_accuracy"] == 0.15


@pytest.fixture
def own_stops():
    """The stops of this process, which are as they were afterwards."""
    own = stops.unless_stopped.__self__
    before = dict(vars(own))
    yield own
    vars(own).update(before)


def test_a_run_that_is_stopped_in_an_evaluation_ends_as_one_that_never_stopped(
    finished, tmp_path, monkeypatch, own_stops
):
    """The evaluation after step 4 is given up, and made again by the next start."""
    whole, result = finished
    taken, extract = [], supervised.extract

    def interrupted_extract(*arguments):
        taken.append(arguments)
        if len(taken) == 4:  # of two in an evaluation
            own_stops.handle(signal.SIGTERM)
        return extract(*arguments)  # asks before its first batch

    monkeypatch.setattr(supervised, "extract", interrupted_extract)
    out = tmp_path / "run"
    before = dict(vars(own_stops))
    with pytest.raises(stops.Stopped):
        train(out)
    assert not (out / "result.json").exists() and len(taken) == 4
    assert [row["step"] for row in metrics_csv.read_rows(out / "metrics.csv")] == [1, 2, 3]
    assert checkpoints.steps_in(out / "checkpoints") == [2, 4]
    assert checkpoints.read_notes(out / "checkpoints", 4)["owed"]["step"] == 4
    with pytest.raises(checkpoints.NoMetricError):  # the first one was evaluated, not this one
        shutil.copytree(out / "checkpoints" / "4", tmp_path / "alone" / "4")
        checkpoints.best_step(tmp_path / "alone", supervised.VALIDATION)

    vars(own_stops).update(before)
    again = train(out, stop_after=1)  # after the evaluation, which a call follows
    assert again is None and len(taken) == 6
    assert "owed" not in checkpoints.read_notes(out / "checkpoints", 4)
    row = metrics_csv.read_rows(out / "metrics.csv")[3]
    kept = json.loads((out / "checkpoints" / "4" / "metrics" / "metrics").read_text())
    assert metrics_csv.as_written(kept) | row == row
    again = train(out)
    same = ("test_accuracy", "best_validation_accuracy", "loss", "opposing_ratio", "steps")
    assert {name: again[name] for name in same} == {name: result[name] for name in same}
    rows, wanted = (metrics_csv.read_rows(path / "metrics.csv") for path in (out, whole))
    times = dict.fromkeys(("seconds", "images_per_second"))
    for one, other in zip(rows, wanted, strict=True):
        np.testing.assert_equal(one | times, other | times)
    assert [row["seconds"] for row in rows] == sorted(row["seconds"] for row in rows)
    ends = [last_parameters(path) for path in (out, whole)]
    assert ends[0].keys() == ends[1].keys() and len(ends[0]) > 5
    assert all(ends[0][name].tobytes() == ends[1][name].tobytes() for name in ends[0])


def test_a_run_that_is_stopped_in_its_last_evaluation_has_not_finished(tmp_path, monkeypatch):
    def stopped(held, batches, *, cadence, hooks, **rest):
        hooks.postpone(held.get(), cadence.total, {"step": cadence.total, "loss": 1.0})
        yield from ()
        return cadence.total

    monkeypatch.setattr(supervised.training, "train_loop", stopped)
    assert train(tmp_path) is None
    notes = checkpoints.read_notes(tmp_path / "checkpoints", 8)
    assert notes["owed"] == {"step": 8, "loss": 1.0}


# A rate at which nothing is learned any more after the first epochs, so that both rules have
# something to see.
STUCK = {"optimizer.learning_rate": 0.0, "epochs": 6}


@pytest.mark.parametrize("watch", WATCHED)
def test_the_rate_is_reduced_where_what_is_watched_stands_still_and_stays_so_after_a_restart(
    tmp_path, watch
):
    fields = STUCK | {"plateau.watch": watch, "plateau.patience": 1, "plateau.factor": 0.5}
    train(tmp_path / "whole", **fields)
    scales = [
        row["rate_scale"] for row in metrics_csv.read_rows(tmp_path / "whole" / "metrics.csv")
    ]
    # Evaluations after steps 2, 4, ...; the second one without progress halves the rate of the next
    # step.
    assert scales == [1, 1, 1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25]
    assert train(tmp_path / "run", stop_after=7, **fields) is None
    train(tmp_path / "run", **fields)
    assert [
        row["rate_scale"] for row in metrics_csv.read_rows(tmp_path / "run" / "metrics.csv")
    ] == scales


def test_early_stopping_ends_the_run_and_the_same_command_finds_it_ended(tmp_path):
    fields = STUCK | {"stopping.patience": 2}
    result = train(tmp_path, **fields)
    # the first evaluation, and two without progress
    assert result["stopped_early"] and result["steps"] == 6
    rows = (tmp_path / "metrics.csv").read_text()
    assert train(tmp_path, **fields)["steps"] == 6
    assert (tmp_path / "metrics.csv").read_text() == rows


def test_snapshots_vote_with_their_mean_probabilities(tmp_path):
    fields = {
        "schedule.name": "sgdr",
        "schedule.cycle": 1.0,
        "schedule.growth": 2.0,
        "snapshots": True,
        "epochs": 3,
    }
    result = train(tmp_path, **fields)["snapshot_ensemble"]
    assert result["steps"] == [2, 6] and len(result["member_test_accuracies"]) == 2
    members = [np.load(tmp_path / "snapshots" / f"step-{step}.npy") for step in (2, 6)]
    label = read_dataset(tiny_config()).test.label
    assert result["ensemble_test_accuracy"] == np.mean(
        np.argmax(members[0] + members[1], axis=1) == label
    )
    for probabilities, accuracy in zip(members, result["member_test_accuracies"], strict=True):
        np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
        assert accuracy == np.mean(np.argmax(probabilities, axis=1) == label)


def logged(losses, **evaluated):
    """Rows of every step, of which every second one is an evaluation."""
    rows = []
    for step, loss in enumerate(losses, start=1):
        at = step // 2 - 1
        found = {
            name: values[at] if step % 2 == 0 else np.nan for name, values in evaluated.items()
        }
        rows.append({"step": float(step), "loss": loss} | found)
    return rows


def test_what_is_watched_is_the_column_or_the_loss_since_the_last_evaluation():
    accuracy, loss = [0.1, 0.3, 0.2], [2.0, np.nan, 1.5]
    rows = logged(
        [3.0, 5.0, 2.0, 8.0, 1.0, 0.0],
        test_accuracy=accuracy,
        validation_accuracy=accuracy,
        validation_loss=loss,
    )
    expected = {
        "loss": ([4.0, 5.0, 0.5], "lower"),
        "validation_loss": ([2.0, 1.5], "lower"),  # what is no number decides nothing
        "validation_accuracy": (accuracy, "higher"),
    }
    assert set(expected) == set(WATCHED)
    for watch, (history, better) in expected.items():
        found = supervised.watched(rows, watch=watch, patience=3)
        assert found == {"history": history, "better": better, "patience": 3}
    rows[0]["step"] = 0.5  # a row of another number of steps has another weight
    assert supervised.watched(rows, watch="loss")["history"][0] == (0.5 * 3 + 1.5 * 5) / 2


def test_a_run_from_before_there_was_the_column_has_no_history():
    rows = logged([3.0, 5.0], test_accuracy=[0.1])
    assert supervised.watched(rows, watch="validation_loss")["history"] == []


def test_the_validation_loss_is_the_mean_over_the_held_out_images():
    rng = np.random.default_rng(0)
    logits, label = rng.normal(size=(50, 4)).astype(np.float32), rng.integers(0, 4, 50)
    exact = logits.astype(np.float64)
    expected = np.mean(np.log(np.exp(exact).sum(1)) - exact[np.arange(50), label])
    assert supervised.mean_loss("softmax", logits, label) == pytest.approx(expected, rel=1e-6)


# --- Mistakes -------------------------------------------------------------------------------------

MISTAKES = {
    "loss=softmx": ["loss", "did you mean 'softmax'"],
    "encoder.name=convnext_tini": ["encoder.name", "did you mean 'convnext_tiny'"],
    "encoder.dropout=1": ["encoder.dropout", "1.0", "[0, 1)"],
    "encoder.residual=False": ["encoder.residual", "mlp"],
    "head.dropout=1": ["dropout", "1.0", "[0, 1)"],
    "init=pytorchh": ["init", "did you mean 'pytorch'"],
    "augment.flip=2": ["augment.flip", "2.0"],
    "augment.cutout=9": ["augment.cutout", "9", "8"],
    "augment.mean=0.1,0.2": ["mean"],
    "data.validation_size=1500": ["data.validation_size", "1500", "1297"],
    "data.random_labels=1.5": ["data.random_labels", "1.5", "from 0 to 1"],
    "plateau.watch=validation": ["plateau.watch", "'validation'", "validation_accuracy"],
    "stopping.watch=accuracy": ["stopping.watch", "'accuracy'", "validation_accuracy"],
    "plateau.factor=1": ["plateau.factor", "1.0"],
    "plateau.patience=2 data.validation_size=0": ["plateau.patience", "data.validation_size"],
    "stopping.patience=2 data.validation_size=0": ["stopping.patience", "data.validation_size"],
    "weights=/no/where.safetensors": ["weights", "/no/where.safetensors", "where nothing is"],
    "weights_step=last": ["weights_step", "'last'", "newest, best or the number of a step"],
    "data.labelled_share=0.005": ["data.labelled_share", "0.005", "5 of 1097", "10 classes"],
    "optimizer.name=adamm": ["optimizer.name", "did you mean 'adam'"],
    "optimizer.options.rho=0.5": ["optimizer.rho", "no option of adam", "b1, b2, eps"],
    "optimizer.options.b1=1.5": ["optimizer.b1", "1.5", "[0, 1)"],
    "optimizer.decay=pree": ["optimizer.decay", "did you mean 'pre'"],
    "optimizer.decay_scale=literall": ["optimizer.decay_scale", "did you mean 'literal'"],
    "optimizer.decay_scale=literal optimizer.weight_decay=1": ["optimizer.weight_decay", "[0, 1)"],
    "optimizer.decay_scale=literal optimizer.weight_decay=1 schedule.decay=cosine": [
        "weight_decay: got 1.0",
        "[0, 1)",
    ],
    "optimizer.layerwise=means": ["optimizer.layerwise", "did you mean 'mean'"],
    "optimizer.exclude=biass": ["optimizer.exclude", "'biass'", "none of"],
    "optimizer.clip_norm=-1": ["optimizer.clip_norm", "-1.0"],
    "schedule.name=sgd": ["schedule.name", "did you mean 'sgdr'"],
    "schedule.power=2": ["schedule.power", "constant"],
    "schedule.name=sgdr schedule.cycle=2 snapshots=True eval_every=3": ["eval_every", "3"],
    "task=pretrain": ["task", "'pretrain'", "of another task"],
}


@pytest.mark.parametrize("fields", MISTAKES)
def test_mistake_is_one_line_and_leaves_nothing(fields, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(supervised, "make_job", lambda *a: pytest.fail("went past the checks"))
    monkeypatch.setattr(
        supervised, "read_dataset", lambda *a: pytest.fail("read the data before all checks")
    )
    words = [f"--config.{field}" for field in fields.split()]
    digits = (
        "data.name=digits data.validation_size=200 batch_size=64 augment.flip=0 augment.mean=0.3, "
        "augment.std=0.4,"
    )
    # the last one of a kind counts
    words = [f"--config.{field}" for field in digits.split()] + words
    status = launch.main(
        ["launch.py", "--config=configs/supervised.py:mlp", f"--workdir={tmp_path}/new", *words]
    )
    error = capfd.readouterr().err
    assert status == 2 and error.startswith("error: ") and error.count("\n") == 1, error
    assert all(part in error for part in MISTAKES[fields]), error
    assert not list(tmp_path.iterdir())


def test_a_model_that_is_not_there(capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert (
        launch.main(
            ["launch.py", "--config=configs/supervised.py:swin", f"--workdir={tmp_path}/new"]
        )
        == 2
    )
    assert "model: got 'swin', did you mean 'swin_tiny'" in capfd.readouterr().err


@pytest.mark.parametrize("model", configuration.MODELS)
def test_every_model_can_be_built(model):
    config = configuration.get_config(model)
    parts = build_classifier(config, 10, 3, 100, 10, None)
    assert parts.order[-1] == "head" and set(parts.rules) == {"encoder", "head"}


def test_files_of_a_finished_run_survive_a_refused_start(finished, tmp_path, capfd):
    run = Path(shutil.copytree(finished[0], tmp_path / "run"))
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    with pytest.raises(UserError, match="another configuration"):
        train(run, **{"optimizer.decay": "pre"})
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before
