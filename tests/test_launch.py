"""A user's mistake is one `error:` line that names what was wrong, status 2, and nothing is left or
changed on disk.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ssl_jax import launch
from ssl_jax.builders import pretraining
from ssl_jax.runtime import memory
from ssl_jax.tasks import pretrain
from ssl_jax.train import parallel
from ssl_jax.train.parallel import steps_per_call

ROOT = Path(__file__).parent.parent
QUICK = "--config configs/quickstart.py"


@pytest.fixture(autouse=True)
def at_home(monkeypatch):
    """Commands are given from the repository's root."""
    monkeypatch.chdir(ROOT)


def refusal(words: str, capfd) -> str:
    """The error line of a command that has to be refused with it and with nothing else."""
    status = launch.main(["launch.py", *shlex.split(words)])
    error = capfd.readouterr().err
    assert status == 2, error
    assert error.startswith("error: ") and error.count("\n") == 1 and "Traceback" not in error, (
        error
    )
    return error


# The command line itself. Each is told before jax is imported: that is what `no_run` proves.


@pytest.fixture
def no_run(monkeypatch):
    monkeypatch.setattr(launch, "run", lambda values: pytest.fail("went past the flags"))


WORDS = {
    "--config configs/quickstrt.py --workdir W": [
        "configs/quickstrt.py",
        "did you mean 'configs/quickstart.py'",
    ],
    "--config=configs/quickstrt.py --workdir W": [
        "configs/quickstrt.py",
        "did you mean 'configs/quickstart.py'",
    ],
    "--config configs/cifar10.py:byoll --workdir W": [
        "method",
        "'byoll'",
        "did you mean 'byol'",
        "simsiam_sym",
    ],
    "--config configs/cifar10.py: --workdir W": ["method", "''", "directcopy"],
    "--config configs/stl10.py:directpredd --workdir W": ["did you mean 'directpred'"],
    f"{QUICK}:byol --workdir W": ["configs/quickstart.py", "no argument", "'byol'"],
    "--config configs/methods.py --workdir W": ["configs/methods.py", "get_config"],
    "--config configs --workdir W": ["configs", "configs/quickstart.py"],
    "--workdir W": ["--config", "missing", "configs/quickstart.py"],
    "--workdir W --config": ["--config", "missing"],
    "--workdir W --config=": ["--config", "missing"],
    QUICK: ["--workdir", "missing"],
    f"{QUICK} --workdir": ["--workdir"],
    f"{QUICK} --workdir=": ["--workdir", "missing"],
    f"{QUICK} --wordir W": ["--wordir", "did you mean 'workdir'"],
    f"{QUICK} --workdir W epochs=3": ["epochs=3", "--config.section.field=VALUE"],
    f"{QUICK} --workdir W --processes=two": ["--processes", "'two'", "a whole number"],
    f"{QUICK} --workdir W --config.optimizer.learning_rat=1": [
        "did you mean 'optimizer.learning_rate'"
    ],
    f"{QUICK} --workdir W --noconfig.sync_batchnorm": ["did you mean 'sync_batch_norm'"],
    f"{QUICK} --config.batch_sise=8 --workdir W": ["did you mean 'batch_size'"],
    f"{QUICK} --workdir W --config.encoder=3": ["encoder", "section", "encoder.width"],
    f"{QUICK} --workdir W --config.batch_size=many": ["batch_size", "'many'", "a whole number"],
    f"{QUICK} --workdir W --config.batch_size=64.5": ["batch_size", "'64.5'", "a whole number"],
    f"{QUICK} --workdir W --config.batch_size": ["batch_size", "no value"],
    f"{QUICK} --workdir W --config.target.tau=high": ["target.tau", "'high'", "a number"],
    f"{QUICK} --workdir W --config.views.flip=often": ["views.flip", "'often'", "a number"],
    f"{QUICK} --workdir W --config.sync_batch_norm=perhaps": [
        "sync_batch_norm",
        "'perhaps'",
        "true or false",
    ],
    f"{QUICK} --workdir W --config.views.crop_scale=0.2,,1": [
        "views.crop_scale",
        "'0.2,,1'",
        "numbers",
    ],
}


@pytest.mark.parametrize("words", WORDS)
def test_mistake_in_the_words(words, no_run, capfd):
    line = refusal(words, capfd)
    assert all(part in line for part in WORDS[words]), line


