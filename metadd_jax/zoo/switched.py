"""Hundreds of ConvNets as one program: activation, norm, pooling, width and depth are switches among the variables.

ModelPool (arXiv 2402.13007) draws one of 32 ConvNets at a step. As 32 networks they are 32 programs in one; here they
are one network whose weights come with ``switches``, numbers that say which ConvNet it is. A narrower one has the first
channels of the widest, the others are 0; a shallower one ends earlier, and its head sees the first places of the
largest map. Weights are drawn by the fan-in of the network that they are of, so each is the zoo's ConvNet of these
options to rounding (``Variants.alone``), in its gradients too.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from metadd_jax import keys
from metadd_jax.zoo import convolution, layers, norms, patches
from metadd_jax.zoo.architecture import Architecture, Outputs, Variables
from metadd_jax.zoo.convnet import ConvNet, default_depth
from metadd_jax.zoo.initialise import fan_in_uniform
from metadd_jax.zoo.registry import create

SWITCHES = ("activation", "norm", "pooling", "width", "depth")
POOLINGS = ("max", "avg")
NORMS = ("batch", "layer", "instance", "group")


class SwitchedConvNet(nn.Module):
    """``convnet.ConvNet`` whose options are chosen by the collection ``switches``, numbers of the words below.

    Without the collection it is the first of each. Its result has no map.

    Attributes:
      num_classes: K.
      activations, norms, poolings: words of ConvNet's options; batch norm only alone, for it looks at other images.
      widths: channels of every block.
      depths: numbers of blocks.
    """

    num_classes: int
    activations: tuple[str, ...]
    norms: tuple[str, ...]
    poolings: tuple[str, ...]
    widths: tuple[int, ...]
    depths: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> tuple[jax.Array, Outputs]:
        at = {
            name: self.get_variable("switches", name, jnp.zeros(())).astype(jnp.int32)  # floats, as all that is stored
            for name in SWITCHES
        }
        most, width = max(self.widths), jnp.asarray(self.widths)[at["width"]]
        depth = jnp.asarray(self.depths)[at["depth"]]
        present = (jnp.arange(most) < width).astype(jnp.float32)
        ends = []
        for block in range(max(self.depths)):
            padding = 3 if block == 0 and layers.is_grey_28(x) else 1
            step = functools.partial(self._block(block, x.shape, padding, train), at=at, width=width, present=present)
            # Batch norm's statistics cannot be updated inside a branch; its deeper blocks pass for nothing.
            if block < min(self.depths) or self.norms == ("batch",):
                x = step(x)
            else:
                shape = jax.eval_shape(step, x)
                x = jax.lax.cond(depth > block, step, lambda _, s=shape: jnp.zeros(s.shape, s.dtype), x)
            ends.append(x)
        ends = [ends[depth - 1] for depth in self.depths]
        place = max(end.shape[1] for end in ends), max(end.shape[2] for end in ends)
        # A shallower network has a larger map: the head is as large as the largest wants it.
        x = layers.flatten(_choose(at["depth"], [functools.partial(_into, place) for _ in ends], ends))
        return layers.linear(x, self.num_classes, name="head"), {"embedding": x}

    def _block(self, block: int, shape: tuple[int, ...], padding: int, train: bool) -> Any:
        """Declares the weights of a block, and returns its function of the map."""
        most, number = max(self.widths), block + 1
        side = tuple(patches.output_side(n, 3, padding=padding) for n in shape[1:3])
        kernel, bias = Weights((3, 3, shape[3], most), 9 * shape[3], name=f"conv{number}")()
        channel, place = {"instance", "group"} & set(self.norms), "layer" in self.norms
        by_channel = Affine((most,), name=f"norm{number}")() if channel else None
        # Layer norm has a scale for every place; beside another norm it has weights of its own.
        by_place = Affine((*side, most), name=f"{'layer' if channel else 'norm'}{number}")() if place else None
        if "instance" in self.norms and math.prod(side) == 1:
            raise layers.SizeError("instance norm over one number each makes all images alike; take fewer blocks")
        batch_norm = functools.partial(norms.norm, kind="batch", train=train, name=f"norm{number}")

        def step(x: jax.Array, *, at: dict, width: jax.Array, present: jax.Array) -> jax.Array:
            x = convolution.convolve(x, kernel, padding=padding) + bias
            if self.norms == ("batch",):
                x = batch_norm(x)
            else:
                x = _standardise(x, _shared(self.norms, at["norm"], width, present))
                own = [by_place if name == "layer" else by_channel for name in self.norms]
                x = _choose(
                    at["norm"], [functools.partial(_affine, weights=weights) for weights in own], [x] * len(own)
                )
            x = _activate(self.activations, at["activation"], x) * present.astype(x.dtype)
            pools = [functools.partial(layers.pool, kind=kind) for kind in self.poolings]
            return _choose(at["pooling"], pools, [x] * len(pools))

        return step


class Weights(nn.Module):
    """Declares a convolution's ``kernel`` of ``shape`` and its ``bias``, both drawn by ``fan_in``, and returns them."""

    shape: tuple[int, ...]
    fan_in: int

    @nn.compact
    def __call__(self) -> tuple[jax.Array, jax.Array]:
        init = fan_in_uniform(self.fan_in)
        return self.param("kernel", init, self.shape), self.param("bias", init, self.shape[-1:])


