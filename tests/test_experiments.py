"""An experiment's name is the same wherever it stands: configuration, experiment, report and stored
result.
"""

import importlib
import json
import runpy
from pathlib import Path

import pytest

from ssl_jax.experiments.harness.experiment import Experiment
from ssl_jax.experiments.registry import EXPERIMENTS
from ssl_jax.reports.experiments.registry import REPORTS, draw, report

ROOT = Path(__file__).parent.parent
# folder: files in it that are no experiment
PLACES = {
    "configs/experiments": {"common"},
    "ssl_jax/experiments": {"__init__", "registry"},
    "ssl_jax/reports/experiments": {"__init__", "registry", "parts", "shapes"},
    "results/experiments": set(),
}


def names_in(place: str) -> set[str]:
    return {
        path.stem for path in (ROOT / place).iterdir() if path.suffix in (".py", ".json")
    } - PLACES[place]


@pytest.mark.parametrize("place", PLACES)
def test_every_place_has_the_same_names(place):
    assert names_in(place) == set(EXPERIMENTS)


def test_both_registries_have_the_same_names_in_order():
    assert list(EXPERIMENTS) == list(REPORTS) == sorted(EXPERIMENTS)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_name_leads_to_its_own_files(name):
    module = importlib.import_module(f"ssl_jax.experiments.{name}")
    assert EXPERIMENTS[name] is module.EXPERIMENT and isinstance(module.EXPERIMENT, Experiment)
    assert REPORTS[name] is importlib.import_module(f"ssl_jax.reports.experiments.{name}")
    config = runpy.run_path(str(ROOT / "configs" / "experiments" / f"{name}.py"))["get_config"]()
    assert (config.task, config.experiment) == ("experiment", name)
    stored = json.loads((ROOT / "results" / "experiments" / f"{name}.json").read_text())
    assert (stored["task"], stored["experiment"]) == ("experiment", name)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_stored_result_is_reported_and_drawn(name, tmp_path):
    stored = json.loads((ROOT / "results" / "experiments" / f"{name}.json").read_text())
    assert "| --- |" in report(stored).replace("---:", "---") and report(stored).endswith("\n")
    draw(stored, tmp_path)
    figures = sorted(path.name for path in tmp_path.iterdir())
    assert figures and all(name.endswith(".png") for name in figures)
