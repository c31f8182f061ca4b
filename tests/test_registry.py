"""The table of tasks: each row is what the configurations of that task, and only they, can run."""

import inspect
import runpy
from pathlib import Path

import jax
import pytest
from ml_collections import ConfigDict

from ssl_jax.builders import fields
from ssl_jax.errors import UserError
from ssl_jax.tasks import registry

ROOT = Path(__file__).parent.parent
FILES = sorted(
    path for path in (ROOT / "configs").rglob("*.py") if "def get_config" in path.read_text()
)


def never() -> bool:
    return False


@pytest.fixture
def ran(monkeypatch):
    """The tasks that ran, each with what it was given; none does any work."""
    calls = []

    def row(name, task):
        return task._replace(run=lambda *given: calls.append((name, *given)))

    monkeypatch.setattr(
        registry, "TASKS", {name: row(name, task) for name, task in registry.TASKS.items()}
    )
    return calls


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_configuration_runs_its_own_task(path, ran):
    """Configurations of a pretraining run are those of its views, too; no other runs a task that is
    not its own.
    """
    config = runpy.run_path(str(path))["get_config"]()
    with config.unlocked():
        own, took = config.task, []
        for name in registry.TASKS:
            config.task = name
            try:
                registry.run_task(config, "W", never)
                took.append(name)
            except UserError as error:
                assert str(error).startswith(
                    f"task: got {name!r} in a configuration of another task; takes "
                )
    alike = [{"pretrain", "views"}, {"dynamics", "report", "compare"}]
    assert set(took) == next((names for names in alike if own in names), {own})
    assert ran == [(name, config, "W", never) for name in took]


def test_every_task_has_a_configuration_where_its_error_says():
    of = {}
    for path in FILES:
        name = path.relative_to(ROOT).as_posix()
        of.setdefault(runpy.run_path(str(path))["get_config"]().task, []).append(name)
    of["views"] = of["pretrain"]
    assert set(of) == set(registry.TASKS)
    for name, task in registry.TASKS.items():
        assert (of[name] == [f"configs/{name}.py"]) == (not task.configs), name
        with pytest.raises(UserError) as refused:
            registry.run_task(ConfigDict({"task": name}), "W", never)
        takes = task.configs or f"--config configs/{name}.py"
        assert (
            str(refused.value)
            == f"task: got {name!r} in a configuration of another task; takes {takes}"
        )


@pytest.mark.parametrize("name", registry.TASKS)
def test_all_tasks_take_the_same(name):
    parameters = list(inspect.signature(registry.TASKS[name].run).parameters.values())
    assert [p.name for p in parameters[:3]] == ["config", "directory", "interrupted"]
    assert all(p.default is not p.empty for p in parameters[3:])


def test_a_task_that_is_not_there():
    with pytest.raises(UserError, match="^task: got 'pretrian', did you mean 'pretrain'"):
        registry.run_task(ConfigDict({"task": "pretrian"}), "W", never)


def test_only_some_tasks_run_in_several_processes(ran, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(registry, "any_process", bool)  # the other one has nothing to say
    for name, task in registry.TASKS.items():
        config = ConfigDict({"task": name} | dict.fromkeys(task.needs.split(), {}))
        if name in ("pretrain", "supervised", "probe", "views"):
            registry.run_task(config, "W", never)
        else:
            with pytest.raises(UserError) as refused:
                registry.run_task(config, "W", never)
            assert str(refused.value) == f"--processes: got 2, the task {name} runs in one"
    assert [call[0] for call in ran] == ["pretrain", "supervised", "probe", "views"]


@pytest.mark.parametrize(
    "field", ["data.data_dir", "mini.data.data_dir", "weights", "weights.convnext_tiny", "store"]
)
def test_every_path_is_a_local_one(field):
    """Fields, and fields of a section, that name files: of an experiment and of a sweep, too."""
    config = ConfigDict({"task": "probe"})
    *sections, last = field.split(".")
    inner = config
    for section in sections:
        inner[section] = ConfigDict()
        inner = inner[section]
    inner[last] = "~/w"
    found = fields.with_local_paths(config)
    for name in field.split("."):
        found = found[name]
    assert found == str(Path.home() / "w")
    inner[last] = "gs://bucket/w"
    with pytest.raises(UserError, match=field):
        fields.with_local_paths(config)
