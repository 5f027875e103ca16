"""NCFM: match the characteristic functions of real and synthetic embeddings at random frequencies.

Wang et al., "Dataset Distillation with Neural Characteristic Function: A Minmax Perspective" (CVPR 2025), and its
released program. With f(x) the embedding of A(x) divided by its norm, A one draw of every op for the real images T_c
and the synthetic images S_c of class c, frequencies t [T, D] drawn anew, and

    phi_r(t) = mean_{x in T_c} (cos t.f(x), sin t.f(x)),    phi_s(t) the same over S_c,
    amp = (|phi_r| - |phi_s|)^2,    pha = 2 (|phi_r| |phi_s| - Re phi_r Re phi_s - Im phi_r Im phi_s),

the set is trained to make small

    sum_c [ 300 mean_t sqrt(a amp + b pha) + w mean_{s in S_c} CE(g(A(s)), c) ].

f belongs to a network whose weights are drawn on the line between start and end of a training, l theta_0 + (1 - l)
theta_E, l ~ U(0, 1), one of a pool at every step; g is the end of the same training. With a = b the root is that of
.5 |phi_r - phi_s|^2: a mean of distances and no squared mean.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from metadd_jax import augment, keys, parallel, parts, training, zoo
from metadd_jax.data import sampling
from metadd_jax.distillers import class_images, frequencies, networks, registry
from metadd_jax.distillers.contract import Distiller
from metadd_jax.distillers.frequencies import characteristic, distance, unit
from metadd_jax.distillers.pixel_updates import UPDATES, ncfm_optimiser
from metadd_jax.distillers.registry import Progress
from metadd_jax.ranges import OneOf, Real, Whole
from metadd_jax.structs import Dataset, ImageArrays
from metadd_jax.training.trajectories import unflatten

_MOST_RATE = 0.5
_STOOD_IN = 2  # networks of a plan


@dataclasses.dataclass(frozen=True, kw_only=True)
class NCFM(class_images.ClassWise):
    """Settings of NCFM, with those of ``ClassWise``. Published: 1024 real images a class, 20 networks of 60 epochs.

    Attributes:
      frequencies: T, frequencies of a class and step.
      amplitude: a.
      phase: b.
      scale: what the mean of the roots is multiplied by.
      calibration: w, weight of the trained network's cross-entropy; 0 leaves it out.
      sampler: where frequencies come from: "gaussian"; "trained", a network psi that is trained to raise the loss; or
        "dead", the released program's, whose two gradients cancel, so that it stays at its start and gives 4
        frequencies.
      sampler_lr: step size of psi (Adam, upwards); ours, no published one has an effect.
      update: what trains the images: "adamw", or "sgd" with ``image_momentum`` (published for CIFAR-100 at 10 images).
      weight_decay: of AdamW, in pixels of [0, 1], so towards black as published.
      patience: steps without a lower loss after which the step size is halved; None leaves it as it is.
      first_images: match the first ``batch_size`` images of each class and no others, as the released program does.
      experts: networks of the pool.
      epochs: epochs of their training.
      at_once: networks that train together; less needs less memory.
    """

    frequencies: Annotated[int, Whole(1)] = 4096
    amplitude: Annotated[float, Real(0)] = 0.5
    phase: Annotated[float, Real(0)] = 0.5
    scale: Annotated[float, Real(0, above=True)] = 300.0
    calibration: Annotated[float, Real(0)] = 1.0
    sampler: Annotated[str, OneOf(frequencies.SAMPLERS)] = "gaussian"
    sampler_lr: Annotated[float, Real(0, above=True)] = 1e-4
    update: Annotated[str, OneOf(UPDATES)] = "adamw"
    weight_decay: Annotated[float, Real(0)] = 5e-4
    patience: Annotated[int | None, Whole(1)] = 500
    first_images: bool = False
    experts: Annotated[int, Whole(1)] = 10
    epochs: Annotated[int, Whole(1)] = 10
    at_once: Annotated[int, Whole(1)] = 5
    batch_size: Annotated[int, Whole(1)] = 1024

    group: ClassVar[str] = "ncfm"
    usual_lr: ClassVar[float] = 0.001
    # No mirror images among them, so it suits digits too.
    published_augmentation: ClassVar[str] = "color_crop_cutout"
    frozen_fields: ClassVar[tuple[str, ...]] = ("experts",)
    scratch_fields: ClassVar[tuple[str, ...]] = (*class_images.ClassWise.scratch_fields, "frequencies")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.amplitude and not self.phase:
            raise ValueError("amplitude=0 and phase=0 leave nothing to match; give one of them a weight")

    @property
    def strategy(self) -> augment.Strategy:
        """All ops one after the other, and not one of them as in DSA."""
        return augment.strategy(self.views, mode="M")

    def for_data(self, tokens: Any) -> NCFM:
        """Keeps the published ops, which suit every data set."""
        del tokens
        return self

    def make(
        self, net: zoo.Architecture, counts: class_images.Counts, given: Any = None, *, repeat: bool = False
    ) -> Distiller:
        """Makes the method's functions.

        Args:
          net: the backbone, without batch norm.
          counts: images of each of the K classes of the set.
          given: the pool [E, 2, P] float32: the weights of E networks before and after their training.
          repeat: whether a class with fewer real images than it starts from gives them again and again.

        Raises:
          ValueError: if the network has batch norm or the pool is not its own.
        """
        self.check_network(net)
        if np.ndim(given) != 3 or np.shape(given)[1:] != (2, net.num_params()):
            raise ValueError(
                f"the pool has shape {np.shape(given)}, but {net.label} needs [networks, 2, {net.num_params()}]: the "
                "weights before and after training"
            )
        return _distiller(self, net, counts, given, repeat)

    def optimiser(
        self, learning_rate: float, momentum: float, steps: int, dataset: Dataset
    ) -> optax.GradientTransformation:
        """Makes ``ncfm_optimiser``.

        Args:
          learning_rate: of the images, in pixels of [0, 1].
          momentum: of "sgd"; AdamW has betas of its own.
          steps: nothing; the rate falls by ``patience``.
          dataset: the real data, whose mean and std bound a pixel.
        """
        del steps
        # Adam's step is about as long as its rate: at SGD's usual 1 a pixel would jump from black to white.
        if self.update == "adamw" and learning_rate > _MOST_RATE:
            raise ValueError(
                f"image_lr={learning_rate} is of AdamW on pixels in [0, 1], at most {_MOST_RATE}; .001 is published"
            )
        arrays = dataset.train
        return ncfm_optimiser(
            learning_rate, arrays.mean, arrays.std, update=self.update, weight_decay=self.weight_decay,
            momentum=momentum, patience=self.patience,
        )  # fmt: skip

    def check_pixels(self, *, zca: bool) -> None:
        """Refuses whitened images."""
        if zca:
            raise ValueError("ncfm clips to what a picture can hold, which a whitened image has not; leave zca out")

    def check_network(self, net: zoo.Architecture) -> None:
        """Refuses batch norm, and several networks."""
        if networks.single(net).has_batch_stats:
            raise ValueError(f"{net.label} has batch norm, whose statistics the pool lacks; use its instance norm")

    def prepare(
        self,
        net: zoo.Architecture,
        dataset: Dataset,
        trained: training.Trained,
        cache: pathlib.Path,
        *,
        progress: Progress,
    ) -> jax.Array:
        """Trains the pool, or takes it from the cache: [experts, 2, P] float32 on the device."""
        del trained
        progress("networks", 0, self.experts)
        trajectories = training.train_experts(
            self._folder(net, dataset, cache), net, dataset, training.ncfm_pretraining(self.epochs), ends=True,
            on_shard=lambda done: progress("networks", done, self.experts), experts=self.experts, at_once=self.at_once,
        )  # fmt: skip
        progress("networks", self.experts, self.experts)
        return training.device_experts(trajectories)

    def stand_in(self, net: zoo.Architecture, variables: Any) -> jax.Array:
        """Makes a pool of two networks of random weights.

        Args:
          net: the backbone.
          variables: nothing; only their number P counts.
        """
        del variables
        return 0.02 * jax.random.normal(jax.random.key(0), (_STOOD_IN, 2, net.num_params()))

    def given_size(self, net: zoo.Architecture) -> float:
        """Bytes of the networks beyond two."""
        return 8.0 * (self.experts - _STOOD_IN) * net.num_params()

    def cached(
        self, net: zoo.Architecture, dataset: Dataset, cache: pathlib.Path
    ) -> Sequence[tuple[pathlib.Path, int]]:
        """The folder of the pool: two snapshots of each network."""
        return [(self._folder(net, dataset, cache), 8 * self.experts * net.num_params())]

    def _folder(self, net: zoo.Architecture, dataset: Dataset, cache: pathlib.Path) -> pathlib.Path:
        recipe = training.ncfm_pretraining(self.epochs)
        return training.expert_folder(
            cache, net, dataset, recipe, experts=self.experts, at_once=self.at_once, ends=True
        )

    def flops(self, forward: float, counts: class_images.Counts) -> float:
        """Counts f K b + 3 f N, and 3 f N once more for the calibration; a trained psi embeds both sides again.

        Args:
          forward: f, FLOPs of the backbone's forward pass of one image.
          counts: images of each of the K classes, N in all.
        """
        real, own = len(counts) * self.batch_size, sum(counts)
        again = real + own if self.sampler == "trained" else 0
        return forward * (real + 3 * own + (3 * own if self.calibration else 0) + again)

    def extra_flops(self, net: zoo.Architecture, counts: class_images.Counts) -> float:
        """Counts the products t.f, 2 T D for each of the K b + 3 N images, and 24 T D^2 a class for psi.

        Args:
          net: the backbone, whose embedding has D entries.
          counts: images of each of the K classes, N in all.
        """
        width, real, own = net.embedding_size, len(counts) * self.batch_size, sum(counts)
        products = 2.0 * self.frequencies * width * (real + 3 * own)
        if self.sampler != "trained":
            return products
        return (
            products + 6.0 * self.frequencies * width * (real + own) + 24.0 * len(counts) * self.frequencies * width**2
        )

    def prepare_flops(self, forward: float, images: int) -> dict[str, float]:
        """FLOPs of the pool's training."""
        return {"networks": 3 * forward * self.experts * self.epochs * images}

    def describe(self) -> str:
        """How many real images a step reads, and the pool."""
        return f"{super().describe()}, {self.experts} networks of {self.epochs} epochs, {self.frequencies} frequencies"


