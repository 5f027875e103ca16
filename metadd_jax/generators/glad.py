"""GLaD-style latents: styles and an intermediate feature of a generator, trained in place of pixels.

Cazenavette et al., "Generalizing Dataset Distillation via Deep Generative Prior" (CVPR 2023). A generator G of N layers
is cut behind its first n: f_n = G_{<=n}(w+). Both the feature f_n and the styles w+ of the layers above are trained,
each by a learning rate of its own, and an image of the set is G_{>n}(f_n, w+). The base method sees the images; its
gradient in the pixels is pulled back through G.
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

from metadd_jax import parallel, ranges
from metadd_jax.generators.autodecoder import AutoDecoding, TrainedGenerator, train_generator
from metadd_jax.generators.synthesis import Generator
from metadd_jax.ranges import Real, Whole
from metadd_jax.structs import Dataset

_MEAN_OF = 1000  # draws of z whose styles are averaged
_CLIP, _INFINITE = 10.0, 5.0


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Latents:
    """See ``stylegan``."""

    generator: Generator
    mapping: Any
    frozen: dict[str, Any]
    image_shape: tuple[int, int, int]
    weights: str
    layer: Annotated[int, Whole(0)]
    w_rate: Annotated[float, Real(0, above=True)]
    mean_w: bool | None
    micro_batch: Annotated[int | None, Whole(1)]
    training: AutoDecoding | None = None
    trained: TrainedGenerator | None = None
    takes_labels: ClassVar[bool] = True
    follows_start: ClassVar[bool] = False

    def __post_init__(self) -> None:
        ranges.check(self)
        if self.layer > self.generator.layers:
            raise ValueError(
                f"layer={self.layer} is behind the last of the generator's {self.generator.layers} layers; give 0 to "
                f"{self.generator.layers}"
            )

    @property
    def name(self) -> str:
        """What the method's name gets."""
        # The arms of a comparison have names of their own.
        source = self.weights.partition(",")[0]
        return f"stylegan_f{self.layer}" + ("" if source == "untrained" else f"_{pathlib.Path(source).stem}")

    @property
    def rates(self) -> Mapping[str, float]:
        """Learning rates over that of the images: f_n has that one."""
        return {"w": self.w_rate}

    @property
    def facts(self) -> dict[str, Any]:
        """What a reader of the set must know to decode it."""
        return {
            "generator": f"StyleGAN3-type, {self.weights} (GLaD-style)",
            "generator_sizes": dataclasses.asdict(self.generator),
            "layer": self.layer,
            "w_rate": self.w_rate,
            **({} if self.trained is None else {"generator_explained": self.trained.explained}),
        }

    def prepare(
        self, dataset: Dataset, cache: pathlib.Path | None, *, progress: Callable[[str, int, int], None]
    ) -> Latents:
        """Trains the generator on the training split, where there is a ``training``; see ``train_generator``.

        Args:
          dataset: the real data.
          cache: the folder of what need not be made twice.
          progress: called as (what, done, in all).

        Raises:
          ValueError: if the data are whitened, or as ``train_generator``.
        """
        if self.training is None:
            return self
        if dataset.whitening is not None:
            raise ValueError(
                "a generator is trained on pixels, and the data are whitened: leave out zca or the training"
            )
        mean, std = (tuple(np.asarray(values).tolist()) for values in (dataset.train.mean, dataset.train.std))
        shown = Trainable(self.generator, self.image_shape, mean, std)
        made = train_generator(shown, dataset, self.training, cache_dir=cache, progress=progress)
        frozen = {**self.frozen, "synthesis": made.weights["synthesis"]}
        return dataclasses.replace(self, frozen=frozen, mapping=made.weights["mapping"], trained=made)

    def init(self, key: jax.Array, images: jax.Array, labels: Any = None, /) -> dict[str, jax.Array]:
        """Draws the latents: {"w": [N, N_w - n - 1, w_dim], "f": [N, size, size, C]}.

        Rows 0 to n of w+ make f_n and nothing else, so they are not kept: their gradient is 0.

        Args:
          key: typed PRNG key.
          images: [N, H, W, C], of which only the shape is read.
          labels: [N] of the images, on the host; None takes none for the only one of its class.

        Raises:
          ValueError: if the images have another shape.
        """
        if images.shape[1:] != self.image_shape:
            raise ValueError(f"the generator makes images {self.image_shape}, but these are {images.shape[1:]}")
        z_key, mean_key = jax.random.split(key)
        labels = np.zeros(len(images), np.int32) if labels is None else np.asarray(labels)
        w = self._styles(jax.random.normal(z_key, (len(labels), self.generator.z_dim)), labels)
        alone = np.bincount(labels)[labels] == 1
        averaged = np.broadcast_to(alone if self.mean_w is None else self.mean_w, labels.shape)
        if averaged.any():
            w = jnp.where(averaged[:, None], self._mean_styles(mean_key, labels), w)
        w_plus = jnp.repeat(w[:, None], self.generator.num_ws, axis=1)
        return {
            "w": w_plus[:, self.layer + 1 :],
            "f": _to_layer(latents=self, variables=self.frozen["synthesis"], w_plus=w_plus),
        }

    def decode(self, latents: dict[str, jax.Array], frozen: Any, /) -> jax.Array:
        """Makes images [N, H, W, C] in the set's value space.

        Args:
          latents: as from ``init``.
          frozen: this object's.
        """
        f, w = latents["f"], latents["w"]
        # Rows that nothing reads, in the place of those that made f.
        w_plus = jnp.concatenate([jnp.zeros((len(w), self.layer + 1, w.shape[2]), w.dtype), w], axis=1)
        made: Any = self.generator.synthesis.apply(frozen["synthesis"], f, w_plus, self.layer, method="from_layer")
        pixels = _centre((made + 1) / 2, self.image_shape)
        if "whitening" in frozen:
            mean, matrix = frozen["whitening"]
            return ((pixels.reshape(len(pixels), -1) - mean) @ matrix).reshape(pixels.shape)
        return (pixels - frozen["mean"]) / frozen["std"]

    def _mean_styles(self, key: jax.Array, labels: np.ndarray) -> jax.Array:
        """[N, w_dim]: of each image the mean style of its class, of all classes the same where w knows none."""
        z, classes = jax.random.normal(key, (_MEAN_OF, self.generator.z_dim)), self.generator.num_classes
        means = [self._styles(z, np.full(_MEAN_OF, label)).mean(axis=0) for label in range(classes or 1)]
        return jnp.stack(means)[labels if classes else np.zeros_like(labels)]

    def _styles(self, z: jax.Array, labels: np.ndarray) -> jax.Array:
        w: Any = self.generator.mapping.apply(self.mapping, z, labels if self.generator.num_classes else None)
        return w