@pytest.mark.parametrize("text", ["0.2,1.0", "(0.2,1.0)", "[0.2, 1.0]", "0.2, 1"])
def test_tuples_as_people_write_them(text):
    values = launch.parse_flags(
        ["launch.py", *QUICK.split(), "--workdir", "W", f"--config.views.crop_scale={text}"]
    )
    assert values["config"].value.views.crop_scale == (0.2, 1.0)


def test_fields_may_stand_anywhere_and_be_given_with_a_space():
    words = "--config.epochs 3 --workdir W --config configs/cifar10.py:simsiam --config.seed=2"
    words += " --noconfig.sync_batch_norm"
    config = launch.parse_flags(["launch.py", *words.split()])["config"].value
    assert (config.epochs, config.seed, config.sync_batch_norm, config.method) == (
        3,
        2,
        False,
        "simsiam",
    )
    assert config.target.tau == 0 and config.is_locked


def test_two_command_lines_in_one_process_do_not_meet():
    first, second = (
        launch.parse_flags(["launch.py", *QUICK.split(), "--workdir", "W", *more])["config"].value
        for more in (["--config.epochs=3", "--config.views.mean=1,"], [])
    )
    assert first.epochs == 3 and second.epochs != 3 and second.views.mean is None


def test_help_names_the_configurations(capfd):
    assert launch.main(["launch.py", "--help"]) == 0
    assert "configs/quickstart.py" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("def get_config():\n    return 1 / 0\n", ["line 2", "ZeroDivisionError"]),
        ("def get_config(:\n", ["line 1", "SyntaxError"]),
        ("import no_such_thing\ndef get_config(): ...\n", ["line 1", "no_such_thing"]),
        ("def get_config():\n    return {}\n", ["dict", "ConfigDict"]),
        ("x = 3\n", ["no get_config"]),
        (
            "from ml_collections import ConfigDict\nget_config = ConfigDict\n",
            ["has no field task"],
        ),
    ],
)
def test_mistake_in_a_configuration_file(text, parts, no_run, capfd, tmp_path):
    (tmp_path / "mine.py").write_text(text)
    line = refusal(f"--config {tmp_path}/mine.py --workdir W", capfd)
    assert str(tmp_path / "mine.py") in line and all(part in line for part in parts), line


# The values of fields. All of them are told before anything is written.

