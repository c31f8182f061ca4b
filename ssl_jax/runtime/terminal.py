"""Output at the terminal: once for all processes, above the progress bar."""

import sys

import jax
from tqdm import tqdm


def is_writer() -> bool:
    """Return whether this process is the one that writes files and prints lines."""
    return jax.process_index() == 0


def say(line: str) -> None:
    """Print a line above the progress bar, once for all processes."""
    if is_writer():
        tqdm.write(line)


def warn(line: str) -> None:
    """Print a warning of one line on standard error, in every process."""
    tqdm.write(f"warning: {' '.join(line.split())}", file=sys.stderr)


def progress_bar(total: int, start: int) -> tqdm:
    """Return a progress bar of `total` steps, `start` of them done; only the writer shows it."""
    return tqdm(
        total=total,
        initial=start,
        unit="step",
        disable=not is_writer(),
        dynamic_ncols=True,
        smoothing=0.1,
    )
