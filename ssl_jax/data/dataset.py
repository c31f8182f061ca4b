"""The record of a set in memory. Its value contract stands in `data.sources`."""

from typing import NamedTuple

import numpy as np


class Split(NamedTuple):
    """image (N, H, W, C) uint8, perhaps mapped read-only from a file; label (N,) int32."""

    image: np.ndarray
    label: np.ndarray


class Dataset(NamedTuple):
    """A set in memory. `pretrain` is `train`, or more than it where the set has unlabelled images."""

    name: str
    train: Split
    test: Split
    pretrain: Split
    num_classes: int
    label_names: tuple[str, ...]

    @property
    def side(self) -> int:
        """Pixels of a view's side: images come in the size that was asked for, or as stored."""
        return self.train.image.shape[1]
