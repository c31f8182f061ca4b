"""A module imports only from floors below its own and from its own folder; some arrows are forbidden by name."""

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
    """ "ssl_jax.train.loop" -> "train"; "ssl_jax.errors" -> "errors"; "configs.probe" -> "configs"."""
    return module.split(".")[module.startswith("ssl_jax.")]


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


@pytest.mark.parametrize("module", FILES)
def test_imports_point_down(module):
    assert violations(module, FILES[module].read_text()) == []


@pytest.mark.parametrize("module", [module for module, path in FILES.items() if path.name == "__init__.py"])
def test_packages_hand_names_on_and_define_nothing(module):
    for node in ast.parse(FILES[module].read_text()).body:
        text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        names = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        assert text or names or isinstance(node, ast.ImportFrom), f"{module}, line {node.lineno}"


WRONG = {
    "reports to train": ("ssl_jax.reports.doctor", "from ssl_jax.train import loop"),
    "reports to builders": ("ssl_jax.reports.doctor", "from ssl_jax.builders.checks import check_views"),
    "reports to tasks": ("ssl_jax.reports.doctor", "import ssl_jax.tasks.doctor"),
    "train to probes": ("ssl_jax.train.loop", "from ssl_jax.probes.knn import knn_accuracy"),
    "predictors to train": ("ssl_jax.predictors.learned", "from ssl_jax.train.state import init_state"),
    "experiments to tasks": ("ssl_jax.experiments.registry", "from ssl_jax.tasks import pretrain"),
    "configurations to tasks": ("configs.probe", "from ssl_jax.tasks.probe import probe"),
    "up": ("ssl_jax.optim.decay", "from ssl_jax.predictors import make_predictor"),
    "beside": ("ssl_jax.optim.decay", "from ssl_jax.models import make_encoder"),
    "to the door": ("ssl_jax.sweeps.jobs", "import launch"),
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
    assert sorted(name.strip("/") for name in described) == sorted(name for names in FLOORS for name in names)
