"""The networks that distil: the backbone, a pool drawn beside it (ModelPool), others that are matched with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import metadd_jax as mdd
from metadd_jax import distillers, ranges
from metadd_jax.distillers import networks
from metadd_jax.job import common
from metadd_jax.job.options import DistillConfig
from metadd_jax.zoo.switched import SWITCHES

CONVNETS = "convnets"
"""The word for the pool of ConvNets that differ in options of ``zoo.variants``."""

Drawn = mdd.zoo.Architecture | networks.Networks


def check(config: DistillConfig) -> None:
    """Refuses options of ``--pool`` and ``--matched`` that do not go together, and unknown names, before any data.

    Raises:
      ValueError: one line that names the option.
    """
    for option, given in {"pool_main": config.pool_main, "pool_warmup": config.pool_warmup}.items():
        if given is not None and not config.pool:
            raise ValueError(f"{config.option(option)} {given} is of a pool; name its networks by --pool, or leave it")
    if config.balance is not None and not config.matched:
        raise ValueError(f"--balance {config.balance} is of several networks; name the others by --matched")
    if (config.pool or config.matched) and not config.own.draws_networks:
        able = [name for name in distillers.names() if distillers.get(name).draws_networks]
        raise ValueError(
            f"--{'pool' if config.pool else 'matched'} goes with methods that draw random networks "
            f"({', '.join(able)}), not with {config.method}"
        )
    switched = [spec for spec in config.pool if _options(spec) is not None]
    if switched and len(config.pool) > 1:
        raise ValueError(f"--pool {' '.join(config.pool)}: {switched[0]} stands alone; it is a whole pool")
    common.check_names((*(spec for spec in config.pool if spec not in switched), *config.matched))
    for option, specs in {"--pool": config.pool, "--matched": config.matched}.items():
        # The main network may not stand in its own pool: its probability is --pool-main.
        every = [config.backbone, *specs]
        if len(set(every)) < len(every):
            raise ValueError(f"a network is listed twice in --backbone and {option}: {', '.join(every)}")


def draw_from(
    config: DistillConfig, backbone: mdd.zoo.Architecture, dataset: mdd.Dataset, counts: tuple[int, ...]
) -> tuple[Drawn, ...]:
    """Makes what the method draws its networks from: the backbone or its pool, then each of ``--matched``.

    Args:
      config: the settings of the job.
      backbone: the main network.
      dataset: the real data.
      counts: images of each class of the set, which decide how many networks DC draws.

    Raises:
      ValueError: if the warm-up leaves nothing of the run to the pool.
    """
    matched = common.networks(config.matched, dataset)
    if not config.pool:
        return (backbone, *matched)
    draws = config.own.draws(config.steps, counts)
    warmup = min(networks.WARMUP, draws // 2) if config.pool_warmup is None else config.pool_warmup
    if warmup >= draws:
        raise ValueError(
            f"--pool-warmup {warmup} leaves nothing to the pool: {config.steps} steps draw {draws} networks; lower it, "
            "or raise --steps"
        )
    main = networks.MAIN if config.pool_main is None else config.pool_main
    options = _options(config.pool[0])
    if options is not None:
        return (networks.convnets(backbone, main=main, warmup=warmup, **options), *matched)
    others = common.networks(config.pool, dataset)
    return (networks.beside(backbone, others, main=main, warmup=warmup), *matched)


def _options(spec: str) -> dict[str, tuple[str | int, ...]] | None:
    """What "convnets:norm=instance+batch,width=16+32" says of the pool of ConvNets; None for another text.

    Raises:
      ValueError: if it cannot be read.
    """
    name, _, rest = spec.partition(":")
    if name != CONVNETS:
        return None
    found: dict[str, tuple[str | int, ...]] = {}
    for item in filter(None, rest.split(",")):
        option, _, words = item.partition("=")
        try:
            ranges.require("option", option, ranges.OneOf(SWITCHES))
            read = int if option in ("width", "depth") else str
            found[option] = tuple(read(word) for word in words.split("+"))
        except ValueError as error:
            known = ", ".join(f"{name}=A+B" for name in SWITCHES)
            raise ValueError(f"cannot read {item!r} in --pool {spec}; write {CONVNETS}:{known}, any of them") from error
    return found


def check_unseen(drawn: Sequence[Drawn], unseen: Sequence[mdd.zoo.Architecture]) -> None:
    """Refuses a network that distils and is listed as unseen.

    Args:
      drawn: as from ``draw_from``.
      unseen: the networks of the table that should know nothing of the set.

    Raises:
      ValueError: naming it.
    """
    distil = members(drawn)
    for net in unseen:
        if any(one.covers(net) if isinstance(one, mdd.zoo.Variants) else one.label == net.label for one in distil):
            raise ValueError(f"{net.label} distils (--pool or --matched), so it is not unseen; take it out of --unseen")


def members(drawn: Sequence[Drawn]) -> list[mdd.zoo.Architecture]:
    """Lists every architecture that distils, the backbone first."""
    return [net for one in drawn for net in networks.as_networks(one).nets]


def forward_flops(drawn: Sequence[Drawn], of: Callable[[mdd.zoo.Architecture], float]) -> float:
    """FLOPs of the forward passes that one image takes in a step: the expected one of a pool, all that are matched.

    Args:
      drawn: as from ``draw_from``.
      of: FLOPs of a network's forward pass of one image.
    """
    return sum(
        probability * of(net)
        for one in map(networks.as_networks, drawn)
        for net, probability in zip(one.nets, one.probabilities, strict=True)
    )


def make(
    config: DistillConfig, own: distillers.Method, drawn: Sequence[Drawn], counts: tuple[int, ...], given: Any
) -> distillers.Distiller:
    """Makes the bare method over its networks.

    Args:
      config: the settings of the job.
      own: the method's settings.
      drawn: as from ``draw_from``.
      counts: images of each class of the set.
      given: what the method's ``prepare`` gave.
    """
    # A method that draws no networks declares an architecture, and a job gives it no other thing.
    each: list[Any] = list(drawn)
    every = [own.make(net, counts, given, repeat=config.short_class == "repeat") for net in each]
    method = every[0]._replace(name=f"{every[0].name}+pool") if config.pool else every[0]
    if len(every) == 1:
        return method
    return distillers.match_all([method, *every[1:]], balance=config.balance or "balanced")


def facts(drawn: Sequence[Drawn], config: DistillConfig) -> dict[str, Any]:
    """What the metadata of an exported set say of its networks; nothing beside ``backbone`` where it is alone.

    Args:
      drawn: as from ``draw_from``.
      config: the settings of the job.
    """
    found: dict[str, Any] = {}
    first = networks.as_networks(drawn[0])
    if config.pool:
        found["pool"] = {
            "networks": [net.label for net in first.nets],
            "probabilities": list(first.probabilities),
            "warmup": first.warmup,
        }
    if config.matched:
        found["matched"] = [net.label for net in members(drawn[1:])]
        found["balance"] = config.balance or "balanced"
    return found


def describe(drawn: Sequence[Drawn], config: DistillConfig) -> str:
    """The same in a few words, for the head of results."""
    text = ""
    first = networks.as_networks(drawn[0])
    if config.pool:
        text += (
            f" with probability {first.probabilities[0]:g}, else {' or '.join(net.label for net in first.nets[1:])}, "
            f"the first {first.warmup} draws the backbone"
        )
    if config.matched:
        others = ", ".join(net.label for net in members(drawn[1:]))
        text += f", matched together with {others} ({config.balance or 'balanced'})"
    return text
