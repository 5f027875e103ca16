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

from metadd_jax import files, ranges
from metadd_jax.structs import Dataset, ImageArrays, Whitening

EPS = 0.1
FREPO_SHARE = 0.1
KINDS = ("mtt", "frepo")
"""Whitenings that sets of the field come in, by the program that has them."""
_CHUNK = 2_000  # images at once in float64: 50 MB for CIFAR-10


def fit_whitening(images: np.ndarray, *, eps: float = EPS) -> Whitening:
    """Fits the transform to images.

    It takes about 5 matrices [D, D] of float64, D = H * W * C, and the time of an eigendecomposition: 0.4 GB for
    CIFAR-10 (D = 3,072), 6 GB and many minutes for 64x64x3 (D = 12,288).

    Args:
      images: [N, H, W, C] uint8 (may be memory-mapped), at least 2.
      eps: added to the eigenvalues of the covariance of pixels in [0, 1]; above 0.

    Returns:
      The transform, float32.

    Raises:
      ValueError: for fewer than 2 images, other than uint8, or an ``eps`` that is not positive.
    """
    if len(images) < 2 or images.dtype != np.uint8 or eps <= 0:
        raise ValueError(
            f"whitening needs at least 2 images of uint8 and a positive eps, not {len(images)} of {images.dtype} and "
            f"eps={eps}; whiten a set once, as it was loaded"
        )
    mean, products = _moments(images)
    spread, axes = np.linalg.eigh(products / (len(images) - 1))
    scale = np.sqrt(np.maximum(spread, 0) + eps)  # rounding leaves eigenvalues a hair below zero
    # Turned back into pixels (ZCA, not PCA), so that a whitened image still looks like one and convolutions fit it.
    # The inverse by the same axes: inverting the float32 matrix would lose digits.
    matrix, inverse = (axes * factor @ axes.T for factor in (1 / scale, scale))
    return Whitening(mean.astype(np.float32), matrix.astype(np.float32), inverse.astype(np.float32))


def fit_frepo_whitening(images: np.ndarray, std: ArrayLike, *, share: float = FREPO_SHARE) -> Whitening:
    """Fits the other whitening of the field, that of FRePo and RCIG (Zhou et al., NeurIPS 2022, and their program).

    Pixels are standardised by channel first; the covariance is divided by N, and ``share`` times its mean eigenvalue is
    added to its diagonal. It is one affine map of pixels in [0, 1] all the same, but its matrix is not symmetric.

    Args:
      images: [N, H, W, C] uint8, at least as many as an image has numbers (with fewer their program sets eigenvalues to
        1), at most 64 pixels a side (larger ones they whiten in blocks).
      std: [C], the deviation to standardise by; the mean drops out.
      share: of the mean eigenvalue.

    Returns:
      The transform, float32.

    Raises:
      ValueError: for other images, or fewer.
    """
    size = int(np.prod(images.shape[1:]))
    if images.dtype != np.uint8 or len(images) < size or max(images.shape[1:3]) > 64:
        raise ValueError(
            f"FRePo's whitening is known for at least {size} images of uint8, at most 64 pixels a side, not for "
            f"{len(images)} of {images.dtype}{images.shape[1:]}"
        )
    centre, products = _moments(images)
    scale = np.broadcast_to(np.asarray(std, np.float64), images.shape[1:]).ravel()
    covariance = products / len(images) / scale[:, None] / scale
    spread, axes = np.linalg.eigh(covariance)
    root = np.sqrt(np.maximum(spread, 0) + share * np.trace(covariance) / size)
    # (x - m) / s less its own mean is (x - E[x]) / s, whatever m is.
    matrix = (axes / root @ axes.T) / scale[:, None]
    inverse = (axes * root @ axes.T) * scale
    return Whitening(centre.astype(np.float32), matrix.astype(np.float32), inverse.astype(np.float32))


