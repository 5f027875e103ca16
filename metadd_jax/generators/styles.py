"""A decoder's styles in place of pixels: one short vector w an image, the generator's weights frozen.

The weights are the three arms of GLaD's comparison (Cazenavette et al., CVPR 2023): as they are drawn, trained by us on
the same training split, or a user's own from a file.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metadd_jax import keys, parallel, ranges
from metadd_jax.data import sampling
from metadd_jax.generators import start, weights
from metadd_jax.generators.autodecoder import AutoDecoding, Generator, TrainedGenerator, train_generator
from metadd_jax.generators.decoder import Decoder
from metadd_jax.ranges import Real, Text, Whole
from metadd_jax.structs import Dataset


def weights_of(generator: Generator, source: str, *, seed: int) -> Any:
    """Gives a generator's weights as far as they are there without a training.

    Args:
      generator: what they are for.
      source: "random" (as they are drawn), "trained" (random ones stand in until the training), or the path of a file
        of safetensors.
      seed: of the random ones.

    Raises:
      ValueError: if the file does not hold them, or is a pickle.
    """
    key = keys.named(keys.root(seed, "generator"), "weights")
    if source in ("random", "trained"):
        return generator.init(key)
    return weights.load(source, jax.eval_shape(generator.init, key), name=generator.name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Styles:
    """The styles of a small decoder as a parameterisation (``distillers.parameterise``).

    The latents are {"w": [N, w_dim]}. They start from styles of random codes of the right classes, and are fitted by
    Adam to the images that the base method would start from, as far as the decoder can show them.

    Attributes:
      generator: the decoder.
      weights: "random", "trained" or the path of a file of safetensors.
      training: how "trained" is made; its seed also draws the random weights.
      fit_steps: updates of the fit to the start; 0 leaves the styles of random codes.
      fit_lr: learning rate of the fit.
      lr: Adam's learning rate of the styles while they are distilled.
      fill: whether ``ipc`` images' worth of numbers is filled with styles; False has ``ipc`` images.
      frozen: the weights; None gives those of ``weights``.
      trained: what the training gave, or None.
      on_fit: called as (updates done, updates in all) while the styles are fitted, or None.
    """

    generator: Decoder
    weights: Annotated[str, Text("weights.load")] = "trained"
    training: AutoDecoding = dataclasses.field(default_factory=AutoDecoding)
    fit_steps: Annotated[int, Whole(0)] = 200
    fit_lr: Annotated[float, Real(0, above=True)] = 0.05
    lr: Annotated[float, Real(0, above=True)] = 0.02
    fill: bool = False
    frozen: Any = dataclasses.field(default=None, compare=False, repr=False)
    trained: TrainedGenerator | None = dataclasses.field(default=None, compare=False, repr=False)
    on_fit: Callable[[int, int], None] | None = dataclasses.field(default=None, compare=False, repr=False)
    takes_labels: ClassVar[bool] = True

    def __post_init__(self) -> None:
        ranges.check(self)
        if self.frozen is None:
            # Frozen: a field is set once, here.
            object.__setattr__(self, "frozen", weights_of(self.generator, self.weights, seed=self.training.seed))

    @property
    def name(self) -> str:
        """What the method's name gets."""
        word = self.weights if self.weights in ("random", "trained") else pathlib.Path(self.weights).stem
        return f"{self.generator.name}_{word}"

    @property
    def facts(self) -> Mapping[str, Any]:
        """Which generator it is, and how well it shows its training images where it was trained here."""
        shown = {} if self.trained is None else {"generator_explained": self.trained.explained}
        return {"generator": repr(self.generator), "generator_weights": self.weights, **shown}

    @property
    def unfitted(self) -> Styles:
        """The same without the fit to the start."""
        return dataclasses.replace(self, fit_steps=0)

    def prepare_flops(self, decode: float, real: int, images: int, sets: int) -> dict[str, float]:
        """FLOPs of the training on at most ``real`` images, and of fitting ``sets`` sets of ``images`` images.

        Args:
          decode: FLOPs of decoding an image.
          real: training images that there are.
          images: images of a set.
          sets: how many sets.
        """
        shown = min(self.training.images or real, real) * self.training.epochs if self.weights == "trained" else 0
        fitted = self.fit_steps * images * sets
        return {"generator": 3 * decode * shown, "start": 3 * decode * fitted}

    @property
    def optimiser(self) -> optax.GradientTransformation:
        """What updates the styles, whose scale has nothing to do with that of pixels."""
        return optax.adam(self.lr)

    def images_for(self, stored: int) -> int:
        """Counts the styles that take no more storage than ``stored`` images of pixels; at least one."""
        room = stored * math.prod(self.generator.image_shape)
        return max(1, room // self.generator.w_dim) if self.fill else stored

    def prepare(
        self, dataset: Dataset, cache: pathlib.Path | None, *, progress: Callable[[str, int, int], None]
    ) -> Styles:
        """Trains the decoder where its weights are to be trained; see ``train_generator``.

        Args:
          dataset: the real data.
          cache: the folder of what need not be made twice.
          progress: called as (what, done, in all).
        """
        if self.weights != "trained":
            return self
        made = train_generator(self.generator, dataset, self.training, cache_dir=cache, progress=progress)
        return dataclasses.replace(self, frozen=made.weights, trained=made)

    def init(self, key: jax.Array, images: jax.Array, labels: jax.Array | np.ndarray, /) -> dict[str, jax.Array]:
        """Draws a style of each label [N] and fits it to images [N, H, W, C]."""
        z = jax.random.normal(key, (len(images), self.generator.z_dim))
        latents = {"w": parallel.jit(self.generator.styles)(self.frozen, z, jnp.asarray(labels))}
        return start.fit(self, latents, self.frozen, images, lr=self.fit_lr, steps=self.fit_steps, on_fit=self.on_fit)

    def decode(self, latents: dict[str, jax.Array], frozen: Any, /) -> jax.Array:
        """Makes images [N, H, W, C] in the set's value space."""
        return self.generator.synthesise(frozen, latents["w"])


def samples(
    key: jax.Array, trained: TrainedGenerator, dataset: Dataset, *, each: int = 3, new: int = 4
) -> tuple[jax.Array, np.ndarray]:
    """Shows what a trained generator learned, class by class: training images, the same as it shows them, new ones.

    Args:
      key: draws the new codes.
      trained: what the training gave.
      dataset: the data that it was trained on.
      each: training images of a class, the first that it was trained on; fewer where there are fewer.
      new: new images of a class.

    Returns:
      Images [n, H, W, C] in the set's value space and their labels [n]: first all training images, then all
      reconstructions, then all new images, so that within a class they stand in this order.
    """
    train, rows, generator = dataset.train, np.asarray(trained.rows), trained.generator
    labels = np.asarray(train.labels)[rows]
    chosen = np.concatenate([np.flatnonzero(labels == label)[:each] for label in range(len(dataset.class_names))])
    real = sampling.standardise(np.asarray(train.images)[rows[chosen]], train.mean, train.std)
    drawn = np.repeat(np.arange(len(dataset.class_names)), new)
    codes = jnp.concatenate([trained.codes[chosen], jax.random.normal(key, (len(drawn), generator.z_dim))])
    told = np.concatenate([labels[chosen], drawn])
    made = parallel.jit(generator.generate)(trained.weights, codes, told)
    return jnp.concatenate([real, made]), np.concatenate([labels[chosen], told])