registry.register("ncfm", NCFM)


def ncfm(
    net: zoo.Architecture,
    pool: ArrayLike,
    *,
    ipc: int | Sequence[int],
    settings: NCFM | None = None,
    repeat: bool = False,
    **changes: Any,
) -> Distiller:
    """NCFM as a ``Distiller``; ``ncfm_optimiser`` makes its optimiser.

    One step is one iteration of the released program: the match of all classes and, added to it, their calibration.
    There each class and each of the two takes an optimiser step of its own.

    Args:
      net: the backbone, without batch norm.
      pool: [E, 2, P] float32, the weights of E networks before and after training (``training.train_experts`` with
        ``ends`` and ``training.ncfm_pretraining``). They become ``frozen``.
      ipc: images per class, one number for all classes or one a class.
      settings: the method's settings; None for the defaults. What trains the pool plays no part here.
      repeat: whether a class with fewer real images than its ``ipc`` starts from them again and again.
      changes: fields of ``NCFM`` to be other than in ``settings``: ``frequencies=256``.

    Raises:
      ValueError: for a setting out of range, a network with batch norm or a pool of another one; (in ``init``, without
        ``repeat``) for a class with fewer than ``ipc`` images.
    """
    counts = sampling.per_class(ipc, networks.single(net).num_classes)
    return dataclasses.replace(settings or NCFM(), **changes).make(net, counts, pool, repeat=repeat)


