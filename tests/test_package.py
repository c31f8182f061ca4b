"""The package as it is installed: its commands, its configurations by name, and its wheel."""

import json
import os
import subprocess
import sys
import tarfile
import types
from pathlib import Path

import pytest
from commands import ROOT, TINY

from ssl_jax.builders import defaults
from ssl_jax.builders.configurations import find_config
from ssl_jax.builders.fields import read_config
from ssl_jax.errors import UserError
from ssl_jax.workdir.directory import read_json

NO_RUN = [f"--config.{field}" for field in ("epochs=3", "epoch=1")]  # the second one is refused
NAMES = {
    "quickstart": "configs/quickstart.py",
    "quickstart.py": "configs/quickstart.py",
    "configs/quickstart.py": "configs/quickstart.py",
    "sweeps/table1": "configs/sweeps/table1.py",
    "experiments/ablation": "configs/experiments/ablation.py",
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Commands are given in an empty folder."""
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")


@pytest.mark.parametrize("name", NAMES)
def test_a_packaged_configuration_by_its_name(name):
    assert find_config(name) == ROOT / NAMES[name]


def test_a_name_with_an_argument():
    assert read_config("cifar10_small:simsiam").method == "simsiam"


def test_a_path_as_typed_comes_first():
    Path("configs").mkdir()
    Path("configs/quickstart.py").write_text("")
    Path("quickstart").write_text("")
    assert find_config("configs/quickstart.py") == Path("configs/quickstart.py")
    assert find_config("quickstart") == Path("quickstart")


@pytest.mark.parametrize(
    "name, near, other",
    [
        ("quickstrt", "did you mean 'quickstart'", "configs/"),
        ("sweeps/table9", "did you mean 'sweeps/table", "configs/"),
        ("configs/quickstrt.py", "did you mean 'configs/quickstart.py'", " quickstart"),
        ("mine.py", "configs/quickstart.py", " quickstart"),
    ],
)
def test_an_unknown_name_is_one_line_with_the_nearest(name, near, other):
    with pytest.raises(UserError) as caught:
        find_config(name)
    assert near in str(caught.value) and other not in str(caught.value)
    assert str(caught.value).startswith(f"--config: no file {name}")


LATE = "def get_config():\n    from configs.sweeps import table2\n    return table2.get_config()\n"
OWN = {
    "at the top": "from configs import cifar10\nget_config = lambda: cifar10.get_config('byol')\n",
    "inside": LATE,
}


@pytest.mark.parametrize("text", OWN.values(), ids=OWN)
@pytest.mark.parametrize("taken", [True, False])
def test_a_configuration_of_ones_own_builds_on_the_packaged_ones(text, taken, monkeypatch):
    """Also where the user's program has a package `configs` itself, which stays as it was."""
    theirs = types.ModuleType("configs")
    inner = types.ModuleType("configs.cifar10")
    for name, module in (("configs", theirs), ("configs.cifar10", inner)):
        if taken:
            monkeypatch.setitem(sys.modules, name, module)
        else:
            monkeypatch.delitem(sys.modules, name, raising=False)
    before = {name: sys.modules[name] for name in sys.modules if name.split(".")[0] == "configs"}
    Path("mine.py").write_text(text)
    assert read_config("mine.py").task in ("pretrain", "sweep")
    after = {name: sys.modules[name] for name in sys.modules if name.split(".")[0] == "configs"}
    assert after == before and (not taken or after["configs"] is theirs)


def test_the_defaults_of_a_packaged_configuration_are_found_from_anywhere(monkeypatch):
    """Also where the folder of the clone is not among those that Python looks in, as of a wheel."""
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place not in ("", str(ROOT))])
    for name in [name for name in sys.modules if name.split(".")[0] == "configs"]:
        monkeypatch.delitem(sys.modules, name)
    assert defaults.defaults_in("configs/cifar100.py")["data"]["name"] == "cifar100"
    assert defaults.defaults_in("configs/none.py") == {}


