"""ZCA whitening as MTT and TESLA use it: decorrelates the pixels of a data set and keeps them looking like images.

Fit on the training images in [0, 1], without standardisation: mean removed, unbiased covariance U diag(s) U^T, matrix
U diag((s + eps)^-1/2) U^T with eps 0.1 added to the eigenvalues (kornia's transform, which the published code calls).
The matrix is symmetric, so the order in which an image is flattened does not matter: NCHW or NHWC, the whitened image
is the same. Whitened pixels are used as they are, without mean and standard deviation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike

from metadd_jax import files
from metadd_jax.structs import Dataset, ImageArrays, Whitening

EPS = 0.1
_CHUNK = 2_000  # images at once in float64: 50 MB for CIFAR-10


def fit_whitening(images: np.ndarray, *, eps: float = EPS) -> Whitening:
    """Fits the transform.

    Sums are float64, chunk by chunk. It takes about 5 matrices [D, D] of float64 and the time of an eigendecomposition:
    D = 3,072 (CIFAR-10) 0.4 GB; D = 12,288 (64x64x3) 6 GB and many minutes.

    Args:
      images: [N, H, W, C] uint8 (may be memory-mapped), at least 2.
      eps: added to the eigenvalues of the covariance of pixels in [0, 1].

    Raises:
      ValueError: for fewer than 2 images, other than uint8, or an ``eps`` that is not positive.
    """
    if len(images) < 2 or images.dtype != np.uint8 or eps <= 0:
        raise ValueError(
            f"whitening needs at least 2 images of uint8 and a positive eps, not {len(images)} of {images.dtype} and "
            f"eps={eps}; whiten a set once, as it was loaded"
        )
    mean = sum(chunk.sum(axis=0) for chunk in _chunks(images)) / len(images)
    size = mean.size
    covariance = np.zeros((size, size))
    for chunk in _chunks(images):
        centred = chunk - mean
        covariance += centred.T @ centred
    spread, axes = np.linalg.eigh(covariance / (len(images) - 1))
    scale = np.sqrt(np.maximum(spread, 0) + eps)  # rounding leaves eigenvalues a hair below zero
    matrix, inverse = (axes * factor @ axes.T for factor in (1 / scale, scale))
    return Whitening(*(array.astype(np.float32) for array in (mean, matrix, inverse)))


def whiten_images(images: np.ndarray, whitening: Whitening) -> np.ndarray:
    """Whitens [N, H, W, C] uint8 images; float32 of the same shape."""
    out = np.empty(images.shape, np.float32)
    for start, chunk in zip(range(0, len(images), _CHUNK), _chunks(images), strict=True):
        white = (chunk - whitening.mean).astype(np.float32) @ whitening.matrix
        out[start : start + _CHUNK] = white.reshape(-1, *images.shape[1:])
    return out


def unwhiten_images(images: ArrayLike, mean: ArrayLike, inverse: ArrayLike) -> np.ndarray:
    """Undoes ``whiten_images`` but for the factor 255: [N, H, W, C] float32 pixels in [0, 1], not clipped.

    Args:
      images: [N, H, W, C] whitened.
      mean: [D], D = H * W * C.
      inverse: [D, D].
    """
    images = np.asarray(images, np.float32)
    flat = images.reshape(len(images), -1) @ np.asarray(inverse, np.float32) + np.asarray(mean, np.float32)
    return flat.reshape(images.shape)


def whiten(dataset: Dataset, *, eps: float = EPS) -> Dataset:
    """Whitens all splits by the transform of the training images in use; NumPy arrays on the host.

    A whitened set takes four times the memory of its uint8 pixels.

    Raises:
      ValueError: see ``fit_whitening``; a set that is whitened already is refused.
    """
    whitening = fit_whitening(np.asarray(dataset.train.images), eps=eps)
    channels = dataset.image_shape[2]

    def whitened(split: ImageArrays | None) -> ImageArrays | None:
        if split is None:
            return None
        return split.replace(
            images=whiten_images(np.asarray(split.images), whitening),
            mean=np.zeros(channels, np.float32),
            std=np.ones(channels, np.float32),
        )

    return dataclasses.replace(
        dataset,
        train=whitened(dataset.train),
        test=whitened(dataset.test),
        validation=whitened(dataset.validation),
        # Of the recipe, not of the result, whose last bits depend on the machine's linear algebra.
        fingerprint=files.hash_arrays(text=f"zca eps={eps} {dataset.fingerprint}"),
        whitening=whitening,
    )


def _chunks(images: np.ndarray) -> Iterator[np.ndarray]:
    """Flattened pixels in [0, 1], [n, D] float64."""
    for start in range(0, len(images), _CHUNK):
        chunk = images[start : start + _CHUNK]
        yield chunk.reshape(len(chunk), -1) / 255.0