@dataclasses.dataclass(frozen=True)
class Trainable:
    """A generator as ``train_generator`` takes it: one style in all its layers, images in the set's value space.

    Frequencies, phases and running magnitudes stay as they are drawn: an auto-decoder needs none of them to move.

    Attributes:
      generator: the sizes.
      image_shape: (H, W, C) of the data.
      mean: one number a channel, of pixels in [0, 1].
      std: one number a channel.
    """

    generator: Generator
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def name(self) -> str:
        """A word for folders."""
        return f"stylegan{self.generator.layers}x{self.generator.channel_max}"

    @property
    def z_dim(self) -> int:
        """Numbers of a code."""
        return self.generator.z_dim

    def init(self, key: jax.Array) -> dict[str, Any]:
        """Draws the variables of both networks."""
        return self.generator.init(key)

    def generate(self, variables: Any, z: jax.Array, labels: jax.Array) -> jax.Array:
        """Makes images [B, H, W, C] of codes [B, z_dim] and labels [B].

        Args:
          variables: of both networks.
          z: codes.
          labels: classes, which a generator of one class leaves out.
        """
        synthesis = {
            part: values if part == "params" else jax.lax.stop_gradient(values)
            for part, values in variables["synthesis"].items()
        }
        w: Any = self.generator.mapping.apply(variables["mapping"], z, labels if self.generator.num_classes else None)
        made: Any = self.generator.synthesis.apply(synthesis, jnp.repeat(w[:, None], self.generator.num_ws, axis=1))
        return (_centre((made + 1) / 2, self.image_shape) - jnp.array(self.mean)) / jnp.array(self.std)


