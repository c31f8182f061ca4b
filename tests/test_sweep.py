"""Sweeps: what they run, in which order, with whom, and what of it is kept."""

import json
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest
from ml_collections import ConfigDict

from configs import cifar10, cifar10_small, quickstart
from configs.sweeps.cells import BASES, TABLES, sweep_config
from ssl_jax import launch
from ssl_jax.builders import pretraining
from ssl_jax.builders.fields import flat
from ssl_jax.errors import UserError
from ssl_jax.reports.replication.published import PUBLISHED
from ssl_jax.runtime import lease
from ssl_jax.runtime.stops import Stopped
from ssl_jax.sweeps import tables
from ssl_jax.tasks import sweep
from ssl_jax.workdir import result_json
from ssl_jax.workdir.directory import flatten, open_workdir
from ssl_jax.workdir.lock import locked

ROOT = Path(__file__).parent.parent
TINY = """
    epochs=1 batch_size=32 data.train_size=96 log_every=2 eval_every=0 checkpoint_every=1
    encoder.width=4 projector.hidden=8 projector.out=4 predictor.hidden=8 views.jitter=0
    views.crop_scale=0.5,1 probe.epochs=1 probe.knn_k=5 probe.validation_size=32 probe.ridge=False
    probe.random_init=False
""".split()


# --- What the tables are --------------------------------------------------------------------------


def config_of(name: str, scale: str, cell: str) -> ConfigDict:
    config = runpy.run_path(str(ROOT / f"configs/sweeps/{name}.py"))["get_config"]()
    config.scale = scale
    return tables.cell_config(config, cell)


def test_published_numbers():
    """Höppe et al. 2022, tables 1 to 3; Tian et al. 2021, table 8, CIFAR-10."""
    numbers = {name: [cell.accuracy for cell in cells] for name, cells in PUBLISHED.items()}
    assert numbers["table1"] == [85.7, 84.2, 20.3, 79.4]
    assert numbers["table2"] == [83.3, 84.7, 84.1, 77.8, 78.6]
    assert numbers["table3"] == [81.34, 81.69, 79.1, 81.39, 80.78, 80.42, 20.27, 79.22]
    table8 = {p.cell: (p.accuracy, p.std) for p in PUBLISHED["original_table8"]}
    assert table8["directpred_100"] == (85.21, 0.23) and table8["directpred5_300"] == (88.83, 0.10)
    assert table8["linear_500"] == (89.33, 0.27) and len(table8) == 9
    doubtful = {
        p.cell for name in ("table1", "table2", "table3") for p in PUBLISHED[name] if p.note
    }
    assert doubtful == {"byol_sym", "byol", "directpred_noema"}


@pytest.mark.parametrize("name", TABLES)
def test_every_cell_can_be_built(name):
    for scale in TABLES[name][0].overrides:
        for cell in TABLES[name]:
            config = config_of(name, scale, cell.name)
            assert set(flat(config)) == set(flat(cifar10.get_config()))
            parts = pretraining.build(config, 1000, 10, None)
            assert (parts.tau is None) == ("simsiam" in cell.name or "noema" in cell.name)
            assert config.predictor.symmetric == ("_sym" in cell.name)
            assert config.method == cell.name or name in ("original_table8", "optimisers")


def test_cells_are_what_their_single_configurations_are():
    """All but the recording and the length of the probe, which is the same written out."""
    for name in ("table1", "table2", "directcopy", "family"):
        for scale, module in BASES.items():
            for cell in TABLES[name]:
                config, single = config_of(name, scale, cell.name), module.get_config(cell.name)
                assert (config.probe.epochs, config.probe.protocol) in ((100, "seed"), (0, "seed"))
                config.probe.epochs, config.dynamics.every = (
                    single.probe.epochs,
                    single.dynamics.every,
                )
                assert config.to_dict() == single.to_dict()
    for cell in TABLES["decay_ssl"]:
        config, single = (
            config_of("decay_ssl", "mini", cell.name),
            cifar10_small.get_config(cell.name),
        )
        assert (
            config.optimizer.to_dict() == single.optimizer.to_dict()
            and config.method == single.method
        )


@pytest.mark.parametrize("scale", BASES)
def test_what_might_free_directpred_is_one_field_each(scale):
    """Of the pairs two; no two cells are the same run."""
    cells = [config_of("noema", scale, cell.name).to_dict() for cell in TABLES["noema"]]
    first, *others = map(flatten, cells)
    changes = [{k: v for k, v in one.items() if v != first[k] and k != "method"} for one in others]
    names = [cell.name.split("-")[1:] for cell in TABLES["noema"][1:]]
    assert [len(change) for change in changes] == [len(name) for name in names]
    assert len({str(change) for change in changes}) == len(changes)


