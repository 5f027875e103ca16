"""A generator trained by us on the training split alone, as an auto-decoder: no discriminator and no encoder.

Bojanowski et al., "Optimizing the Latent Space of Generative Networks" (GLO, ICML 2018): each training image x_i of
class y_i has a code z_i of its own, and codes and weights theta are trained together to make small

    1/n sum_i mean_{pixels} (G_theta(z_i, y_i) - x_i)^2.

Codes start from principal components of the images, whitened, so that they are about N(0, I) and a new code can be
drawn from that. Squared error blurs: such a generator is weaker than a GAN of the same size, and is named so.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metadd_jax import files, keys, parallel, provenance, ranges, storage
from metadd_jax.data import sampling
from metadd_jax.ranges import SEEDS, Real, Whole
from metadd_jax.structs import Array, Dataset, ImageArrays
from metadd_jax.training import batches

_SMALL = 8  # pixels a side of the images whose principal components are taken
_PIECE = 20  # steps between two words of progress
_FIRST, _SECOND, _EPS = 0.9, 0.99, 1e-8  # Adam's of the codes


class Generator(Protocol):
    """What can be trained here: any hashable object with these."""

    @property
    def name(self) -> str:
        """A word for folders."""

    @property
    def z_dim(self) -> int:
        """Numbers of a code."""

    def init(self, key: jax.Array, /) -> Any:
        """Draws the weights, a pytree of float arrays."""

    def generate(self, weights: Any, z: jax.Array, labels: jax.Array, /) -> jax.Array:
        """Makes images [B, H, W, C] in the set's value space of codes [B, z_dim] and labels [B]."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoDecoding:
    """How a generator is trained.

    Attributes:
      images: training images that are used, drawn at random; None takes all.
      epochs: passes over them.
      batch_size: images of a step.
      lr: Adam's learning rate of the weights; it falls to 0 along a cosine, as does that of the codes.
      z_lr: Adam's learning rate of the codes, whose numbers are about 1.
      seed: of weights, choice and order.
    """

    images: Annotated[int | None, Whole(1)] = 10_000
    epochs: Annotated[int, Whole(1)] = 10
    batch_size: Annotated[int, Whole(1)] = 50
    lr: Annotated[float, Real(0, above=True)] = 2e-3
    z_lr: Annotated[float, Real(0, above=True)] = 0.05
    seed: Annotated[int, Whole(0, SEEDS - 1)] = 0

    def __post_init__(self) -> None:
        ranges.check(self)


class TrainedGenerator(NamedTuple):
    """A generator's weights, and the training images as it shows them.

    Attributes:
      generator: what was trained.
      weights: what its ``generate`` takes.
      codes: [n, z_dim], one for each image that it was trained on.
      rows: [n] int32, where these images stand in the training split, in ascending order.
      explained: share of the images' variance over their mean image that reconstructions have, at most 1.
      cached: whether it came from the cache.
    """

    generator: Any
    weights: Any
    codes: jax.Array
    rows: jax.Array
    explained: float
    cached: bool


def cache_key(generator: Generator, dataset: Dataset, settings: AutoDecoding) -> str:
    """Computes the hash (hex) of everything that decides the weights.

    Args:
      generator: its record and code.
      dataset: the real data, by its fingerprint.
      settings: how to train.

    Raises:
      UnknownCodeError: (a ValueError) if the generator's code cannot be found.
    """
    facts = {
        "generator": repr(generator),
        "code": provenance.code_of(generator),
        "settings": dataclasses.asdict(settings),
        **provenance.facts(*provenance.TRAINING, "generators"),
    }
    return files.hash_arrays(text=dataset.fingerprint + json.dumps(facts, sort_keys=True))


