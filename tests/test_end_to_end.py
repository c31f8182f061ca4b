"""One small run through the door: pretrain, save, restore, probe, draw; then everything done to its
directory.
"""

import json
import shutil
import signal
from pathlib import Path

import chex
import numpy as np
import pytest
from PIL import Image

from ssl_jax import launch
from ssl_jax.tasks import training
from ssl_jax.workdir import metrics_csv
from ssl_jax.workdir.checkpoints import steps_in
from ssl_jax.workdir.dynamics_npz import read_dynamics

ROOT = Path(__file__).parent.parent
PROBE = """
    probe.epochs=2 probe.knn_k=5 probe.validation_size=32 probe.few_labels=2 probe.few_label_draws=2
    probe.protocol=seed
""".split()
TINY = """
    devices=2 data.train_size=96 batch_size=32 epochs=2 eval_every=1 checkpoint_every=1 log_every=2
    encoder.width=4 projector.hidden=8 projector.out=4 predictor.kind=linear schedule.name=constant
    views.jitter=0 views.crop_scale=0.5,1
""".split()
TINY += PROBE
PROMISED = """
    task method dataset seed epochs steps linear_accuracy knn_accuracy random_init_linear_accuracy
    seconds images_per_second device versions
""".split()


def command(config: str, workdir: Path, *fields: str) -> int:
    name, colon, argument = config.partition(":")
    words = [f"--config.{field}" for field in fields]
    start = ["launch.py", "--config", f"configs/{name}.py{colon}{argument}"]
    return launch.main([*start, "--workdir", str(workdir), *words])


def result_of(workdir: Path) -> dict:
    return json.loads((workdir / "result.json").read_text())


