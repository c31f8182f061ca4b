"""What a run says at the terminal: once for all processes, beside the progress bar."""

import jax
from tqdm import tqdm


def is_writer() -> bool:
    return jax.process_index() == 0


def say(line: str) -> None:
    """A line for the person at the terminal, beside the progress bar, once for all processes."""
    if is_writer():
        tqdm.write(line)


def progress_bar(total: int, start: int):
    return tqdm(total=total, initial=start, unit="step", disable=not is_writer(), dynamic_ncols=True, smoothing=0.1)
