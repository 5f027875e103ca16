"""Two-dimensional convolution that stays fast on CPU, inside ``lax.scan`` and under ``vmap`` over kernels.

On GPU and TPU this is XLA's own convolution, but for its second derivatives (see ``_product``), under ``vmap`` over
kernels, for windows of one pixel and for few images on a GPU (see ``_compute``). On CPU XLA's gradients are a trap:
inside a loop they run 6 to 30 times slower than outside (jax issue 12868), and ``vmap`` over kernels turns the
convolution into a grouped one, which is slower still. XLA's forward pass is good, though: 3 times faster than patches
and a matrix product (jax 0.10.2, 2 cores, [128,16,16,32] -> 32 channels inside a scan: 5 against 17 ms). So on CPU
each direction takes the form that is fast there:

  forward            XLA's convolution; patches and a matrix product under ``vmap`` over kernels, to fewer than
                     16 channels, to maps of less than 4 pixels, and (a few images at a time) from 33 to 64 channels
                     and in bfloat16; from at most 8 channels patches that neighbouring places share
  to the images      stride 1: a forward convolution with the turned kernel; else, from maps of at most 4 pixels,
                     and to fewer than 16 channels, from the matrix product
  to the kernel      patches and a matrix product, a few images at a time (XLA inside a scan: 1,400 ms against 35),
                     from at most 8 channels shared ones

Layouts: images [B, H, W, C], kernels [k, k, C, O] (HWIO), results [B, h, w, O].
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from metadd_jax import eager
from metadd_jax.zoo import patches

# Patches of about 5 MB stay in the caches: 256 images of [16, 16, 128] take 0.13 s so and 0.25 s at once.
_PATCH_ELEMENTS, _LEAST_ROWS = 1_200_000, 1024
# Products of bfloat16 are so fast where a CPU has a unit for them that larger ones pay.
_NARROW_SHARE = 4
_LEAST_SIDE, _FEW_CHANNELS = 4, 16
# To so few channels in, patches are cheap, and products want more columns than there are channels out: neighbouring
# places share a row (LeNet's first layer: 1 ms against 4, to its kernel 1 against 13).
_VERY_FEW, _NEIGHBOURS, _WIDE_PRODUCT = 8, 4, 64
# From these XLA's convolution reaches 100 GFLOP/s, products 150, and XLA's own from 96 or 128 channels 200.
_HALF_RATE = range(33, 65)


def convolve(images: jax.Array, kernel: jax.Array, *, stride: int = 1, padding: int = 0) -> jax.Array:
    """Cross-correlates images with a square kernel, zeros around the border.

    How it is computed depends on the default backend at the time of the call (or trace).

    Args:
      images: [B, H, W, C] float.
      kernel: [k, k, C, O] float.
      stride: step of the window in pixels, both axes.
      padding: zeros added on each of the four sides, in pixels.

    Returns:
      [B, h, w, O], h and w as ``patches.output_side`` says.
    """
    batch, height, width, channels = images.shape
    geometry = _Geometry(batch, height, width, channels, kernel.shape[0], kernel.shape[3], stride, padding)
    # Windows of one pixel, or that do not overlap, need no patches: one matrix product, whose derivatives are others.
    if _on_cpu() and not geometry.needs_patches:
        return matmul_convolve(images, kernel, stride=stride, padding=padding)
    return _product.bind(images, kernel, role="result", geometry=geometry, mapped=())


def _on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def _most_patches() -> float:
    """Bytes of patches up to which an accelerator multiplies matrices in place of a library's convolution."""
    # A GPU starts most kernels of a step as one graph, but none may be a cuDNN convolution: each breaks it, and waits
    # for the host. Patches of 8 MB never leave an H200's cache of 50.
    return 8e6 if jax.default_backend() == "gpu" else 0.0


