"""Matching over several networks at once: the plain control that earned most of HMDC's gain.

Moon, Kim and Kim, "Towards Model-Agnostic Dataset Condensation by Heterogeneous Models" (ECCV 2024), without its mutual
distillation. With L_k the loss of DM, DC or DSA over network k and S_c the synthetic images of class c, the set moves
along

    sum_k s_kc dL_k / dS_c,    s_kc = (1 / a_kc) / max_j (1 / a_jc),    a_kc <- a_kc + max |dL_k / dS_c|

where a_kc starts at 1e-6 and grows at every 10th step: the network with the smallest gradient has the factor 1, and no
network drowns the others. The plain sum, s = 1, is the control.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from metadd_jax import keys
from metadd_jax.distillers.contract import Distiller, check_method
from metadd_jax.ranges import OneOf, require
from metadd_jax.structs import Dataset, ImageArrays, SyntheticSet

BALANCES = ("sum", "balanced", "normalised")
# As published: steps between two additions, where they start, and what keeps a division finite.
EVERY, START, TINY = 10, 1e-6, 1e-6


def match_all(methods: Sequence[Distiller], *, balance: str = "balanced") -> Distiller:
    """Adds up the losses of methods that differ in their network alone, with balanced gradients.

    >>> method = match_all([dm(net, ipc=10), dm(other, ipc=10)])

    All see the same real images at every step. Each draws its own networks and views; the first draws those that it
    draws alone. The loss that is reported is sum_k L_k.

    Args:
      methods: at least two of dm, dc or dsa, with the same settings and images per class.
      balance: "sum" (all factors 1), "balanced" (s_kc as above), or "normalised": as "balanced", and then each channel
        of each image's gradient is divided by its largest size, so that the learning rate is the largest change of a
        pixel in the set's value space.

    Raises:
      ValueError: for fewer than two methods, what is no method, or another word; in ``init``, if a method trains
        something else than images or they start from different ones.
    """
    require("balance", balance, OneOf(BALANCES))
    if len(methods) < 2:
        raise ValueError(f"matching over several networks wants at least two methods, not {len(methods)}")
    for method in methods:
        check_method(method)
    first = methods[0]

    def init(key: jax.Array, dataset: Dataset) -> tuple[dict[str, jax.Array], dict[str, Any]]:
        # One key: all start from the same images.
        starts = [method.init(key, dataset) for method in methods]
        shapes = [jax.tree.map(jnp.shape, synthetic) for synthetic, _ in starts]
        if any(not isinstance(shape, dict) or set(shape) != {"images"} or shape != shapes[0] for shape in shapes):
            raise ValueError(
                f"{' and '.join(method.name for method in methods)} train {' and '.join(map(str, shapes))}; matching "
                "over several networks wants methods that train the same images alone, such as dm, dc and dsa"
            )
        aux: dict[str, Any] = {"each": tuple(aux for _, aux in starts)}
        if balance != "sum":
            largest = jnp.full((len(methods), dataset.num_classes), START, jnp.float32)
            aux |= {"largest": largest, "step": jnp.zeros((), jnp.int32)}
        return starts[0][0], aux

    def sample(key: jax.Array, data: ImageArrays, step: jax.Array, *, axis_name: str | None = None) -> dict[str, Any]:
        # The same key draws the same images; what one method needs beside them (batch norm's statistics) is added.
        return {
            name: value
            for method in methods
            for name, value in method.sample(key, data, step, axis_name=axis_name).items()
        }

    def refresh(key: jax.Array, synthetic: dict, aux: dict, step: jax.Array, frozen: Any) -> dict:
        each = tuple(
            method.refresh(_own(key, k), synthetic, aux["each"][k], step, frozen[k]) for k, method in enumerate(methods)
        )
        return {**aux, "each": each, **({} if balance == "sum" else {"step": jnp.asarray(step, jnp.int32)})}

    def loss(
        key: jax.Array, synthetic: dict, aux: dict, batch: Any, frozen: Any, *, axis_name: str | None = None
    ) -> tuple[jax.Array, tuple[dict, dict[str, jax.Array]]]:
        def of(k: int, synthetic: dict) -> tuple[jax.Array, tuple[Any, dict]]:
            return methods[k].loss(_own(key, k), synthetic, aux["each"][k], batch, frozen[k], axis_name=axis_name)

        if balance == "sum":
            found = [of(k, synthetic) for k in range(len(methods))]
            return jnp.stack([value for value, _ in found]).sum(), _kept(aux, found)
        # The gradients are taken here, once: their sizes are wanted for the factors, and they themselves for the step.
        pairs = [jax.value_and_grad(of, argnums=1, has_aux=True)(k, synthetic) for k in range(len(methods))]
        found, gradients = [result for result, _ in pairs], jnp.stack([slope["images"] for _, slope in pairs])
        labels = jnp.asarray(first.decode(synthetic, aux["each"][0], frozen[0]).labels)
        size = jax.vmap(lambda g: largest_by_class(g, labels, aux["largest"].shape[1]))(gradients)
        largest = jnp.where(aux["step"] % EVERY == 0, aux["largest"] + size, aux["largest"])
        s = factors(largest)  # [M, K]
        gradient = (s[:, labels, None, None, None] * gradients).sum(axis=0)
        gradient = normalised(gradient) if balance == "normalised" else gradient
        # A loss of the right value whose gradient is that one: linear, so pulled back (latents) or added to (MetaDD) it
        # is what a loss would be.
        moved = synthetic["images"] - jax.lax.stop_gradient(synthetic["images"])
        value = jax.lax.stop_gradient(jnp.stack([value for value, _ in found]).sum())
        new, metrics = _kept({**aux, "largest": largest}, found)
        metrics |= {f"factor_{k + 1}": s[k].mean() for k in range(len(methods))}
        return value + jnp.vdot(jax.lax.stop_gradient(gradient), moved), (new, metrics)

    def decode(synthetic: dict, aux: dict, frozen: Any) -> SyntheticSet:
        return first.decode(synthetic, aux["each"][0], frozen[0])

    return Distiller(
        name=f"{first.name}+matched",
        init=init,
        sample=sample,
        loss=loss,
        refresh=refresh,
        decode=decode,
        frozen=tuple(method.frozen for method in methods),
    )


def largest_by_class(gradient: jax.Array, labels: jax.Array, num_classes: int) -> jax.Array:
    """Finds max |dL / dS_c| of each class: [K].

    Args:
      gradient: [N, H, W, C] of one network's loss.
      labels: [N] int.
      num_classes: K, each with at least one image.
    """
    return jax.ops.segment_max(jnp.abs(gradient).max(axis=(1, 2, 3)), labels, num_classes)


def factors(largest: jax.Array) -> jax.Array:
    """Computes s_kc = (1 / a_kc) / max_j (1 / a_jc): [M, K], from ``largest`` a [M, K] above 0."""
    return largest.min(axis=0) / largest


def normalised(gradient: jax.Array) -> jax.Array:
    """Divides each channel of each image's ``gradient`` [N, H, W, C] by its largest size, plus 1e-6."""
    return gradient / (jnp.abs(gradient).max(axis=(1, 2), keepdims=True) + TINY)


def _own(key: jax.Array, number: int) -> jax.Array:
    """The key of a method: the first one's draws are those that it makes alone."""
    return jax.random.fold_in(keys.named(key, "matched"), number) if number else key


def _kept(aux: dict, found: Sequence[tuple[jax.Array, tuple[Any, dict]]]) -> tuple[dict, dict[str, jax.Array]]:
    """``aux`` after the losses, and their metrics, each network's loss among them."""
    metrics = {f"{name}_{k + 1}": value for k, (_, (_, facts)) in enumerate(found) for name, value in facts.items()}
    metrics |= {f"loss_{k + 1}": value for k, (value, _) in enumerate(found)}
    return {**aux, "each": tuple(own for _, (own, _) in found)}, metrics
