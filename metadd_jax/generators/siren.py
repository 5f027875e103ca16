"""One small network of sines an image, in place of its pixels (DDiF).

Shin et al., "Distilling Dataset into Neural Field" (ICLR 2025). A SIREN (Sitzmann et al., NeurIPS 2020) maps a place
x in [-1, 1]^2 to the value of the image there,

    h_0 = x,    h_1 = sin(w_first (W_1 h_0 + b_1)),    h_l = sin(w_0 (W_l h_{l-1} + b_l)),  l = 2 ... L,
    f(x) = W_{L+1} h_L + b_{L+1},

and W, b of the L + 1 layers are what is trained. A net of width d holds (2 d + d) + (L - 1)(d^2 + d) + (C d + C)
numbers, so that the storage of a few images holds many of them.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metadd_jax import ranges
from metadd_jax.generators import start
from metadd_jax.ranges import Real, Whole

Net = dict[str, dict[str, jax.Array]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Siren:
    """One SIREN an image as a parameterisation (``distillers.parameterise``).

    The latents are {"layer1": {"kernel": [N, 2, d], "bias": [N, d]}, ...}: net i along the first axis gives image i.
    Each starts from one image of the base method's own start, to which it is fitted by Adam on the mean squared error.

    Attributes:
      image_shape: (H, W, C) of the images.
      width: d, units of a hidden layer.
      depth: L, hidden layers.
      w0: w_0, frequency of the layers after the first; published 10 (CIFAR), 40 (128 pixels).
      w0_first: w_first, frequency of the first layer.
      fit_steps: updates of the fit to the start; 0 leaves the nets as they are drawn.
      fit_lr: learning rate of the fit.
      lr: Adam's learning rate of the nets while they are distilled; published 5e-5 under DC and DM, 1e-4 under MTT.
      fill: whether ``ipc`` images' worth of numbers is filled with nets, as published; False has ``ipc`` nets.
      on_fit: called as (updates done, updates in all) while the nets are fitted, or None.
    """

    image_shape: tuple[int, int, int] = dataclasses.field(kw_only=False)
    width: Annotated[int, Whole(1)] = 6
    depth: Annotated[int, Whole(1)] = 2
    w0: Annotated[float, Real(0, above=True)] = 10.0
    w0_first: Annotated[float, Real(0, above=True)] = 30.0
    fit_steps: Annotated[int, Whole(0)] = 5000
    fit_lr: Annotated[float, Real(0, above=True)] = 5e-4
    lr: Annotated[float, Real(0, above=True)] = 5e-5
    fill: bool = True
    on_fit: Callable[[int, int], None] | None = dataclasses.field(default=None, compare=False, repr=False)
    frozen: tuple[()] = dataclasses.field(default=(), init=False, repr=False)

    def __post_init__(self) -> None:
        ranges.check(self)

    @property
    def name(self) -> str:
        """What the method's name gets."""
        return f"siren{self.width}x{self.depth}"

    @property
    def unfitted(self) -> Siren:
        """The same without the fit to the start."""
        return dataclasses.replace(self, fit_steps=0)

    def prepare_flops(self, decode: float, real: int, images: int, sets: int) -> dict[str, float]:
        """FLOPs of fitting ``sets`` sets of ``images`` images, of ``decode`` FLOPs each, to their start."""
        del real
        return {"start": 3 * decode * self.fit_steps * images * sets}

    @property
    def optimiser(self) -> optax.GradientTransformation:
        """What updates the nets, whatever updates pixels: SGD at a rate for pixels would tear them apart."""
        return optax.adam(self.lr)

    @property
    def facts(self) -> Mapping[str, float]:
        """What decoding must know."""
        return {"width": self.width, "depth": self.depth, "w0": self.w0, "w0_first": self.w0_first}

    @property
    def size(self) -> int:
        """How many numbers one net holds."""
        return sum((fan_in + 1) * out for fan_in, out in self._sides())

    def images_for(self, stored: int) -> int:
        """Counts the nets that take no more storage than ``stored`` images of pixels; at least one."""
        return max(1, stored * math.prod(self.image_shape) // self.size) if self.fill else stored

    def draw(self, key: jax.Array, count: int) -> Net:
        """Draws ``count`` nets: U(-1/2, 1/2) in the first layer, U(-b, b) with b = sqrt(6 / d) / w_0 in the others.

        Args:
          key: typed PRNG key.
          count: N.
        """
        net = {}
        for number, (fan_in, out) in enumerate(self._sides()):
            # The first layer sees coordinates and not sines: there w_first alone sets the frequencies.
            bound = math.sqrt(6 / fan_in) / self.w0 if number else 1 / fan_in
            kernel_key, bias_key = jax.random.split(jax.random.fold_in(key, number))
            net[_layer(number)] = {
                "kernel": jax.random.uniform(kernel_key, (count, fan_in, out), minval=-bound, maxval=bound),
                "bias": jax.random.uniform(bias_key, (count, out), minval=-bound, maxval=bound),
            }
        return net

    def apply(self, net: Net, places: jax.Array) -> jax.Array:
        """Evaluates every net at every place: [2, P] -> [N, C, P].

        Args:
          net: the weights of N nets.
          places: (row, column) in [-1, 1] of P places.
        """
        # Places along the last axis: a layer is a few units wide, and sines are fast along a long row.
        h = jnp.broadcast_to(places, (len(net[_layer(0)]["bias"]), *places.shape))
        for number, frequency in enumerate([self.w0_first] + [self.w0] * (self.depth - 1)):
            h = sine(frequency * _affine(net[_layer(number)], h))
        return _affine(net[_layer(self.depth)], h)

    def init(self, key: jax.Array, images: jax.Array, /) -> Net:
        """Draws a net for each of images [N, H, W, C] and fits it to that image.

        Raises:
          ValueError: if the images have another shape.
        """
        if images.shape[1:] != self.image_shape:
            raise ValueError(f"the nets are for images {self.image_shape}, but these are {images.shape[1:]}")
        net = self.draw(key, len(images))
        return start.fit(self, net, self.frozen, images, lr=self.fit_lr, steps=self.fit_steps, on_fit=self.on_fit)

    def decode(self, latents: Net, frozen: Any, /) -> jax.Array:
        """Evaluates each net at the pixels: images [N, H, W, C] in the set's value space."""
        del frozen
        height, width, channels = self.image_shape
        values = self.apply(latents, coordinates(height, width))
        return jnp.moveaxis(values.reshape(-1, channels, height, width), 1, 3)

    def _sides(self) -> list[tuple[int, int]]:
        """(units in, units out) of each layer."""
        sides = [2, *[self.width] * self.depth, self.image_shape[2]]
        return list(itertools.pairwise(sides))


def coordinates(height: int, width: int) -> jax.Array:
    """The places of H x W pixels, row by row: [2, H W], (row, column), each from -1 to 1.

    Corners are at -1 and 1 on both axes. DDiF's program divides the columns by H - 1 as well, which is the same on
    square images and leaves the frame on wide ones.
    """
    # One pixel in a row lies in the middle and not at 0 / 0.
    rows, columns = (jnp.linspace(-1, 1, side) if side > 1 else jnp.zeros(1) for side in (height, width))
    return jnp.stack(jnp.meshgrid(rows, columns, indexing="ij")).reshape(2, -1)


def sine(x: jax.Array) -> jax.Array:
    """sin(x) to 2e-7 for |x| up to a few thousand, and its derivative to 1e-6.

    On a CPU XLA calls the library's sine number by number: 12 times slower than this, and it is all that a net does.
    """
    turns = jnp.round(x / np.pi)
    # pi in two parts, of which the first has few bits: its product with ``turns`` is exact.
    near = (x - turns * 3.140625) - turns * (np.pi - 3.140625)  # in [-pi / 2, pi / 2]
    square, series = near * near, jnp.zeros_like(near)
    for power in range(11, 0, -2):
        series = series * square + (-1) ** (power // 2) / math.factorial(power)
    return series * near * (1 - 2 * jnp.mod(turns, 2))  # sin(x + pi) = -sin(x)


def _layer(number: int) -> str:
    return f"layer{number + 1}"


def _affine(layer: dict[str, jax.Array], h: jax.Array) -> jax.Array:
    """W h + b of each net: [N, I, P] -> [N, O, P]."""
    return jnp.einsum("nio,nip->nop", layer["kernel"], h) + layer["bias"][:, :, None]