class _Geometry(NamedTuple):
    """The static sizes of a convolution: enough for the shape of each of its three arrays."""

    batch: int
    height: int
    width: int
    channels: int
    side: int
    features: int
    stride: int
    padding: int

    @property
    def needs_patches(self) -> bool:
        """Whether windows overlap or reach over the border; else the images themselves are their patches."""
        return self.side > 1 and (self.side != self.stride or self.padding > 0)

    @property
    def patch_bytes(self) -> int:
        """Bytes of the patches that ``matmul_convolve`` makes."""
        return 4 * self.needs_patches * math.prod(self.shape("result")[:3]) * math.prod(self.shape("kernel")[:3])

    def shape(self, role: str) -> tuple[int, ...]:
        if role == "images":
            return (self.batch, self.height, self.width, self.channels)
        if role == "kernel":
            return (self.side, self.side, self.channels, self.features)
        sides = (self.height, self.width)
        rows, columns = (patches.output_side(n, self.side, stride=self.stride, padding=self.padding) for n in sides)
        return (self.batch, rows, columns, self.features)


# The convolution and its two gradients are one product of three things, of which two give the third: the derivatives of
# one are the others, of any order and in both modes. A primitive can say so, with rules for jvp and transpose; a custom
# vjp has no forward mode, and a custom jvp no transpose of its own. Left to itself JAX writes the derivative of a
# kernel's gradient (DC, MTT) as a convolution with a kernel as large as the image: 28 times the work for 16x16 pixels.
_ROLES = ("images", "kernel", "result")
_product = Primitive("convolution_product")
_Mapped = tuple[tuple[bool, bool], ...]


def _others(role: str) -> tuple[str, str]:
    first, second = (other for other in _ROLES if other != role)
    return first, second


def _compute(first: jax.Array, second: jax.Array, *, role: str, geometry: _Geometry, mapped: _Mapped) -> jax.Array:
    """The array of this ``role`` from the two others, in the order of ``_ROLES``.

    ``mapped`` says for each ``vmap`` around, outermost first, which of the two has an axis for it, at the front.
    """
    function: Callable
    if _on_cpu():
        function = functools.partial({"images": _to_images, "kernel": _to_kernel, "result": _forward}[role], geometry)
    else:
        # Networks that train together have a kernel each. As grouped convolutions five of them took longer on an H200
        # than one after the other (docs/gpu.md); products of matrices are one launch for all.
        own_kernels = {"images": [axes[0] for axes in mapped], "kernel": mapped, "result": [axes[1] for axes in mapped]}
        size = geometry.patch_bytes * math.prod(_lead(first, second, mapped))
        convolution = matmul_convolve if any(own_kernels[role]) or size <= _most_patches() else xla_convolve
        function = functools.partial(_on_accelerator, convolution, role, geometry)
    for axes in reversed(mapped):
        function = jax.vmap(function, in_axes=tuple(0 if own else None for own in axes))
    return function(first, second)


def _shape_of(first: Any, second: Any, *, role: str, geometry: _Geometry, mapped: _Mapped) -> ShapedArray:
    return ShapedArray((*_lead(first, second, mapped), *geometry.shape(role)), first.dtype)


def _lead(first: Any, second: Any, mapped: _Mapped) -> list[int]:
    """The lengths of the axes that ``vmap`` adds, outermost first."""
    lengths = [iter(array.shape) for array in (first, second)]
    return [max(next(own) for own, is_in in zip(lengths, axes, strict=True) if is_in) for axes in mapped]


def _under_vmap(arrays: tuple, axes: tuple, *, role: str, geometry: _Geometry, mapped: tuple) -> tuple[jax.Array, int]:
    moved = [x if axis is None else jnp.moveaxis(x, axis, 0) for x, axis in zip(arrays, axes, strict=True)]
    outermost = tuple(axis is not None for axis in axes)
    return _product.bind(*moved, role=role, geometry=geometry, mapped=(outermost, *mapped)), 0