VALUES = {
    "task=nonsense": ["task", "'nonsense'", "pretrain"],
    "task=pretrian": ["did you mean 'pretrain'"],
    "task=probe": ["task", "configs/probe.py"],
    "task=supervised": ["task", "configs/supervised.py"],
    "task=theory": ["task", "configs/theory.py"],
    "task=experiment": ["task", "'experiment'", "of another task"],
    "epochs=-1": ["epochs", "-1", "at least 1"],
    "epochs=0": ["epochs", "at least 1"],
    "seed=-1": ["seed", "-1", "from 0"],
    "seed=99999999999999999999": ["seed", "from 0 to 4294967295"],
    "batch_size=1": ["batch_size", "at least 2"],
    "batch_size=130": ["batch_size", "130", "multiple of the 4 devices"],
    "accumulate=0": ["accumulate", "at least 1"],
    "accumulate=3": ["accumulate: got 3, takes a divisor of 32", "batch_size (got 128) by 4"],
    "batch_size=4000": ["batch_size", "4000", "1297"],
    "devices=5": ["devices", "5", "0 (all) to 4"],
    "devices=-1": ["devices", "-1"],
    "steps_per_call=0": ["steps_per_call", "'0'", "auto"],
    "steps_per_call=some": ["steps_per_call", "'some'", "auto"],
    "log_every=0": ["log_every", "at least 1"],
    "init=glorott": ["init", "did you mean 'glorot'"],
    "precision=float16": ["precision", "did you mean 'bfloat16'"],
    "loss_scale=0": ["loss_scale", "0.0"],
    "data.name=didgits": ["data.name", "did you mean 'digits'"],
    "data.name=": ["data.name", "''"],
    "data.resident=perhaps": ["data.resident", "auto, encoded, no, yes"],
    "data.fit=stretch": ["data.fit", "'stretch'", "crop, pad, squash"],
    "data.damaged=ignore": ["data.damaged", "'ignore'", "error, skip"],
    "data.background=300,0,0": ["data.background", "(300, 0, 0)", "from 0 to 255"],
    "data.background=0,0": ["data.background", "(0, 0)", "red, green and blue"],
    "data.labels=folders": ["data.labels", "'folders'", "auto, none"],
    "data.name=folder": ["data.data_dir", "takes a directory of pictures"],
    "data.train_size=2000": ["data.train_size", "2000", "1 to 1297"],
    "data.train_size=-1": ["data.train_size", "-1"],
    "data.image_size=100000": ["data.image_size", "100000", "from 0 to 1024"],
    "data.image_size=-8": ["data.image_size", "-8"],
    "data.data_dir=/no/where": ["data.data_dir", "/no/where", "not a directory"],
    "views.recipe=digit": ["views.recipe", "did you mean 'digits'"],
    "views.saturation=0.4": ["views.saturation", "3"],
    "views.size=9": ["views.size", "at most 8", "data.image_size"],
    "views.crop_scale=0.5": ["views.crop_scale", "(0.5,)", "two numbers"],
    "views.crop_scale=0.2,0.5,1": ["views.crop_scale", "two numbers"],
    "views.crop_scale=low,high": ["views.crop_scale", "'low,high'", "numbers with commas"],
    "views.crop_scale=1,0.2": ["views.crop_scale", "low <= high"],
    "views.mean=0.1,0.2": ["views.mean"],
    "views.flip=2": ["views.flip", "2.0", "probability"],
    "encoder.name=resnet19": ["encoder.name", "did you mean 'resnet18'"],
    "encoder.stem=imagnet": ["encoder.stem", "did you mean 'imagenet'"],
    "encoder.norm=batchh": ["encoder.norm", "did you mean 'batch'"],
    "encoder.width=0": ["encoder.width", "at least 1"],
    "projector.out=0": ["projector.out", "at least 1"],
    "predictor.kind=direct_prad": ["predictor.kind", "did you mean 'direct_pred'"],
    "predictor.eps=1.5": ["predictor.eps", "1.5"],
    "predictor.eps=-0.1": ["predictor.eps", "-0.1"],
    "predictor.rho=1": ["predictor.rho", "1.0", "[0, 1)"],
    "predictor.every=0": ["predictor.every", "0"],
    "target.tau=1.01": ["target.tau", "1.01", "[0, 1]"],
    "target.tau=nan": ["target.tau", "nan"],
    "target.schedule=cosin": ["target.schedule", "did you mean 'cosine'"],
    "optimizer.name=momentun": ["optimizer.name", "did you mean 'momentum'"],
    "optimizer.momentum=1": ["optimizer.momentum", "1.0", "[0, 1)"],
    "optimizer.learning_rate=-1": ["optimizer.learning_rate", "-1.0"],
    "optimizer.learning_rate=inf": ["optimizer.learning_rate", "inf"],
    "optimizer.weight_decay=-1": ["optimizer.weight_decay", "-1.0"],
    "optimizer.weight_decay=nan": ["optimizer.weight_decay", "nan"],
    "optimizer.decay=couple": ["optimizer.decay", "did you mean 'coupled'"],
    "optimizer.exclude=biass": ["optimizer.exclude", "'biass'", "none of"],
    "optimizer.exclude=(bias": ["optimizer.exclude", "'(bias'", "regular expression"],
    "optimizer.predictor.learning_rate=-1": ["optimizer.predictor.learning_rate", "-1.0"],
    "optimizer.predictor.weight_decay=-1": ["optimizer.predictor.weight_decay", "-1.0"],
    "schedule.name=cosin": ["schedule.name", "did you mean 'cosine'"],
    "schedule.warmup_epochs=5000": ["schedule.warmup_epochs", "5000"],
    "probe.protocol=sead": ["probe.protocol", "did you mean 'seed'"],
    "probe.loss=hing": ["probe.loss", "did you mean 'hinge'"],
    "probe.newton_l2=-1": ["probe.newton_l2", "-1.0"],
    "probe.epochs=-1": ["probe.epochs", "-1"],
    "probe.knn_k=-1": ["probe.knn_k", "at least 1"],
    "probe.knn_k=1001": ["probe.knn_k", "1001", "at most 1000"],
    "probe.knn_temperature=0": ["probe.knn_temperature", "0.0"],
    "probe.validation_size=1297": ["probe.validation_size", "1297"],
    "probe.few_labels=500": ["probe.few_labels", "500", "at most 126"],
}


