"""Configurations of other people's runs, older, damaged or false, read from their directories."""

import json
import math
import re
import runpy
from pathlib import Path

import pytest
from commands import TINY

from ssl_jax import launch
from ssl_jax.builders.defaults import TABLES, default_config, defaults_in
from ssl_jax.builders.supervised import earlier_defaults
from ssl_jax.builders.trained_run import read_trained
from ssl_jax.diagnosis.history import facts_of
from ssl_jax.errors import UserError
from ssl_jax.sweeps.jobs import refuse_other
from ssl_jax.types import Config
from ssl_jax.workdir.directory import check_workdir, spread

ROOT = Path(__file__).parent.parent


def plain() -> dict:
    """Every field at its default, as JSON has it."""
    return json.loads(json.dumps(default_config().to_dict()))


def write(folder: Path, content) -> Path:
    folder.mkdir(exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "config.json").write_text(text)
    return folder


FIELDS = sorted(spread(plain()))
SECTIONS = sorted({name.rpartition(".")[0] for name in FIELDS} - {""})
# What stands in the place of a field, as text of JSON.
ATTACKS = {
    "text": '"x"',
    "empty": '""',
    "null": "null",
    "whole": "3",
    "negative": "-1",
    "fraction": "0.5",
    "nothing": "0",
    "huge": "1" + "0" * 30,
    "large": "1" + "0" * 12,
    "infinite": "1e400",
    "nan": "NaN",
    "true": "true",
    "list": "[1, 2]",
    "words": '["x", "y"]',
    "dict": '{"a": {"b": 1}}',
    "zero byte": '"\\u0000"',
    "surrogate": '"\\ud800"',
}
DELETED = "deleted"


def attacked(field: str, attack: str, content: dict | None = None) -> str:
    """A configuration as text of JSON, with something else in place of a field or section."""
    content = content or plain()
    *sections, last = field.split(".")
    inner = content
    for section in sections:
        inner = inner[section]
    if attack == DELETED:
        del inner[last]
        return json.dumps(content)
    inner[last] = "HERE"
    return json.dumps(content).replace('"HERE"', ATTACKS[attack])