def _moments(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean [D] of flattened pixels in [0, 1] and the sum [D, D] of the products of their differences from it."""
    # float64, since the small eigenvalues are differences of large sums; chunk by chunk, since the whole set in float64
    # takes 1.2 GB for CIFAR-10.
    mean = sum(chunk.sum(axis=0) for chunk in _chunks(images)) / len(images)
    products = np.zeros((mean.size, mean.size))
    for chunk in _chunks(images):
        centred = chunk - mean
        products += centred.T @ centred
    return mean, products


def whiten_images(images: np.ndarray, whitening: Whitening) -> np.ndarray:
    """Whitens images.

    Args:
      images: [N, H, W, C] uint8 (may be memory-mapped).
      whitening: from ``fit_whitening``, of images of the same H, W and C.

    Returns:
      [N, H, W, C] float32.
    """
    out = np.empty(images.shape, np.float32)
    for start, chunk in zip(range(0, len(images), _CHUNK), _chunks(images), strict=True):
        white = (chunk - whitening.mean).astype(np.float32) @ whitening.matrix
        out[start : start + _CHUNK] = white.reshape(-1, *images.shape[1:])
    return out


def unwhiten_images(images: ArrayLike, mean: ArrayLike, inverse: ArrayLike) -> np.ndarray:
    """Undoes ``whiten_images`` but for the factor 255.

    Args:
      images: [N, H, W, C] whitened.
      mean: [D], D = H * W * C: ``Whitening.mean``.
      inverse: [D, D]: ``Whitening.inverse``.

    Returns:
      [N, H, W, C] float32 pixels, in [0, 1] but for what distillation pushed beyond; not clipped.
    """
    images = np.asarray(images, np.float32)
    flat = images.reshape(len(images), -1) @ np.asarray(inverse, np.float32) + np.asarray(mean, np.float32)
    return flat.reshape(images.shape)


def whiten(dataset: Dataset, *, eps: float = EPS, kind: str = "mtt") -> Dataset:
    """Whitens all splits by the transform of the training images in use (validation and test images do not count).

    A whitened set takes four times the memory of its uint8 pixels.

    Args:
      dataset: the set, uint8.
      eps: see ``fit_whitening``.
      kind: "mtt" (MTT, TESLA, DATM), or "frepo" (FRePo, RCIG), which takes no ``eps``.

    Returns:
      The whitened set: NumPy arrays on the host, float32, with ``whitening``, mean 0 and std 1.

    Raises:
      ValueError: see ``fit_whitening``; a set that is whitened already is refused.
    """
    ranges.require("kind", kind, ranges.OneOf(KINDS))
    images, name = np.asarray(dataset.train.images), f"zca eps={eps}"
    if kind == "mtt":
        whitening = fit_whitening(images, eps=eps)
    else:
        whitening, name = fit_frepo_whitening(images, dataset.train.std), f"zca of {kind}"
    channels = dataset.image_shape[2]

    def whitened(split: ImageArrays) -> ImageArrays:
        return dataclasses.replace(
            split,
            images=whiten_images(np.asarray(split.images), whitening),
            # Whitened pixels are used as they are; with these constants code that standardises leaves them so.
            mean=np.zeros(channels, np.float32),
            std=np.ones(channels, np.float32),
        )

    return dataclasses.replace(
        dataset,
        train=whitened(dataset.train),
        test=whitened(dataset.test),
        validation=None if dataset.validation is None else whitened(dataset.validation),
        # Of the recipe, not of the result, whose last bits depend on the machine's linear algebra.
        fingerprint=files.hash_arrays(text=f"{name} {dataset.fingerprint}"),
        whitening=whitening,
    )


def _chunks(images: np.ndarray) -> Iterator[np.ndarray]:
    """Flattened pixels in [0, 1], [n, D] float64."""
    for start in range(0, len(images), _CHUNK):
        chunk = images[start : start + _CHUNK]
        yield chunk.reshape(len(chunk), -1) / 255.0