def _transposed(number: int, cotangent: jax.Array, *arrays: Any, role: str, geometry: _Geometry, mapped: tuple) -> Any:
    """The cotangent of the first or second array, from that of the product and the other array."""
    wanted, kept = _others(role)[number], _others(role)[1 - number]
    known = {role: (cotangent, [True] * len(mapped)), kept: (arrays[1 - number], [axes[1 - number] for axes in mapped])}
    values, is_in = zip(*(known[other] for other in _others(wanted)), strict=True)
    gradient = _product.bind(*values, role=wanted, geometry=geometry, mapped=tuple(zip(*is_in, strict=True)))
    # What all of a vmap see has the sum of what they give.
    return gradient.sum(axis=tuple(level for level, axes in enumerate(mapped) if not axes[number]))


# ``backend`` tells the programs of two backends apart.
_traced_once = eager.one_program(static_argnames=("role", "geometry", "mapped", "backend"))(
    lambda first, second, *, backend, **static: _compute(first, second, **static)  # noqa: PLW0108
)


def _program(first: jax.Array, second: jax.Array, **static: Any) -> jax.Array:
    """``_compute``, which alone is one program, and within others is traced once for all of one geometry."""
    return _traced_once(first, second, backend=jax.default_backend(), **static)


_product.def_impl(_program)
_product.def_abstract_eval(_shape_of)
mlir.register_lowering(_product, mlir.lower_fun(_program, multiple_results=False))
batching.primitive_batchers[_product] = _under_vmap
ad.defbilinear(_product, functools.partial(_transposed, 0), functools.partial(_transposed, 1))


def _on_accelerator(
    convolution: Callable, role: str, geometry: _Geometry, first: jax.Array, second: jax.Array
) -> jax.Array:
    convolve = functools.partial(convolution, stride=geometry.stride, padding=geometry.padding)
    if role == "result":
        return convolve(first, second)
    linear = functools.partial(convolve, kernel=first) if role == "images" else functools.partial(convolve, first)
    return jax.linear_transpose(linear, jax.ShapeDtypeStruct(geometry.shape(role), second.dtype))(second)[0]


def _forward(geometry: _Geometry, images: jax.Array, kernel: jax.Array) -> jax.Array:
    return _cpu_forward(geometry.stride, geometry.padding)(images, kernel)