@pytest.mark.parametrize("field", VALUES)
def test_mistake_in_a_value(field, capfd, tmp_path, monkeypatch):
    monkeypatch.setattr(pretraining, "fresh_state", lambda *a: pytest.fail("went past the checks"))
    # of a class: no metadata says how many images it has
    if not field.startswith("probe.few_labels"):
        monkeypatch.setattr(
            pretrain, "read_dataset", lambda *a: pytest.fail("read the data before all checks")
        )
    line = refusal(f"{QUICK} --workdir {tmp_path}/new '--config.{field}'", capfd)
    assert all(part in line for part in VALUES[field]), line
    assert not list(tmp_path.iterdir()), "a refused start left something behind"


def test_a_warm_up_that_fits_is_not_refused(monkeypatch, tmp_path):
    """Against the run's own length, which the set's description tells."""
    stopped = RuntimeError("far enough")
    monkeypatch.setattr(pretraining, "fresh_state", lambda *a: (_ for _ in ()).throw(stopped))
    with pytest.raises(RuntimeError, match="far enough"):
        launch.main(
            [
                "launch.py",
                *QUICK.split(),
                "--workdir",
                f"{tmp_path}/new",
                "--config.schedule.warmup_epochs=40",
            ]
        )


def test_parts_are_built_once_with_the_numbers_of_the_run(monkeypatch, tmp_path):
    """1297 images in batches of 64 are 20 steps an epoch."""
    seen, build = [], pretraining.build
    monkeypatch.setattr(
        pretraining, "build", lambda config, *a: seen.append(a) or build(config, *a)
    )
    monkeypatch.setattr(pretraining, "fresh_state", lambda *a: 1 / 0)
    fields = ["--config.epochs=3", "--config.batch_size=64", "--config.devices=1"]
    with pytest.raises(ZeroDivisionError):
        launch.main(["launch.py", *QUICK.split(), f"--workdir={tmp_path}/new", *fields])
    assert seen == [(60, 20, None)]


def test_steps_per_call_as_typed(monkeypatch, tmp_path):
    """The field holds text, since it takes "auto" too; a number typed into it is a number."""
    seen = []
    monkeypatch.setattr(
        parallel, "steps_per_call", lambda *a: seen.append(steps_per_call(*a)) or 1 / 0
    )
    for text in ("3", "auto"):
        with pytest.raises(ZeroDivisionError):
            launch.main(
                [
                    "launch.py",
                    *QUICK.split(),
                    f"--workdir={tmp_path}/new",
                    f"--config.steps_per_call={text}",
                ]
            )
    assert seen == [3, 1]


def test_data_directory_without_the_set(capfd, tmp_path):
    line = refusal(
        f"--config configs/cifar10.py --workdir {tmp_path}/new --config.data.data_dir={tmp_path}",
        capfd,
    )
    assert "data.data_dir" in line and str(tmp_path) in line and "cifar10" in line
    assert not list(tmp_path.iterdir())


def test_views_that_do_not_fit_the_images(capfd, tmp_path):
    words = f"{QUICK} --workdir {tmp_path}/new --config.task=views --config.views.gray=0.5"
    assert "views.gray" in refusal(words, capfd)
    assert not list(tmp_path.iterdir())


# Work directories.


@pytest.mark.parametrize("inside", ["", "/deeper/still"])
def test_workdir_is_a_file(inside, capfd, tmp_path):
    (tmp_path / "file").write_text("mine")
    line = refusal(f"{QUICK} --workdir {tmp_path}/file{inside}", capfd)
    assert "--workdir" in line and f"{tmp_path}/file is not a directory" in line
    assert (tmp_path / "file").read_text() == "mine"


def test_probe_without_a_checkpoint_to_judge(capfd, tmp_path):
    probe = f"--config configs/probe.py --workdir {tmp_path}/new"
    assert "--config.checkpoint=DIR" in refusal(probe, capfd)
    line = refusal(f"{probe} --config.checkpoint={tmp_path}", capfd)
    assert f"{tmp_path}/config.json" in line and "not found" in line
    line = refusal(f"{probe} --config.checkpoint={tmp_path} --config.task=pretrain", capfd)
    assert line.startswith("error: task: got 'pretrain'")
    assert not list(tmp_path.iterdir())


# Signals, and the program as a user starts it.


def start(*words: str) -> subprocess.Popen:
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "launch.py", *words], cwd=ROOT, stdout=pipe, stderr=pipe, text=True
    )


def test_control_c_ends_in_one_line(tmp_path, heeds_control_c):
    (tmp_path / "slow.py").write_text(
        "import time\ndef get_config():\n    print('here', flush=True)\n    time.sleep(60)\n"
    )
    process = start("--config", str(tmp_path / "slow.py"), "--workdir", str(tmp_path / "new"))
    assert process.stdout.readline() == "here\n"
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in error and "goes on" in error and len(error.strip().splitlines()) == 1


