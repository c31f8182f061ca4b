"""What a work directory takes and refuses, and that a refusal leaves it as it was."""

import json
from pathlib import Path

import pytest

from ssl_jax.errors import UserError
from ssl_jax.workdir import directory as workdir
from ssl_jax.workdir import result_json

CONFIG = {
    "task": "pretrain",
    "epochs": 5,
    "log_every": 10,
    "data": {"name": "digits", "data_dir": ""},
    "views": {"mean": (0.1, 0.2), "std": None},
    "schedule": {"name": "constant"},
    "target": {"schedule": "constant"},
    "dynamics": {"every": 0},
    "probe": {"knn_k": 20},
}


def changed(**fields) -> dict:
    """CONFIG with other values: `data__name="x"` for data.name."""
    config = json.loads(json.dumps(CONFIG))
    for name, value in fields.items():
        *sections, last = name.split("__")
        inner = config
        for section in sections:
            inner = inner[section]
        inner[last] = value
    return config


def contents(directory: Path) -> dict:
    """Every path below, with its bytes and its time of change."""
    return {p: (p.is_file() and p.read_bytes(), p.stat().st_mtime_ns) for p in directory.rglob("*")}


def test_what_killed_starts_were_writing_is_deleted(tmp_path):
    """Not from work directories inside, where others may be writing: begun, or only locked."""
    name = f".{32 * 'a'}.tmp"
    others = {"other": "config.json", "locked": ".lock", "leased": ".lease/1"}
    own = [tmp_path / inside / name for inside in ("", "figures", "features/deep")]
    theirs = [tmp_path / inside / "figures" / name for inside in others]
    theirs += [tmp_path / inside / name for inside in others]
    marks = [tmp_path / inside / mark for inside, mark in others.items()]
    for path in (*own, *theirs, *marks):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    out = workdir.open_workdir(str(tmp_path), CONFIG)
    assert out == tmp_path and not any(path.exists() for path in own)
    assert all(path.exists() for path in (*theirs, *marks))