def train_generator(
    generator: Generator,
    dataset: Dataset,
    settings: AutoDecoding,
    *,
    cache_dir: str | pathlib.Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> TrainedGenerator:
    """Trains ``generator`` on the training split, or takes it from ``cache_dir``; no test image is looked at.

    Args:
      generator: what to train, for the images and classes of ``dataset``.
      dataset: the real data, standardised or whitened.
      settings: how to train.
      cache_dir: stores the weights under ``cache_key``; None stores nothing.
      progress: called as (what, images passed, in all).

    Raises:
      ValueError: if the generator makes images of another shape, a cached entry is damaged (it is named and left as it
        is), or the training diverges (nothing is kept then).
    """
    key, count = keys.root(settings.seed, "generator"), len(dataset.train.labels)
    count = min(count, settings.images or count)
    settings = dataclasses.replace(settings, images=count, batch_size=min(settings.batch_size, count))
    like = jax.eval_shape(lambda: _start(key, generator, count))
    _check_shape(generator, like, dataset)
    folder = None
    if cache_dir is not None:
        folder = (
            pathlib.Path(cache_dir) / "generators" / f"{generator.name}-{cache_key(generator, dataset, settings)[:20]}"
        )
    # One answer for all processes: all of them read, or all of them train and save.
    cached = folder is not None and bool(parallel.from_main(np.int32(folder.exists())))
    if not cached:
        kept = _train(key, generator, dataset.train, settings, progress)
        if not np.isfinite(kept["explained"]):
            raise ValueError(
                f"the training of {generator.name} diverged; lower its learning rates {settings.lr} and {settings.z_lr}"
            )
        if folder is not None:
            storage.save_tree(folder, kept, keep=True)
    if folder is not None:
        # Also just after the training: another run may have stored its own first, and the next start takes that one.
        kept = storage.restore_tree(folder, like)
    return TrainedGenerator(generator, kept["weights"], kept["codes"], kept["rows"], float(kept["explained"]), cached)


def _start(key: jax.Array, generator: Generator, count: int) -> dict[str, Any]:
    return {
        "weights": generator.init(keys.named(key, "weights")),
        "codes": jnp.zeros((count, generator.z_dim)),
        "rows": jnp.zeros(count, jnp.int32),
        "explained": jnp.zeros(()),
    }


def _check_shape(generator: Generator, like: dict[str, Any], dataset: Dataset) -> None:
    label = jax.ShapeDtypeStruct((1,), jnp.int32)
    made = jax.eval_shape(
        generator.generate, like["weights"], jax.ShapeDtypeStruct((1, generator.z_dim), jnp.float32), label
    )
    if made.shape[1:] != dataset.image_shape:
        raise ValueError(
            f"{generator.name} makes images {made.shape[1:]}, but those of {dataset.name} are {dataset.image_shape}; "
            "make it for them"
        )


def _train(
    key: jax.Array, generator: Generator, arrays: ImageArrays, settings: AutoDecoding, progress: Callable | None
) -> dict[str, Any]:
    count, size = settings.images or len(arrays.labels), settings.batch_size
    rows = jnp.sort(jax.random.choice(keys.named(key, "sample"), len(arrays.labels), (count,), replace=False))
    # What is not used need not go to the device.
    chosen = (jnp.asarray(np.asarray(arrays.images)[rows]), jnp.asarray(np.asarray(arrays.labels)[rows]))
    data = (*chosen, arrays.mean, arrays.std)
    weights = parallel.jit(generator.init)(keys.named(key, "weights"))
    codes = _principal(keys.named(key, "latents"), *data, size=generator.z_dim)
    steps = count // size  # images left over take part in another epoch
    carry = _Carry(weights, optax.scale_by_adam().init(weights), codes, jnp.zeros_like(codes), jnp.zeros_like(codes))
    for epoch in range(settings.epochs):
        order = batches.epoch_order(key, jnp.int32(epoch), count, size)[0]
        for first in range(0, steps, _PIECE):
            last = min(first + _PIECE, steps)
            carry = _steps(carry, data, order, jnp.int32(epoch), first, last, generator=generator, settings=settings)
            if progress is not None:
                jax.block_until_ready(carry)
                progress(f"generator {generator.name}", (epoch * steps + last) * size, settings.epochs * steps * size)
    explained = _explained(carry.weights, carry.codes, data, generator=generator, size=size)
    return {"weights": carry.weights, "codes": carry.codes, "rows": rows.astype(jnp.int32), "explained": explained}


class _Carry(NamedTuple):
    """Weights with Adam's state, codes with their first and second moments."""

    weights: Any
    state: Any
    codes: jax.Array
    first: jax.Array
    second: jax.Array


def _several_steps(
    carry: _Carry, data: tuple, order: jax.Array, epoch: jax.Array, first: jax.Array, last: jax.Array,
    *, generator: Generator, settings: AutoDecoding,
) -> _Carry:  # fmt: skip
    """Steps ``first`` to ``last`` of an epoch; ``order`` [steps, size] names the images of each."""
    images, labels, mean, std = data
    tx = optax.scale_by_adam()
    per_epoch = len(images) // settings.batch_size

    def step(number: jax.Array, carry: _Carry) -> _Carry:
        own = order[number]
        x, y = sampling.standardise(images[own], mean, std), labels[own]

        def error(weights: Any, z: jax.Array) -> jax.Array:
            return jnp.mean((generator.generate(weights, z, y) - x) ** 2)

        gradient, slope = jax.grad(error, argnums=(0, 1))(carry.weights, carry.codes[own])
        fall = 0.5 * (1 + jnp.cos(jnp.pi * (epoch * per_epoch + number) / (settings.epochs * per_epoch)))
        updates, state = tx.update(gradient, carry.state)
        weights = jax.tree.map(lambda w, u: w - settings.lr * fall * u, carry.weights, updates)
        # Adam of the rows of this batch alone: each code is updated once an epoch, and stands still between.
        first = _FIRST * carry.first[own] + (1 - _FIRST) * slope
        second = _SECOND * carry.second[own] + (1 - _SECOND) * slope**2
        due = epoch + 1
        direction = (first / (1 - _FIRST**due)) / (jnp.sqrt(second / (1 - _SECOND**due)) + _EPS)
        codes = carry.codes.at[own].add(-settings.z_lr * fall * direction)
        return _Carry(weights, state, codes, carry.first.at[own].set(first), carry.second.at[own].set(second))

    return jax.lax.fori_loop(first, last, step, carry)


_steps = parallel.jit(_several_steps, static_argnames=("generator", "settings"), donate_argnums=(0,))


def _principal(key: jax.Array, images: Array, labels: Array, mean: Array, std: Array, *, size: int) -> jax.Array:
    """Codes [n, size] to start from: principal components of the images within their classes, of variance 1 each."""

    def small(images: jax.Array) -> jax.Array:
        x = sampling.standardise(images, mean, std)
        sides = [min(side, _SMALL) for side in x.shape[1:3]]
        return jax.image.resize(x, (len(x), *sides, x.shape[3]), "bilinear").reshape(len(x), -1)

    part = parallel.jit(small)
    # A thousand images at a time: all of them as float32 would take four times their memory.
    x = np.concatenate([np.asarray(part(images[i : i + 1000]), np.float64) for i in range(0, len(images), 1000)])
    own = np.asarray(labels)
    for label in np.unique(own):  # the generator knows the class: its mean need not be in the code
        x[own == label] -= x[own == label].mean(axis=0)
    values, vectors = np.linalg.eigh(x.T @ x / len(x))
    found = min(size, len(values))
    # The largest first; each component is divided by its own size, so that a code of N(0, I) is a likely one.
    codes = (x @ vectors[:, ::-1][:, :found]) / np.sqrt(np.maximum(values[::-1][:found], 1e-12))
    # What components cannot fill is drawn: small images with long codes.
    rest = jax.random.normal(key, (len(x), size - found))
    return jnp.concatenate([jnp.asarray(codes, jnp.float32), rest], axis=1)


def _explained_share(weights: Any, codes: jax.Array, data: tuple, *, generator: Generator, size: int) -> jax.Array:
    """1 - (squared error of the reconstructions) / (squared distance of the images from their mean)."""
    images, labels, mean, std = data
    places = jnp.minimum(jnp.arange(-(-len(images) // size) * size), len(images) - 1).reshape(-1, size)
    weight = (jnp.arange(places.size) < len(images)).reshape(places.shape)

    def sums(item: tuple[jax.Array, jax.Array]) -> tuple:
        own, present = item
        x, share = sampling.standardise(images[own], mean, std), present[:, None, None, None]
        error = (generator.generate(weights, codes[own], labels[own]) - x) ** 2
        return (error * share).sum(), (x * share).sum(axis=0), (x**2 * share).sum(axis=0)

    error, total, squares = jax.tree.map(lambda leaf: leaf.sum(axis=0), jax.lax.map(sums, (places, weight)))
    return 1 - error / (squares - total**2 / len(images)).sum()


_explained = parallel.jit(_explained_share, static_argnames=("generator", "size"))
