"""A run goes on only with fields that leave its numbers as they would have been in one piece."""

import pytest
from commands import last_parameters
from ml_collections import ConfigDict

from configs import defaults, quickstart
from configs import supervised as supervised_config
from ssl_jax.builders import pretraining, supervised
from ssl_jax.errors import UserError
from ssl_jax.tasks import pretrain as task
from ssl_jax.workdir import directory, metrics_csv
from ssl_jax.workdir.directory import FREE, PROBES, is_free

FIELDS = """
    batch_size=32 data.train_size=96 encoder.width=4 projector.hidden=8 projector.out=4 devices=2
    predictor.kind=linear schedule.name=constant views.jitter=0.0 probe.validation_size=32 epochs=4
    probe.knn_k=5 probe.few_labels=0 log_every=2 eval_every=2 checkpoint_every=2 dynamics.every=2
    steps_per_call=2
""".split()
STEPS = 12  # 3 an epoch


def make_config(*fields: str) -> ConfigDict:
    config = quickstart.get_config()
    values = dict(word.split("=") for word in (*FIELDS, *fields))
    for name, text in values.items():
        inner, last = config, name.split(".")
        for section in last[:-1]:
            inner = inner[section]
        kind = inner.get_type(last[-1])
        inner[last[-1]] = kind(text) if kind is not bool else text == "True"
    return config


def train(config: ConfigDict, out, monkeypatch, calls: int | None = None) -> None:
    """Train without the probes; `calls`: stop, and save, after so many calls of the program."""
    monkeypatch.setattr(task, "finish", lambda *arguments: None)
    asked = []

    def interrupted() -> bool:
        asked.append(1)
        return calls is not None and len(asked) >= calls

    task.pretrain(config, str(out), interrupted)


def assert_same_state(one, other):
    states = [last_parameters(out) for out in (one, other)]
    assert states[0].keys() == states[1].keys() and len(states[0]) > 20
    for name in states[0]:
        assert states[0][name].tobytes() == states[1][name].tobytes(), name


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken")
    with pytest.MonkeyPatch.context() as patch:
        train(make_config(), out, patch)
    return out


def other_value(config: ConfigDict, field: str):
    """Another value of the field's own type."""
    value, kind = config.to_dict(), config
    *sections, last = field.split(".")
    for section in sections:
        value, kind = value[section], kind[section]
    value, kind = value[last], kind.get_type(last)
    if kind is bool:
        return not value
    if kind in (int, float):
        return (value or 0) + 1
    return [0.5, 0.6] if kind is tuple else f"{value}x"


ALL = [name for name in directory.spread(defaults.get_config().to_dict()) if name != "epochs"]


@pytest.mark.parametrize("field", ALL)
def test_every_field_is_refused_or_one_that_was_proved_free(field, tmp_path):
    config = defaults.get_config()
    directory.open_workdir(str(tmp_path), config.to_dict())
    changed = config.to_dict()
    inner = changed
    *sections, last = field.split(".")
    for section in sections:
        inner = inner[section]
    inner[last] = other_value(config, field)
    if is_free(field, FREE + PROBES):
        assert field in CHANGES or field.startswith(PROBES) or field == "data.data_dir", field
        directory.check_workdir(str(tmp_path), changed)
    elif field == "task":
        with pytest.raises(UserError, match="task"):
            directory.check_workdir(str(tmp_path), changed)
    else:
        with pytest.raises(UserError, match=f"{field} .* -> "):
            directory.check_workdir(str(tmp_path), changed)


# A free field, and what it is changed to in the middle of a run.
CHANGES = {
    "data.resident": "no",
    "steps_per_call": "1",
    "log_every": "5",
    "dynamics.every": "0",
    "eval_every": "0",
    "checkpoint_every": "1",
    "tensorboard": "True",
    "devices": "1",
}


@pytest.mark.slow
@pytest.mark.parametrize("field", CHANGES)
def test_a_free_field_leaves_the_numbers_as_they_were(field, tmp_path, unbroken, monkeypatch):
    if field == "tensorboard":
        pytest.importorskip("tensorboardX")
    train(make_config(), tmp_path, monkeypatch, calls=3)
    changed = make_config(f"{field}={CHANGES[field]}")
    if field in ("devices", "steps_per_call"):  # they round differently
        before = (tmp_path / "config.json").read_bytes()
        with pytest.raises(UserError, match=f"^{field}: got 1, the run began with 2"):
            train(changed, tmp_path, monkeypatch)
        assert (tmp_path / "config.json").read_bytes() == before
        changed = make_config()
    train(changed, tmp_path, monkeypatch)
    assert_same_state(tmp_path, unbroken)


@pytest.mark.slow
def test_more_epochs_end_where_a_run_in_one_piece_ends(tmp_path, unbroken, monkeypatch):
    train(make_config("epochs=2"), tmp_path, monkeypatch)
    train(make_config(), tmp_path, monkeypatch)
    assert_same_state(tmp_path, unbroken)
    rows = metrics_csv.read_rows(tmp_path / "metrics.csv")
    assert [row["step"] for row in rows] == [2, 4, 6, 8, 10, 12]


CYCLIC = ("triangular", "triangular2", "exp_range", "sgdr")


@pytest.mark.parametrize("section", ["schedule.name", "schedule.decay", "target.schedule"])
@pytest.mark.parametrize(
    "name, more, appends",
    [
        ("constant", {}, True),
        ("linear", {}, False),
        ("cosine", {}, False),
        ("polynomial", {}, False),
        ("step", {}, False),  # every third of all steps
        ("step", {"every": 2.0}, True),
        *((name, {}, False) for name in CYCLIC),  # one cycle of all steps
        *((name, {"cycle": 2.0}, True) for name in CYCLIC),
    ],
)
def test_epochs_append_where_no_schedule_depends_on_them(section, name, more, appends):
    if section == "target.schedule" and (name not in ("constant", "cosine") or more):
        pytest.skip("no such schedule of the target")
    config = defaults.get_config()
    config.epochs, config.schedule.warmup_epochs = 12, 1
    config.update_from_flattened_dict({section: name, "target.tau": 0.9})
    config.schedule.update(more)
    assert pretraining.appends(config, 5, 6) == appends
    assert pretraining.appends(config, 5, 24) == appends
    assert pretraining.appends(config, 5, 12)


@pytest.mark.parametrize("section", ["plateau", "stopping"])
@pytest.mark.parametrize("every, appends", [(1, True), (2, False), (0, False)])
def test_evaluations_that_are_counted_must_be_the_same(section, every, appends):
    config = supervised_config.get_config()
    config[section].patience, config.eval_every, config.epochs = 1, every, 10
    assert supervised.appends(config, 4, 5) == appends
    config[section].patience = 0
    assert supervised.appends(config, 4, 5)