def test_writes_the_configuration_whole(tmp_path, monkeypatch):
    out = workdir.open_workdir(str(tmp_path / "a" / "b"), CONFIG)
    assert json.loads((out / "config.json").read_text()) == json.loads(json.dumps(CONFIG))
    assert (out / "figures").is_dir()
    before = contents(out)
    # A crash while writing leaves the old file, never half a new one.
    monkeypatch.setattr("os.replace", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        workdir.open_workdir(str(out), changed(log_every=6))
    assert contents(out)[out / "config.json"] == before[out / "config.json"]


def test_checking_touches_nothing(tmp_path):
    assert workdir.check_workdir(str(tmp_path / "a" / "b"), CONFIG) == tmp_path / "a" / "b"
    assert not list(tmp_path.iterdir())


def test_same_configuration_is_taken_again(tmp_path):
    """Although JSON knows no tuples, and whether or not an unset field is named."""
    out = workdir.open_workdir(str(tmp_path), CONFIG)
    unset = changed(views__mean=[0.1, 0.2])
    del unset["views"]["std"]
    workdir.open_workdir(str(out), unset)


@pytest.mark.parametrize(
    "free",
    [
        {"log_every": 3},
        {"probe__knn_k": 7},
        {"data__data_dir": "/elsewhere"},
    ],
)
def test_what_a_continued_run_may_change(tmp_path, free):
    workdir.open_workdir(str(tmp_path), CONFIG)
    workdir.open_workdir(str(tmp_path), changed(**free))
    assert json.loads((tmp_path / "config.json").read_text()) == changed(**free)


# What `pretrain`, `sweep`, `report` and the experiments each said for themselves, before there was
# one list.
EVERYWHERE = (
    "data.data_dir data.resident devices steps_per_call log_every eval_every checkpoint_every "
    "dynamics.every tensorboard"
)
ELSEWHERE = "data_dir together workers"  # fields of a sweep, and of experiments


def test_the_one_list_holds_what_every_place_lets_differ():
    assert all(workdir.is_free(name) for name in f"{EVERYWHERE} {ELSEWHERE}".split())
    for name in (
        "seed",
        "epochs",
        "probe.knn_k",
        "data",
        "data.name",
        "devices_of",
        "dynamicsevery",
        "xprobe.knn_k",
    ):
        assert not workdir.is_free(name), name
    assert workdir.is_free("probe.knn_k", workdir.FREE + workdir.PROBES)
    assert not workdir.is_free("xprobe.knn_k", workdir.FREE + workdir.PROBES)


@pytest.mark.parametrize("name", workdir.FREE + workdir.PROBES)
def test_every_free_field_may_change(name, tmp_path):
    field = f"{name}every" if name.endswith(".") else name

    def with_value(value):
        return changed(**{field.replace(".", "__"): value})

    config, other = with_value(1), with_value(2)
    workdir.open_workdir(str(tmp_path), config)
    workdir.open_workdir(str(tmp_path), other)
    assert json.loads((tmp_path / "config.json").read_text()) == json.loads(json.dumps(other))


def test_a_stored_configuration_tells_no_place_and_leaves_the_run_s_alone():
    config = changed(data__data_dir="/here")
    assert result_json.fields(config) == config | {"data": {"name": "digits"}}
    assert config["data"]["data_dir"] == "/here" and result_json.fields({"task": "theory"}) == {
        "task": "theory"
    }


def test_other_configuration_is_refused_with_the_differing_fields(tmp_path):
    workdir.open_workdir(str(tmp_path), CONFIG)
    before = contents(tmp_path)
    other = changed(data__name="cifar10", views__std=[1.0], log_every=3)
    with pytest.raises(
        UserError, match=r"data.name 'digits' -> 'cifar10'; views.std 'absent' -> \[1.0\]\)"
    ) as refusal:
        workdir.open_workdir(str(tmp_path), other)
    assert str(tmp_path) in str(refusal.value) and "log_every" not in str(refusal.value)
    assert contents(tmp_path) == before


def test_a_field_that_came_later_is_what_runs_did_without_it(tmp_path):
    """What neither start has stays out of it, and a field that is there keeps its value."""
    workdir.open_workdir(str(tmp_path), CONFIG)
    defaults = {"regularisers": {"variance": 0.0}, "loss": "cosine", "epochs": 100}

    def check(later):
        return workdir.check_workdir(str(tmp_path), CONFIG | later, defaults=defaults)

    assert check({}) == check({"regularisers": {"variance": 0.0}}) == tmp_path
    with pytest.raises(UserError, match=r"\(regularisers.variance 0.0 -> 0.5\)"):
        check({"regularisers": {"variance": 0.5}})
    with pytest.raises(UserError, match=r"\(other 'absent' -> 1\)"):
        check({"other": 1})


@pytest.mark.parametrize("wrong", ["x", None, 3, [1]])
def test_a_damaged_section_is_no_absent_one(tmp_path, wrong):
    defaults = CONFIG | {"data": {"name": "cifar10", "data_dir": ""}}
    config = changed(data__name="cifar10")
    workdir.open_workdir(str(tmp_path), config)
    (tmp_path / "config.json").write_text(json.dumps(config | {"data": wrong}))
    if wrong is None:  # as if unset
        assert workdir.check_workdir(str(tmp_path), config, defaults=defaults) == tmp_path
        return
    with pytest.raises(UserError, match=r"\(data .* -> 'absent'\)"):
        workdir.check_workdir(str(tmp_path), config, defaults=defaults)


def test_damaged_epochs_are_never_a_beginning(tmp_path):
    def appends(before):
        raise AssertionError("a schedule of such epochs cannot be built")

    for wrong in ("5", 5.5, [5], -3, 0, 10**12, float("nan")):
        workdir.write_json(tmp_path / "config.json", CONFIG | {"epochs": wrong})
        with pytest.raises(UserError, match=r"\(epochs .* -> 5\)"):
            workdir.check_workdir(str(tmp_path), CONFIG, appends)


@pytest.mark.parametrize("deep, taken", [(40, True), (60, False), (400, False), (10**5, False)])
@pytest.mark.parametrize("opening, closing", ["[]", ('{"a": ', "}")])
def test_nesting_without_end_is_damage(tmp_path, opening, closing, deep, taken):
    inner = opening * deep + "1" + closing * deep
    (tmp_path / "config.json").write_text(f'{{"a": {inner}}}')
    if taken:
        workdir.check_workdir(str(tmp_path), json.loads(f'{{"a": {inner}}}'))
    else:
        with pytest.raises(UserError, match="config.json: damaged"):
            workdir.check_workdir(str(tmp_path), CONFIG)


def test_other_task_is_refused_in_few_words(tmp_path):
    workdir.open_workdir(str(tmp_path), CONFIG)
    with pytest.raises(UserError, match="holds the task 'pretrain', not 'probe'"):
        workdir.open_workdir(str(tmp_path), {"task": "probe", "step": 3})


def test_a_long_list_of_differing_fields_is_cut(tmp_path):
    old = CONFIG | {f"field{i}": i for i in range(20)}
    workdir.open_workdir(str(tmp_path), old)
    with pytest.raises(UserError, match="and 12 more"):
        workdir.open_workdir(str(tmp_path), old | {f"field{i}": -1 for i in range(20)})


@pytest.mark.parametrize("appends", [True, False])
def test_other_epochs_are_taken_where_they_append(tmp_path, appends):
    workdir.open_workdir(str(tmp_path), CONFIG)
    asked = []

    def answer(epochs):
        asked.append(epochs)
        return appends

    if appends:
        workdir.check_workdir(str(tmp_path), changed(epochs=9), answer)
    else:
        with pytest.raises(UserError, match="epochs 5 -> 9"):
            workdir.check_workdir(str(tmp_path), changed(epochs=9), answer)
    assert asked == [5]
    with pytest.raises(UserError, match="data.name .*; epochs 5 -> 9"):
        workdir.check_workdir(str(tmp_path), changed(epochs=9, data__name="cifar10"), answer)
    assert asked == [5], "with another field changed it need not be asked"


@pytest.mark.parametrize("inside", ["figures", "features/deep", "checkpoints/8"])
def test_a_link_to_another_directory_inside_is_refused(tmp_path, inside):
    """Somebody's run may have come with links: nothing is written through them."""
    out, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    workdir.open_workdir(str(out), CONFIG)
    elsewhere.mkdir()
    link = out / inside
    if link.is_dir():
        link.rmdir()
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(elsewhere)
    with pytest.raises(UserError, match=f"{link} is a link"):
        workdir.check_workdir(str(out), CONFIG)
    (tmp_path / "place").symlink_to(tmp_path / "new")
    (tmp_path / "new").mkdir()
    workdir.check_workdir(str(tmp_path / "place"), CONFIG)  # the user's own link, to the whole


def test_json_nested_without_end(tmp_path):
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="config.json: damaged"):
        workdir.read_json(tmp_path / "config.json")