def stylegan(
    generator: Generator,
    variables: Mapping[str, Any],
    dataset: Dataset,
    *,
    layer: int = 2,
    w_rate: float = 1e-3,
    mean_w: bool | None = None,
    micro_batch: int | None = 10,
    weights: str = "untrained",
    training: AutoDecoding | None = None,
) -> Latents:
    """GLaD-style latents of a generator as a parameterisation (``distillers.parameterise``).

    Published (GLaD): SGD of momentum 0.5, the learning rate of f_n (the images' rate here) 10 under DM, 1 under DC, 1e4
    under MTT, that of w a thousandth of it each time; the class's mean style at 1 image a class, else the style of a
    random z; 10 images at once on the way back.

    >>> prior = stylegan(generator, generator.init(key), dataset, layer=2)
    >>> method = parameterise(dm(net, ipc=10), prior)
    >>> tx = with_rates(optax.sgd(10.0, momentum=0.5), prior)

    Args:
      generator: the sizes.
      variables: of both networks, see ``Generator.init``.
      dataset: the real data, whose size and value space the images get: the middle H x W of R x R pixels, from
        [-1, 1] to [0, 1], then standardised or whitened as the data are.
      layer: n, behind which the generator is cut, 0 to N.
      w_rate: learning rate of w over that of f_n (``distillers.with_rates``).
      mean_w: whether images start from their class's mean style; None, where they are alone in their class.
      micro_batch: images that are decoded at once; None takes all.
      weights: where the variables come from, for the metadata.
      training: how they are trained before anything is distilled (``Latents.prepare``); None leaves them.

    Raises:
      ValueError: if the generator's images are too small for the data or have other channels, if it was made for other
        classes, or a setting is out of range.
    """
    height, width, channels = dataset.image_shape
    if max(height, width) > generator.resolution or channels != generator.channels:
        raise ValueError(
            f"the generator makes {generator.resolution}x{generator.resolution}x{generator.channels} images, and those "
            f"of {dataset.name} are {height}x{width}x{channels}; give it another resolution or channels"
        )
    if generator.num_classes not in (0, dataset.num_classes):
        raise ValueError(
            f"the generator knows {generator.num_classes} classes, and {dataset.name} has {dataset.num_classes}"
        )
    frozen: dict[str, Any] = {"synthesis": variables["synthesis"]}
    if dataset.whitening is None:
        frozen |= {"mean": jnp.asarray(dataset.train.mean), "std": jnp.asarray(dataset.train.std)}
    else:
        frozen["whitening"] = (jnp.asarray(dataset.whitening.mean), jnp.asarray(dataset.whitening.matrix))
    return Latents(
        generator=generator, mapping=variables["mapping"], frozen=frozen, image_shape=dataset.image_shape,
        weights=weights, layer=layer, w_rate=w_rate, mean_w=mean_w, micro_batch=micro_batch, training=training,
    )  # fmt: skip


def resolution_for(image_shape: tuple[int, int, int]) -> int:
    """The least resolution of a generator, a power of two, that holds images (H, W, C)."""
    return max(4, 2 ** math.ceil(math.log2(max(image_shape[:2]))))


def _feature(latents: Latents, variables: Any, w_plus: jax.Array) -> jax.Array:
    def one(w: jax.Array) -> jax.Array:
        f: Any = latents.generator.synthesis.apply(variables, w[None], latents.layer, method="to_layer")
        return f[0]

    f = jax.lax.map(one, w_plus, batch_size=latents.micro_batch or len(w_plus))
    # Once, at the start: a feature of half precision may have run over. What is trained afterwards goes where it wants.
    f = jnp.nan_to_num(f, nan=0.0, posinf=_INFINITE, neginf=-_INFINITE)
    return jnp.clip(f, -_CLIP, _CLIP)


_to_layer = parallel.jit(_feature, static_argnames=("latents",))


def _centre(images: jax.Array, image_shape: tuple[int, int, int]) -> jax.Array:
    top, left = ((images.shape[axis] - image_shape[axis - 1]) // 2 for axis in (1, 2))
    return images[:, top : top + image_shape[0], left : left + image_shape[1]]