def contents(workdir: Path) -> dict:
    return {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The directory of a finished run."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        assert command("quickstart", out, *TINY) == 0
    return out


@pytest.fixture
def run(finished, tmp_path, monkeypatch):
    """A copy of the finished run, to do things to."""
    monkeypatch.chdir(ROOT)
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def no_training(monkeypatch):
    """Lets no step be taken: the loop may only find that nothing is left to do."""

    def nothing_left(held, batches, **rest):
        assert not list(batches), "there was something left to train"
        yield from ()
        return rest["start"]

    monkeypatch.setattr(training, "train_loop", nothing_left)


def test_result_has_what_is_promised(finished):
    result = result_of(finished)
    assert set(PROMISED) <= set(result)
    assert (result["task"], result["method"], result["dataset"]) == ("pretrain", "byol", "digits")
    assert (result["seed"], result["epochs"], result["steps"]) == (0, 2, 6)
    assert all(0 <= value <= 1 for name, value in result.items() if name.endswith("accuracy"))
    assert all(
        0 <= result["few_label"][name]["mean"] <= 1
        for name in ("pretrained", "random_init", "raw_pixels")
    )
    assert result["seconds"] > 0 and result["images_per_second"] > 0
    assert set(result["versions"]) >= {"jax", "flax", "optax"} and "cpu" in result["device"]
    assert len(result["correlation_eigenvalues"]) == 4 and result["verdict"]


def test_directory_holds_what_is_promised(finished):
    config = json.loads((finished / "config.json").read_text())
    assert config["views"]["crop_scale"] == [0.5, 1] and config["encoder"]["width"] == 4
    rows = metrics_csv.read_rows(finished / "metrics.csv")
    # Every second step, and where an epoch of three ends; judged where it ends.
    assert [row["step"] for row in rows] == [2, 3, 4, 6]
    assert [row["step"] for row in rows if 0 <= row["knn_validation"] <= 1] == [3, 6]
    assert all(np.isfinite(row["loss"]) and -2 <= row["loss"] <= 2 for row in rows)
    assert steps_in(finished / "checkpoints") == [3, 6]
    stems = ("training", "collapse", "spectrum", "features", "neighbours", "views")
    names = {f"{stem}.png" for stem in stems}
    assert {p.name for p in (finished / "figures").iterdir()} == names
    for name in names:
        with Image.open(finished / "figures" / name) as picture:
            picture.load()


def test_probe_of_the_checkpoint_agrees_with_the_end_of_pretraining(run, tmp_path):
    before = contents(run)
    assert command("probe", tmp_path / "probe", f"checkpoint={run}", *PROBE) == 0
    ours, theirs = result_of(tmp_path / "probe"), result_of(run)
    assert set(PROMISED) <= set(ours) and (ours["task"], ours["steps"]) == ("probe", 6)
    same = [name for name in theirs if name.endswith("accuracy")] + [
        "few_label",
        "seconds",
        "method",
        "epochs",
    ]
    assert {name: ours[name] for name in same} == {name: theirs[name] for name in same}
    (mine,), (kept,) = ((d / "features").glob("step-6*") for d in (tmp_path / "probe", run))
    with np.load(mine) as mine, np.load(kept) as kept:
        np.testing.assert_array_equal(mine["train_x"], kept["train_x"])
        np.testing.assert_array_equal(mine["test_x"], kept["test_x"])
    assert (tmp_path / "probe" / "figures" / "features.png").exists()
    assert contents(run) == before, "a probe wrote into the run that it judges"


def test_probe_of_an_earlier_step_is_of_other_weights(run, tmp_path):
    assert command("probe", tmp_path / "probe", f"checkpoint={run}", "step=3", *PROBE) == 0
    assert result_of(tmp_path / "probe")["steps"] == 3
    (mine,), (kept,) = ((d / "features").glob("step-*") for d in (tmp_path / "probe", run))
    with np.load(mine) as mine, np.load(kept) as kept:
        assert np.abs(mine["test_x"] - kept["test_x"]).max() > 1e-3


def test_the_same_command_again_trains_nothing(run, no_training):
    before, rows = result_of(run), (run / "metrics.csv").read_bytes()
    saved = {p: p.stat().st_mtime_ns for p in (run / "checkpoints").rglob("*") if p.is_file()}
    assert command("quickstart", run, *TINY) == 0
    after = result_of(run)
    assert after | {"probe_seconds": 0} == before | {"probe_seconds": 0}
    assert (run / "metrics.csv").read_bytes() == rows
    assert {p: p.stat().st_mtime_ns for p in saved} == saved


def test_a_run_of_before_a_field_came_goes_on_and_is_probed(run, tmp_path, no_training):
    config = json.loads((run / "config.json").read_text())
    del config["regularisers"]
    (run / "config.json").write_text(json.dumps(config))
    assert command("probe", tmp_path / "probe", f"checkpoint={run}", *PROBE) == 0
    assert command("quickstart", run, *TINY) == 0
    assert result_of(tmp_path / "probe")["linear_accuracy"] == result_of(run)["linear_accuracy"]


def test_other_probes_of_a_finished_run(run, no_training):
    assert command("quickstart", run, *TINY, "probe.random_init=false", "probe.ridge=false") == 0
    assert "ridge_accuracy" not in result_of(run) and "random_init_knn_accuracy" not in result_of(
        run
    )


@pytest.mark.slow
def test_how_long_f_is_remembered_changes_nothing_that_is_measured(tmp_path, monkeypatch):
    """Of a run whose predictor, a learned one, does not use F."""
    monkeypatch.chdir(ROOT)
    runs = tmp_path / "short", tmp_path / "long"
    for run, rho in zip(runs, (0.3, 0.9), strict=True):
        assert command("quickstart", run, *TINY, "dynamics.every=2", f"predictor.rho={rho}") == 0
    times = dict.fromkeys(("seconds", "images_per_second"), 0.0)
    rows = [[row | times for row in metrics_csv.read_rows(run / "metrics.csv")] for run in runs]
    chex.assert_trees_all_equal(*rows)
    records = [read_dynamics(run) for run in runs]
    chex.assert_trees_all_equal(*records)
    assert np.isfinite(records[0]["view_correlation"][-1]).all()
    one, other = (result_of(run)["correlation_eigenvalues"] for run in runs)
    assert one == other


def test_views_writes_its_picture_alone(run, tmp_path):
    assert command("quickstart", tmp_path / "views", *TINY, "task=views") == 0
    files = {str(p.relative_to(tmp_path / "views")) for p in contents(tmp_path / "views")}
    assert files == {"config.json", "provenance.json", "figures/views.png"}
    # What training saw at its first step, as the run itself drew it.
    assert (tmp_path / "views/figures/views.png").read_bytes() == (
        run / "figures/views.png"
    ).read_bytes()


# Refusals: one line, status 2, and not a byte of what is there changes.


def check_refused(
    capfd, run: Path, parts: list[str], config: str, workdir: Path, *fields: str
) -> None:
    before = contents(run)
    capfd.readouterr()
    assert command(config, workdir, *fields) == 2
    error = capfd.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert (
        len(lines) == 1 and "Traceback" not in error and all(part in lines[0] for part in parts)
    ), error
    assert contents(run) == before


REFUSED = {
    "other seed": (["seed=1"], ["--workdir", "seed 0 -> 1", "another directory"]),
    "other network": (["encoder.width=8", "log_every=1"], ["encoder.width 4 -> 8"]),
    "fewer epochs": (["epochs=1"], ["epochs", "got 1", "already gone 2"]),
    "too many neighbours": (["probe.knn_k=65"], ["probe.knn_k", "65", "at most 64"]),
    "too few labels": (["probe.few_labels=50", "epochs=3"], ["probe.few_labels", "50"]),
    "lost data": (["data.data_dir=/no/where"], ["data.data_dir", "/no/where"]),
    "another task": (["task=views"], ["'pretrain'", "'views'"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_command_on_a_run_changes_nothing(case, run, capfd):
    fields, parts = REFUSED[case]
    check_refused(capfd, run, parts, "quickstart", run, *TINY, *fields)


def truncate(checkpoint: Path) -> None:
    """Cuts the arrays of a checkpoint short, as a full disk does."""
    for path in checkpoint.rglob("d/*"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_truncated_checkpoint(run, tmp_path, capfd):
    truncate(run / "checkpoints" / "6")
    takes = [str(run / "checkpoints" / "6"), "truncated"]
    check_refused(capfd, run, takes, "quickstart", run, *TINY, "log_every=1")
    check_refused(capfd, run, takes, "probe", tmp_path / "probe", f"checkpoint={run}", *PROBE)
    assert not (tmp_path / "probe").exists()


def test_damaged_config_json(run, tmp_path, capfd):
    for text, part in (
        ("{", "damaged"),
        ('{"task": "pretrain"}', "damaged"),
        ('{"task": "views"}', "'views'"),
    ):
        (run / "config.json").write_text(text)
        check_refused(capfd, run, [part], "probe", tmp_path / "probe", f"checkpoint={run}", *PROBE)
    (run / "config.json").write_text("{")
    check_refused(capfd, run, ["config.json", "damaged"], "quickstart", run, *TINY)


def test_probe_of_what_is_not_there(run, tmp_path, capfd):
    probe = ["probe", tmp_path / "probe", f"checkpoint={run}", *PROBE]
    check_refused(capfd, run, ["step", "got 5", "3, 6"], *probe, "step=5")
    check_refused(capfd, run, ["step", "got '-2'", "newest"], *probe, "step=-2")
    check_refused(capfd, run, ["probe.few_labels", "500"], *probe, "probe.few_labels=500")
    check_refused(capfd, run, ["'pretrain'", "'probe'"], "probe", run, f"checkpoint={run}", *PROBE)
    shutil.rmtree(run / "checkpoints")
    check_refused(capfd, run, ["checkpoints", "no checkpoint"], *probe)
    assert not (tmp_path / "probe").exists()


def test_control_c_leaves_a_run_that_can_go_on(run, heeds_control_c, monkeypatch, capfd):
    """The signal itself, in the middle of the training loop."""
    rows, steps = (run / "metrics.csv").read_bytes(), steps_in(run / "checkpoints")
    monkeypatch.setattr(training, "train_loop", lambda *a, **k: signal.raise_signal(signal.SIGINT))
    assert command("quickstart", run, *TINY, "epochs=3") == 130
    error = capfd.readouterr().err
    assert "the same command goes on" in error and "Traceback" not in error
    assert (run / "metrics.csv").read_bytes() == rows and steps_in(run / "checkpoints") == steps
    assert json.loads((run / "config.json").read_text())["epochs"] == 3