def _distiller(
    settings: NCFM, net: zoo.Architecture, counts: class_images.Counts, given: ArrayLike, repeat: bool
) -> Distiller:
    classes, width = len(counts), net.embedding_size

    def init(key: jax.Array, dataset: Dataset) -> tuple[dict[str, jax.Array], dict[str, Any]]:
        images = class_images.initial(key, dataset, net, counts=counts, init=settings.start, repeat=repeat)
        aux: dict[str, Any] = {"network": jnp.zeros((), jnp.int32), "share": jnp.zeros(())}
        if settings.sampler != "gaussian":
            aux["psi"] = frequencies.init(keys.named(key, "frequencies"), width)
        if settings.sampler == "trained":
            aux["psi_state"] = optax.adam(settings.sampler_lr).init(aux["psi"])
        return images, aux

    def sample(key: jax.Array, data: ImageArrays, step: jax.Array, *, axis_name: str | None = None) -> dict[str, Any]:
        del step
        return class_images.draw(
            key, data, num_classes=classes, batch_size=settings.batch_size, first=settings.first_images,
            axis_name=axis_name,
        )  # fmt: skip

    def refresh(key: jax.Array, synthetic: Any, aux: dict, step: jax.Array, frozen: jax.Array) -> dict:
        """Which network, and how far along its training: l, the share of its start."""
        network_key, share_key = jax.random.split(key)
        number = jax.random.randint(network_key, (), 0, len(frozen))
        return {**aux, "network": number.astype(jnp.int32), "share": jax.random.uniform(share_key)}

    def loss(
        key: jax.Array, synthetic: dict, aux: dict, batch: dict, frozen: jax.Array, *, axis_name: str | None = None
    ) -> tuple[jax.Array, tuple[dict, dict]]:
        chex.assert_rank([synthetic["images"], batch["images"], batch["weights"], frozen], [4, 5, 2, 3])
        start, end = frozen[aux["network"]]
        theta = {"params": unflatten(net, aux["share"] * start + (1 - aux["share"]) * end)}
        final = {"params": unflatten(net, end)}
        s, share = class_images.by_class(synthetic["images"], counts), class_images.shares(counts)
        drawn = (jax.random.split(keys.named(key, part), classes) for part in ("views", "frequencies", "calibrate"))
        items = (s, jnp.arange(classes), *drawn, batch["images"], batch["weights"], share)
        shared = (theta, final, batch["mean"], batch["std"], aux.get("psi"))

        f = functools.partial(_embedded, settings, net)

        def class_loss(item: tuple, shared: tuple) -> jax.Array:
            (s_c, c, w_c, t_key, calibration_key, t_c, weights, share), (theta, final, mean, std, psi) = item, shared
            # A constant for the images: psi is trained apart, towards the other side.
            t = jax.lax.stop_gradient(frequencies.draw(t_key, settings.frequencies, width, psi, settings.sampler))

            def real_sum(part: tuple) -> jax.Array:
                images, weights = part
                return characteristic(f(theta, w_c, sampling.standardise(images, mean, std)), t, weights)

            # Means over samples inside, the mean over t outside the root; sums, since devices share the real side.
            total = parts.add_up(real_sum, (t_c, weights), size=settings.micro_batch)
            total, count = parallel.psum_if((total, weights.sum()), axis_name)
            phi_r = jax.lax.stop_gradient(total / count)
            share = class_images.weights_of(share, len(s_c))
            phi_s = characteristic(f(theta, w_c, s_c), t, share)
            value = settings.scale * distance(phi_r, phi_s, settings.amplitude, settings.phase)
            if settings.calibration:
                logits, _ = net.apply(final, settings.view(calibration_key, s_c))
                entropy = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.full(len(s_c), c))
                value += settings.calibration * (share @ entropy)
            return value

        value = parts.sum_each(class_loss, items, shared, at_once=settings.class_batch or classes)
        if settings.sampler == "trained":
            aux = {**aux, **_raised(settings, net, items, shared, aux, axis_name)}
        return value, (aux, {})

    return Distiller(
        name="ncfm",
        init=init,
        sample=sample,
        loss=loss,
        refresh=refresh,
        decode=lambda synthetic, aux, frozen: class_images.as_set(synthetic["images"], counts),
        frozen=jnp.asarray(given),
    )


