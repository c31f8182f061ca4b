"""The records of a set: described, and in memory. `data.sources` states their value contract."""

from typing import NamedTuple

import numpy as np


class Split(NamedTuple):
    """The images and the labels of a split."""

    image: np.ndarray  # (N, H, W, C) uint8, perhaps mapped read-only from a file
    label: np.ndarray  # (N,) int32


class Description(NamedTuple):
    """The properties of a set that are known before any of its images is read."""

    name: str
    train: int  # images with a label
    test: int
    # images for pretraining: those of `train`, and the unlabelled ones where the set has some
    pretrain: int
    # height and width in pixels, and channels, of every image, in the size that was asked for
    image: tuple[int, int, int]
    num_classes: int
    label_names: tuple[str, ...]

    @property
    def side(self) -> int:
        """Pixels of a view's side."""
        return self.image[0]

    @property
    def channels(self) -> int:
        """1 or 3."""
        return self.image[2]


class Dataset(NamedTuple):
    """A set in memory."""

    name: str
    train: Split
    test: Split
    pretrain: Split  # `train`, and the unlabelled images where the set has some
    num_classes: int
    label_names: tuple[str, ...]
    # "NAME: REASON" of each picture that was left out, as it cannot be decoded
    damaged: tuple[str, ...] = ()

    @property
    def description(self) -> Description:
        """The set's description, taken from its arrays."""
        train, test, pretrain = (
            len(split.label) for split in (self.train, self.test, self.pretrain)
        )
        height, width, channels = self.pretrain.image.shape[1:]
        image = height, width, channels
        return Description(
            self.name, train, test, pretrain, image, self.num_classes, self.label_names
        )

    @property
    def side(self) -> int:
        """Pixels of a view's side."""
        return self.description.side
