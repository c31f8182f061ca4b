"""Readers of records for processes that decode, which import no JAX; nor does this file."""

import os
import signal
import sys

import numpy as np


class Pixels:
    """read(i): pixels that are handed on as they are; a few places do something else."""

    def __init__(self, image: np.ndarray, damaged: int = -1, deadly: int = -1) -> None:
        self.image, self.damaged, self.deadly = image, damaged, deadly

    def __call__(self, index: int) -> np.ndarray:
        if index == self.damaged:
            raise OSError("image file is truncated\nby 10 bytes")
        if index == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.image[index]


class WhoAmI:
    """read(i): 8 bytes of the number of the process, and whether it has JAX, as a 1x9 image."""

    def __call__(self, index: int) -> np.ndarray:
        number = np.frombuffer(os.getpid().to_bytes(8, "little"), np.uint8)
        has = sys.modules.get("jax") is not None
        return np.append(number, np.uint8(has)).reshape(1, 9, 1)


def same(record: np.ndarray) -> np.ndarray:
    return record
