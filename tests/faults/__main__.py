"""Run every attack, and print how many were tried and how many survived, by group.

    python -m tests.faults [--seed=N] [GROUP ...]

The exit status is 1 where one did not survive.
"""

import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

COLUMNS = "{:<16}{:>7}{:>10}{:>8}{:>10}{:>8}{:>8}"


def main(words: list[str], scratch: Path) -> int:
    """Run the groups that are named, or all, in `scratch`; return the exit status."""
    import jax
    from tqdm import tqdm

    jax.config.update("jax_disable_most_optimizations", True)
    from . import given, stops, stored, system  # noqa: F401
    from .suite import GROUPS, OUTCOMES, Base, attempt, trials

    seeds = [int(word.removeprefix("--seed=")) for word in words if word.startswith("--seed=")]
    chosen = [word for word in words if not word.startswith("--seed=")] or list(GROUPS)
    if unknown := set(chosen) - set(GROUPS):
        print(f"error: {', '.join(unknown)}: no such group, takes {', '.join(GROUPS)}")
        return 2
    planned = [trial for name in chosen for trial in trials(name, (seeds or [0])[0])]
    base, outcomes = Base(scratch), []
    with tqdm(total=len(planned), unit="trial", mininterval=10) as bar:
        for number, trial in enumerate(planned):
            bar.set_postfix(group=trial.group, refresh=False)
            outcome = attempt(trial, base, scratch / f"trial-{number}")
            outcomes.append(outcome)
            if not outcome.survived:
                bar.write(f"{outcome.kind}: {trial.group}: {trial.name}: {outcome.words[:1000]}")
            bar.update()
    print(COLUMNS.format("group", "tried", "survived", *("right", "one line"), "failed", "min"))
    for name in [*chosen, "in all"]:
        own = [outcome for outcome in outcomes if name in (outcome.trial.group, "in all")]
        kinds = Counter(outcome.kind for outcome in own)
        survived = sum(outcome.survived for outcome in own)
        counts = [kinds[kind] for kind in OUTCOMES[:2]]
        minutes = f"{sum(outcome.seconds for outcome in own) / 60:.1f}"
        print(COLUMNS.format(name, len(own), survived, *counts, len(own) - survived, minutes))
    return int(not all(outcome.survived for outcome in outcomes))


if __name__ == "__main__":
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ssl_jax-faults-") as folder:
        os.environ["JAX_PLATFORMS"] = "cpu"
        os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{folder}/compiled"
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        status = main(sys.argv[1:], Path(folder))
    print(f"{(time.monotonic() - began) / 60:.1f} min")
    sys.exit(status)
