"""The parameterisations by name, and the short text that names one on a command line: "factor:size=3".

What a parameterisation is made of may depend on the data (its size, its value space), so a name stands for a function
of the data set and of its own options:

>>> def frequencies(dataset, *, kept=10):
...     return Frequencies(dataset.image_shape[0], kept)
>>> register("frequencies", frequencies)
>>> method = parameterise(dm(net, ipc=10), parse("frequencies:kept=6", dataset))
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax

from metadd_jax import generators, keys, ranges, registries
from metadd_jax.distillers.packing import factor, grey
from metadd_jax.distillers.parameterisation import Parameterisation, check_parts, pixels
from metadd_jax.registries import Option
from metadd_jax.structs import Dataset

Build = Callable[..., Parameterisation]

_BUILDS: dict[str, Build] = {}


def register(name: str, build: Build) -> None:
    """Gives a parameterisation a name, under which jobs and command lines find it.

    Args:
      name: letters, digits and underscores.
      build: ``build(dataset, **options)`` returns the parameterisation for a ``Dataset``. The arguments behind the
        first are its options; each has a default, a number, a truth value, text or None.

    Raises:
      ValueError: if the name is no word or another one's, or if ``build`` has other arguments.
    """
    own = list(inspect.signature(build).parameters.values())
    kinds = inspect.Parameter
    if not own or own[0].kind not in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD):
        raise ValueError(f"parameterisation {name}: build takes no data set; write build(dataset, *, size=2)")
    for argument in own[1:]:
        if argument.kind not in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY):
            raise ValueError(f"parameterisation {name}: build takes {argument}; name every option, so a typo is seen")
        if not isinstance(argument.default, Option | None):  # the mark of no default is none of these
            raise ValueError(f"parameterisation {name}: build asks for {argument.name!r}; give this option a default")
    registries.claim(_BUILDS, name, build, kind="parameterisation")


def names() -> tuple[str, ...]:
    """Lists all parameterisations, in the order of their registration."""
    return tuple(_BUILDS)


def check(text: str) -> None:
    """Checks the text of a parameterisation before any data is read, so that a typo costs no waiting.

    Args:
      text: as for ``parse``.

    Raises:
      ValueError: as ``parse``, except for what the data decide and for values out of an option's range.
    """
    _read(text)


def parse(text: str, dataset: Dataset) -> Parameterisation:
    """Makes a parameterisation from text.

    Args:
      text: "pixels", "factor2" or "factor:size=3": a name of ``names()``, and after a colon its options.
      dataset: the real data.

    Raises:
      ValueError: for an unknown name or option, the message naming the nearest, and for what ``build`` refuses or
        gives that is no parameterisation.
    """
    name, options = _read(text)
    made = _BUILDS[name](dataset, **options)
    check_parts(made)
    return made


def _read(text: str) -> tuple[str, dict[str, Option]]:
    name, options = registries.read(text, kind="parameterisation")
    if name not in _BUILDS:
        near = ranges.nearest(name, _BUILDS)
        raise ValueError(f"unknown parameterisation {name!r}{near}; choose one of {', '.join(_BUILDS)}")
    _, *own = inspect.signature(_BUILDS[name]).parameters.values()
    defaults: dict[str, Any] = {argument.name: argument.default for argument in own}
    for option, value in options.items():
        if option not in defaults:
            known = f"its options are: {', '.join(defaults)}" if defaults else "it has none"
            raise ValueError(f"{name} has no option {option!r}{ranges.nearest(option, defaults)}; {known}")
        registries.require_kind(name, option, value, defaults[option])
    return name, options


def _pixels(dataset: Dataset) -> Parameterisation:
    del dataset
    return pixels()


def _factor(dataset: Dataset, *, size: int = 2, pad: float | None = None, kind: str = "single") -> Parameterisation:
    made = factor(size, pad=0.0 if pad is None else pad, kind=kind)
    # Only where there is a border: what is written beside a set says then what decoding needs.
    return factor(size, pad=grey(dataset), kind=kind) if pad is None and made.has_border(dataset) else made


def _factor2(dataset: Dataset) -> Parameterisation:
    return _factor(dataset, size=2)


def _stylegan(
    dataset: Dataset,
    *,
    weights: str = "random",
    layer: int = 2,
    layers: int = 4,
    channel_base: int = 512,
    channel_max: int = 16,
    w_dim: int = 64,
    z_dim: int = 64,
    seed: int = 0,
    w_rate: float = 1e-3,
    mean_w: bool | None = None,
    at_once: int = 10,
    conditional: bool | None = None,
    images: int = 10_000,
    epochs: int = 10,
) -> Any:
    is_trained = weights == "trained"
    knows = is_trained if conditional is None else conditional
    generator = generators.Generator(
        resolution=generators.resolution_for(dataset.image_shape), layers=layers, channel_base=channel_base,
        channel_max=channel_max, w_dim=w_dim, z_dim=z_dim, channels=dataset.image_shape[2],
        num_classes=dataset.num_classes if knows else 0,
    )  # fmt: skip
    ranges.require("seed", seed, ranges.Whole(0, ranges.SEEDS - 1))
    # What stands in until the training is what the training starts from.
    key = keys.named(keys.root(seed, "generator") if is_trained else jax.random.key(seed), "weights")
    if weights in ("random", "trained"):
        variables, source = generator.init(key), f"{'trained' if is_trained else 'untrained'}, seed {seed}"
    else:
        variables, source = generators.load(weights, jax.eval_shape(generator.init, key), name="stylegan"), weights
    training = generators.AutoDecoding(images=images, epochs=epochs, seed=seed, lr=0.01) if is_trained else None
    return generators.stylegan(
        generator, variables, dataset, layer=layer, w_rate=w_rate, mean_w=mean_w, micro_batch=at_once, weights=source,
        training=training,
    )  # fmt: skip


def _siren(
    dataset: Dataset,
    *,
    width: int = 6,
    depth: int = 2,
    w0: float = 10.0,
    w0_first: float = 30.0,
    lr: float = 5e-5,
    fit_steps: int = 5000,
    fit_lr: float = 5e-4,
    fill: bool = True,
) -> Parameterisation:
    return generators.Siren(
        dataset.image_shape, width=width, depth=depth, w0=w0, w0_first=w0_first, lr=lr, fit_steps=fit_steps,
        fit_lr=fit_lr, fill=fill,
    )  # fmt: skip


def _decoder(
    dataset: Dataset,
    *,
    weights: str = "trained",
    width: int = 32,
    lr: float = 0.02,
    fit_steps: int = 200,
    fit_lr: float = 0.05,
    fill: bool = False,
    images: int = 10_000,
    epochs: int = 10,
    seed: int = 0,
) -> Any:
    training = generators.AutoDecoding(images=images, epochs=epochs, seed=seed)
    return generators.Styles(
        generator=generators.Decoder(dataset.image_shape, len(dataset.class_names), width=width), weights=weights,
        training=training, lr=lr, fit_steps=fit_steps, fit_lr=fit_lr, fill=fill,
    )  # fmt: skip


register("pixels", _pixels)
register("factor2", _factor2)
register("factor", _factor)
register("stylegan", _stylegan)
register("siren", _siren)
register("decoder", _decoder)