@pytest.mark.parametrize("damaged", ["", '{"task": "pre', "[1, 2]", "null"])
def test_damaged_configuration(tmp_path, damaged):
    (tmp_path / "config.json").write_text(damaged)
    with pytest.raises(UserError, match="config.json: damaged"):
        workdir.check_workdir(str(tmp_path), CONFIG)
    assert (tmp_path / "config.json").read_text() == damaged


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "config.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="config.json: damaged"):
        workdir.read_json(tmp_path / "config.json")


def test_missing_file_and_directory_in_its_place(tmp_path):
    with pytest.raises(UserError, match="config.json: not found"):
        workdir.read_json(tmp_path / "config.json")
    (tmp_path / "config.json").mkdir()
    with pytest.raises(UserError, match="config.json: is not a file"):
        workdir.check_workdir(str(tmp_path), CONFIG)


@pytest.mark.parametrize("inside", ["", "deep/er"])
def test_a_file_in_its_place(tmp_path, inside):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="--workdir: .*file is not a directory"):
        workdir.check_workdir(str(tmp_path / "file" / inside), CONFIG)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_directory_that_may_not_be_written(tmp_path, monkeypatch):
    """The operating system lets root write anywhere, so the test replaces its answer."""
    monkeypatch.setattr(workdir.os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match="may not be written"):
        workdir.check_workdir(str(tmp_path / "new"), CONFIG)
    monkeypatch.undo()
    (tmp_path / "figures").write_text("a file where a folder is needed")
    with pytest.raises(UserError, match="figures: cannot be written"):
        workdir.open_workdir(str(tmp_path), CONFIG)


def test_folders_that_vanish_while_they_are_looked_at(tmp_path, monkeypatch):
    """Another start of a sweep saves and deletes checkpoints below the directory."""
    (tmp_path / "checkpoints" / "8").mkdir(parents=True)
    real = workdir.os.scandir

    def scan(path):
        if Path(path).name == "checkpoints":
            Path(path, "8").rmdir()
            Path(path).rmdir()
        return real(path)

    monkeypatch.setattr(workdir.os, "scandir", scan)
    assert list(workdir.linked_folders(tmp_path)) == []


def test_free_fields_that_decide_all_the_same_are_refused(tmp_path):
    workdir.open_workdir(str(tmp_path), CONFIG)
    workdir.check_workdir(str(tmp_path), changed(log_every=3))
    with pytest.raises(UserError, match="log_every 10 -> 3"):
        workdir.check_workdir(str(tmp_path), changed(log_every=3), fixed=("log_every",))


@pytest.mark.parametrize("content", [b"step,epoch\n1,\0\0\0\n", b"a;b\n1;2\n"])
def test_a_fresh_run_needs_no_row_of_a_damaged_table(tmp_path, content, capsys):
    (tmp_path / "metrics.csv").write_bytes(content)
    assert result_json.begin_log(tmp_path, 0, None) == []
    assert (tmp_path / "metrics.damaged.csv").read_bytes() == content
    assert capsys.readouterr().err.count("\n") == 1
