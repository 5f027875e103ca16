"""The base methods by name, and the record that each of them is: its settings, and whatever a job must ask of it.

A method's file derives a record from ``Method``, beside its formula, and registers it:

>>> @dataclasses.dataclass(frozen=True, kw_only=True)
... class Mine(Method):
...     group: ClassVar[str] = "mine"
...     batch_size: Annotated[int, Whole(1)] = 64
...
...     def make(self, net, counts, given=None, *, repeat=False):
...         return Distiller(...)
>>> register("mine", Mine)

Only ``make`` must be written; everything else has the plain answer of a method that trains pixels by SGD.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar

import optax

from metadd_jax import augment, ranges, registries, zoo
from metadd_jax.distillers import starts
from metadd_jax.distillers.contract import Distiller
from metadd_jax.ranges import Text
from metadd_jax.structs import Dataset
from metadd_jax.training import Recipe, Trained

Progress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """The settings of a base method. Its fields are options; a field of None is "as published" or "all".

    Attributes:
      init: what the images start from: "random" real images, "noise" (standard normal), "kmeans" (real images nearest
        the centres of each class), "consensus" (those of each cluster that all seen networks are surest of) or a saved
        set, ours or a peer's (its value space behind a colon: "images_best.pt:zca"); None as published.
      group: what the method's options begin with on a command line: ``--dc.outer``.
      draws_networks: whether the method draws random networks, so that ``make`` and the checks of the network take a
        ``networks.Networks`` too: a pool.
      trains: whether the set is trained; one that is whole at the start takes one update, which moves nothing.
      usual_lr: the learning rate of the images that a job takes where none is said.
      teaches: whether what prepares the method is a teacher from whose labels judged networks may learn.
      scratch_fields: the settings that make the memory of a step smaller.
      frozen_fields: the settings that make the memory of the frozen weights smaller.
      file_fields: the settings that name a file, which counts by what it holds.
    """

    init: Annotated[str | None, Text("starts.check")] = None

    group: ClassVar[str]
    published_init: ClassVar[str] = "random"
    draws_networks: ClassVar[bool] = False
    trains: ClassVar[bool] = True
    usual_lr: ClassVar[float] = 1.0
    teaches: ClassVar[bool] = False
    scratch_fields: ClassVar[tuple[str, ...]] = ()
    frozen_fields: ClassVar[tuple[str, ...]] = ()
    file_fields: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        ranges.check(self)
        if self.init is not None:
            starts.check(self.init)
            if not self.trains:
                raise ValueError(f"init={self.init!r}: a set that is not trained starts from nothing; leave it out")

    @property
    def start(self) -> str:
        """What the images start from: one of ``starts.INITS``, or the path of a saved set."""
        return starts.called(self.init or self.published_init)

    def make(
        self, net: zoo.Architecture, counts: tuple[int, ...], given: Any = None, *, repeat: bool = False
    ) -> Distiller:
        """Makes the method's functions.

        Args:
          net: the backbone.
          counts: images of each class of the set.
          given: what ``prepare`` gave.
          repeat: whether a class with fewer real images than it starts from gives them again and again.

        Raises:
          ValueError: if the settings do not go with the network, the counts or what is given.
        """
        raise NotImplementedError(f"{type(self).__name__} must say how it is made: write its method make")

    def optimiser(
        self, learning_rate: float, momentum: float, steps: int, dataset: Dataset
    ) -> optax.GradientTransformation:
        """What updates the set: here SGD.

        Args:
          learning_rate: of the images.
          momentum: of the images, 0 to below 1.
          steps: updates in all, for a schedule.
          dataset: the real data, for the range of a pixel.
        """
        del steps, dataset
        return optax.sgd(learning_rate, momentum=momentum)

    def for_data(self, tokens: Callable[[], augment.Augmentation]) -> Method:
        """Fills in what is None because the data set decides it.

        Args:
          tokens: gives the data set's own DSA tokens (digits are not flipped); asked only where they are needed, since
            a data set that is not known is warned of.
        """
        del tokens
        return self

    def for_memory(self, scratch: Callable[[Method], float], limit: float | None, classes: int) -> Method:
        """Fills in what is None because the machine decides it.

        Args:
          scratch: the bytes that a step under other settings takes beside the set.
          limit: the bytes of a device, None where more memory would not help.
          classes: K.
        """
        del scratch, limit, classes
        return self

    def check_prepare(self) -> None:
        """Refuses settings under which ``prepare`` does not give what ``make`` needs, by a ValueError."""

    def check_pixels(self, *, zca: bool) -> None:
        """Refuses a value space that the method cannot work in, by a ValueError.

        Args:
          zca: whether the images are whitened.
        """

    def check_network(self, net: zoo.Architecture) -> None:
        """Refuses a backbone that cannot serve the method, by a ValueError that names one that can."""

    def check_devices(self, net: zoo.Architecture, devices: int, *, pmap: bool) -> None:
        """Refuses devices that cannot share a step, by a ValueError.

        Args:
          net: the backbone.
          devices: how many share a batch.
          pmap: whether they do it by pmap, where batch statistics over all real images do not exist.
        """

    def backbone_recipe(self, usual: Recipe) -> Recipe:
        """How the backbone is trained on the real images before it distils: here as all networks of the table."""
        return usual

    def backbone_variables(self, net: zoo.Architecture) -> Any:
        """The backbone's variables where they come from a file; None, and it is trained.

        Raises:
          ValueError: if the file does not hold them.
        """
        del net

    def prepare(
        self, net: zoo.Architecture, dataset: Dataset, trained: Trained, cache: pathlib.Path, *, progress: Progress
    ) -> Any:
        """Makes what the method takes from real images beforehand: ``given`` of ``make``; here nothing.

        Args:
          net: the backbone.
          dataset: the real data.
          trained: the backbone, trained on it.
          cache: the folder of what need not be made twice.
          progress: called as (what, done, in all).
        """
        del net, dataset, trained, cache, progress

    def stand_in(self, net: zoo.Architecture, variables: Any) -> Any:
        """What ``prepare`` would give, of random numbers and at once, for a plan; where many are alike, fewer of them.

        Args:
          net: the backbone.
          variables: random ones of it.
        """
        del net, variables

    def given_size(self, net: zoo.Architecture) -> float:
        """Bytes on a device of what ``prepare`` gives beyond the stand-in."""
        del net
        return 0.0

    def cached(
        self, net: zoo.Architecture, dataset: Dataset, cache: pathlib.Path
    ) -> Sequence[tuple[pathlib.Path, int]]:
        """Lists the folders that ``prepare`` will leave in the cache, with their bytes.

        Args:
          net: the backbone.
          dataset: the real data.
          cache: the folder of what need not be made twice.
        """
        del net, dataset, cache
        return ()

    def passes(self, net: zoo.Architecture) -> tuple[tuple[zoo.Architecture, float], ...]:
        """The networks that an image passes in an update, each with how often: here the backbone, once.

        Those after the first are trained by ``prepare`` as the backbone is.

        Args:
          net: the backbone.
        """
        return ((net, 1.0),)

    def flops(self, forward: float, counts: tuple[int, ...]) -> float:
        """FLOPs of one update, a backward pass counted as two forward passes: here one gradient of the set.

        Args:
          forward: f, FLOPs of the backbone's forward pass of one image.
          counts: images of each class of the set.
        """
        return 3 * forward * sum(counts)

    def extra_flops(self, net: zoo.Architecture, counts: tuple[int, ...]) -> float:
        """FLOPs of one update beside the backbone's passes: here none.

        Args:
          net: the backbone.
          counts: images of each class of the set.
        """
        del net, counts
        return 0.0

    def draws(self, steps: int, counts: tuple[int, ...]) -> int:
        """How many networks a run draws: here one at every step.

        Args:
          steps: updates in all.
          counts: images of each class of the set.
        """
        del counts
        return steps

    def prepare_flops(self, forward: float, images: int) -> dict[str, float]:
        """FLOPs of each stage of ``prepare``, by name.

        Args:
          forward: f, FLOPs of the backbone's forward pass of one image.
          images: how many real ones there are.
        """
        del forward, images
        return {}

    def describe(self) -> str:
        """The settings in a few words, for the head of results, which tells the start by itself."""
        names = [name for name in ranges.field_names(type(self)) if name != "init"]
        return ", ".join(f"{name} {getattr(self, name)}" for name in names)


_METHODS: dict[str, Method | Callable[[], Method]] = {}


def register(name: str, record: Method | Callable[[], Method]) -> None:
    """Gives a method a name, under which jobs and command lines find it.

    Args:
      name: what tables and folders call it, a Python identifier such as "dm".
      record: its settings, or what makes them when called, such as the class of the record.

    Raises:
      ValueError: if it is no record of a method, or the name is none or another method's.
    """
    made = record if isinstance(record, Method) else record()
    if not isinstance(made, Method):
        raise ValueError(f"the method {name!r} must be a registry.Method, or make one; it gives {made!r}")
    registries.claim(_METHODS, name, record, kind="method")


def names() -> tuple[str, ...]:
    """Lists all methods, in the order of their registration."""
    return tuple(_METHODS)


def get(name: str) -> Method:
    """Returns the settings of the named method as they are by default.

    Raises:
      ValueError: if there is none of that name; the message says which there are.
    """
    if name not in _METHODS:
        near = ranges.nearest(name, _METHODS)
        raise ValueError(f"unknown method {name!r}{near}; use one of {', '.join(_METHODS)}")
    record = _METHODS[name]
    return record if isinstance(record, Method) else record()
