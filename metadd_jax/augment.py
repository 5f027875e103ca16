"""Differentiable Siamese augmentation (DSA): draw the parameters, then apply a pure op.

Images are [B, H, W, C] float, standardised (or whitened): zero is the mean of the data; nothing is clipped.
Every op takes its parameters explicitly, as an array of shape [P]: P = 1 (or a scalar) for one transform of
the whole batch, P = B for one per image. Ops are affine in the images: gradients are exact and always finite.

DC evaluates some sets under an older scheme with one op per image: ``dc_augment``.

Source: Zhao and Bilen, arXiv 2102.08259, with the formulas and default ratios of the published code of DSA,
DM and MTT. Grids follow the ``align_corners=True`` convention: the normalised coordinates -1 and 1 are the
centres of the outermost pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from metadd_jax import ranges, registries
from metadd_jax.ranges import Real

NATURAL = "color_crop_cutout_flip_scale_rotate"  # the published tokens for natural images; digits are not flipped

Op = Callable[[jax.Array, jax.Array, bool], jax.Array]  # of a user, see ``register``
_OWN: dict[str, Op] = {}


def flip(images: jax.Array, flipped: ArrayLike) -> jax.Array:
    """Mirrors ``images`` [B, H, W, C] left to right where ``flipped`` ([P] bool) is true."""
    # A choice and not a product of both, so that an image that is not flipped stays the same to the bit.
    return jnp.where(_column(flipped), images[:, :, ::-1], images)


def scale(images: jax.Array, scale_y: ArrayLike, scale_x: ArrayLike) -> jax.Array:
    """Samples at ``scale`` times the coordinates around the centre: below 1 enlarges, above 1 shrinks.

    Args:
      images: [B, H, W, C].
      scale_y: [P] positive factor of the vertical coordinate (theta maps output to input coordinates).
      scale_x: [P] the same, horizontal.

    Returns:
      [B, H, W, C], bilinear, zero outside the image.
    """
    _, height, width, _ = images.shape
    # Scaling acts on each axis alone, so two matrix products do.
    ys = _centred(height) * _vector(scale_y)[:, None] + (height - 1) / 2  # [P, H]
    xs = _centred(width) * _vector(scale_x)[:, None] + (width - 1) / 2  # [P, W]
    return _sample_separable(images, ys, xs)


def rotate(images: jax.Array, radians: ArrayLike) -> jax.Array:
    """Rotates about the centre: output (x, y) reads input (x cos a - y sin a, x sin a + y cos a).

    Args:
      images: [B, H, W, C].
      radians: [P] angle a; y points down, so a positive angle turns the picture anticlockwise on the screen.

    Returns:
      [B, H, W, C], bilinear, zero outside. As in ``affine_grid``, the rotation acts on normalised
      coordinates, so it shears pictures that are not square.
    """
    _, height, width, _ = images.shape
    angle = _vector(radians)[:, None, None]
    y, x = _centred(height)[:, None], _centred(width)[None, :]
    aspect = max(height - 1, 1) / max(width - 1, 1)  # of normalised coordinates whose corners are pixel centres
    ys = jnp.sin(angle) * x * aspect + jnp.cos(angle) * y + (height - 1) / 2  # [P, H, W]
    xs = jnp.cos(angle) * x - jnp.sin(angle) * y / aspect + (width - 1) / 2
    return _sample(images, ys, xs)


def crop(images: jax.Array, shift_y: ArrayLike, shift_x: ArrayLike) -> jax.Array:
    """Shifts by whole pixels and fills with zero: output (y, x) reads input (y + shift_y, x + shift_x).

    Args:
      images: [B, H, W, C].
      shift_y: [P] integer shift in pixels.
      shift_x: [P] integer shift in pixels.

    Returns:
      [B, H, W, C]; zero is the data's mean, so new places look like an average image.
    """
    _, height, width, _ = images.shape
    ys = jnp.arange(height) + _vector(shift_y)[:, None]
    xs = jnp.arange(width) + _vector(shift_x)[:, None]
    return _sample_separable(images, ys, xs)


def cutout(images: jax.Array, centre_y: ArrayLike, centre_x: ArrayLike, size: tuple[int, int]) -> jax.Array:
    """Sets a box to zero, clipped at the border.

    Args:
      images: [B, H, W, C].
      centre_y: [P] integer row of the centre; the box covers ``size`` rows from centre - size // 2 on.
      centre_x: [P] integer column of the centre.
      size: height and width of the box in pixels.
    """
    inside_y = _inside(images.shape[1], _vector(centre_y), size[0])  # [P, H]
    inside_x = _inside(images.shape[2], _vector(centre_x), size[1])  # [P, W]
    box = inside_y[:, :, None, None] & inside_x[:, None, :, None]
    return jnp.where(box, 0.0, images)


def brightness(images: jax.Array, offset: ArrayLike) -> jax.Array:
    """Adds ``offset`` ([P], in units of the data's standard deviation) to all pixels of ``images`` [B, H, W, C]."""
    return images + _column(offset)


def saturation(images: jax.Array, factor: ArrayLike) -> jax.Array:
    """Multiplies the distance of each pixel of ``images`` to its mean over channels by ``factor`` ([P], 0: grey)."""
    mean = images.mean(axis=-1, keepdims=True)
    return (images - mean) * _column(factor) + mean


def contrast(images: jax.Array, factor: ArrayLike) -> jax.Array:
    """Multiplies the distance of each pixel of ``images`` to the mean of its whole image by ``factor`` ([P])."""
    mean = images.mean(axis=(1, 2, 3), keepdims=True)
    return (images - mean) * _column(factor) + mean


@dataclasses.dataclass(frozen=True)
class Strategy:
    """The ops that ``transform`` draws from, and the ranges of their parameters. Hashable.

    The defaults are those of the released programs; change one with ``dataclasses.replace``.

    Attributes:
      tokens: names of the ops, of ``TOKENS`` or ``register``; empty for no augmentation.
      mode: "S" applies one token, drawn uniformly per call; "M" applies all in the order of ``tokens``.
      flip_probability: chance of a mirror image.
      scale_ratio: r; both factors are drawn from U(1 / r, r).
      rotate_degrees: a; the angle is drawn from U(-a, a).
      crop_ratio: largest shift as a share of the side.
      cutout_ratio: side of the box as a share of the side.
      brightness: b; the offset is drawn from U(-b / 2, b / 2).
      saturation: s; the factor is drawn from U(0, s).
      contrast: c; the factor is drawn from U(c, 1 + c).
      own: the registered ops among ``tokens``, as they were when this was made. If an op is registered again, a new
        strategy is unequal to this one, so that no program compiled for one is used for the other.

    Raises:
      ValueError: if a token or the mode is unknown, or a number is out of its range.
    """

    tokens: tuple[str, ...]
    mode: str = "S"
    flip_probability: Annotated[float, Real(0, 1)] = 0.5
    scale_ratio: Annotated[float, Real(1)] = 1.2
    rotate_degrees: Annotated[float, Real(0)] = 15.0
    crop_ratio: Annotated[float, Real(0, 1)] = 0.125
    cutout_ratio: Annotated[float, Real(0, 1)] = 0.5
    brightness: Annotated[float, Real(0)] = 1.0
    saturation: Annotated[float, Real(0)] = 2.0
    contrast: Annotated[float, Real(0)] = 0.5
    own: tuple[tuple[str, Op], ...] = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        known = (*TOKENS, *_OWN)
        for token in self.tokens:
            if token not in known:
                near = ranges.nearest(token, known)
                raise ValueError(f"unknown augmentation {token!r}{near}; join tokens of {', '.join(known)} by '_'")
        if self.mode not in ("S", "M"):
            raise ValueError(f"unknown augmentation mode {self.mode!r}; use 'S' (one op per call) or 'M' (all)")
        object.__setattr__(self, "own", tuple((token, _OWN[token]) for token in self.tokens if token in _OWN))
        ranges.check(self)


if TYPE_CHECKING:
    Augmentation = str | Strategy
else:
    Augmentation = str  # tyro makes its options from the types, and a command line can only write the text


def strategy(text: Augmentation, *, mode: str = "S") -> Strategy:
    """Parses tokens such as "color_crop_cutout_flip_scale_rotate" (natural images; leave out ``flip`` for digits).

    Args:
      text: tokens joined by underscores; "" or "none" means no augmentation. A ``Strategy`` is returned as it is.
      mode: see ``Strategy``.

    Raises:
      ValueError: if a token or the mode is unknown.
    """
    if isinstance(text, Strategy):
        return text
    if not isinstance(text, str):
        raise ValueError(
            f"the augmentation is a {type(text).__name__}; give tokens joined by '_', or an augment.Strategy"
        )
    return Strategy(() if text in ("", "none") else tuple(text.split("_")), mode)


def register(token: str, op: Op) -> None:
    """Registers an augmentation of your own as a token, for every text and ``Strategy``.

    >>> def noise(key, images, siamese):
    ...     shape = (1, *images.shape[1:]) if siamese else images.shape
    ...     return images + 0.1 * jax.random.normal(key, shape)
    >>> register("noise", noise)
    >>> method = distillers.dm(net, ipc=10, augmentation="crop_noise")

    Args:
      token: letters and digits; no token of ``TOKENS``.
      op: ``(key, images [B, H, W, C], siamese) -> images`` of the same shape and type, differentiable in the images.
        The result for one image must not depend on the others. If ``siamese``, all images get the same draw, and equal
        keys the same draw for every B (real and synthetic images are compared under it): nothing drawn may have an axis
        of length B. Otherwise each image gets its own draw.

    Raises:
      ValueError: if the token is no word, has an underscore or is taken.
    """
    if "_" in str(token) or token in ("dc", "idc"):
        raise ValueError(f"{token!r} is no token of an augmentation; give letters and digits (underscores join tokens)")
    registries.claim(_OWN, token, op, kind="augmentation", taken=TOKENS)


def transform(
    key: jax.Array,
    images: jax.Array,
    strategy: Strategy,
    *,
    siamese: bool = True,
    op_key: jax.Array | None = None,
) -> jax.Array:
    """Applies one randomly drawn op (mode "S") or all of them (mode "M").

    Args:
      key: typed PRNG key. In Siamese mode equal keys give the very same transform to batches of any size.
      images: [B, H, W, C] float, zero = the data's mean.
      strategy: the ops to draw from, see ``strategy``.
      siamese: one draw of the parameters for the whole batch (DSA compares real and synthetic images of a class under
        it), or an individual draw for each image (training on a set). The op is the same for the batch either way.
      op_key: chooses the op; default: derived from ``key``. Under ``vmap`` over ``key``, pass an ``op_key``
        that is not batched: otherwise every op is computed for every key and one is kept.

    Returns:
      [B, H, W, C], differentiable in ``images``.
    """
    chex.assert_rank(images, 4)
    # Both keys are always drawn, so that an ``op_key`` changes no parameter.
    own_op_key, draw_key = jax.random.split(key)
    count = 1 if siamese else images.shape[0]
    own = dict(strategy.own)
    ops = [
        _bind_own(token, own[token], siamese) if token in own else _bind(TOKENS[token], strategy, count)
        for token in strategy.tokens
    ]
    if not ops:
        return images
    if strategy.mode == "M":
        for index, op in enumerate(ops):
            images = op(jax.random.fold_in(draw_key, index), images)
        return images
    choice = jax.random.randint(own_op_key if op_key is None else op_key, (), 0, len(ops))
    return jax.lax.switch(choice, ops, draw_key, images)  # one op is computed, not all


def _random_color(key: jax.Array, images: jax.Array, strategy: Strategy, count: int) -> jax.Array:
    u = jax.random.uniform(key, (3, count))
    # One token, three ops in this order, in all released programs.
    images = brightness(images, (u[0] - 0.5) * strategy.brightness)
    images = saturation(images, u[1] * strategy.saturation)
    return contrast(images, u[2] + strategy.contrast)


def _random_crop(key: jax.Array, images: jax.Array, strategy: Strategy, count: int) -> jax.Array:
    key_y, key_x = jax.random.split(key)
    most_y, most_x = (_share(side, strategy.crop_ratio) for side in images.shape[1:3])
    shift_y = jax.random.randint(key_y, (count,), -most_y, most_y + 1)
    shift_x = jax.random.randint(key_x, (count,), -most_x, most_x + 1)
    return crop(images, shift_y, shift_x)


def _random_cutout(key: jax.Array, images: jax.Array, strategy: Strategy, count: int) -> jax.Array:
    keys = jax.random.split(key)
    _, height, width, _ = images.shape
    size = (_share(height, strategy.cutout_ratio), _share(width, strategy.cutout_ratio))
    # An even box has its centre between two pixels, so one more position: 0 ... side inclusive.
    centre_y, centre_x = (
        jax.random.randint(k, (count,), 0, side + (box % 2 == 0))
        for k, side, box in zip(keys, (height, width), size, strict=True)
    )
    return cutout(images, centre_y, centre_x, size)


def _random_flip(key: jax.Array, images: jax.Array, strategy: Strategy, count: int) -> jax.Array:
    return flip(images, jax.random.uniform(key, (count,)) < strategy.flip_probability)


def _random_scale(key: jax.Array, images: jax.Array, strategy: Strategy, count: int) -> jax.Array:
    ratio = strategy.scale_ratio
    scale_y, scale_x = jax.random.uniform(key, (2, count), minval=1 / ratio, maxval=ratio)
    return scale(images, scale_y, scale_x)


def _random_rotate(key: jax.Array, images: jax.Array, strategy: Strategy, count: int) -> jax.Array:
    most = jnp.deg2rad(strategy.rotate_degrees)
    return rotate(images, jax.random.uniform(key, (count,), minval=-most, maxval=most))


# The ops a strategy may name, in the order of the usual strategy text.
TOKENS: dict[str, Callable[[jax.Array, jax.Array, Strategy, int], jax.Array]] = {
    "color": _random_color,
    "crop": _random_crop,
    "cutout": _random_cutout,
    "flip": _random_flip,
    "scale": _random_scale,
    "rotate": _random_rotate,
}


def _bind(op: Callable, strategy: Strategy, count: int) -> Callable[[jax.Array, jax.Array], jax.Array]:
    return lambda key, images: op(key, images, strategy, count)


def _bind_own(token: str, op: Op, siamese: bool) -> Callable[[jax.Array, jax.Array], jax.Array]:
    def bound(key: jax.Array, images: jax.Array) -> jax.Array:
        seen = op(key, images, siamese)
        if (seen.shape, seen.dtype) != (images.shape, images.dtype):
            raise ValueError(
                f"the augmentation {token!r} gives {seen.dtype} {seen.shape} for images {images.dtype} {images.shape}; "
                "return the same shape and type"
            )
        return seen

    return bound


def _share(side: int, ratio: float) -> int:
    """Pixels in ``ratio`` of a side, rounded half up as in the published code (``round`` goes to even)."""
    return int(side * ratio + 0.5)


def _vector(parameter: ArrayLike) -> jax.Array:
    """A parameter of shape [], [1] or [B] as [P]."""
    return jnp.asarray(parameter).reshape(-1)


def _column(parameter: ArrayLike) -> jax.Array:
    """A parameter as [P, 1, 1, 1], to go with [B, H, W, C]."""
    return jnp.asarray(parameter).reshape(-1, 1, 1, 1)


def _centred(side: int) -> jax.Array:
    """[side] pixel coordinates with the centre at zero: exact, unlike coordinates scaled to [-1, 1]."""
    return jnp.arange(side) - (side - 1) / 2


def _inside(side: int, centre: jax.Array, box: int) -> jax.Array:
    """[P, side] bool: the pixels of one axis that a box covers."""
    offset = jnp.arange(side) - (centre[:, None] - box // 2)
    return (offset >= 0) & (offset < box)


def _sample_separable(images: jax.Array, ys: jax.Array, xs: jax.Array) -> jax.Array:
    """Bilinear samples on a grid of rows ``ys`` [P, H] and columns ``xs`` [P, W] (pixels), zero outside.

    Two matrix products with hat functions: on CPU their gradient is 3 to 8 times faster than that of a gather, a
    scatter. Full precision, because a weight of 0 or 1 must move a pixel unchanged on a GPU or TPU too.
    """
    height, width = images.shape[1:3]
    rows = jnp.maximum(0.0, 1.0 - jnp.abs(ys[:, :, None] - jnp.arange(height)))  # [P, H out, H in]
    columns = jnp.maximum(0.0, 1.0 - jnp.abs(xs[:, :, None] - jnp.arange(width)))
    if ys.shape[0] == 1:  # one grid: unbatched matmuls
        rows, columns, p = rows[0], columns[0], ""
    else:
        p = "b"
    high = jax.lax.Precision.HIGHEST
    images = jnp.einsum(f"{p}yh,bhwc->bywc", rows, images, precision=high)
    return jnp.einsum(f"{p}xw,bywc->byxc", columns, images, precision=high)


def _sample(images: jax.Array, ys: jax.Array, xs: jax.Array) -> jax.Array:
    """Bilinear samples at any points ``ys``, ``xs`` [P, H, W] (pixels), zero outside, from 4 gathers.

    With one grid all images share the indices. A dense [HW, HW] matrix product, which has no scatter in its gradient,
    is 2 (P = 1) to 30 (P = B) times slower on CPU, and its work grows as the side to the fourth power.
    """
    batch, height, width, channels = images.shape
    flat = images.reshape(batch, height * width, channels)
    ys, xs = ys.reshape(len(ys), -1), xs.reshape(len(xs), -1)  # [P, HW]
    top, left = jnp.floor(ys), jnp.floor(xs)
    total = jnp.zeros_like(flat)
    for y, x in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        # Clipped to read a pixel at all; its weight is then 0.
        weight = inside * (1.0 - jnp.abs(ys - y)) * (1.0 - jnp.abs(xs - x))
        index = (jnp.clip(y, 0, height - 1) * width + jnp.clip(x, 0, width - 1)).astype(jnp.int32)
        shared = len(index) == 1
        values = jnp.take(flat, index[0], 1) if shared else jnp.take_along_axis(flat, index[..., None], 1)
        total += values * weight[..., None]
    return total.reshape(images.shape)
