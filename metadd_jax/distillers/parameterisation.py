"""What is trained in place of pixels: images packed small (``packing``), a generator's latents, under any method.

``parameterise(base, parameterisation)`` trains latents and shows the base method the images decoded from them, so the
update's gradient is that of the base in the pixels, pulled back through the decoder. The decoder is computed again on
the way back: the memory is that of the base method, and then that of decoding ``micro_batch`` items.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from metadd_jax import keys, parallel, parts, ranges
from metadd_jax.distillers.contract import Distiller, check_method
from metadd_jax.ranges import Whole
from metadd_jax.structs import Dataset, SyntheticSet


class Parameterisation(Protocol):
    """Any object with these three serves; what may come on top has a default.

    ``name`` (a str; by default the class's, in small letters) is added to the method's name, None adds nothing.
    ``per_stored`` (an int, by default 1) says how many images one stored item gives, one after the other, so that no
    item holds images of two classes. ``facts`` (a mapping, by default empty) goes into the metadata of exported sets.
    ``follows_start`` (by default True) says whether ``init`` reads the images, so that another start is another set.
    ``takes_labels`` (by default False) says that ``init`` has a third argument, the labels [n] of the stored items.
    ``micro_batch`` (by default None) is what ``parameterise`` takes where it is given none. ``rates`` (by default
    empty) gives latents that are a dict learning rates of their own, and ``optimiser`` (an optax transformation, by
    default absent) updates the latents whatever updates pixels (``latents.with_rates``). ``images_for(stored)`` (else
    ``per_stored`` times as many) says how many images take the storage of so many pictures, where a job counts by
    storage. ``stores_images`` (by default False) says that the latents are pictures themselves, [n, H, W, C].
    ``prepare(dataset, cache, *, progress)`` (by default absent) is asked by a job before it distils: it returns the
    parameterisation with what long work makes, such as trained weights in ``frozen``, of the shapes that are there
    before. For a plan: ``prepare_flops(decode, real, images, sets)``, the FLOPs of each long work by name (``decode``
    those of decoding an image, of so many real images, images of a set, and sets), and ``unfitted``, the same with a
    start that takes no time. ``on_fit(done, in all)`` is a field that a job sets, called while a start is fitted.
    """

    @property
    def frozen(self) -> Any:
        """A pytree of arrays that never change, such as a generator's weights; () for none."""

    def init(self, key: jax.Array, images: jax.Array, /) -> Any:
        """Returns the latents to start from, an array or nested dicts of float arrays.

        Args:
          key: typed PRNG key, for latents that are drawn.
          images: [N, H, W, C] float32, class-major, what the base method would start from.
        """

    def decode(self, latents: Any, frozen: Any, /) -> jax.Array:
        """Returns the images [N, H, W, C] float32 in the set's value space, differentiable in ``latents``.

        Args:
          latents: as from ``init``. With a ``micro_batch`` some of them: an array [n, ...] then becomes [m, ...].
          frozen: this object's ``frozen``.
        """


def parameterise(base: Distiller, parameterisation: Parameterisation, *, micro_batch: int | None = None) -> Distiller:
    """Trains latents in place of the images of ``base``; all else that it trains (a step size) stays as it is.

    MetaDD may stand around it or inside. Around (the usual order), its weights are calibrated on gradients in the
    latents; inside, on gradients in the pixels that ``base`` starts from.

    ``base`` counts the images that it sees. With ``factor(2)`` a stored image gives four of them, so ``ipc=40`` are 10
    stored ones a class.

    Args:
      base: a method whose trained set is a dict with ``images`` [N, H, W, C]. In the result ``latents`` take their
        place.
      parameterisation: how images are made of latents.
      micro_batch: most stored items decoded at once, for a decoder that needs memory. Every array of the latents is
        then [n, ...], item i of each giving images i k ... i k + k - 1 alone (k = ``per_stored``). None is the
        parameterisation's own ``micro_batch``; without one all are decoded at once, and no axis of the latents needs to
        mean anything.

    Raises:
      ValueError: for what is no method or no parameterisation, or a ``micro_batch`` out of range; in ``init``, if the
        base trains no images, if its ``ipc`` does not fill whole stored items, if the decoder gives another shape or
        type than [N, H, W, C] float32, or if ``micro_batch`` is asked of latents that cannot be divided.

    Example:
      >>> import metadd_jax as mdd
      >>> base = mdd.distillers.dm(mdd.zoo.parse("convnet:width=8", 10, (32, 32, 3)), ipc=40)
      >>> parameterise(base, mdd.distillers.parameterisations.factor(2)).name  # 10 stored images a class, 40 seen
      'dm+factor2'
    """
    check_method(base)
    check_parts(parameterisation)
    micro_batch = getattr(parameterisation, "micro_batch", None) if micro_batch is None else micro_batch
    if micro_batch is not None:
        ranges.require("micro_batch", micro_batch, Whole(1))
    name = name_of(parameterisation)
    per_item, takes_labels = per_stored(parameterisation), getattr(parameterisation, "takes_labels", False)
    # Compiled once here: the host decodes the set after every chunk of a run.
    decode = parallel.jit(_in_parts(parameterisation, micro_batch))

    def shown(synthetic: dict[str, Any], frozen: Any) -> dict[str, Any]:
        """What the base method knows: its own trained set."""
        # A learned step size passes through: only ``images`` is replaced.
        own = {leaf: value for leaf, value in synthetic.items() if leaf != "latents"}
        return {**own, "images": decode(synthetic["latents"], frozen["decoder"])}

    def init(key: jax.Array, dataset: Dataset) -> tuple[dict[str, Any], Any]:
        synthetic, aux = base.init(key, dataset)
        if not isinstance(synthetic, dict) or "images" not in synthetic:
            raise ValueError(f"{base.name} trains no dict with images, so there is nothing to parameterise")
        labels: tuple[np.ndarray, ...] = ()
        if per_item > 1 or takes_labels:
            # Labels are known, also where a job asks for the shapes of a state alone.
            with jax.ensure_compile_time_eval():
                own = np.asarray(base.decode(synthetic, aux, base.frozen).labels)
            _check_classes(base, own, per_item)
            labels = (own[::per_item],) if takes_labels else ()
        # The base's own start is what the latents are made to stand for, so that both start from one set.
        images = synthetic.pop("images")
        latents = parameterisation.init(keys.named(key, "latents"), images, *labels)
        _check_latents(latents, len(images) // per_item, micro_batch)
        # A decoder of the user's is tried without being run: its error comes before any long work.
        _check_decoded(base.name, jax.eval_shape(decode, latents, parameterisation.frozen), images.shape)
        return {**synthetic, "latents": latents}, aux

    def loss(
        key: jax.Array, synthetic: dict, aux: Any, batch: Any, frozen: Any, *, axis_name: str | None = None
    ) -> tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]:
        return base.loss(key, shown(synthetic, frozen), aux, batch, frozen["base"], axis_name=axis_name)

    def refresh(key: jax.Array, synthetic: dict, aux: Any, step: jax.Array, frozen: Any) -> Any:
        # The base trains its networks on what they see, so on decoded images (dc, dsa's inner loop).
        return base.refresh(key, shown(synthetic, frozen), aux, step, frozen["base"])

    def as_set(synthetic: dict, aux: Any, frozen: Any) -> SyntheticSet:
        return base.decode(shown(synthetic, frozen), aux, frozen["base"])

    def of_latents(function: Callable) -> Callable:
        """A part of the base's loss, read from what is trained here."""

        def part(key: jax.Array, synthetic: dict, aux: Any, batch: Any, frozen: Any, *, axis_name: str | None) -> Any:
            return function(key, shown(synthetic, frozen), aux, batch, frozen["base"], axis_name=axis_name)

        return part

    # MetaDD inside: its pulls are then reported in the latents, which are what is trained.
    terms = base.terms and dataclasses.replace(
        base.terms, base=of_latents(base.terms.base), terms=of_latents(base.terms.terms), refresh=refresh
    )
    return base._replace(
        name=base.name if name is None else f"{base.name}+{name}",
        init=init,
        loss=loss,
        refresh=refresh,
        decode=as_set,
        # An argument of the update: closed over, a generator's weights would be constants of the program.
        frozen={"base": base.frozen, "decoder": parameterisation.frozen},
        terms=terms,
    )


def _in_parts(parameterisation: Parameterisation, micro_batch: int | None) -> Callable[[Any, Any], jax.Array]:
    """``decode(latents, frozen)``, at most ``micro_batch`` items at once, again on the way back."""
    # Of the forward pass only the latents are kept, so the decoder's activations are not there while the base method
    # has its own, and come back when its gradient in the pixels is done.
    # As GLaD does it: pixel gradient first, then back through the generator in chunks.
    one = jax.checkpoint(parameterisation.decode)
    if micro_batch is None:
        return one

    return lambda latents, frozen: parts.map_parts(lambda part: one(part, frozen), latents, size=micro_batch)


def check_parts(parameterisation: Any) -> None:
    """Refuses what was given in place of a parameterisation.

    Raises:
      ValueError: if it lacks ``init``, ``decode`` or ``frozen``, or is a class.
    """
    if isinstance(parameterisation, type) or not all(
        hasattr(parameterisation, part) for part in ("init", "decode", "frozen")
    ):
        raise ValueError(
            f"a parameterisation has init, decode and frozen, and {parameterisation!r} has not; give an object such as "
            "distillers.factor(2) returns"
        )


def _check_decoded(name: str, made: jax.ShapeDtypeStruct, shape: tuple[int, ...]) -> None:
    if (made.shape, made.dtype) != (shape, jnp.float32):
        raise ValueError(
            f"the decoder of {name} gives {made.dtype}{made.shape}, but the set is float32{shape}; mend decode or the "
            "latents"
        )


def _check_classes(base: Distiller, labels: np.ndarray, per_item: int) -> None:
    counts = np.bincount(labels)
    uneven = np.flatnonzero(counts % per_item)
    if uneven.size:
        raise ValueError(
            f"{base.name} has {counts[uneven[0]]} images in class {uneven[0]}, but a stored item holds {per_item} of "
            f"one class; give it {per_item} times the stored images as ipc"
        )


def _check_latents(latents: Any, stored: int, micro_batch: int | None) -> None:
    leaves = jax.tree.leaves(latents)
    if not leaves or not all(jnp.issubdtype(jnp.result_type(leaf), jnp.floating) for leaf in leaves):
        raise ValueError(
            f"latents must be float arrays, all of them trained; got {jax.tree.map(jnp.result_type, latents)}"
        )
    wrong = [jnp.shape(leaf) for leaf in leaves if jnp.shape(leaf)[:1] != (stored,)]
    if micro_batch is not None and wrong:
        raise ValueError(
            f"micro_batch={micro_batch} divides latents [{stored}, ...], but one has shape {wrong[0]}; leave it out"
        )


def name_of(parameterisation: Parameterisation) -> str | None:
    """What a method's name gets; None for nothing."""
    return getattr(parameterisation, "name", type(parameterisation).__name__.lower())


def per_stored(parameterisation: Parameterisation) -> int:
    """How many images one stored item gives: the ``ipc`` of the base method is so many times that of what is stored."""
    return getattr(parameterisation, "per_stored", 1)


def pixels() -> Parameterisation:
    """The parameterisation that changes nothing: the latents are the images [N, H, W, C]."""
    return _Pixels()


@dataclasses.dataclass(frozen=True)
class _Pixels:
    frozen: tuple[()] = ()
    name: None = None

    def init(self, key: jax.Array, images: jax.Array, /) -> jax.Array:
        del key
        return images

    def decode(self, latents: jax.Array, frozen: Any, /) -> jax.Array:
        del frozen
        return latents
