"""A module imports only from floors below its own and from its own folder; some arrows are
forbidden by name.
"""

import ast
import re
from pathlib import Path

import pytest
from floors import FLOORS, FORBIDDEN, PICTURE, draw

ROOT = Path(__file__).parent.parent
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in (
        ROOT / "launch.py",
        *sorted((ROOT / "ssl_jax").rglob("*.py")),
        *sorted((ROOT / "configs").rglob("*.py")),
    )
}


def folder(module: str) -> str:
    """Return a module's folder: "train" of "ssl_jax.train.loop", "configs" of "configs.probe".

    `launch.py` at the top and `ssl_jax/__main__.py` belong to `ssl_jax/launch.py`.
    """
    name = module.split(".")[module.startswith("ssl_jax.")]
    return "launch" if name == "__main__" else name


def floor(name: str) -> int:
    found = [i for i, names in enumerate(FLOORS) if name in names]
    assert found, f"{name} stands on no floor: name it in FLOORS"
    return found[0]


def imports_of(text: str) -> set[str]:
    """The modules of ours that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, "relative imports are not read here"
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in FILES else node.module for name in whole}
    return {name for name in found if name.split(".")[0] in ("ssl_jax", "configs", "launch")}


def violations(module: str, text: str) -> list[str]:
    """What the file `module`, which reads `text`, imports and must not."""
    own, found = folder(module), []
    for imported in sorted(imports_of(text)):
        other = folder(imported)
        if other == own:
            continue
        if other == "tasks" and own != "launch":
            found.append(f"{module} imports {imported}: tasks are for the door alone")
        elif other in FORBIDDEN.get(own, ()):
            found.append(f"{module} imports {imported}: {own} must never import {other}")
        elif own != "configs" and (other == "configs" or floor(other) >= floor(own)):
            found.append(f"{module} imports {imported}, which is not below it")
    return found


# The package itself hands names of every floor on, when they are asked for: test_package.py.
BESIDE_PACKAGE = [module for module in FILES if module != "ssl_jax"]


@pytest.mark.parametrize("module", BESIDE_PACKAGE)
def test_imports_point_down(module):
    assert violations(module, FILES[module].read_text()) == []


@pytest.mark.parametrize(
    "module",
    # the package itself hands names on when they are asked for: test_package.py
    [
        module
        for module, path in FILES.items()
        if path.name == "__init__.py" and module != "ssl_jax"
    ],
)
def test_packages_hand_names_on_and_define_nothing(module):
    for node in ast.parse(FILES[module].read_text()).body:
        text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        names = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        assert text or names or isinstance(node, ast.ImportFrom), f"{module}, line {node.lineno}"


# --- The configuration stops at builders ----------------------------------------------------------

BELOW = [
    module
    for module in FILES
    if folder(module) != "configs" and floor(folder(module)) < floor("builders")
]


def configurations(text: str) -> list[str]:
    """Where a file takes a configuration: by its type, or as a parameter of that name which is no
    plain dict.
    """
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            found += [
                name for name in names if name == "Config" or name.split(".")[0] == "ml_collections"
            ]
        elif isinstance(node, ast.arg):
            told = ast.unparse(node.annotation) if node.annotation else "nothing"
            if re.search(r"\bConfig(Dict)?\b", told) or (
                node.arg == "config" and not told.startswith("dict")
            ):
                found.append(f"{node.arg}: {told}, line {node.lineno}")
    return found


@pytest.mark.parametrize("module", [module for module in BELOW if module != "ssl_jax.types"])
def test_below_builders_nothing_takes_a_configuration(module):
    assert configurations(FILES[module].read_text()) == []


@pytest.mark.parametrize(
    "folder", "data train probes predictors optim models dynamics workdir diagnosis export".split()
)
def test_these_stand_below_builders(folder):
    assert any(module.startswith(f"ssl_jax.{folder}.") for module in BELOW)


@pytest.mark.parametrize(
    "text",
    [
        "from ssl_jax.types import Config, Params",
        "from ml_collections import ConfigDict",
        "import ml_collections",
        "from ml_collections.config_dict import placeholder",
        "def f(config): ...",
        "def f(*, config=None): ...",
        "def f(fields: types.Config): ...",
        "def f(fields: ConfigDict | None): ...",
        "g = lambda config: config.seed",
    ],
)
def test_a_configuration_is_found(text):
    assert len(configurations(text)) >= 1
    assert configurations("def f(config: dict, name: str, seed=0): ...") == []


# --- The rule of floors itself --------------------------------------------------------------------

WRONG = {
    "reports to train": ("ssl_jax.reports.doctor", "from ssl_jax.train import loop"),
    "reports to builders": (
        "ssl_jax.reports.doctor",
        "from ssl_jax.builders.checks import check_views",
    ),
    "reports to tasks": ("ssl_jax.reports.doctor", "import ssl_jax.tasks.doctor"),
    "train to probes": ("ssl_jax.train.loop", "from ssl_jax.probes.knn import knn_accuracy"),
    "predictors to train": (
        "ssl_jax.predictors.learned",
        "from ssl_jax.train.state import init_state",
    ),
    "experiments to tasks": ("ssl_jax.experiments.registry", "from ssl_jax.tasks import pretrain"),
    "configurations to tasks": ("configs.probe", "from ssl_jax.tasks.probe import probe"),
    "up": ("ssl_jax.optim.decay", "from ssl_jax.predictors import make_predictor"),
    "beside": ("ssl_jax.optim.decay", "from ssl_jax.models import make_encoder"),
    "to the door": ("ssl_jax.sweeps.jobs", "from ssl_jax import launch"),
    "to the program": ("ssl_jax.sweeps.jobs", "import ssl_jax.__main__"),
    "to configurations": ("ssl_jax.sweeps.jobs", "from configs import defaults"),
}


@pytest.mark.parametrize("inside", ["{}", "def f():\n    {}"])
@pytest.mark.parametrize("arrow", WRONG)
def test_the_rule_can_fail(arrow, inside):
    module, line = WRONG[arrow]
    assert module in FILES and not violations(module, "from ssl_jax.errors import UserError")
    assert len(violations(module, inside.format(line))) == 1


def test_the_picture_shows_these_floors():
    assert PICTURE.read_text() == draw(), "python tests/floors.py draws it anew"


def test_the_page_says_what_every_folder_is_for():
    page = (ROOT / "docs" / "architecture.md").read_text()
    described = re.findall(r"^\| `([\w/]+)` \|", page, re.MULTILINE)
    assert sorted(name.strip("/") for name in described) == sorted(
        name for names in FLOORS for name in names
    )
