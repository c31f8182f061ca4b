"""The task "compare": any runs on one page, from their work directories alone."""

from ssl_jax import files
from ssl_jax.builders.defaults import defaults_of
from ssl_jax.errors import UserError
from ssl_jax.reports.compare.page import Compared, main_table, more_table, page, text_of
from ssl_jax.reports.compare.runs import find_runs, group, read_runs
from ssl_jax.runtime.terminal import say
from ssl_jax.sweeps.jobs import TRAINERS
from ssl_jax.text import printable
from ssl_jax.types import Config, Interrupted
from ssl_jax.workdir import result_json
from ssl_jax.workdir.directory import open_workdir


def compare(config: Config, directory: str, interrupted: Interrupted = lambda: False) -> None:
    """Write compare.html, compare.md and result.json from the runs that `config.runs` names.

    Args:
        config: configuration of the task.
        directory: work directory of the task.
        interrupted: not asked, as the task takes seconds.

    Raises:
        UserError: `runs` names no run, or none that can be read.
    """
    paths = find_runs(config.runs)
    runs, left_out = read_runs(paths, {task: defaults_of(task) for task in TRAINERS})
    if not runs:
        raise UserError(f"runs: none can be read ({left_out[0]})")
    compared = Compared(group(runs), left_out)
    out = open_workdir(directory, config.to_dict())
    files.write_whole(out / "compare.md", text_of(compared))
    files.write_whole(out / "compare.html", page(compared))
    tables = filter(None, (main_table(compared.groups), more_table(compared.groups)))
    content = [{"columns": table.header, "rows": table.rows} for table in tables]
    result = {"task": "compare", "runs": len(runs), "tables": content, "left_out": left_out}
    result_json.write(out, result)
    for line in left_out:
        say(f"left out: {printable(line)}")
    say(f"{len(runs)} runs in {len(compared.groups)} groups: wrote {out / 'compare.html'}")
