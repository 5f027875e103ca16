"""What a method draws its random networks from: one architecture, or a pool of several.

``dm(networks.pool([...]))`` embeds under another architecture at every step, dc and dsa take one at each new network. A
pool is what ModelPool distils with (ICMSSP 2024): the main network with probability 0.9, else one of 32 similar ones;
pools of foreign architectures were reported not to converge there (docs/methods.md).

>>> similar = [zoo.create("convnet", 10, shape, activation=word) for word in ("sigmoid", "swish")]
>>> method = dc(networks.beside(net, similar, main=0.9, warmup=500), ipc=10)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from metadd_jax import zoo
from metadd_jax.ranges import Real, Whole, require
from metadd_jax.zoo.convnet import default_depth

MAIN, WARMUP = 0.9, 500
"""ModelPool's probability of the main network, and how many networks it draws of that one first."""


@dataclasses.dataclass(frozen=True)
class Networks:
    """Architectures for the same images and classes, each with its probability; see ``one`` and ``pool``.

    A *drawn* network is what ``init`` gives, a pytree whose structure is the same whichever was drawn: of one
    architecture its variables; of a pool the number of the architecture, ``which`` [] int32, and the weights as a
    vector padded to the largest, ``vector`` [P] float32. The state then holds one network and not one of each, and the
    functions below compile one branch for each architecture, of which a step runs the drawn one.

    Attributes:
      nets: the architectures.
      probabilities: one each, 1 in all.
      warmup: the first so many draws of a run are of the first architecture.
    """

    nets: tuple[zoo.Architecture, ...]
    probabilities: tuple[float, ...]
    warmup: Annotated[int, Whole(0)] = 0

    def __post_init__(self) -> None:
        require("warmup", self.warmup, Whole(0))
        if not self.nets or len(self.nets) != len(self.probabilities):
            raise ValueError(
                f"a pool of {len(self.nets)} networks with {len(self.probabilities)} probabilities; give one each"
            )
        for net in self.nets:
            # By what it can do, so that a stand-in serves; a name or a list cannot.
            parts = ("init", "num_classes", "image_shape", "has_batch_stats")
            if isinstance(net, Networks) or not all(hasattr(net, part) for part in parts):
                raise ValueError(
                    f"a network is a {type(net).__name__}; give what zoo.parse or zoo.create returns, and several of "
                    "them as networks.pool([...])"
                )
        first = self.nets[0]
        for net in self.nets[1:]:
            if (net.image_shape, net.num_classes) != (first.image_shape, first.num_classes):
                raise ValueError(
                    f"{first.label} takes {first.image_shape} images of {first.num_classes} classes, but {net.label} "
                    f"{net.image_shape} and {net.num_classes}; a pool needs networks for the same data"
                )
        # ``isclose``: shares such as 0.1 / 32 need not add up to 1 to the bit.
        if not all(map(Real(0).holds, self.probabilities)) or not np.isclose(sum(self.probabilities), 1):
            raise ValueError(
                f"the probabilities of a pool are {self.probabilities}; give numbers from 0 that add up to 1"
            )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of the images that all of them take."""
        return self.nets[0].image_shape

    @property
    def num_classes(self) -> int:
        """K, the same for all of them."""
        return self.nets[0].num_classes

    @property
    def name(self) -> str:
        """Their names, for messages."""
        return " or ".join(dict.fromkeys(net.name for net in self.nets))

    @property
    def has_batch_stats(self) -> bool:
        """Whether one of them has batch norm."""
        return any(net.has_batch_stats for net in self.nets)

    def init(self, key: jax.Array, before: jax.Array | int | None = None) -> Any:
        """Draws an architecture and new random weights for it: a drawn network.

        Args:
          key: typed PRNG key.
          before: [] int, how many networks the run drew before; a pool with a warm-up asks for it.

        Raises:
          ValueError: if a pool with a warm-up is not told ``before``.
        """
        if len(self.nets) == 1:
            return self.nets[0].init(key)
        which_key, weights_key = jax.random.split(key)
        # Drawn on the device, so that steps stay inside one compiled chunk.
        which = jax.random.choice(which_key, len(self.nets), p=jnp.asarray(self.probabilities)).astype(jnp.int32)
        if self.warmup:
            if before is None:
                raise ValueError(
                    f"a pool that warms up over {self.warmup} networks must be told how many were drawn; pass before, "
                    "or warmup=0"
                )
            which = jnp.where(before < self.warmup, 0, which)
        vector = jax.lax.switch(which, [lambda net=net: self._vector(net.init(weights_key)) for net in self.nets])
        return {"which": which, "vector": vector}

    def use(self, drawn: Any, function: Callable[[zoo.Architecture, Any], Any]) -> Any:
        """Returns ``function(net, variables)`` of the drawn network.

        Args:
          drawn: a drawn network.
          function: is traced once for each architecture; its results must have the same structure, shapes and types
            for all. It may close over arrays, and be differentiated in them.
        """
        if len(self.nets) == 1:
            return function(self.nets[0], drawn)
        # ``net=net``: a closure in a loop would see the last network in every branch.
        branches = [lambda vector, net=net: function(net, self._variables(net, vector)) for net in self.nets]
        return jax.lax.switch(drawn["which"], branches, drawn["vector"])

    def change(self, drawn: Any, function: Callable[[zoo.Architecture, Any], tuple[Any, Any]]) -> tuple[Any, Any]:
        """Like ``use`` with a function that trains: it returns (variables, result).

        Returns:
          The drawn network with these variables, and the result.
        """
        if len(self.nets) == 1:
            return function(self.nets[0], drawn)

        def packed(net: zoo.Architecture, variables: Any) -> tuple[jax.Array, Any]:
            variables, result = function(net, variables)
            return self._vector(variables), result

        vector, result = self.use(drawn, packed)
        return {**drawn, "vector": vector}, result

    def _vector(self, variables: Any) -> jax.Array:
        vector, _ = ravel_pytree(variables)
        # All branches of a switch must give the same shape.
        return jnp.pad(vector, (0, max(map(_size, self.nets)) - len(vector)))

    def _variables(self, net: zoo.Architecture, vector: jax.Array) -> Any:
        leaves, structure = jax.tree.flatten(_shapes(net))
        pieces = jnp.split(vector, np.cumsum([leaf.size for leaf in leaves]))  # the last one is padding
        return jax.tree.unflatten(structure, [x.reshape(leaf.shape) for x, leaf in zip(pieces, leaves, strict=False)])


def one(net: zoo.Architecture) -> Networks:
    """The same architecture always, each time with new weights: what a bare ``net`` means to a method."""
    return Networks((net,), (1.0,))


def pool(
    nets: Sequence[zoo.Architecture], *, probabilities: Sequence[float] | None = None, warmup: int = 0
) -> Networks:
    """Several architectures, of which one is drawn each time, with new weights.

    Args:
      nets: M architectures for the same images and classes.
      probabilities: M numbers that add up to 1; None draws all alike.
      warmup: the first so many draws of a run are of the first architecture; from 0.

    Raises:
      ValueError: if there is none, if they are for other images or classes than each other, if the probabilities are
        not one each, from 0, and 1 in all, or if ``warmup`` is out of range.
    """
    for what, given in (("nets", nets), ("probabilities", probabilities)):
        if given is not None and not isinstance(given, Sequence | np.ndarray | jax.Array):
            raise ValueError(f"{what} of a pool is a {type(given).__name__}; give a list, such as pool([net, other])")
    count = len(nets)
    shares = (1 / max(count, 1),) * count if probabilities is None else tuple(probabilities)
    return Networks(tuple(nets), shares, warmup)


def beside(
    net: zoo.Architecture, others: Sequence[zoo.Architecture], *, main: float = MAIN, warmup: int = WARMUP
) -> Networks:
    """ModelPool's way to draw (arXiv 2402.13007): mostly one main network, else one of the others, all alike.

    Args:
      net: the main network.
      others: the architectures that are drawn beside it, at least one.
      main: probability of ``net``, 0 to 1; 0.9 as published.
      warmup: the first so many draws of a run are of ``net``; 500 as published, of the networks of DC's outermost
        loop. DM draws one at every step, DC and DSA one in ``outer`` steps.

    Raises:
      ValueError: as ``pool``.
    """
    require("main", main, Real(0, 1))
    if not others:
        raise ValueError("a pool of no networks beside the main one; name some")
    return pool([net, *others], probabilities=[main, *[(1 - main) / len(others)] * len(others)], warmup=warmup)


def convnets(net: zoo.Architecture, *, main: float = MAIN, warmup: int = WARMUP, **options: Sequence[Any]) -> Networks:
    """ModelPool's pool: ``net`` mostly, else one of the ConvNets of all combinations, all alike.

    However many they are, three networks are compiled: ``net``, and the ConvNets with and without batch norm, each as
    one program with switches (``zoo.variants``).

    >>> method = dc(networks.convnets(net), ipc=10)  # ModelPool's 32, as wide and deep as net
    >>> method = dm(networks.convnets(net, width=(16, 32, 64), depth=(2, 3)), ipc=10)  # 192

    Args:
      net: the main network.
      main: probability of ``net``, 0 to 1.
      warmup: the first so many draws of a run are of ``net``, see ``beside``.
      options: the words of ``zoo.variants`` to draw from; by default ``width`` and ``depth`` are those of ``net`` where
        it is a ConvNet, else ConvNet's own.

    Raises:
      ValueError: as ``pool`` and ``zoo.variants``.
    """
    require("main", main, Real(0, 1))
    usual = {
        "width": (getattr(net.module, "width", 128),) if net.name.startswith("convnet") else (128,),
        "depth": ((net.name.startswith("convnet") and net.module.depth) or default_depth(max(net.image_shape[:2])),),
    }
    others = zoo.variants(net.num_classes, net.image_shape, **{**usual, **options})
    total = sum(each.count for each in others)
    shares = [(1 - main) * each.count / total for each in others]
    return pool([net, *others], probabilities=[main, *shares], warmup=warmup)


def as_networks(net: zoo.Architecture | Networks) -> Networks:
    """What a method was given, as ``Networks``: an architecture is ``one`` of it.

    Raises:
      ValueError: if it is neither.
    """
    return net if isinstance(net, Networks) else one(net)


def single(net: zoo.Architecture) -> zoo.Architecture:
    """What a method was given that trains one architecture alone.

    Raises:
      ValueError: if it is anything else, a pool too.
    """
    if isinstance(net, Networks):
        raise ValueError(f"a pool of {len(net.nets)} networks where the method needs one architecture; give it one")
    return one(net).nets[0]


def _shapes(net: zoo.Architecture) -> Any:
    # Shapes only: nothing is drawn and no memory is taken.
    return jax.eval_shape(net.init, jax.random.key(0))


def _size(net: zoo.Architecture) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(_shapes(net)))
