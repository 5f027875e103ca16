"""DM: match the mean embedding of each class under a fresh random network at every step.

Zhao and Bilen, "Dataset Condensation with Distribution Matching" (WACV 2023). With psi_theta(x) the embedding that a
network of random weights theta gives, A(x, w) the Siamese augmentation with parameters w, T_c the real and S_c the
synthetic images of class c, the set is trained to make small

    sum_c | mean_{x in T_c} psi_theta(A(x, w_c)) - mean_{s in S_c} psi_theta(A(s, w_c)) |^2,

summed, not averaged, over the D features. The real side is a constant and theta is never trained.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import chex
import jax
import jax.numpy as jnp

from metadd_jax import keys, parallel, parts, zoo
from metadd_jax.data import sampling
from metadd_jax.distillers import class_images, registry
from metadd_jax.distillers.contract import Distiller
from metadd_jax.distillers.networks import Networks, as_networks
from metadd_jax.structs import Dataset, ImageArrays


@dataclasses.dataclass(frozen=True, kw_only=True)
class DM(class_images.ClassWise):
    """Settings of distribution matching: those of ``ClassWise`` and no others.

    Published: 256 real images a class, a start from real images, all of DSA's tokens, 20,001 steps of
    ``optax.sgd(1.0, momentum=0.5)`` (10.0 on CIFAR-10 from 100 images per class on).
    """

    group: ClassVar[str] = "dm"
    draws_networks: ClassVar[bool] = True

    def make(
        self, net: zoo.Architecture | Networks, counts: class_images.Counts, given: Any = None, *, repeat: bool = False
    ) -> Distiller:
        """Makes the method's functions.

        Args:
          net: the backbone, or a pool of them.
          counts: images of each of the K classes of the set.
          given: nothing; DM takes nothing that is made beforehand.
          repeat: whether a class with fewer real images than it starts from gives them again and again.
        """
        del given
        return _distiller(self, as_networks(net), counts, repeat)

    def check_devices(self, net: zoo.Architecture, devices: int, *, pmap: bool) -> None:
        """Refuses a batch that the devices cannot share, and batch norm under pmap.

        Args:
          net: the backbone.
          devices: how many share a batch.
          pmap: whether they do it by pmap.

        Raises:
          ValueError: with the numbers and what to do.
        """
        super().check_devices(net, devices, pmap=pmap)
        if pmap and devices > 1:
            _refuse_shared_statistics(as_networks(net))

    def flops(self, forward: float, counts: class_images.Counts) -> float:
        """Counts f K b + 3 f N: the real images forwards, the synthetic ones forwards and backwards.

        Args:
          forward: f, FLOPs of the backbone's forward pass of one image.
          counts: images of each of the K classes, N in all.
        """
        # The real side is a constant, so that it has no backward pass: 256 real images a class would cost three times.
        return forward * len(counts) * self.batch_size + 3 * forward * sum(counts)


registry.register("dm", DM)


def dm(
    net: zoo.Architecture | Networks,
    *,
    ipc: int | Sequence[int],
    settings: DM | None = None,
    repeat: bool = False,
    **changes: Any,
) -> Distiller:
    """Distribution matching as a ``Distiller``.

    Args:
      net: the backbone, drawn anew at every step, or a pool (``networks.pool``), of which every step draws one; with
        batch norm all classes share one embedding pass, so that its statistics are over all of them.
      ipc: images per class, one number for all classes or one a class.
      settings: the method's settings; None for the defaults.
      repeat: whether a class with fewer real images than its ``ipc`` starts from them again and again.
      changes: fields of ``DM`` to be other than in ``settings``: ``batch_size=64``.

    Raises:
      ValueError: for a setting out of range, or (in ``init``, from real images without ``repeat``) a class with fewer
        than ``ipc`` images.

    Example:
      >>> import metadd_jax as mdd
      >>> method = dm(mdd.zoo.parse("convnet:width=8", 10, (32, 32, 3)), ipc=10, batch_size=64)
      >>> method.name
      'dm'
    """
    counts = sampling.per_class(ipc, as_networks(net).num_classes)
    return dataclasses.replace(settings or DM(), **changes).make(net, counts, repeat=repeat)


def _distiller(settings: DM, nets: Networks, counts: class_images.Counts, repeat: bool) -> Distiller:
    classes = nets.num_classes

    def init(key: jax.Array, dataset: Dataset) -> tuple[dict[str, jax.Array], Any]:
        images = class_images.initial(key, dataset, nets, counts=counts, init=settings.start, repeat=repeat)
        return images, refresh(key, images, (), jnp.int32(0), ())

    def refresh(key: jax.Array, synthetic: dict, aux: Any, step: jax.Array, frozen: Any) -> Any:
        # Every step draws one network, so the step says how far a pool's warm-up is.
        return {"drawn": jnp.asarray(step, jnp.int32)} if nets.warmup else ()

    def sample(key: jax.Array, data: ImageArrays, step: jax.Array, *, axis_name: str | None = None) -> dict[str, Any]:
        del step
        if axis_name is not None:  # here too: whoever calls the contract's functions does not pass ``check_devices``
            _refuse_shared_statistics(nets)
        size = settings.batch_size
        return class_images.draw(key, data, num_classes=classes, batch_size=size, axis_name=axis_name)

    def loss(
        key: jax.Array, synthetic: dict, aux: Any, batch: dict, frozen: Any, *, axis_name: str | None = None
    ) -> tuple[jax.Array, tuple[Any, dict]]:
        del frozen
        chex.assert_rank([synthetic["images"], batch["images"], batch["weights"]], [4, 5, 2])
        # One w_c a class, as published, where it comes from the clock; a key makes the run repeatable.
        w = jax.random.split(keys.named(key, "views"), classes)

        def distance(net: zoo.Architecture, theta: Any) -> jax.Array:
            s, share = class_images.by_class(synthetic["images"], counts), class_images.shares(counts)
            if net.has_batch_stats:
                return _all_classes_together(
                    net, theta, s, w, batch, view=settings.view, counts=counts, axis_name=axis_name,
                    again=len(nets.nets) > 1,
                )  # fmt: skip

            def class_distance(item: tuple, shared: tuple) -> jax.Array:
                # What a class reads comes in as an argument: ``parts`` takes what is closed over for a constant.
                (s_c, w_c, t_c, weights, share), (theta, mean, std) = item, shared

                def psi(x: jax.Array) -> jax.Array:  # [n, H, W, C] -> [n, D]: psi_theta(A(x, w_c))
                    return net.apply_batch(theta, settings.view(w_c, x))[1]["embedding"]

                def real_sum(part: tuple) -> jax.Array:  # [D]; weight 0 takes out what fills up a small class
                    images, weights = part
                    return weights @ psi(sampling.standardise(images, mean, std))

                # Sums and no means: parts and devices have unequal numbers of real images, see ``_squared_distance``.
                total = parts.add_up(real_sum, (t_c, weights), size=settings.micro_batch)
                return _squared_distance(total, weights.sum(), class_images.mean(psi(s_c), share), axis_name)

            items, shared = (s, w, batch["images"], batch["weights"], share), (theta, batch["mean"], batch["std"])
            # The classes do not touch each other, so the activations of ``class_batch`` of them are enough.
            return parts.sum_each(class_distance, items, shared, at_once=settings.class_batch or classes)

        # theta is drawn anew at every step and never trained: DM is so cheap because it never unrolls.
        drawn = nets.init(keys.named(key, "network"), aux["drawn"] if nets.warmup else None)
        return nets.use(drawn, distance), (aux, {})

    return Distiller(
        name="dm",
        init=init,
        sample=sample,
        loss=loss,
        refresh=refresh,
        decode=lambda synthetic, aux, frozen: class_images.as_set(synthetic["images"], counts),
    )


def _all_classes_together(
    net: zoo.Architecture,
    theta: Any,
    s: jax.Array,
    w: jax.Array,
    batch: dict[str, Any],
    *,
    view: Callable[[jax.Array, jax.Array], jax.Array],
    counts: class_images.Counts,
    axis_name: str | None,
    again: bool,
) -> jax.Array:
    """One pass of each side, as published for batch norm: its statistics are over all classes.

    Args:
      net: the network that was drawn.
      theta: its variables.
      s: [K, n, H, W, C] synthetic images, see ``class_images.by_class``.
      w: [K] keys of the views.
      batch: real images [K, b, H, W, C] as stored, weights [K, b], and the constants they are standardised by.
      view: ``(key, images) -> images``, A of the module's formula.
      counts: images of each of the K classes of the set.
      axis_name: None; ``sample`` has refused any other.
      again: whether the pass of the synthetic images is computed again on the way back: in a pool, where all other
        branches must fill with zeros what this one keeps.
    """
    weights = batch["weights"]
    # The views are still drawn class by class: w_c is Siamese, and each class has its own.
    real = jax.vmap(lambda w, x: view(w, sampling.standardise(x, batch["mean"], batch["std"])))(w, batch["images"])
    # What fills up a small class must not enter the statistics.
    real = net.apply_batch(theta, real.reshape(-1, *net.image_shape), weights.ravel())[1]["embedding"]

    def psi(theta: Any, s: jax.Array) -> jax.Array:
        return net.apply_batch(theta, class_images.in_a_row(jax.vmap(view)(w, s), counts))[1]["embedding"]

    own = (jax.checkpoint(psi) if again else psi)(theta, s)
    totals = jnp.einsum("kb,kbd->kd", weights, real.reshape(*weights.shape, -1))
    means = jax.vmap(class_images.mean)(class_images.by_class(own, counts), class_images.shares(counts))
    distance = jax.vmap(lambda total, count, own: _squared_distance(total, count, own, axis_name))
    return distance(totals, weights.sum(axis=1), means).sum()


def _squared_distance(total: jax.Array, count: jax.Array, own: jax.Array, axis_name: str | None) -> jax.Array:
    """|total / count - own|^2: the sum [D] of the real embeddings of all devices, and the synthetic mean [D]."""
    # Summed over the devices before the square: a mean of squares of shares would be another loss.
    total, count = parallel.psum_if((total, count), axis_name)
    # Real embeddings are constants; and a collective must not be differentiated (rule 3 of the contract).
    target = jax.lax.stop_gradient(total / count)
    # A sum over the D features, as in the released program: with a mean the published rates would be too small.
    return jnp.sum((target - own) ** 2)


def _refuse_shared_statistics(nets: Networks) -> None:
    # Each device would take the statistics of its own share of the real images.
    for net in (net for net in nets.nets if net.has_batch_stats):
        raise ValueError(
            f"dm with batch-norm network {net.label} runs on one device; use its instance norm, or device_mode='jit'"
        )