def command(*words: str, path: Path = ROOT, **options) -> subprocess.CompletedProcess:
    environment = os.environ | {
        "PYTHONPATH": str(path),
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    environment.pop("XLA_FLAGS", None)
    return subprocess.run(words, env=environment, capture_output=True, text=True, **options)


def test_all_commands_are_one():
    refused = [
        command(sys.executable, *start, "--config=quickstart", "--workdir=W", *NO_RUN)
        for start in ([f"{ROOT}/launch.py"], ["-m", "ssl_jax"], ["-c", CONSOLE])
    ]
    for process in refused:
        assert (process.returncode, process.stdout) == (2, "")
        assert process.stderr == "error: epoch: no such field, did you mean 'epochs'?\n"
    assert not os.listdir()


CONSOLE = "import sys; from ssl_jax.__main__ import run; sys.exit(run())"  # as installers write it


def test_importing_the_package_imports_nothing_else():
    program = "import sys; before = set(sys.modules); import ssl_jax; "
    program += "print([name for name in sorted(set(sys.modules) - before)"
    program += " if name.split('.')[0] not in sys.stdlib_module_names])"
    found = command(sys.executable, "-c", program)
    assert found.stdout == "['ssl_jax', 'ssl_jax.train']\n", found.stderr


@pytest.mark.parametrize("first", ["", "import ssl_jax.train.loop"])
def test_the_package_hands_its_names_on(first):
    """`train` is a folder as well, whether it was imported or not."""
    program = (
        f"import ssl_jax\n{first}\n"
        + """
import ssl_jax.runs, ssl_jax.launch
assert ssl_jax.open_run is ssl_jax.runs.open_run and ssl_jax.sklearn.Encoder
ssl_jax.launch.train = lambda *words, **fields: print(words, fields)
ssl_jax.train("quickstart", "W", epochs=2)
import ssl_jax.train.loop
from ssl_jax.train import loop
assert ssl_jax.train.loop is loop
ssl_jax.nothing
"""
    )
    found = command(sys.executable, "-c", program)
    assert found.stdout == "('quickstart', 'W') {'epochs': 2}\n", found.stderr
    assert found.stderr.endswith("module 'ssl_jax' has no attribute 'nothing'\n")


TYPED = """
import ssl_jax
import numpy as np

run = ssl_jax.open_run("runs/byol")
features: np.ndarray = run.encoder(best=True)(["a.png", np.zeros((8, 8, 3), np.uint8)])
steps: list[int] = ssl_jax.train("quickstart", "runs/x", epochs=5).steps
ssl_jax.sklearn.Encoder("runs/byol", step=3)
run.encoder(best=3.5)
ssl_jax.open_run(5)
"""


@pytest.mark.slow
def test_a_type_checker_sees_the_types():
    """Two mistakes in a program of somebody else, and nothing but these."""
    Path("client.py").write_text(TYPED)
    Path("pyrightconfig.json").write_text(json.dumps({"extraPaths": [str(ROOT)]}))
    words = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable]
    found = json.loads(command(*words, "client.py").stdout)["generalDiagnostics"]
    lines = [(d["range"]["start"]["line"] + 1, d["rule"]) for d in found]
    assert lines == [(9, "reportArgumentType"), (10, "reportArgumentType")], found


CLIENT = """
from configs import quickstart

def get_config():
    config = quickstart.get_config()
    config.data.train_size = 300
    return config
"""


@pytest.mark.slow
def test_a_wheel_is_enough(tmp_path):
    """Made from the source distribution, installed, and used in an empty folder."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    made = command(
        *[sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path)], cwd=ROOT
    )
    assert made.returncode == 0, made.stderr
    [archive] = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        names = {"/".join(name.split("/")[1:]) for name in file.getnames()}
    assert {"launch.py", "configs/quickstart.py", "tests/commands.py", "README.md"} <= names
    quiet = ["-q", "--no-deps", "--no-build-isolation"]
    local = ["--no-index", f"--find-links={tmp_path}", "--target=../site"]
    for words in (
        ["wheel", *quiet, "-w", str(tmp_path), str(archive)],
        ["install", *quiet, *local, "ssl-jax"],
    ):
        done = command(*pip, *words)
        assert done.returncode == 0, done.stderr
    site = tmp_path / "site"
    assert (site / "ssl_jax" / "py.typed").exists()
    own, packaged = (
        {path.name for path in (root / "ssl_jax" / "models" / "cpu").glob("*.[ch]*")}
        for root in (ROOT, site)
    )
    assert own == packaged and len(own) > 2
    packaged = {p.name for p in (site / "ssl_jax" / "configs").rglob("*.py")}
    assert packaged == {p.name for p in (ROOT / "configs").rglob("*.py")}

    program = [sys.executable, str(site / "bin" / "ssl-jax")]
    described = command(*program, "--help", path=site)
    assert "configs/quickstart.py" in described.stdout and described.returncode == 0
    wrong = command(*program, "--config=quickstart", "--workdir=W", *NO_RUN, path=site)
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1) and not os.listdir()
    Path("mine.py").write_text(CLIENT)
    words = [*TINY, "--config.epochs=1", "--config.data.train_size=256"]
    for name, out in (("quickstart", "A"), ("configs/quickstart.py", "A"), ("mine.py", "B")):
        done = command(*program, f"--config={name}", f"--workdir={out}", *words, path=site)
        assert done.returncode == 0, done.stderr
    assert [read_json(Path(out) / "result.json")["epochs"] for out in "AB"] == [1, 1]
    # an experiment reads its defaults from the packaged configuration
    asked = "from ssl_jax.builders import defaults as d; import ssl_jax; print(ssl_jax.__file__, "
    asked += "len(d.defaults_in('configs/experiments/ablation.py')) > 0)"
    answer = command(sys.executable, "-c", asked, path=site).stdout
    assert answer == f"{site}/ssl_jax/__init__.py True\n"
