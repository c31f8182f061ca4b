"""Lead an experiment from its configuration to result.json, table.md and figures."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ssl_jax import files
from ssl_jax.builders import checks
from ssl_jax.builders.data import read_dataset
from ssl_jax.builders.defaults import defaults_in
from ssl_jax.experiments.harness.cells import Arrays, Plan, compute
from ssl_jax.reports.experiments import registry
from ssl_jax.reports.figure import optional
from ssl_jax.runtime.terminal import say
from ssl_jax.types import Config, Interrupted
from ssl_jax.workdir import result_json
from ssl_jax.workdir.directory import check_workdir

RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, 2**31),
    "seeds": (1, 1000),
    "epochs": (1, 10**6),
    "batch_size": (2, 10**6),
    "learning_rate": (0, 1e6),
    "data.train_size": (0, 10**9),
    "data.image_size": (0, 1024),
}


class Experiment(NamedTuple):
    """The parts of an experiment, which `run` runs.

    `check`, `prepare` and the first stage raise UserErrors before anything is computed or written.
    """

    # stage(config, parts, *results) -> Plan. results: of each earlier stage, arrays by the keys of
    # its plan
    stages: Sequence[Callable[..., Plan]]
    # summarise(config, parts, *results) -> entries of result.json, from which table and figures are
    # made
    summarise: Callable[..., dict[str, Any]]
    prepare: Callable[[Config], Any] = read_dataset  # config -> parts, which the stages share
    # raises UserError where a field of the configuration is wrong
    check: Callable[[Config], object] = lambda config: None
    # smallest and largest value of fields that no other part checks
    ranges: dict[str, tuple[float, float]] = {}


def run(experiment: Experiment, config: Config, directory: str, interrupted: Interrupted) -> None:
    """Compute what the work directory does not hold yet, then report and draw.

    Args:
        experiment: what to run.
        config: its configuration.
        directory: the work directory.
        interrupted: whether to stop; the same call then goes on from the finished cells.

    Raises:
        UserError: a field of the configuration, the work directory or a stored cell is wrong.
    """
    checks.check_ranges(config, RANGES | experiment.ranges)
    experiment.check(config)
    defaults = defaults_in(f"configs/experiments/{config.experiment}.py")
    check_workdir(directory, config.to_dict(), defaults=defaults)
    parts = experiment.prepare(config)
    plan = experiment.stages[0](config, parts)
    out = result_json.open_on_one(directory, config.to_dict())
    results: list[dict[Any, Arrays]] = []
    while True:
        arrays = compute(out, plan, interrupted)
        if arrays is None:
            return
        results.append(arrays)
        if len(results) == len(experiment.stages):
            break
        plan = experiment.stages[len(results)](config, parts, *results)
    # once each, whatever number of keys it has
    cells = {id(cell): cell for stage in results for cell in stage.values()}
    seconds = sum(float(cell["seconds"]) for cell in cells.values())
    finish(out, config, experiment.summarise(config, parts, *results), seconds)


def finish(out: Path, config: Config, summary: dict[str, Any], seconds: float) -> None:
    """Write result.json, table.md and figures, and print the table.

    Args:
        out: the work directory.
        config: the experiment's configuration.
        summary: the entries of result.json that this experiment alone has.
        seconds: time that the cells took.
    """
    result = {"task": "experiment", "experiment": config.experiment}
    result |= {"dataset": config.data.name} if "data" in config else {}
    result |= summary | {
        "config": result_json.fields(config.to_dict()),
        "seconds": round(seconds, 1),
    }
    result_json.write(out, result | result_json.environment())
    text = registry.report(result)
    files.write_whole(out / "table.md", text)
    with optional(out / "figures") as folder:
        registry.draw(result, folder)
    for line in text.split("\n"):
        say(line)
    say(f"results in {out / 'result.json'}, figures in {out / 'figures'}")