def fits(value, default: Config, field: str) -> bool:
    """Whether a value of JSON is of the type that the table of fields gives the field."""
    *sections, last = field.split(".")
    for section in sections:
        default = default[section]
    kind = default.get_type(last)
    if value is None:
        return default[last] is None
    if kind is tuple:
        return isinstance(value, list) and all(isinstance(x, int | float) for x in value)
    if kind is float:
        known = isinstance(value, int | float) and not isinstance(value, bool)
        return known and math.isfinite(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    return isinstance(value, kind)


def refusal(folder: Path) -> str | None:
    """The line by which the readers of probe, doctor and dynamics refuse; None: they take it."""
    try:
        config = read_trained(folder)
    except UserError as error:
        return str(error)
    facts = facts_of(config.to_dict(), 100)
    assert isinstance(facts.sees_scale, bool) and isinstance(facts.learned, bool)
    return None


@pytest.mark.parametrize("field", [name for name in FIELDS if name != "task"])
def test_every_field_is_taken_or_refused_in_one_line(field, tmp_path):
    table, tried = default_config(), 0
    name = re.escape(f"{tmp_path}/config.json: ")
    for attack, text in ATTACKS.items():
        line = refusal(write(tmp_path, attacked(field, attack)))
        if not fits(json.loads(text), table, field):
            assert re.match(f"{name}{re.escape(field)}: got .*, takes ", line), (attack, line)
        elif line is None:
            found = spread(read_trained(tmp_path).to_dict())[field]
            expected = json.loads(text)
            assert found == (float(expected) if isinstance(found, float) else expected), attack
        else:
            assert re.match(name, line) and "\n" not in line and len(line) < 600, (attack, line)
        tried += 1
    write(tmp_path, attacked(field, DELETED))
    assert read_trained(tmp_path).to_dict() == table.to_dict()
    assert tried == len(ATTACKS)


@pytest.mark.parametrize("section", SECTIONS)
def test_every_section_is_taken_or_refused_in_one_line(section, tmp_path):
    for attack in ATTACKS:
        line = refusal(write(tmp_path, attacked(section, attack)))
        if attack == "dict":
            assert line.startswith(f"{tmp_path}/config.json: {section}.a: no such field"), line
        else:
            takes = f"{tmp_path}/config.json: {section}: got .*, takes a section with "
            assert re.match(takes, line), (attack, line)
    write(tmp_path, attacked(section, DELETED))
    assert read_trained(tmp_path).to_dict() == default_config().to_dict()


def test_a_configuration_is_read_as_it_is(tmp_path):
    """With sections that are configurations, and the types of the table."""
    config = runpy.run_path(str(ROOT / "configs" / "cifar10_small.py"))["get_config"]("byol-pwd")
    config.views.crop_scale = (0.3, 1.0)
    config.probe.seed = 7
    config.optimizer.learning_rate = 1  # a whole number for a number
    read = read_trained(write(tmp_path, json.dumps(config.to_dict())))
    assert read.to_dict() == config.to_dict()
    assert read.views.crop_scale == (0.3, 1.0) and type(read.optimizer.learning_rate) is float
    assert read.encoder.name == "convnet"


@pytest.mark.parametrize("task", sorted(set(TABLES) - {"embed", "export", "probe", "views"}))
def test_every_task_that_trains_can_be_read(task, tmp_path):
    content = json.loads(json.dumps(TABLES[task]().to_dict()))
    del content["seed"], content["optimizer"]["momentum"]
    assert read_trained(write(tmp_path, content), task) == TABLES[task]()
    content["encoder"]["width"] = "wide"
    with pytest.raises(UserError, match="encoder.width: got 'wide', takes a whole number"):
        read_trained(write(tmp_path, content), task)


WRONG = {
    "another task": ({"task": "supervised"}, "task: got 'supervised', takes 'pretrain'"),
    "no task": ({"method": "byol"}, "task: got none, takes 'pretrain'"),
    "a task that is none": ({"task": [3]}, r"task: got \[3\], takes 'pretrain'"),
    "no JSON": ('{"task": "pret', "damaged, not JSON"),
    "a list": ("[1, 2]", "damaged, holds a list"),
    "a misspelt field": (
        plain() | {"epoch": 3},
        "epoch: no such field, did you mean 'epochs'[?]",
    ),
    "a misspelt field of a section": (
        plain() | {"target": {"tua": 0.5}},
        "target.tua: no such field, did you mean 'target.tau'[?]",
    ),
    "an endless name": (plain() | {"x" * 10**5: 3}, "x{39}…x{20}: no such field"),
    "an endless value": (plain() | {"loss": ["x"] * 10**5}, "loss: got .{39}….{20}, takes text$"),
    "an unknown encoder": (attacked("encoder.name", "text"), "encoder.name: got 'x', .*resnet18"),
    "an unknown predictor": (attacked("predictor.kind", "text"), "predictor.kind: got 'x', .*mlp"),
    "a value out of range": (attacked("target.tau", "whole"), "target.tau: got 3.0, takes"),
    "an option of another optimizer": (
        attacked("optimizer.options.b1", "fraction"),
        "optimizer.*b1: got 0.5, which is no option of momentum",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_no_pretraining_is_refused(kind, tmp_path):
    content, says = WRONG[kind]
    with pytest.raises(UserError, match=f"^{re.escape(str(tmp_path))}/config.json: {says}") as line:
        read_trained(write(tmp_path, content))
    assert "\n" not in str(line.value)


def test_no_configuration_at_all(tmp_path):
    with pytest.raises(UserError, match="config.json: not found"):
        read_trained(tmp_path / "nowhere")


def test_what_an_older_run_lacks_is_said(tmp_path, capsys):
    content = plain()
    read_trained(write(tmp_path, content))
    assert not capsys.readouterr().out
    del content["regularisers"], content["probe"]["loss"], content["dynamics"]["every"]
    read_trained(write(tmp_path, content))
    line = capsys.readouterr().out
    assert "config.json: lacks dynamics.every, probe.loss, regularisers, read as" in line
    assert line.count("\n") == 1


# --- The three tasks, and a second start, on a run that trained -----------------------------------

SMALL = [
    *TINY,
    "--config.encoder.name=mlp",
    "--config.encoder.depth=1",
    "--config.epochs=1",
    "--config.data.train_size=128",
    "--config.dynamics.every=1",
    "--config.log_every=1",
    "--config.probe.protocol=seed",
]
PROBE = [word for word in TINY if ".probe." in word] + ["--config.probe.protocol=seed"]


def pretrain(folder: Path, *words: str) -> int:
    config = "--config=configs/quickstart.py"
    return launch.main(["launch.py", config, f"--workdir={folder}", *SMALL, *words])


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run of two steps; tests put its config.json back."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        assert pretrain(folder) == 0
    return folder


@pytest.fixture
def run(trained, monkeypatch):
    monkeypatch.chdir(ROOT)
    content = (trained / "config.json").read_bytes()
    yield trained
    (trained / "config.json").write_bytes(content)


READERS = {
    "doctor": ["--config=configs/doctor.py", "--config.run={}"],
    "dynamics": ["--config=configs/dynamics.py", "--config.runs={}"],
    "probe": ["--config=configs/probe.py", "--config.checkpoint={}", *PROBE],
}
# Fields with a value of the wrong type, of the right one that nothing takes, and of one that does
# not fit the checkpoint or the records.
TRIED = """
encoder:text encoder:null optimizer.predictor:list predictor:whole encoder.name:text
encoder.width:text encoder.width:infinite encoder.depth:negative predictor.kind:text
predictor.hidden:huge predictor.hidden:large projector.out:large projector.out:text
projector.hidden:nan loss:null
loss_scale:true target.tau:negative optimizer.learning_rate:text optimizer.name:text
optimizer.decay:list epochs:nothing epochs:dict batch_size:nan data.name:text
views.recipe:text views.mean:words init:surrogate precision:zero_byte task:text
""".split()
# What only the task that uses it notices, in the files beside config.json.
LATER = {
    "predictor.hidden": ("doctor", "dynamics"),
    "projector.out": ("doctor",),
    "data.name": ("doctor", "dynamics"),
}


@pytest.mark.parametrize("task", READERS)
def test_a_damaged_configuration_ends_in_one_line(task, run, tmp_path, capfd):
    content = json.loads((run / "config.json").read_text())
    for word in TRIED:
        field, _, attack = word.replace("_", " ").rpartition(":")
        field = word.rpartition(":")[0]
        write(run, attacked(field, attack, json.loads(json.dumps(content))))
        words = [part.format(run) for part in READERS[task]]
        out = tmp_path / word
        status = launch.main(["launch.py", *words, f"--workdir={out}"])
        error = capfd.readouterr().err
        if status == 0:
            assert task in LATER.get(field, ()), word
        else:
            assert status == 2 and error.startswith(f"error: {run}/"), (word, error)
            assert error.count("\n") == 1 and field.split(".")[0] in error, (word, error)
            assert not out.exists(), word


# What older runs lack.
AGES = {
    "a section": ["regularisers"],
    "much": ["regularisers", "probe", "dynamics", "optimizer.options", "optimizer.predictor"]
    + ["loss", "encoder.residual"],
}


def aged(folder: Path, fields: list[str]) -> None:
    content = (folder / "config.json").read_text()
    for field in fields:
        content = attacked(field, DELETED, json.loads(content))
    write(folder, content)


def results_of(run: Path, out: Path) -> dict[str, dict]:
    """result.json of each of the three tasks, without the times."""
    results = {}
    for task, words in READERS.items():
        words = [part.format(run) for part in words]
        assert launch.main(["launch.py", *words, f"--workdir={out}/{task}"]) == 0
        result = json.loads((out / task / "result.json").read_text())
        own = ("seconds", "probe_seconds", "provenance")  # of this start
        results[task] = {key: value for key, value in result.items() if key not in own}
    return results


@pytest.fixture(scope="module")
def whole(trained, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return results_of(trained, tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("age", AGES)
@pytest.mark.slow
def test_an_older_run_is_read_as_it_ran(age, whole, run, tmp_path):
    aged(run, AGES[age])
    assert results_of(run, tmp_path) == whole


@pytest.mark.parametrize("age", AGES)
@pytest.mark.slow
def test_an_older_run_is_resumed(age, run, capfd):
    rows = (run / "metrics.csv").read_bytes()
    aged(run, AGES[age])
    assert pretrain(run) == 0
    assert (run / "metrics.csv").read_bytes() == rows
    aged(run, AGES[age])
    assert pretrain(run, "--config.regularisers.variance=0.5") == 2
    assert "(regularisers.variance 0.0 -> 0.5)" in capfd.readouterr().err


def test_an_older_supervised_run_watched_the_accuracy(tmp_path):
    """Which matters where something is watched at all."""
    config = TABLES["supervised"]()
    old = json.loads(json.dumps(config.to_dict()))
    del old["plateau"]["watch"], old["stopping"]["watch"]

    def start():
        return check_workdir(str(tmp_path), config.to_dict(), defaults=earlier_defaults(config))

    write(tmp_path, old)
    assert start() == tmp_path
    config.plateau.patience = old["plateau"]["patience"] = 3
    write(tmp_path, old)
    with pytest.raises(UserError, match="plateau.watch 'validation_accuracy' -> 'validation_loss'"):
        start()
    config.plateau.watch = "validation_accuracy"
    assert start() == tmp_path


@pytest.mark.parametrize("name", ["signal", "ablation"])
def test_an_experiment_goes_on_from_before_a_field(name, tmp_path):
    """Its defaults are those of its configuration file."""
    file = f"configs/experiments/{name}.py"
    config = runpy.run_path(str(ROOT / file))["get_config"]()
    old = json.loads(json.dumps(config.to_dict()))
    del old["batch_size"], old["data"]
    write(tmp_path, old)
    defaults = defaults_in(file)
    assert check_workdir(str(tmp_path), config.to_dict(), defaults=defaults) == tmp_path
    config.batch_size = 64
    with pytest.raises(UserError, match=r"\(batch_size 128 -> 64\)"):
        check_workdir(str(tmp_path), config.to_dict(), defaults=defaults)
    assert defaults_in("configs/experiments/nowhere.py") == {}


def test_a_stored_cell_of_before_a_field_had_its_default(tmp_path):
    old, new = plain(), default_config().to_dict()
    del old["regularisers"]
    stored = tmp_path / "seed-0.json"
    stored.write_text(json.dumps({"config": old}))
    refuse_other("store", stored, ["config"], new, new)
    other = default_config()
    other.regularisers.variance = 0.5
    with pytest.raises(UserError, match=r"\(regularisers.variance 0.0 -> 0.5\)"):
        refuse_other("store", stored, ["config"], other.to_dict(), new)
    stored.write_text('{"config": [3]}')
    with pytest.raises(UserError, match="seed-0.json: damaged, its config is no configuration"):
        refuse_other("store", stored, ["config"], new, new)