def rates(config) -> tuple:
    optimizer = config.optimizer
    own = optimizer.predictor
    return optimizer.learning_rate, optimizer.weight_decay, own.learning_rate, own.weight_decay


def test_table3_has_its_own_rates_and_decays():
    for cell in TABLES["table3"]:
        decays = (0.0337, 4e-4, 4e-4) if "wdp" in cell.name else (0.0, 0.0, 0.0)
        for scale, decay, epochs in zip(BASES, decays, (6, 30, 101), strict=True):
            config = config_of("table3", scale, cell.name)
            assert rates(config) == (0.2, 0.0, 2.0, decay) and (
                config.epochs,
                config.probe.epochs,
            ) == (epochs, 50)
            assert config.predictor.kind == "mlp"
    # 1: the mean of a cosine from 2
    full, mini = 2 * 4e-4 * 101 * 390, 1 * 0.0337 * 6 * (20_000 // 128)
    assert mini == pytest.approx(full, rel=2e-3)


def test_scales_that_were_fixed():
    mini, full = sweep_config("table1").mini, sweep_config("table1").full
    assert (mini.data.train_size, mini.encoder.name, mini.encoder.width, mini.epochs) == (
        20_000,
        "convnet",
        32,
        6,
    )
    assert (*rates(mini)[:2], mini.schedule.name, mini.target.tau) == (0.05, 0.02, "cosine", 0.99)
    assert (mini.dynamics.every, mini.log_every) == (26, 26)
    assert (*rates(full)[:2], full.epochs, full.encoder.name) == (0.03, 4e-4, 100, "resnet18")
    midi = sweep_config("table1").midi
    assert (midi.encoder.width, midi.epochs, midi.data.train_size) == (16, 30, 0)
    full.encoder.width, full.epochs = midi.encoder.width, midi.epochs
    assert midi.to_dict() == full.to_dict()  # the published protocol but for these two
    original = config_of("original_table8", "full", "directpred5_300")
    assert (original.loss_scale, original.init, original.probe.protocol) == (
        2.0,
        "pytorch",
        "original",
    )
    assert (original.epochs, original.predictor.every, original.optimizer.exclude) == (300, 5, "")


# --- The engine, with a pretraining that only pretends --------------------------------------------


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Table 1 on the digits, its store beside."""
    monkeypatch.chdir(ROOT)
    # Nothing is compiled here but the checks of a cell; and a look for garbage among all tests'
    # objects takes a second.
    monkeypatch.setattr(jax, "clear_caches", lambda: None)
    monkeypatch.setattr(sweep.gc, "collect", lambda: 0)
    config = sweep_config("table1")
    config.mini = quickstart.get_config()
    config.mini.update_from_flattened_dict(
        {"epochs": 1, "batch_size": 32, "data.train_size": 96, "encoder.width": 4}
        | {"probe.validation_size": 32, "probe.knn_k": 5, "probe.few_labels": 0}
    )
    config.seeds, config.store = (0, 1), str(tmp_path / "store")
    return config


class Pretend:
    """pretrain(), which takes no time. ran: (cell, seed) in the order in which they ran; breaks:
    cells that break.
    """

    def __init__(self, **breaks):
        self.ran, self.breaks = [], breaks

    def __call__(self, config, directory, interrupted):
        out = open_workdir(directory, config.to_dict())
        self.ran.append((config.method, config.seed))
        if error := self.breaks.get(config.method):
            raise error
        if not interrupted():
            result_json.write(out, {"task": "pretrain", "linear_accuracy": 0.5})


def never() -> bool:
    return False


def run(config, directory, pretrain, interrupted=never):
    sweep.sweep(config, str(directory), interrupted, pretrain)


NAMES = ["byol_sym", "byol", "simsiam_sym", "simsiam"]
EVERYTHING = [(name, seed) for seed in (0, 1) for name in NAMES]


def test_one_seed_of_every_cell_before_the_second_of_any(config, tmp_path, capsys):
    pretend = Pretend()
    run(config, tmp_path / "w", pretend)
    assert pretend.ran == EVERYTHING
    text = capsys.readouterr().out
    assert "0 of 8 cells done" in text and "8 of 8 cells done, 0 failed" in text
    assert re.search(r"3 of 8 cells done; simsiam_sym seed 0 took \d+ s; about \d+ s to go", text)
    run(config, tmp_path / "w", pretend)
    assert pretend.ran == EVERYTHING, "what was finished ran again"
    config.seeds, config.cells = (2,), "simsiam, byol"
    run(config, tmp_path / "w", pretend)
    assert pretend.ran[8:] == [("simsiam", 2), ("byol", 2)]


def test_store_has_what_reproduces_a_cell(config, tmp_path):
    config.data_dir = str(tmp_path)
    run(config, tmp_path / "w", Pretend())
    files = {
        p.relative_to(tmp_path / "store").as_posix(): p
        for p in (tmp_path / "store").rglob("*")
        if p.is_file()
    }
    assert set(files) == {f"table1/mini/{name}/seed-{seed}.json" for name, seed in EVERYTHING}
    stored = json.loads(files["table1/mini/simsiam_sym/seed-1.json"].read_text())
    expected = {
        "linear_accuracy": 0.5,
        "sweep": "table1",
        "scale": "mini",
        "cell": "simsiam_sym",
        "seed": 1,
    }
    assert stored.items() >= expected.items() and stored["dynamics"] is None
    assert set(stored["provenance"]) == {"commit", "changed", "version"}
    assert "data_dir" not in stored["config"]["data"] and str(tmp_path) not in json.dumps(stored)
    config.data_dir = ""
    single = launch.parse_flags(stored["command"].split()[1:])["config"].value
    cell = tables.cell_config(config, "simsiam_sym")
    cell.seed = 1
    assert flatten(json.loads(single.to_json())) == flatten(json.loads(cell.to_json()))


def test_finished_cell_without_its_file_gets_it(config, tmp_path):
    pretend, path = Pretend(), tmp_path / "store/table1/mini/byol/seed-0.json"
    run(config, tmp_path / "w", pretend)
    before = path.read_bytes()
    path.unlink()
    run(config, tmp_path / "w", pretend)
    assert path.read_bytes() == before and len(pretend.ran) == 8


def test_stored_cell_is_not_run_elsewhere(config, tmp_path, capsys):
    run(config, tmp_path / "w", Pretend())
    (tmp_path / "store/table1/mini/byol/seed-0.json").unlink()
    pretend = Pretend()
    run(config, tmp_path / "elsewhere", pretend)
    assert pretend.ran == [("byol", 0)]
    assert capsys.readouterr().out.count("done elsewhere") == 7
    config.again = True
    run(config, tmp_path / "elsewhere", pretend)
    assert len(pretend.ran) == 8


def test_broken_cells_stop_no_other(config, tmp_path, capsys):
    pretend = Pretend(
        byol_sym=UserError("loss: became nan at step 7"), simsiam=ZeroDivisionError("ours")
    )
    with pytest.raises(SystemExit) as stopped:
        run(config, tmp_path / "w", pretend)
    assert stopped.value.code == 1 and pretend.ran == EVERYTHING
    lines = capsys.readouterr().out.splitlines()
    line = "failed: byol_sym seed 0: loss: became nan at step 7"
    assert lines.count(line) == 2 and lines.index(line) < lines.index(
        "--- table1 at scale mini: byol seed 0 ---"
    )
    assert lines[-5:-1] == sorted(lines[-5:-1], key=lines.index) and line in lines[-5:-1]
    assert lines[-1].endswith("4 of 8 cells done, 4 failed")
    assert "ZeroDivisionError: ours" in (tmp_path / "w/mini/simsiam/seed-1.failed.txt").read_text()
    assert "Traceback" in (tmp_path / "w/mini/simsiam/seed-1.failed.txt").read_text()
    again = Pretend()
    run(config, tmp_path / "w", again)
    assert again.ran == [pair for pair in EVERYTHING if pair[0] in ("byol_sym", "simsiam")]
    assert not list((tmp_path / "w").rglob("*.failed.txt"))


def test_cell_that_broke_elsewhere_meanwhile_is_not_tried_again(config, tmp_path):
    """Two processes at one sweep: what broke for the one, the other tells too."""
    failed = tmp_path / "w/mini/simsiam/seed-1.failed.txt"

    class Other(Pretend):
        def __call__(self, *arguments):
            super().__call__(*arguments)
            failed.parent.mkdir(parents=True, exist_ok=True)
            failed.write_text("loss: became nan\n")
            os.utime(failed, (time.time() + 1,) * 2)

    pretend = Other()
    with pytest.raises(SystemExit):
        run(config, tmp_path / "w", pretend)
    assert pretend.ran == EVERYTHING[:-1]


def test_time_is_over(config, tmp_path, capsys):
    """The cell at work is left unfinished, the next start goes on with it."""
    config.minutes = 1e-9
    pretend = Pretend()
    with pytest.raises(SystemExit) as stopped:
        run(config, tmp_path / "w", pretend)
    assert stopped.value.code == 75
    assert not pretend.ran and "stopped with 0 of 8" in capsys.readouterr().out
    config.minutes = 0.0
    run(config, tmp_path / "w", pretend, interrupted=lambda: len(pretend.ran) == 3)
    assert pretend.ran == EVERYTHING[:3] and "stopped with 2 of 8" in capsys.readouterr().out
    run(config, tmp_path / "w", pretend)
    assert pretend.ran[3:] == EVERYTHING[2:]


def test_a_stop_leaves_the_cell_to_others(config, tmp_path, capsys):
    """`Stopped` passes through the sweep once training has saved; it is no failure of a cell."""

    class Stopping(Pretend):
        def __call__(self, config, directory, interrupted):
            raise Stopped

    with pytest.raises(Stopped):
        run(config, tmp_path / "w", Stopping())
    out = capsys.readouterr().out
    assert "stopped with 0 of 8" in out and "failed" not in out
    pretend = Pretend()
    run(config, tmp_path / "w", pretend)
    assert pretend.ran == EVERYTHING


def test_a_cell_that_somebody_works_on_by_itself(config, tmp_path, capsys):
    """Not through a sweep, whose lease of the cell it knows nothing of."""
    pretend, config.wait = Pretend(), False
    with locked(tmp_path / "w/mini/byol/seed-0"):
        run(config, tmp_path / "w", pretend)
    out = capsys.readouterr().out
    assert "stopped with 7 of 8 cells done" in out and "failed" not in out
    run(config, tmp_path / "w", pretend)
    assert sorted(pretend.ran) == sorted(EVERYTHING)


def test_waits_for_what_another_process_holds(config, tmp_path, capsys, monkeypatch):
    """It is told who; and once that one is gone, its cell is taken over."""
    config.seeds, config.cells = (0,), "byol, simsiam"
    held = lease.claim(tmp_path / "w/mini/leases/byol.seed-0")
    monkeypatch.setattr(sweep, "LOOK", 0.01)
    pretend, looks = Pretend(), []

    def look() -> bool:
        looks.append(pretend.ran[:])
        if len(looks) == 50:
            held.write_text(lease.FREE)
        return False

    run(config, tmp_path / "w", pretend, look)
    assert pretend.ran == [("simsiam", 0), ("byol", 0)] and looks[40] == [("simsiam", 0)]
    line = f"waiting for byol seed 0, at which process {os.getpid()} on "
    assert capsys.readouterr().out.count(line) == 1


def test_need_not_wait(config, tmp_path, capsys):
    config.seeds, config.cells, config.wait = (0,), "byol, simsiam", False
    lease.claim(tmp_path / "w/mini/leases/byol.seed-0")
    pretend = Pretend()
    run(config, tmp_path / "w", pretend)
    assert pretend.ran == [("simsiam", 0)] and "stopped with 1 of 2" in capsys.readouterr().out


def test_lost_cell_is_left_to_who_took_it(config, tmp_path, capsys, monkeypatch):
    """It is not saved into, nor does it count as broken."""
    config.seeds, config.cells = (0,), "byol"
    taken = tmp_path / "w/mini/leases/byol.seed-0/2"
    result = tmp_path / "w/mini/byol/seed-0/result.json"
    monkeypatch.setattr(sweep, "LOOK", 0.01)
    holding = lease.holding
    monkeypatch.setattr(lease, "holding", lambda path: holding(path, 0.01))

    def slept(config, directory, interrupted):
        taken.touch()
        time.sleep(0.1)
        result.parent.mkdir(parents=True, exist_ok=True)
        result.write_text("{}")  # by who took it
        interrupted()
        raise AssertionError("went on with another's cell")

    run(config, tmp_path / "w", slept)
    text = capsys.readouterr().out
    assert (
        "byol seed 0: taken over by another process" in text
        and "1 of 1 cells done, 0 failed" in text
    )


REFUSED = {
    "scale": (lambda c: c.update(scale="mni"), "scale: got 'mni', did you mean 'mini'"),
    "no table": (lambda c: c.update(sweep=""), "sweep: got '', takes the table's name"),
    "cell": (
        lambda c: c.update(cells="byol,simsiam_sim"),
        "cells: got 'simsiam_sim', did you mean 'simsiam_sym'",
    ),
    "no cell": (lambda c: c.update(cells=""), "cells: got '', it takes: byol, byol_sym"),
    "seeds": (lambda c: c.update(seeds=(0, "a")), "seeds: got .* takes different whole numbers"),
    "seed twice": (lambda c: c.update(seeds=(1, 1)), "seeds: got"),
    "no seed": (lambda c: c.update(seeds=()), "seeds: got"),
    "minutes": (lambda c: c.update(minutes=-1.0), "minutes: got -1"),
    "store": (lambda c: c.update(store="/dev/null/store"), "store: /dev/null.* cannot be written"),
    "a field of all": (lambda c: c.mini.update(epochs=0), "cell byol_sym: epochs: got 0"),
    "a field of one": (
        lambda c: c.overrides.mini.simsiam.target.update(tau=2.0),
        "cell simsiam: target.tau: got 2.0",
    ),
    "data": (lambda c: c.mini.probe.update(knn_k=1000), "probe.knn_k: got 1000"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_anything_runs(config, tmp_path, case):
    change, message = REFUSED[case]
    change(config)
    pretend = Pretend()
    with pytest.raises(UserError, match=message):
        run(config, tmp_path / "w", pretend)
    assert not pretend.ran and not list(tmp_path.rglob("config.json"))


def test_nothing_is_written_through_links_of_the_store(config, tmp_path):
    """A folder that is a link; a file that is one, to nothing: found before anything runs."""
    config.store = str(tmp_path / "store")
    theirs, place = tmp_path / "theirs", tmp_path / "store" / "table1" / "mini"
    theirs.mkdir()
    place.parent.mkdir(parents=True)
    place.symlink_to(theirs)
    pretend = Pretend()
    with pytest.raises(UserError, match=f"store: {place}: is a link"):
        run(config, tmp_path / "w", pretend)
    place.unlink()
    stored = place / "byol" / "seed-0.json"
    stored.parent.mkdir(parents=True)
    stored.symlink_to(theirs / "gone.json")
    with pytest.raises(UserError, match=f"{stored}: not found"):
        run(config, tmp_path / "w2", pretend)
    assert not pretend.ran and not list(theirs.iterdir())


def test_directory_and_store_of_another_sweep_are_refused(config, tmp_path):
    run(config, tmp_path / "w", Pretend())
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    config.mini.epochs = 2
    with pytest.raises(UserError, match="--workdir: .*mini/config.json .*mini.epochs 1 -> 2"):
        run(config, tmp_path / "w", Pretend())
    with pytest.raises(UserError, match="store: .*seed-0.json .*epochs 1 -> 2.*again=True"):
        run(config, tmp_path / "other", Pretend())
    # was None: the rest's
    config.mini.epochs, config.mini.optimizer.predictor.learning_rate = 1, 0.5
    for directory, field in (("w", "--workdir"), ("other", "store")):
        with pytest.raises(UserError, match=f"{field}: .*predictor.learning_rate None -> 0.5"):
            run(config, tmp_path / directory, Pretend())
    config.mini.optimizer.predictor.learning_rate, config.sweep = None, "table2"
    with pytest.raises(UserError, match="--workdir: .*'table1' -> 'table2'"):
        run(config, tmp_path / "w", Pretend())
    with pytest.raises(UserError, match="--workdir: .*holds the task 'pretrain'"):
        run(config, tmp_path / "w/mini/byol/seed-0", Pretend())
    config.sweep = "table1"
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    config.mini.log_every, config.seeds, config.minutes, config.data_dir = (
        3,
        (0,),
        5.0,
        str(tmp_path),
    )
    run(config, tmp_path / "w", Pretend())


OTHER = {
    "devices": 1,
    "steps_per_call": "1",
    "log_every": 3,
    "eval_every": 2,
    "checkpoint_every": 2,
}
OTHER |= {"data.resident": "no", "dynamics.every": 3, "tensorboard": True}


def test_starts_may_differ_in_what_any_run_may_but_in_no_probe(config, tmp_path):
    """A pretraining run may be probed anew. Cells of a sweep may not: their accuracies stand in one
    table.
    """
    run(config, tmp_path / "w", Pretend())
    for name, value in OTHER.items():
        config.mini.update_from_flattened_dict({name: value})
        run(config, tmp_path / "w", Pretend())
    config.mini.probe.knn_k = 6
    with pytest.raises(UserError, match="--workdir: .*probe.knn_k 5 -> 6"):
        run(config, tmp_path / "w", Pretend())
    with pytest.raises(UserError, match="store: .*probe.knn_k 5 -> 6"):
        run(config, tmp_path / "other", Pretend())


# --- For real, through the door -------------------------------------------------------------------


def words(tmp_path: Path, table: str, cells: str, *fields: str) -> list[str]:
    """Cells on the digits, in seconds."""
    base = (
        "data.name=digits views.recipe=digits encoder.name=convnet_digits dynamics.every=2 "
        "devices=1"
    ).split()
    own = [f"cells={cells}", "seeds=0,", f"store={tmp_path / 'store'}"]
    start = [
        "launch.py",
        "--config",
        f"configs/sweeps/{table}.py",
        "--workdir",
        str(tmp_path / "w"),
    ]
    return (
        start
        + [f"--config.mini.{field}" for field in (*base, *TINY, *fields)]
        + [f"--config.{f}" for f in own]
    )


@pytest.mark.slow
def test_through_the_door(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(ROOT)
    assert launch.main(words(tmp_path, "table2", "linear")) == 0
    assert "1 of 1 cells done, 0 failed" in capfd.readouterr().out
    stored = json.loads((tmp_path / "store/table2/mini/linear/seed-0.json").read_text())
    result = json.loads((tmp_path / "w/mini/linear/seed-0/result.json").read_text())
    origin = result.pop("provenance")  # of which the store has what names no place
    assert stored["provenance"].items() <= origin.items() and "command" not in stored["provenance"]
    assert stored.items() >= result.items()
    assert stored["method"] == "linear" and stored["steps"] == 3
    history, last = stored["dynamics"]["history"], stored["dynamics"]["last"]
    assert history["step"] == [0, 2, 3] and len(history["corr_eigenvalues"][-1]) == 4
    assert (
        last["step"] == 3 and len(last["parameter_norm"]) == 3 and -1 <= last["weight_cosine"] <= 1
    )
    assert json.loads(json.dumps(stored, allow_nan=False)) == stored


def start(tmp_path: Path, *fields: str) -> subprocess.Popen:
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "PYTHONUNBUFFERED": "1",
    }
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    command = [sys.executable, *words(tmp_path, "table1", "byol,simsiam", *fields)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)


def wait_for(path: Path, process: subprocess.Popen) -> None:
    begin = time.monotonic()
    while not path.exists():
        assert process.poll() is None and time.monotonic() - begin < 600, process.communicate(
            timeout=9
        )
        time.sleep(0.002)


@pytest.mark.slow
def test_killed_and_started_again_at_once(tmp_path):
    long = "epochs=10"
    process = start(tmp_path, long)
    wait_for(tmp_path / "w/mini/byol/seed-0/checkpoints/6", process)
    process.kill()
    text, _ = start(tmp_path, long).communicate(timeout=600)
    assert (
        "going on from step" in text
        and "2 of 2 cells done, 0 failed" in text
        and "waiting" not in text
    ), text
    process.communicate()


@pytest.mark.slow
def test_two_processes_share_the_work(tmp_path):
    both = [start(tmp_path), start(tmp_path)]
    texts = [process.communicate(timeout=600)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], texts
    ran = [re.findall(r"--- table1 at scale mini: (\w+) seed 0 ---", text) for text in texts]
    assert sorted(ran[0] + ran[1]) == ["byol", "simsiam"] and len(ran[0]) == len(ran[1]) == 1, texts
    assert all("2 of 2 cells done, 0 failed" in text for text in texts)


@pytest.mark.slow
def test_asked_to_stop_it_saves_and_goes_on(tmp_path):
    long = "epochs=10"
    process = start(tmp_path, long)
    wait_for(tmp_path / "w/mini/byol/seed-0/checkpoints/6", process)
    process.send_signal(signal.SIGTERM)
    text, _ = process.communicate(timeout=600)
    step = re.search(r"stopped at step (\d+) of 30, saved", text)[1]
    assert process.returncode == 75 and "stopped with 0 of 2 cells done" in text
    text, _ = start(tmp_path, long).communicate(timeout=600)
    assert f"going on from step {step}" in text and "2 of 2 cells done, 0 failed" in text
