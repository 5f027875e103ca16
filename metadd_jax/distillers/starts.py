"""What the images of a set start from, whatever the method: random real images, noise, or images that are given.

Two starts are drawn from the run's key by ``class_images.initial``; every other one (k-means, consensus, a saved set)
is images that somebody has already, and ``start_from`` hands them to the method, however it is wrapped.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from metadd_jax import ranges
from metadd_jax.distillers.contract import Distiller, check_method
from metadd_jax.exchange import peer
from metadd_jax.structs import Array, Dataset

DRAWN = ("random", "noise")
FOUND = ("kmeans", "consensus")  # among the real images, by whoever has the data and the networks
INITS = (*DRAWN, *FOUND)


def called(init: str) -> str:
    """The word for a start: "random" was first called "real"."""
    return "random" if init == "real" else init


def reads_real(init: str) -> bool:
    """Whether a start takes real images, so that every class must have enough of them."""
    return called(init) in ("random", *FOUND)


def place_of(init: str) -> tuple[pathlib.Path, str | None]:
    """Reads the path of a saved set, and the value space that the user says of it behind a colon.

    Args:
      init: "set.npz", "images_best.pt:zca", "res.pt:standardised:cifar10" (see ``exchange.space_of``).

    Returns:
      The path, and the words for the space or None.
    """
    for at, sign in enumerate(init):
        # A folder may have a colon in its name, so that the word behind it decides.
        if sign == ":" and init[at + 1 :].partition(":")[0] in peer.SPACES:
            return pathlib.Path(init[:at]).expanduser(), init[at + 1 :]
    return pathlib.Path(init).expanduser(), None


def check(init: str) -> None:
    """Refuses what is neither a word nor a path at which something lies.

    Raises:
      ValueError: with the words.
    """
    # The empty path is the folder that one stands in.
    if called(init) not in INITS and not (init and place_of(init)[0].exists()):
        raise ValueError(
            f"init={init!r} must be one of {', '.join(INITS)}{ranges.nearest(init, INITS)}, or the path of a saved "
            "set (of a peer's with its space: images_best.pt:zca), and nothing lies there"
        )


def refusal(init: str) -> str:
    """What a method says that was made with a start which it cannot draw."""
    return (
        f"init {init!r} must be one of {', '.join(DRAWN)} where a method draws its start; give the images of any other "
        "by distillers.start_from(method, images), as the main job does for kmeans, consensus and saved sets"
    )


def start_from(method: Distiller, images: Array) -> Distiller:
    """Starts ``method`` from these images and not from what it would draw.

    It goes around everything: parameterisations make their latents of the images, and penalties calibrate their weights
    on them. The loss is the very function of ``method``, so what was compiled for one serves the other:

    >>> kmeans = evaluation.kmeans_real(0, dataset, 10).images
    >>> method = start_from(metadd(dm(net, ipc=10), auxiliaries), kmeans)

    Args:
      method: any method, bare or wrapped.
      images: [N, H, W, C] float32 in the set's value space, class-major, as many of each class as the base method has.

    Returns:
      A method like ``method``, of the same name.

    Raises:
      ValueError: for what is no method; in ``init``, for images of another shape, or a method that does not start from
        what it is given.
    """
    check_method(method)

    def init(key: jax.Array, dataset: Dataset) -> tuple[Any, Any]:
        # By way of the data, the one argument that every wrapper hands to the method inside it unchanged.
        synthetic, aux = method.init(key, dataclasses.replace(dataset, start=images))
        own = synthetic.get("images") if isinstance(synthetic, dict) else None
        # A method of somebody's own may draw its start by itself. Latents cannot be compared: they may lose something.
        if own is not None and not isinstance(own, jax.core.Tracer):
            held = np.asarray(own)
            if held.shape != np.shape(images) or not np.array_equal(held, images, equal_nan=True):
                raise ValueError(
                    f"{method.name} does not start from the images that it is given; let its init call "
                    "class_images.initial, or read dataset.start"
                )
        return synthetic, aux

    return method._replace(init=init)


def checked(images: Array, shape: tuple[int, ...]) -> jax.Array:
    """The images that a set starts from, on the device.

    Args:
      images: what ``start_from`` was given.
      shape: (N, H, W, C) of the set.

    Raises:
      ValueError: for another shape, with both.
    """
    if np.shape(images) != shape:
        raise ValueError(f"the start has images {np.shape(images)}, but the set is {shape}; give as many of each class")
    start = jnp.asarray(images, jnp.float32)
    chex.assert_rank(start, 4)
    # A copy: updates consume the state that they are given, and the caller's images are still wanted.
    return jnp.array(start, copy=True)