def _cpu_forward(stride: int, padding: int) -> Callable[[jax.Array, jax.Array], jax.Array]:
    product = functools.partial(matmul_convolve, stride=stride, padding=padding)

    @jax.custom_batching.custom_vmap
    def batched(images: jax.Array, kernel: jax.Array) -> jax.Array:
        dtype, narrow = images.dtype, images.dtype == jnp.bfloat16
        # XLA's convolution is slower where it makes few channels (4 -> 4: 6 ms against 2) and on small maps (2x2, 512
        # channels: 2 GFLOP/s against 160).
        sides = [
            patches.output_side(side, kernel.shape[0], stride=stride, padding=padding) for side in images.shape[1:3]
        ]
        least = min(sides)
        if kernel.shape[2] <= _VERY_FEW and not narrow:
            together = _together(kernel.shape, stride, sides[1])
            length = kernel.shape[0] * patches.width(kernel.shape[0], stride, together) * kernel.shape[2]
            joint = functools.partial(joint_convolve, kernel=kernel, stride=stride, padding=padding, together=together)
            return _in_rounds(joint, images, sides[0] * -(-sides[1] // together), length)
        if kernel.shape[3] < _FEW_CHANNELS or least < _LEAST_SIDE:
            return product(images, kernel)
        if kernel.shape[2] in _HALF_RATE or (narrow and kernel.shape[2] >= _FEW_CHANNELS):
            return _in_rounds(functools.partial(product, kernel=kernel), images, least * least, kernel[..., 0].size)
        if narrow:  # XLA's convolution of few channels is slower in bfloat16
            images, kernel = images.astype(jnp.float32), kernel.astype(jnp.float32)
        return xla_convolve(images, kernel, stride=stride, padding=padding).astype(dtype)

    @batched.def_vmap
    def rule(size: int, is_batched: list[bool], images: jax.Array, kernel: jax.Array) -> tuple[jax.Array, bool]:
        if is_batched[1]:
            return jax.vmap(product, in_axes=(0 if is_batched[0] else None, 0))(images, kernel), True
        flat = batched(images.reshape(-1, *images.shape[2:]), kernel)  # one kernel: one larger batch
        return flat.reshape(size, -1, *flat.shape[1:]), True

    return batched


def _to_images(geometry: _Geometry, kernel: jax.Array, gradient: jax.Array) -> jax.Array:
    stride, padding, shape = geometry.stride, geometry.padding, geometry.shape("images")
    side = kernel.shape[0]
    # To few channels the product is small and its patches are those of the result, not of the wide gradient.
    good = kernel.shape[2] >= _FEW_CHANNELS and min(gradient.shape[1:3]) > _LEAST_SIDE
    if stride == 1 and padding < side and good:
        return _cpu_forward(1, side - 1 - padding)(gradient, kernel[::-1, ::-1].swapaxes(2, 3))
    product = functools.partial(matmul_convolve, kernel=kernel, stride=stride, padding=padding)
    return jax.linear_transpose(product, jax.ShapeDtypeStruct(shape, gradient.dtype))(gradient)[0]


def _in_rounds(function: Callable, images: jax.Array, places: int, length: int) -> jax.Array:
    """``function`` of a few images at a time, whose patches, of ``length`` at ``places`` places, stay in the caches."""
    rounds = _rounds(images, places, length)
    if rounds == 1:
        return function(images)
    results = lax.map(function, _divide(images, rounds))
    return results.reshape(-1, *results.shape[2:])[: len(images)]


def _rounds(images: jax.Array, places: int, length: int) -> int:
    """How many rounds keep the patches (``places`` of ``length`` numbers an image) of a round of images small."""
    elements = _PATCH_ELEMENTS * (_NARROW_SHARE if images.dtype == jnp.bfloat16 else 1)
    return min(len(images), -(-len(images) * places // max(_LEAST_ROWS, elements // length)))


def _divide(x: jax.Array, rounds: int) -> jax.Array:
    """[B, ...] -> [rounds, share, ...], neighbours together, filled up with zeros."""
    share = -(-len(x) // rounds)
    filled = jnp.pad(x, ((0, rounds * share - len(x)), *[(0, 0)] * (x.ndim - 1)))
    return filled.reshape(rounds, share, *x.shape[1:])


def _to_kernel(geometry: _Geometry, images: jax.Array, gradient: jax.Array) -> jax.Array:
    """Gradient [k, k, C, O] to the kernel by patches and a product, for a few images at a time."""
    stride, padding, side = geometry.stride, geometry.padding, geometry.side
    together = _together(geometry.shape("kernel"), stride, gradient.shape[2])
    groups, span = -(-gradient.shape[2] // together), patches.width(side, stride, together)
    length = side * span * geometry.channels

    def part(images: jax.Array, gradient: jax.Array) -> jax.Array:
        rows = patches.windows(patches.pad(images, padding), side, stride=stride, together=together)
        # Few channels as matrices, in a half to a quarter of the time; 32 and more as they are, in 0.8 of it.
        if geometry.channels <= _FEW_CHANNELS:
            rows, gradient = rows.reshape(-1, length), gradient.reshape(-1, gradient.shape[-1])
        return jnp.einsum("...k,...o->ko", rows, gradient, preferred_element_type=wide)

    wide = jnp.promote_types(gradient.dtype, jnp.float32)  # a sum of many terms
    filled = jnp.pad(gradient, ((0, 0), (0, 0), (0, groups * together - gradient.shape[2]), (0, 0)))
    joint = filled.reshape(*gradient.shape[:2], groups, together * geometry.features)
    rounds = _rounds(images, gradient.shape[1] * groups, length)
    if rounds == 1:
        total = part(images, joint)
    else:
        # Zeros that fill up the last round add nothing.
        parts = _divide(images, rounds), _divide(joint, rounds)
        start = jnp.zeros((length, joint.shape[3]), wide)
        total, _ = lax.scan(lambda total, items: (total + part(*items), None), start, parts)
    # Each place of a patch has a kernel of its own in the product; the kernel is the same for all.
    total = total.reshape(side, span, geometry.channels, together, geometry.features)
    kernels = [total[:, place * stride : place * stride + side, :, place] for place in range(together)]
    return functools.reduce(jnp.add, kernels).astype(gradient.dtype)


def _together(kernel: tuple[int, ...], stride: int, columns: int) -> int:
    """How many neighbouring places of a row, of so many, should share a patch (``joint_convolve``)."""
    # With a stride they share few pixels; from 64 channels out a product is wide enough.
    if kernel[2] > _VERY_FEW or stride > 1:
        return 1
    return min(max(1, min(_NEIGHBOURS, _WIDE_PRODUCT // kernel[3])), columns)


def xla_convolve(images: jax.Array, kernel: jax.Array, *, stride: int = 1, padding: int = 0) -> jax.Array:
    """Computes ``convolve`` by XLA's convolution (cuDNN on GPU, the matrix unit on TPU).

    Args:
      images: as for ``convolve``.
      kernel: as for ``convolve``.
      stride: as for ``convolve``.
      padding: as for ``convolve``.
    """
    return lax.conv_general_dilated(
        images,
        kernel,
        window_strides=(stride, stride),
        padding=((padding, padding), (padding, padding)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def matmul_convolve(images: jax.Array, kernel: jax.Array, *, stride: int = 1, padding: int = 0) -> jax.Array:
    """Computes ``convolve`` by one product [B, h, w, k k C] x [k k C, O].

    The patches are k * k times as large as the images, so the backward pass builds them again (``jax.checkpoint``)
    instead of storing them: the copy is cheap beside the product.

    Args:
      images: as for ``convolve``.
      kernel: as for ``convolve``.
      stride: as for ``convolve``.
      padding: as for ``convolve``.
    """
    side, _, channels, features = kernel.shape
    weights = kernel.reshape(side * side * channels, features)
    if side == 1:
        return patches.times(patches.pad(images, padding)[:, ::stride, ::stride], weights)
    if side == stride and padding == 0:
        return patches.times(patches.apart(images, side), weights)

    @jax.checkpoint
    def product(images: jax.Array, weights: jax.Array) -> jax.Array:
        return patches.times(patches.windows(patches.pad(images, padding), side, stride=stride), weights)

    return product(images, weights)


def joint_convolve(
    images: jax.Array, kernel: jax.Array, *, stride: int = 1, padding: int = 0, together: int
) -> jax.Array:
    """Computes ``convolve`` by a product in which some neighbouring places share one patch.

    [B h ceil(w / n), k S C] x [k S C, n O], with S = (n - 1) stride + k the width of the shared patch. The matrix has
    the kernel n times, moved by a stride each, and zeros: S / k times the work of ``matmul_convolve`` in n times as
    wide products, of patches S / (k n) times as large.

    Args:
      images: as for ``convolve``.
      kernel: as for ``convolve``.
      stride: as for ``convolve``.
      padding: as for ``convolve``.
      together: n, at least 1 and at most w.
    """
    side, _, channels, features = kernel.shape
    span = patches.width(side, stride, together)
    moved = [
        jnp.pad(kernel, ((0, 0), (place * stride, span - side - place * stride), (0, 0), (0, 0)))
        for place in range(together)
    ]
    weights = jnp.stack(moved, axis=3).reshape(side * span * channels, together * features)

    @jax.checkpoint
    def product(images: jax.Array, weights: jax.Array) -> jax.Array:
        return patches.times(
            patches.windows(patches.pad(images, padding), side, stride=stride, together=together), weights
        )

    joint = product(images, weights)
    columns = patches.output_side(images.shape[2], side, stride=stride, padding=padding)
    return joint.reshape(*joint.shape[:2], -1, features)[:, :, :columns]
