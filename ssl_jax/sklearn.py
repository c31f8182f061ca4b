"""A pretrained encoder as a transformer of scikit-learn.

make_pipeline(ssl_jax.sklearn.Encoder("runs/byol"), LogisticRegression()).fit(images, labels)
"""

import functools
import os
from pathlib import Path
from typing import Any, Self

import numpy as np
from scipy.sparse import issparse
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils import Tags

from ssl_jax import runs
from ssl_jax.errors import UserError


@functools.lru_cache(maxsize=2)
def _load(workdir: Path, step: int, changed: int) -> runs.Encoder:
    """Return an encoder, the same for the copies that a grid search makes of a transformer."""
    return runs.open_run(workdir).encoder(step)


class Encoder(TransformerMixin, BaseEstimator):
    """Images -> features (N, F) float32 of a run's encoder; nothing is fitted.

    It is pickled by the path of the work directory, not with the weights.

    Args:
        workdir: work directory of a run that pretrained, or trained on labels.
        step: which of its checkpoints; None: the newest.
        best: whether to take the one that `probe.best` ranks first instead.
    """

    def __init__(
        self, workdir: str | os.PathLike, step: int | None = None, best: bool = False
    ) -> None:
        self.workdir = workdir
        self.step = step
        self.best = best

    def fit(self, X: Any, y: Any = None) -> Self:
        """Return the transformer; a UserError where the run has no such encoder."""
        if issparse(X):
            raise UserError(f"X: got a sparse matrix of shape {X.shape}, takes images")
        self._encoder()
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Return the features of images.

        Args:
            X: images (N, H, W, C) or (N, H, W), C = 1 or 3, of any size, as whole or broken numbers
                in 0..255; or rows (N, H * W * C) of images in the run's own shape; or a list of
                pictures as `runs.Encoder` takes it.

        Returns:
            (N, F) float32.

        Raises:
            UserError: X is none of these, or the run has no such encoder.
        """
        encoder = self._encoder()
        if isinstance(X, np.ndarray):
            return encoder(_as_images(X, encoder.image))
        return encoder(X)

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Return "encoder0", "encoder1" and so on."""
        return np.array([f"encoder{i}" for i in range(self._encoder().dim)], dtype=object)

    def _encoder(self) -> runs.Encoder:
        trained = runs.open_run(self.workdir).checkpoint(self.step, self.best)
        changed = (trained.folder / str(trained.step)).stat().st_mtime_ns
        return _load(trained.source.resolve(), trained.step, changed)

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.no_validation = True  # `fit` looks at no image, and `transform` takes any shape
        tags.input_tags.three_d_array = True
        if tags.transformer_tags is not None:
            tags.transformer_tags.preserves_dtype = []
        return tags


def _as_images(array: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Return (N, H, W, C) uint8 of an array as `Encoder.transform` takes it.

    Args:
        array: images, or rows of them.
        shape: height, width and channels of the run's images, which rows have.
    """
    takes = f"takes (N, H, W, C), (N, H, W) or (N, {np.prod(shape)}), numbers in 0..255"
    if array.ndim == 2 and array.shape[1] == np.prod(shape):
        array = array.reshape(-1, *shape)
    elif array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4 or array.dtype.kind not in "uif":
        raise UserError(f"X: got {array.dtype} of shape {array.shape}, {takes}")
    if array.dtype == np.uint8 or not array.size:
        return array.astype(np.uint8)
    low, high = array.min(), array.max()
    if not (low >= 0 and high <= 255):  # NaN too
        raise UserError(f"X: got numbers from {low} to {high}, {takes}")
    whole = np.rint(array)
    if high <= 1 and (whole != array).any():
        raise UserError(f"X: got numbers from {low} to {high}, {takes}; multiply them by 255")
    return whole.astype(np.uint8)
