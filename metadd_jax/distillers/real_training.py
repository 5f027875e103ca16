"""IDC: match gradients along the way of networks that train on real images, with packed sets.

Kim et al., "Dataset Condensation via Efficient Synthetic-Data Parameterization" (ICML 2022). With T_c, S_c, l and the
Siamese augmentation A(., w_c) of DSA (``gradient_matching``), and theta^conv the weights of the convolutions alone,

    L = sum_c || grad_{theta^conv} mean_{x in T_c} l(A(x, w_c), c; theta)
               - grad_{theta^conv} mean_{s in S_c} l(A(s, w_c), c; theta) ||^2         (or the sum of absolute values).

theta is new at steps 0, ``inner``, 2 ``inner``, ..., and after every step it takes one short epoch on *real* images
(``real_images`` of them, under augmentation and CutMix), where DC's trains on the set. The packing is apart from it:
``parameterise(idc(...), factor(2))`` is IDC, ``idc(...)`` alone what the paper calls IDC-I.

One step here is a sweep over all classes. The published loop steps after each class, with momentum m: since a class's
gradient moves its own images alone, K such steps are one of SGD with momentum m^K and rate lr (1 - m^K) / (1 - m), and
that is what ``idc_optimiser`` does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from metadd_jax import keys, parts, ranges, zoo
from metadd_jax.data import sampling
from metadd_jax.distillers import class_images, registry
from metadd_jax.distillers.contract import Distiller
from metadd_jax.distillers.gradient_matching import class_distance
from metadd_jax.distillers.networks import Networks, as_networks
from metadd_jax.ranges import OneOf, Real, Whole
from metadd_jax.structs import Dataset, ImageArrays
from metadd_jax.training import Recipe, fit

DISTANCES = ("mse", "l1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class IDC(class_images.ClassWise):
    """Settings of IDC: those of ``ClassWise`` and these.

    Published runs do 2000 networks of 100 steps with SGD, momentum 0.5, at 0.005 (ipc / 10) (side / 32)^2 in pixels of
    [0, 1] (CIFAR; ``idc_optimiser`` brings that to the set's value space).

    Attributes:
      batch_size: real images of a class in a step.
      inner: steps from one new network to the next.
      distance: "mse" (sum of squares: CIFAR, SVHN) or "l1" (sum of absolute values: MNIST, Fashion, ImageNet).
      most: most synthetic images of a class in a step, a random subset of those that it has (packed: decoded ones).
      real_images: real images in the epoch that the network takes after each step; 500 on MNIST and ImageNet.
      real_lr: step size of that epoch (SGD, momentum 0.9, decay 5e-4, batch 64).
      real_augmentation: DSA tokens of that epoch.
      cutmix: share of its batches that are cut and mixed.
    """

    batch_size: Annotated[int, Whole(1)] = 64
    inner: Annotated[int, Whole(1)] = 100
    distance: Annotated[str, OneOf(DISTANCES)] = "mse"
    most: Annotated[int, Whole(1)] = 128
    real_images: Annotated[int, Whole(1)] = 2000
    real_lr: Annotated[float, Real(0, above=True)] = 0.01
    real_augmentation: Annotated[str, ranges.Text("augment.strategy")] = "color_crop"
    cutmix: Annotated[float, Real(0, 1)] = 0.5

    name: ClassVar[str] = "idc"
    group: ClassVar[str] = "idc"

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.recipe  # refuses unknown tokens

    @property
    def recipe(self) -> Recipe:
        """The epoch on real images."""
        return Recipe(
            epochs=1, batch_size=64, learning_rate=self.real_lr, augmentation=self.real_augmentation, mix="cutmix",
            mix_probability=self.cutmix,
        )  # fmt: skip

    def check_network(self, net: zoo.Architecture) -> None:
        """Refuses batch norm, and a network without a convolution."""
        if net.has_batch_stats:
            raise ValueError(f"{net.label} has batch norm, under which idc is not written; use its instance norm")
        shapes = jax.tree.leaves(jax.eval_shape(net.init, jax.random.key(0))["params"])
        if not any(leaf.ndim == 4 for leaf in shapes):
            raise ValueError(
                f"{net.label} has no convolution, whose gradients idc matches; use a convolutional network"
            )

    def check_pixels(self, *, zca: bool) -> None:
        """Refuses whitened images."""
        if zca:
            raise ValueError("idc keeps pixels between 0 and 1, which a whitened image has not; leave zca out")

    def optimiser(
        self, learning_rate: float, momentum: float, steps: int, dataset: Dataset
    ) -> optax.GradientTransformation:
        """Makes ``idc_optimiser`` for the data's classes and pixels (see ``Method.optimiser``)."""
        del steps
        return idc_optimiser(
            learning_rate, dataset.train.mean, dataset.train.std, classes=dataset.num_classes, momentum=momentum,
            every=self.inner,
        )  # fmt: skip

    def make(
        self, net: zoo.Architecture | Networks, counts: class_images.Counts, given: Any = None, *, repeat: bool = False
    ) -> Distiller:
        """Makes the method's functions.

        Args:
          net: the backbone, or a pool of them, without batch norm.
          counts: images of each of the K classes of the set.
          given: nothing; IDC takes nothing that is made beforehand.
          repeat: whether a class with fewer real images than it starts from gives them again and again.

        Raises:
          ValueError: for a network that cannot serve.
        """
        del given
        for one in as_networks(net).nets:
            self.check_network(one)
        return _distiller(self, as_networks(net), counts, repeat)

    def flops(self, forward: float, counts: class_images.Counts) -> float:
        """Counts 3 f K b + 9 f sum_c min(n_c, most) + 3 f ``real_images``.

        The gradients of the real images; those of the synthetic ones and their derivative; the epoch on real images.

        Args:
          forward: f, FLOPs of the backbone's forward pass of one image.
          counts: n_c, images of each of the K classes.
        """
        seen = sum(min(count, self.most) for count in counts)
        return forward * (3 * len(counts) * self.batch_size + 9 * seen + 3 * self.real_images)


registry.register("idc", IDC)


def idc(
    net: zoo.Architecture | Networks,
    *,
    ipc: int | Sequence[int],
    settings: IDC | None = None,
    repeat: bool = False,
    **changes: Any,
) -> Distiller:
    """Gradient matching along real training as a ``Distiller``; ``idc_optimiser`` makes its optimiser.

    Args:
      net: the backbone, or a pool (``networks.pool``), without batch norm.
      ipc: images per class, one number for all classes or one a class; under a packing those that are decoded.
      settings: the method's settings; None for the defaults.
      repeat: whether a class with fewer images than its ``ipc`` starts from them again and again.
      changes: fields of ``IDC`` to be other than in ``settings``.

    Raises:
      ValueError: for a setting out of range, or a network with batch norm or without a convolution; (in ``init``) as
        ``dsa``.
    """
    counts = sampling.per_class(ipc, as_networks(net).num_classes)
    return dataclasses.replace(settings or IDC(), **changes).make(net, counts, repeat=repeat)


def _distiller(settings: IDC, nets: Networks, counts: class_images.Counts, repeat: bool) -> Distiller:
    classes = nets.num_classes

    def init(key: jax.Array, dataset: Dataset) -> tuple[dict, dict]:
        images = class_images.initial(key, dataset, nets, counts=counts, init=settings.start, repeat=repeat)
        return images, {"network": nets.init(key, 0)}

    def refresh(key: jax.Array, synthetic: dict, aux: dict, step: jax.Array, frozen: Any) -> dict:
        """A new network, or the last step's as its epoch on real images has left it."""
        del synthetic, frozen
        new, old = nets.init(key, step // settings.inner), aux["network"]
        is_new = step % settings.inner == 0
        return {"network": jax.tree.map(lambda a, b: jnp.where(is_new, a, b), new, old)}

    def sample(key: jax.Array, data: ImageArrays, step: jax.Array, *, axis_name: str | None = None) -> dict[str, Any]:
        del step
        batch = class_images.draw(key, data, num_classes=classes, batch_size=settings.batch_size, axis_name=axis_name)
        # An epoch cut short; the same on every device, so the network stays the same everywhere.
        count = min(settings.real_images, len(data.labels))
        rows = jax.random.choice(keys.named(key, "real"), len(data.labels), (count,), replace=False)
        return {**batch, "train": jnp.asarray(data.images)[rows], "train_labels": jnp.asarray(data.labels)[rows]}

    def loss(
        key: jax.Array, synthetic: dict, aux: dict, batch: dict, frozen: Any, *, axis_name: str | None = None
    ) -> tuple[jax.Array, tuple[dict, dict]]:
        del frozen
        w_key, subset_key, train_key = (keys.named(key, part) for part in ("view", "subset", "real"))
        own, share = class_images.by_class(synthetic["images"], counts), class_images.shares(counts)
        own, share = _subset(subset_key, own, share, counts, settings.most)

        def match(net: zoo.Architecture, variables: Any) -> jax.Array:
            def distance(item: tuple, shared: tuple) -> jax.Array:
                return class_distance(
                    settings, net, item, shared, kind=settings.distance, axis_name=axis_name, of=_of_convolutions
                )

            w = jax.random.split(w_key, classes)
            items = (own, w, jnp.arange(classes), batch["images"], batch["weights"], share)
            shared = (variables, batch["mean"], batch["std"])
            return parts.sum_each(distance, items, shared, at_once=settings.class_batch or classes)

        def train(net: zoo.Architecture, variables: Any) -> tuple[Any, tuple]:
            after = fit(
                train_key, net, batch["train"], batch["train_labels"], settings.recipe, shared_key=train_key,
                mean=batch["mean"], std=batch["std"], variables=variables,
            )  # fmt: skip
            return after, ()

        value = nets.use(aux["network"], match)
        return value, ({"network": nets.change(aux["network"], train)[0]}, {})

    return Distiller(
        name=settings.name,
        init=init,
        sample=sample,
        loss=loss,
        refresh=refresh,
        decode=lambda synthetic, aux, frozen: class_images.as_set(synthetic["images"], counts),
    )


def _of_convolutions(gradient: Any) -> list[jax.Array]:
    """Of a gradient in ``params`` the kernels [k, k, C, O]: norms, biases and the classifier are left out."""
    return [leaf for leaf in jax.tree.leaves(gradient) if leaf.ndim == 4]


def _subset(
    key: jax.Array, own: jax.Array, share: jax.Array | None, counts: class_images.Counts, most: int
) -> tuple[jax.Array, jax.Array | None]:
    """At most ``most`` random images of each class, [K, n, ...], and what each adds to the mean of its class."""
    if own.shape[1] <= most:
        return own, share
    # Of each class its own images first, in random order: what fills up a smaller class comes behind.
    draw = jax.random.uniform(key, own.shape[:2]) + (jnp.arange(own.shape[1]) >= jnp.asarray(counts)[:, None])
    rows = jnp.argsort(draw, axis=1)[:, :most]
    chosen = jnp.take_along_axis(own, rows[:, :, None, None, None], axis=1)
    kept = jnp.minimum(jnp.asarray(counts), most)[:, None]
    return chosen, (jnp.arange(most) < kept) / kept


class _Clamp(NamedTuple):
    step: jax.Array  # [] int32


def idc_optimiser(
    learning_rate: float, mean: ArrayLike, std: ArrayLike, *, classes: int, momentum: float = 0.5, every: int = 100
) -> optax.GradientTransformation:
    """SGD in pixels of [0, 1] as IDC does it, one step here being one after each class there (see the module).

    Images are standardised here, x = (p - mean) / std, so a step of p by -lr dL/dp is one of x by -lr dL/dx / std^2.
    Latents that are no images ([n, H, W, C] with the data's C) have neither pixels nor their bounds: they train by SGD.

    Args:
      learning_rate: of the published loop.
      mean: [C], the constant that standardisation subtracts.
      std: [C], the constant that it divides by.
      classes: K.
      momentum: of the published loop.
      every: steps from one clamping to [0, 1] to the next: those of a network.

    Raises:
      ValueError: for a number out of its range.
    """
    ranges.require("learning_rate", learning_rate, Real(0, above=True))
    ranges.require("momentum", momentum, Real(0, 1, below=True))
    ranges.require("every", every, Whole(1))
    mean, std = jnp.asarray(mean), jnp.asarray(std)
    left = momentum**classes  # of a class's momentum when its turn comes again
    rate = learning_rate * (1 - left) / (1 - momentum)

    def is_image(leaf: jax.Array) -> bool:
        return leaf.ndim == 4 and leaf.shape[-1] == len(std)

    to_pixels = optax.stateless(
        lambda updates, params: jax.tree.map(lambda u: -rate * (u / std**2 if is_image(u) else u), updates)
    )

    def clamp(updates: Any, state: _Clamp, params: Any = None) -> tuple[Any, _Clamp]:
        step = state.step + 1

        def inside(u: jax.Array, x: jax.Array) -> jax.Array:
            return jnp.where(step % every == 0, jnp.clip(x + u, -mean / std, (1 - mean) / std) - x, u)

        updates = jax.tree.map(lambda u, x: inside(u, x) if is_image(u) else u, updates, params)
        return updates, _Clamp(step)

    clamped = optax.GradientTransformation(lambda params: _Clamp(jnp.zeros((), jnp.int32)), clamp)
    return optax.chain(optax.trace(left), to_pixels, clamped)
