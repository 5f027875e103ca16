"""What trained networks agree on in the finished sets of a study, and whether a gain there is one in accuracy.

And, since the map of a class says little where the network does not see that class: how many images they know.

The same networks look at the sets of all rows, whatever these were distilled through: the auxiliaries of the study's
first reference row, and each unseen network of it that has a map, all trained on the real images as usual. The meta
ratio *on an unseen network* is that of the auxiliaries and this network together.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import metadd_jax as mdd
from metadd_jax import exchange, features, files, parallel, split
from metadd_jax.evaluation import transfer
from metadd_jax.job import common, recipes
from metadd_jax.job.cells import Cell

FILE = "agreement.json"  # in a cell's folder
THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7)
_MAIN = "0.5"  # the paper's
_AREA = 0.25
_BATCH = 500  # images that pass a network at once
_KEPT = ("meta_ratio", "chance_corrected", "mean_iou")


@dataclasses.dataclass(frozen=True)
class Lookers:
    """The networks that look at every set of a study.

    Attributes:
      seen: the auxiliaries.
      unseen: by label.
      cam: how maps are made.
      key: hash of all that decides what they find in a set.
    """

    seen: tuple[mdd.Auxiliary, ...]
    unseen: Mapping[str, mdd.Auxiliary]
    cam: mdd.features.CamConfig
    key: str


def lookers(cell: Cell, dataset: mdd.Dataset) -> Lookers:
    """Trains the networks of a row on the real images, or takes them from the cache.

    Args:
      cell: any cell of the row.
      dataset: its real data.

    Raises:
      ValueError: if the row names no two auxiliaries, without which there is no agreement.
    """
    config = cell.config
    if len(config.seen) < 2:
        raise ValueError(
            f"row {cell.row!r} names {len(config.seen)} auxiliaries, and agreement is between networks: name two by "
            "--seen"
        )
    seen, unseen = common.networks(config.seen, dataset), common.networks(config.unseen, dataset)
    nets = [*seen, *(net for net in unseen if net.has_map)]
    recipe, cache = recipes.pretraining(config), mdd.data.cache_folder(config.cache_dir)
    keys = [mdd.training.pretrained.cache_key(net, dataset, recipe, 0) for net in nets]
    trained = common.pretrain(nets, dataset, recipe, cache, split=config.evaluate_on, description="lookers")
    frozen = [features.freeze(one.net, one.variables, dataset) for one in trained]
    return Lookers(
        seen=tuple(frozen[: len(seen)]),
        unseen={one.net.label: one for one in frozen[len(seen) :]},
        cam=config.metadd.cam,
        key=files.hash_json([len(seen), *keys, config.metadd.cam.describe(), list(THRESHOLDS), _AREA, "known"]),
    )


def look(by: Lookers, folder: pathlib.Path, file: pathlib.Path) -> dict[str, Any]:
    """Measures a set, or reads what was measured of it by the same networks.

    Args:
      by: the networks.
      folder: of the cell; ``agreement.json`` is written there.
      file: the set's ``synthetic.npz``.

    Returns:
      "seen" and "unseen" (by network): by threshold ("0.3"), and at equal areas ("area"), the facts of
      ``split.measure``; "known", of ``known``; "key", that of ``by``.
    """
    place = folder / FILE
    if place.exists() and files.read_json(place).get("key") == by.key:
        return files.read_json(place)
    synthetic, _ = exchange.load_npz(file)
    stack = mdd.evaluation.map_stack([*by.seen, *by.unseen.values()], synthetic.images, synthetic.labels, config=by.cam)
    found = measure(stack, len(by.seen), tuple(by.unseen)) | {"known": known(by, synthetic), "key": by.key}
    files.write_json(place, found)
    return found


def known(by: Lookers, synthetic: mdd.SyntheticSet) -> dict[str, float]:
    """Measures the share of a set's images whose label each network gives.

    Args:
      by: the networks.
      synthetic: the set.

    Returns:
      By network a share, 0..1.
    """
    networks = {**{one.net.label: one for one in by.seen}, **by.unseen}
    shares = {}
    for label, network in networks.items():
        logits = [_logits(network, images) for images in _batches(synthetic.images)]
        shares[label] = float(np.mean(np.concatenate(logits).argmax(axis=-1) == synthetic.labels))
    return shares


def _batches(images: Any) -> list[Any]:
    return [images[start : start + _BATCH] for start in range(0, len(images), _BATCH)]


@parallel.jit
def _logits(network: mdd.Auxiliary, images: jax.Array) -> jax.Array:
    return features.observe(network, images, jnp.zeros(len(images), jnp.int32), maps=False).logits


def measure(stack: np.ndarray, seen: int, unseen: Sequence[str]) -> dict[str, Any]:
    """Measures the agreement of the first maps among each other, and of each further one with all of them.

    Args:
      stack: [M + U, N, H, W] maps in [0, 1] of M seen and U unseen networks.
      seen: M.
      unseen: U labels.

    Returns:
      "seen" and "unseen" of ``look``.
    """

    def facts(rows: list[int]) -> dict[str, Any]:
        own = jnp.asarray(stack[rows])
        by = {str(t): split.measure(own, threshold=t) for t in THRESHOLDS}
        # At equal areas: a map that is high everywhere agrees with all others.
        by["area"] = split.measure(split.at_matched_area(own, _AREA))
        return {
            name: {kept: float(one[kept]) for kept in _KEPT} | {"high_area": float(one["high_area"].mean())}
            for name, one in by.items()
        }

    first = list(range(seen))
    return {"seen": facts(first), "unseen": {label: facts([*first, seen + i]) for i, label in enumerate(unseen)}}


Found = Sequence[tuple[str, int, Mapping[str, Any], Mapping[str, Any]]]  # row, seed, cell.json, agreement.json


def summary(reference: str, found: Found) -> dict[str, Any]:
    """Gathers the agreement in the sets of a study, and correlates its gains with those of accuracy.

    Args:
      reference: the row whose sets gains are taken from, seed by seed.
      found: (row, seed, ``cell.json``, ``agreement.json``) of every cell that was looked at.

    Returns:
      "rows": by row the means over seeds of the chance-corrected ratio, "seen" by threshold and "area", "unseen" by
      network at 0.5, and "known" by network; "transfer": of the unseen networks the correlations of
      ``transfer.correlation`` over all points ("all"), with differences between networks taken off ("within"), and the
      "points" themselves; None where there are fewer than three points.
    """
    rows: dict[str, dict[str, Any]] = {}
    for row in dict.fromkeys(one[0] for one in found):
        own = [facts for name, _, _, facts in found if name == row]
        rows[row] = {
            "seen": {name: _mean(facts["seen"][name]["chance_corrected"] for facts in own) for name in own[0]["seen"]},
            "unseen": {label: _mean(_ratio(facts, label) for facts in own) for label in own[0]["unseen"]},
            "known": {label: _mean(facts["known"][label] for facts in own) for label in own[0]["known"]},
            "seeds": len(own),
        }
    points = _points(reference, found)
    together = None
    if len(points) > 2:
        x, y = ([point[name] for point in points] for name in ("ratio", "accuracy"))
        # One distilled set is one observation, however many networks learn from it.
        sets, nets = [f"{point['row']} {point['seed']}" for point in points], [point["network"] for point in points]
        together = {
            "all": transfer.correlation(x, y, sets),
            "within": transfer.correlation(x, y, sets, groups=nets),
            "points": points,
        }
    return {"reference": reference, "rows": rows, "transfer": together}


def _ratio(facts: Mapping[str, Any], label: str) -> float:
    return facts["unseen"][label][_MAIN]["chance_corrected"]


def _mean(values: Any) -> float:
    return float(np.mean(list(values)))


def _points(reference: str, found: Found) -> list[dict[str, Any]]:
    """Gains over the reference row of the same seed, of each unseen network and each other row of distilled sets."""
    base = {seed: (_accuracies(result), facts) for row, seed, result, facts in found if row == reference}
    points = []
    for row, seed, result, facts in found:
        if row == reference or seed not in base or result["cell"]["settings"]["real"]:
            continue
        before, ratios = base[seed]
        after = _accuracies(result)
        for label in facts["unseen"]:
            gains = {"ratio": _ratio(facts, label) - _ratio(ratios, label)}
            gains["accuracy"] = after.get(label, np.nan) - before.get(label, np.nan)
            if np.isfinite(gains["accuracy"]):  # else a training diverged, or a row does not judge this network
                points.append({"row": row, "seed": seed, "network": label, **gains})
    return points


def _accuracies(result: Mapping[str, Any]) -> dict[str, float]:
    return {line["network"]: _mean(line["accuracies"]) for line in result["rows"] if line["role"] == "unseen"}


def lines(told: Mapping[str, Any]) -> list[str]:
    """Writes ``summary`` as Markdown.

    Args:
      told: of ``summary``.
    """
    first = next(iter(told["rows"].values()))
    columns = [*(f"seen, from {t}" for t in THRESHOLDS), "seen, equal areas", *first["unseen"]]
    text = [
        "## Agreement of trained networks",
        "",
        "Chance-corrected meta ratio (1 perfect, 0 chance), mean over seeds: of the auxiliaries by the value from "
        f"which on a map counts as high, and with the highest {_AREA:.0%} of every map; and of them together with each "
        f"unseen network, from {_MAIN}.",
        "",
        f"| row | seeds | {' | '.join(columns)} |",
        "|---" * (2 + len(columns)) + "|",
    ]
    for row, facts in told["rows"].items():
        values = [*(facts["seen"][str(t)] for t in THRESHOLDS), facts["seen"]["area"], *facts["unseen"].values()]
        text.append(f"| {row} | {facts['seeds']} | {' | '.join(f'{value:+.2f}' for value in values)} |")
    text += [
        "",
        "How many of a set's images these networks know (percent whose label they give): the map of a class tells "
        "where the network sees it, if it does.",
        "",
        f"| row | {' | '.join(first['known'])} |",
        "|---" * (1 + len(first["known"])) + "|",
    ]
    for row, facts in told["rows"].items():
        text.append(f"| {row} | {' | '.join(f'{100 * share:.0f}' for share in facts['known'].values())} |")
    if not told["transfer"]:
        return text
    text += [
        "",
        f"Gain in meta ratio on an unseen network against its gain in accuracy, over **{told['reference']}** of the "
        "same seed; real images left out. Intervals: 95 %, over sets.",
        "",
        "| points | Pearson | interval | Spearman | points of accuracy for +0.1 ratio | networks x sets |",
        "|---|---|---|---|---|---|",
    ]
    for name, title in {"all": "all", "within": "differences between networks taken off"}.items():
        one = told["transfer"][name]
        interval = "." if one["interval"] is None else "[{:+.2f}, {:+.2f}]".format(*one["interval"])
        slope = "." if one["slope"] is None else f"{10 * one['slope']:+.2f}"
        text.append(
            f"| {title} | {_signed(one['pearson'])} | {interval} | {_signed(one['spearman'])} | {slope} | "
            f"{one['points']} of {one['clusters']} sets |"
        )
    return text


def _signed(value: float | None) -> str:
    return "." if value is None else f"{value:+.2f}"