class Affine(nn.Module):
    """Declares the ``scale`` and ``bias`` of a norm, both of ``shape``, and returns them."""

    shape: tuple[int, ...]

    @nn.compact
    def __call__(self) -> tuple[jax.Array, jax.Array]:
        ones, zeros = nn.initializers.ones, nn.initializers.zeros
        return self.param("scale", ones, self.shape), self.param("bias", zeros, self.shape)


def _affine(x: jax.Array, weights: Any) -> jax.Array:
    scale, bias = weights
    return x * scale + bias


def _choose(which: jax.Array, functions: Sequence[Any], arguments: Sequence[jax.Array]) -> jax.Array:
    """The result of one function of its own argument; the only one that there is without a switch."""
    if len(functions) == 1:
        return functions[0](arguments[0])
    branches = [lambda *given, f=f, own=own: f(given[own]) for own, f in enumerate(functions)]
    return jax.lax.switch(which, branches, *arguments)


def _into(place: tuple[int, int], x: jax.Array) -> jax.Array:
    """A map at the top left of zeros of height and width ``place``."""
    return jnp.pad(x, ((0, 0), (0, place[0] - x.shape[1]), (0, place[1] - x.shape[2]), (0, 0)))


def _shared(names: tuple[str, ...], which: jax.Array, width: jax.Array, present: jax.Array) -> jax.Array:
    """[C, C]: what each channel's mean adds to the mean that normalises a channel.

    Instance, group and layer norm differ only in which channels share their statistics, so a matrix is the switch.
    """
    channels = jnp.arange(len(present))
    teams = {"instance": channels, "group": channels * norms.GROUPS // width, "layer": jnp.zeros_like(channels)}
    team = jnp.stack([teams[name] for name in names])[which]
    together = (team[:, None] == team) * present[:, None]
    return together / jnp.maximum(together.sum(axis=0), 1)  # a channel that is not there divides by nothing


def _standardise(x: jax.Array, shared: jax.Array) -> jax.Array:
    """Subtracts the mean and divides by the deviation of each channel's team of ``_shared``; in two passes."""

    def mean(x: jax.Array) -> jax.Array:
        # In full precision: an accelerator's own product would round a mean to 10 bits.
        return jnp.matmul(x.mean((1, 2)), shared, precision="highest")[:, None, None]

    centred = layers.widen(x) - mean(layers.widen(x))
    return (centred * jax.lax.rsqrt(mean(jnp.square(centred)) + norms.EPSILON)).astype(x.dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _activate(names: tuple[str, ...], which: jax.Array, x: jax.Array) -> jax.Array:
    return _choose(which, [layers.ACTIVATIONS[name] for name in names], [x] * len(names))


@_activate.defjvp
def _activate_slope(names: tuple[str, ...], primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    # Left to itself a switch keeps what every branch would need for its derivative; the slope alone is one map.
    which, x = primals

    def slope(name: str) -> Any:
        return lambda x: jax.jvp(layers.ACTIVATIONS[name], (x,), (jnp.ones_like(x),))[1]

    return _activate(names, which, x), _choose(which, [slope(name) for name in names], [x] * len(names)) * tangents[1]


class Variants(Architecture):
    """The ConvNets of a ``SwitchedConvNet`` as one network: ``init`` draws one of them, all alike, with new weights."""

    module: SwitchedConvNet

    @property
    def count(self) -> int:
        """How many different ConvNets there are."""
        return math.prod(map(len, self._words))

    @property
    def _words(self) -> tuple[tuple[Any, ...], ...]:
        of = self.module
        return of.activations, of.norms, of.poolings, of.widths, of.depths

    def init(self, key: jax.Array) -> Variables:
        """Draws a ConvNet and its weights: ``params`` (and ``batch_stats``), and the ``switches`` that say which.

        Args:
          key: typed PRNG key.
        """
        draws = jax.random.split(keys.named(key, "network"), len(SWITCHES))
        which = [jax.random.randint(draw, (), 0, len(words)) for draw, words in zip(draws, self._words, strict=True)]
        return self.set(super().init(key), dict(zip(SWITCHES, which, strict=True)))

    def set(self, variables: Variables, which: dict[str, jax.Array | int]) -> Variables:
        """Gives weights that were drawn for the widest, shallowest network the scale and the switches of another.

        Args:
          variables: ``params`` (and ``batch_stats``) as ``Architecture.init`` draws them.
          which: for each of ``SWITCHES`` the place of its word, [] int.
        """
        of, (places, most) = self.module, self._sizes()
        width = jnp.asarray(of.widths)[which["width"]]
        share = jnp.sqrt(max(of.widths) / width)  # PyTorch's bound is 1 / sqrt(fan-in) of the network that it is of
        head = jnp.sqrt(most / jnp.asarray(places)[which["depth"]]) * share
        params = {
            name: jax.tree.map(lambda leaf, by=by: leaf * by, tree)
            for name, tree in variables["params"].items()
            for by in [head if name == "head" else share if name.startswith("conv") and name != "conv1" else 1.0]
        }
        switches = {name: jnp.asarray(which[name], jnp.float32) for name in SWITCHES}
        return {**variables, "params": params, "switches": switches}

    def idle_units(self, variables: Variables) -> jax.Array:
        """Counts the units (``distances.gradient_distance``) that the drawn network has not; their gradients are 0.

        Args:
          variables: as from ``init``.
        """
        of, at = self.module, {name: value.astype(jnp.int32) for name, value in variables["switches"].items()}
        most = max(of.widths)
        blocks, width = jnp.asarray(of.depths)[at["depth"]], jnp.asarray(of.widths)[at["width"]]
        idle = most * max(of.depths) - blocks * width  # of the kernels
        if "layer" in of.norms:  # scale and bias of every place
            is_layer = at["norm"] == of.norms.index("layer")
            idle += 2 * jnp.where(is_layer, idle, most * max(of.depths))
        return idle.astype(jnp.float32)

    def covers(self, net: Architecture) -> bool:
        """Tells whether a network of the zoo is one of these ConvNets.

        Args:
          net: any network.
        """
        if not isinstance(net.module, ConvNet) or (net.image_shape, net.num_classes) != (
            self.image_shape,
            self.num_classes,
        ):
            return False
        own = net.module
        depth = own.depth or default_depth(max(self.image_shape[:2]))
        values = (own.activation, own.norm, own.pooling, own.width, depth)
        return all(value in words for value, words in zip(values, self._words, strict=True))

    def alone(self, variables: Variables) -> tuple[Architecture, Variables]:
        """Returns the drawn ConvNet as the zoo makes it, with the same weights; outside of traced code.

        Args:
          variables: as from ``init``.
        """
        of, at = self.module, {name: int(value) for name, value in variables["switches"].items()}
        words = dict(
            zip(SWITCHES, (own[at[name]] for name, own in zip(SWITCHES, self._words, strict=True)), strict=True)
        )
        net = create("convnet", self.num_classes, self.image_shape, **words)
        made: dict[str, Any] = jax.eval_shape(net.init, jax.random.key(0))
        own = dict(variables["params"])
        for block in range(max(of.depths)):
            layer = own.pop(f"layer{block + 1}", None)
            own[f"norm{block + 1}"] = layer if layer and words["norm"] == "layer" else own.get(f"norm{block + 1}")
        side = max(_sides(self)[depth - 1] for depth in of.depths)
        kernel = own["head"]["kernel"].reshape(*side, max(of.widths), self.num_classes)
        own["head"] = {**own["head"], "kernel": kernel}
        small = {
            name: jax.tree.map(lambda leaf, like: _first(leaf, like.shape), own[name], like)
            for name, like in made["params"].items()
            if name != "head"
        }
        (height, wide), width = _sides(self)[words["depth"] - 1], words["width"]
        kernel = kernel[:height, :wide, :width].reshape(-1, self.num_classes)
        stats = {
            name: jax.tree.map(lambda leaf, like: _first(leaf, like.shape), variables["batch_stats"][name], like)
            for name, like in made.get("batch_stats", {}).items()
        }
        small["head"] = {**own["head"], "kernel": kernel}
        return net, {"params": small, **({"batch_stats": stats} if stats else {})}

    def _sizes(self) -> tuple[list[int], int]:
        """The places of the last map at each of the depths, and the most of them."""
        sides = _sides(self)
        places = [math.prod(sides[depth - 1]) for depth in self.module.depths]
        return places, max(places)


def _sides(net: Variants) -> list[tuple[int, int]]:
    """Height and width of the map after each block."""
    image = jnp.zeros((1, *net.image_shape))
    return layers.halvings(image, max(net.module.depths), grow=4 if layers.is_grey_28(image) else 0)[1:]


def _first(leaf: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return leaf[tuple(slice(length) for length in shape)]


def variants(
    num_classes: int,
    image_shape: Sequence[int],
    *,
    width: Sequence[int],
    depth: Sequence[int],
    activation: Sequence[str] = tuple(layers.ACTIVATIONS),
    norm: Sequence[str] = NORMS,
    pooling: Sequence[str] = POOLINGS,
) -> list[Variants]:
    """Makes the ConvNets of all combinations: one network, or two where batch norm is not the only norm.

    Batch norm is apart because it sees all images of a batch, which a method must know when it is compiled.

    Args:
      num_classes: K.
      image_shape: (H, W, C).
      width: channels of every block.
      depth: numbers of blocks.
      activation: words of ConvNet's option; the three by default make the 32 of ModelPool, without "none".
      norm: the same.
      pooling: the same.

    Raises:
      SizeError: if the images or the widths do not suit a norm, or the images the depth.
      ValueError: for no word, a word twice, or one that a ConvNet has not.
    """
    chosen: dict[str, tuple[Any, ...]] = {
        name: tuple(words) for name, words in zip(SWITCHES, (activation, norm, pooling, width, depth), strict=True)
    }
    for name, words in chosen.items():
        if not words or len(set(words)) < len(words) or "none" in words:
            raise ValueError(f"convnets: {name}={'+'.join(map(str, words))}; give each word once, and not none")
        for word in words:  # the zoo's own refusals, each word beside the smallest of the others
            others = {"width": min(chosen["width"]), "depth": max(chosen["depth"])}
            create("convnet", num_classes, image_shape, **{**others, name: word})
    if "group" in norm:
        for size in width:
            create("convnet", num_classes, image_shape, norm="group", width=size)
    parts = [tuple(word for word in norm if (word == "batch") is batch) for batch in (False, True)]
    return [_variants(num_classes, image_shape, chosen | {"norm": part}) for part in parts if part]


def _variants(num_classes: int, image_shape: Sequence[int], chosen: dict[str, tuple[Any, ...]]) -> Variants:
    height, width, channels = image_shape
    return Variants(
        name="convnets",
        label="convnets:" + ",".join(f"{name}={'+'.join(map(str, words))}" for name, words in chosen.items()),
        module=SwitchedConvNet(num_classes, *(chosen[name] for name in SWITCHES)),
        num_classes=num_classes,
        image_shape=(height, width, channels),
    )