def _raised(
    settings: NCFM, net: zoo.Architecture, items: tuple, shared: tuple, aux: dict, axis_name: str | None
) -> dict[str, Any]:
    """psi one step upwards on the loss of this step, class after class: the other gradient of the min-max.

    Args:
      settings: the method's.
      net: the backbone.
      items: what each class has, as the loss takes it.
      shared: what all classes share, likewise.
      aux: psi's weights are in ``shared``; here the state of their optimiser.
      axis_name: of pmap, or None.
    """
    theta, _, mean, std, psi = jax.lax.stop_gradient(shared)

    def slope(total: Any, item: tuple) -> tuple[Any, None]:
        s_c, _, w_c, t_key, _, t_c, weights, share = item

        f = functools.partial(_embedded, settings, net, theta, w_c)
        f_r, f_s = f(sampling.standardise(t_c, mean, std)), f(s_c)
        if axis_name is not None:  # all of them: the gradient of a sum over devices would be wrong
            f_r, weights = jax.lax.all_gather((f_r, weights), axis_name, tiled=True)
        share = class_images.weights_of(share, len(s_c))

        def negative(psi: Any) -> jax.Array:
            t = frequencies.draw(t_key, settings.frequencies, net.embedding_size, psi, settings.sampler)
            phi_r, phi_s = characteristic(f_r, t, weights / weights.sum()), characteristic(f_s, t, share)
            return -settings.scale * distance(phi_r, phi_s, settings.amplitude, settings.phase)

        return jax.tree.map(jnp.add, total, jax.grad(negative)(psi)), None

    gradient, _ = jax.lax.scan(slope, jax.tree.map(jnp.zeros_like, psi), jax.lax.stop_gradient(items))
    updates, state = optax.adam(settings.sampler_lr).update(gradient, aux["psi_state"])
    return {"psi": optax.apply_updates(psi, updates), "psi_state": state}


def _embedded(settings: NCFM, net: zoo.Architecture, theta: Any, w: jax.Array, x: jax.Array) -> jax.Array:
    """f of images x [n, H, W, C] under the view of key w: [n, D] of norm 1."""
    return unit(net.apply(theta, settings.view(w, x))[1]["embedding"])