def test_a_refused_command_as_a_process(tmp_path):
    process = start(
        *QUICK.split(), "--workdir", str(tmp_path / "new"), "--config.predictor.kind=mlpp"
    )
    out, error = process.communicate(timeout=120)
    assert (process.returncode, out) == (2, "")
    assert re.fullmatch(r"error: predictor\.kind: got 'mlpp', did you mean 'mlp'.*\n", error), error
    assert not list(tmp_path.iterdir())


# Every command of the documentation: right as it stands, refused with any one of its words
# misspelt.


@pytest.mark.parametrize(
    "platform, chosen, anew", [("linux", None, 1), ("linux", "", 0), ("darwin", None, 0)]
)
def test_memory_is_kept_unless_the_user_decides(platform, chosen, anew, monkeypatch):
    calls = []
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setattr(launch.os, "execv", lambda path, words: calls.append(words))
    monkeypatch.setattr(launch.sys, "platform", platform)
    monkeypatch.setattr(launch.sys, "orig_argv", ["python3", "-W", "error", "launch.py", "--help"])
    monkeypatch.setenv("GLIBC_TUNABLES", chosen or "")
    if chosen is None:
        monkeypatch.delenv("GLIBC_TUNABLES")
    launch.use_huge_pages()
    assert calls == [[sys.executable, "-W", "error", "launch.py", "--help"]] * anew
    assert not anew or "hugetlb=1" in launch.os.environ["GLIBC_TUNABLES"]
    launch.use_huge_pages()
    assert len(calls) == anew, "once is enough"


@pytest.fixture
def begun_anew(monkeypatch):
    """The commands by which the process would have started anew."""
    calls = []
    monkeypatch.setattr(launch.os, "execv", lambda path, words: calls.append(words))
    monkeypatch.setattr(launch.sys, "platform", "linux")
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    yield calls
    os.environ.pop("GLIBC_TUNABLES", None)  # which the function itself set


COMMANDS = {
    "configs/quickstart.py": True,
    "configs/supervised.py:mlp": True,
    "configs/probe.py": True,
    "configs/embed.py": True,
    "configs/sweeps/table2.py": True,
    "configs/experiments/signal.py": True,
    "configs/theory.py": False,
    "configs/doctor.py": False,
    "configs/dynamics.py": False,
    "configs/report.py": False,
    "configs/export.py": False,
    "configs/quickstart.py --config.task=views": False,
}


@pytest.mark.parametrize("own_process", [True, False])
@pytest.mark.parametrize("words", COMMANDS)
def test_a_process_of_its_own_that_trains_starts_anew(
    words, own_process, begun_anew, monkeypatch, tmp_path
):
    reached = []
    monkeypatch.setattr(launch, "run", lambda values: reached.append(values["config"].value.task))
    argv = ["launch.py", "--config", *words.split(), f"--workdir={tmp_path}/new"]
    assert launch.main(argv, own_process=own_process) == 0 and len(reached) == 1
    assert len(begun_anew) == (own_process and COMMANDS[words])


def test_training_tasks_are_tasks_and_the_others_are_known():
    from ssl_jax.tasks.registry import TASKS

    others = {"views", "theory", "doctor", "dynamics", "report", "compare", "export"}
    assert set(TASKS) - set(launch.TRAINING) == others
    assert set(launch.TRAINING) <= set(TASKS)


def test_a_mistake_is_told_before_the_process_starts_anew(begun_anew, capfd):
    assert (
        launch.main(
            ["launch.py", *QUICK.split(), "--workdir=W", "--config.epochz=1"], own_process=True
        )
        == 2
    )
    assert capfd.readouterr().err.startswith("error: ") and not begun_anew


