"""Open a run from Python: its result, its metrics, its configuration, and its encoder.

run = ssl_jax.open_run("runs/byol")
features = run.encoder()(images)
"""

import hashlib
import json
import os
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ssl_jax.builders.trained_run import (
    WITH_ENCODER,
    Trained,
    image_of,
    load_encoder,
    open_trained,
    read_trained,
)
from ssl_jax.data.fitted import Pictures, fit_pictures
from ssl_jax.digests import tree_digest
from ssl_jax.errors import UserError
from ssl_jax.files import local_path
from ssl_jax.probes.features import AHEAD, extract
from ssl_jax.workdir import checkpoints, metrics_csv
from ssl_jax.workdir.directory import read_json

BATCH = 500  # images in a batch at most, as the probes have it
CHUNK = BATCH * AHEAD  # pictures that are decoded before their features are computed


class Encoder:
    """The encoder of a checkpoint, in evaluation mode: pictures -> features (N, F) float32.

    Images are normalised as in the run. `data.fitted` says how pictures of another shape are made
    to fit. Batches have `BATCH` images, or a power of two where there are fewer, so that few
    programs are compiled.
    """

    def __init__(self, trained: Trained) -> None:
        self.step = trained.step
        self.image = image_of(trained)  # height and width in pixels, and channels
        self._fit = trained.config.data.fit, tuple(trained.config.data.background)
        fields = trained.config.to_dict()
        names = ("encoder", "precision", "views", "augment")  # what the network and its input are
        self._settings = {name: fields[name] for name in names if name in fields}
        self._apply = load_encoder(trained, self.image)
        batch = jax.ShapeDtypeStruct((1, *self.image), jnp.uint8)
        self.dim = int(jax.eval_shape(self._apply, batch).shape[-1])  # F

    @property
    def fit(self) -> tuple[str, tuple[int, int, int]]:
        """How a picture becomes a square, and the background: see `pictures.read_image`."""
        return self._fit

    def digest(self) -> str:
        """Return 32 hexadecimal digits of all that features depend on beside the pictures."""
        how = json.dumps([self._settings, self.image, self._fit], sort_keys=True)
        return hashlib.sha256(f"{tree_digest(self._apply.args)} {how}".encode()).hexdigest()[:32]

    def __call__(self, images: Pictures) -> np.ndarray:
        """Return the features of pictures.

        Args:
            images: (N, H, W, C) uint8 of any size, C = 1 or 3; or a list of arrays (H, W) or
                (H, W, C) uint8, Pillow images and paths, of mixed sizes.

        Returns:
            (N, F) float32.

        Raises:
            UserError: something is no picture.
        """
        fitted = fit_pictures(images, self.image, CHUNK, *self._fit)
        features = [self._features(image) for image in fitted]
        return np.concatenate([np.zeros((0, self.dim), np.float32), *features])

    def _features(self, image: np.ndarray) -> np.ndarray:
        """Return the features of images that fit."""
        count = len(image)
        size = min(BATCH, 1 << (count - 1).bit_length())
        if count < size:
            image = np.pad(image, [(0, size - count), (0, 0), (0, 0), (0, 0)], mode="edge")
        return extract(self._apply, image, size)[:count]


class Run(NamedTuple):
    """A run as its work directory has it."""

    workdir: Path
    result: dict | None  # result.json; None where the run has not ended
    metrics: dict[str, np.ndarray]  # metrics.csv: (rows,) by column, blanks as NaN
    # config.json; the fields that it lacks are there at their defaults
    config: ConfigDict
    steps: list[int]  # of the checkpoints, ascending

    def encoder(self, step: int | None = None, best: bool = False) -> Encoder:
        """Return the encoder of a checkpoint.

        Args:
            step: the checkpoint; None: the newest.
            best: whether to take the one that `probe.best` calls the best instead.

        Returns:
            The encoder.

        Raises:
            UserError: the run has no encoder, or not this checkpoint, or it cannot be read.
        """
        return Encoder(self.checkpoint(step, best))

    def checkpoint(self, step: int | None = None, best: bool = False) -> Trained:
        """Return a checkpoint without reading it; arguments and errors as of `encoder`."""
        if best and step is not None:
            raise UserError(f"step, best: got {step} and {best}, takes one of them")
        task = self.config.get("task")
        chosen = "best" if best else -1 if step is None else step
        # "pretrain", to be refused for any other task
        return open_trained(self.workdir, chosen, task if task in WITH_ENCODER else "pretrain")


def open_run(workdir: str | os.PathLike) -> Run:
    """Return the run in a work directory, finished or not.

    UserError where there is none, or a file of it is damaged.
    """
    directory = Path(local_path("workdir", os.fspath(workdir)))
    content = read_json(directory / "config.json")
    task = content.get("task")
    if task in WITH_ENCODER:
        config = read_trained(directory, task)
    else:
        try:
            config = ConfigDict(content)
        except (TypeError, ValueError) as error:
            raise UserError(f"{directory / 'config.json'}: damaged ({error})") from error
    path = directory / "result.json"
    result = read_json(path) if os.path.lexists(path) else None
    columns = metrics_csv.read_columns(directory / metrics_csv.NAME)
    folder = directory / "checkpoints"
    steps = checkpoints.steps_in(folder) if any(folder.glob("[0-9]*")) else []
    return Run(directory, result, columns, config, steps)