def test_an_accelerator_needs_no_new_start(begun_anew, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    launch.use_huge_pages()
    assert not begun_anew and "GLIBC_TUNABLES" not in os.environ
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    launch.use_huge_pages()
    assert len(begun_anew) == 1


GPU, TPU = {"/dev/nvidia[0-9]*": ["/dev/nvidia0"]}, {"/dev/accel*": ["/dev/accel0"]}


@pytest.mark.parametrize(
    "environment, devices, packages, expected",
    [
        ({}, {}, [], False),
        ({}, GPU, ["jax_plugins"], True),
        ({}, GPU, [], False),  # a device that JAX has no way to
        ({}, {}, ["jax_plugins"], False),  # a CUDA build on a machine without a GPU
        ({}, TPU, ["libtpu"], True),
        ({"JAX_PLATFORMS": "cpu"}, GPU, ["jax_plugins"], False),
        ({"JAX_PLATFORMS": "CPU,cuda"}, GPU, ["jax_plugins"], False),
        ({"JAX_PLATFORM_NAME": "cpu"}, GPU, ["jax_plugins"], False),
        ({"JAX_PLATFORMS": "cuda,cpu"}, {}, [], True),
        ({"JAX_PLATFORMS": ""}, GPU, ["jax_plugins"], True),
        ({"CUDA_VISIBLE_DEVICES": ""}, GPU, ["jax_plugins"], False),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, GPU, ["jax_plugins"], False),
        ({"CUDA_VISIBLE_DEVICES": "0"}, GPU, ["jax_plugins"], True),
        ({"CUDA_VISIBLE_DEVICES": ""}, TPU, ["libtpu"], True),
    ],
)
def test_an_accelerator_is_expected_where_jax_would_find_one(
    environment, devices, packages, expected, monkeypatch
):
    for name in ("JAX_PLATFORMS", "JAX_PLATFORM_NAME", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(memory, "glob", lambda pattern: devices.get(pattern, []))
    monkeypatch.setattr(memory, "find_spec", lambda name: name if name in packages else None)
    assert memory.accelerator_expected() == expected


def test_this_machine_is_told_as_jax_tells_it():
    """Without imports of JAX, in a process of its own, beside JAX's own answer."""
    words = "import sys; from ssl_jax.runtime.memory import accelerator_expected as a; e = a(); "
    words += (
        "assert 'jax' not in sys.modules; import jax; print(e == (jax.default_backend() != 'cpu'))"
    )
    clean = {k: v for k, v in os.environ.items() if not k.startswith("JAX_PLATFORM")}
    command = [sys.executable, "-c", words]
    done = subprocess.run(command, env=clean, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "True"


def documented() -> list[str]:
    """What follows `launch.py` or `ssl-jax` in README.md, in the pages and in the configurations'
    own words.
    """
    paths = (ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "configs").rglob("*.py"))
    texts = [
        re.sub(r"\\+\n\s*", "", path.read_text())  # a command on two lines
        for path in paths
        if path.parent.name != "api"
    ]
    found = {
        m[1].strip(' `"')
        for text in texts
        for m in re.finditer(r"(?:launch\.py|ssl-jax) (--config [^\n#`|]*)", text)
    }
    # In a loop of the shell one round stands for all.
    loops = {"$METHOD": "byol", "$KIND": "pwd", "$TABLE": "table1", "$SEED": "0"}
    for name, value in loops.items():
        found = {words.replace(name, value) for words in found}
    # A table's cells leave out what all of its commands have.
    found |= {
        f"--config {cell} --workdir DIR"
        for cell in re.findall(r"\| `(configs/[^`|]*)` \|", texts[0])
    }
    # test_contributing.py runs what is of a configuration that an example makes.
    made = [name for text in texts for name in re.findall(r"^# (configs/\S+\.py)$", text, re.M)]
    # test_finetune.py runs what reads a run.
    words = [r"NAME|METHOD|TABLE|CONFIG|\[", r"finetune(\.py)?:", *map(re.escape, made)]
    left_out = re.compile("|".join(words))
    return sorted(words for words in found if not left_out.search(words))


def test_the_documentation_has_commands():
    assert any("quickstart" in words for words in documented())


@pytest.mark.parametrize("words", documented())
def test_documented_command_is_understood(words):
    launch.parse_flags(["launch.py", *shlex.split(words)])


def misspelt(word: str) -> str:
    """`word` with a letter more, where a person would slip: in its name."""
    name, equals, value = word.partition("=")
    if not name.startswith("--"):
        stem, colon, argument = name.partition(":")
        return f"{stem}:{argument}x" if colon else f"{stem}x"
    return f"{name}x{equals}{value}"


@pytest.mark.parametrize("words", documented())
def test_documented_command_misspelt(words, no_run, capfd):
    right = shlex.split(words)
    takes = [
        i for i, word in enumerate(right) if word.startswith("--") or right[i - 1] == "--config"
    ]
    for i in takes:
        line = refusal(shlex.join([*right[:i], misspelt(right[i]), *right[i + 1 :]]), capfd)
        assert "did you mean" in line or right[i].startswith("--config"), line
