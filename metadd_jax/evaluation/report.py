"""Reports of a run: rows of accuracies, paired statistics, ``results.json`` and ``results.md``."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from metadd_jax import files
from metadd_jax.evaluation import scores, statistics
from metadd_jax.evaluation.judging import Row
from metadd_jax.structs import SyntheticSet

# The network that distilled, the auxiliaries, and those that the set has never met: what a method is compared on.
ROLES = ("same", "seen", "unseen")


def rows_of(
    set_name: str, distill_seed: int, table: Sequence[Row], roles: Mapping[str, str], *, labels: str
) -> list[dict[str, Any]]:
    """Makes the rows of ``results.json`` for one set.

    Args:
      set_name: what was distilled ("dm", "dm+metadd", "random").
      distill_seed: the seed that distilled it.
      table: what ``cross_architecture`` returned for it.
      roles: label of a network -> one of ``ROLES``.
      labels: what the networks were trained under, in words that differ where the labels do ("hard", "own",
        "teacher:resnet18_bn:width=8 1f2e3d4c").

    Returns:
      Dicts ``{set, distill_seed, network, role, labels, accuracies}``.
    """
    return [
        {
            "set": set_name,
            "distill_seed": distill_seed,
            "network": row.network,
            "role": roles[row.network],
            "labels": labels,
            "accuracies": list(row.accuracies),
        }
        for row in table
    ]


def require_equal_labels(rows: Sequence[Mapping[str, Any]]) -> None:
    """Refuses rows that were trained under different labels: soft labels alone lift random images by ten points.

    Args:
      rows: of ``rows_of``, of one run or of several; those of older runs do not say their labels.

    Raises:
      ValueError: naming two sets and their labels.
    """
    first = rows[0] if rows else {}
    for row in rows:
        if row.get("labels") != first.get("labels"):
            raise ValueError(
                f"{first['set']} was judged under the labels {first.get('labels')!r} and {row['set']} under "
                f"{row.get('labels')!r}: such rows are not compared; judge all of them by one --eval-labels"
            )


def accuracies(rows: Sequence[Mapping[str, Any]], set_name: str, *, roles: Sequence[str] = ROLES) -> np.ndarray:
    """Collects the accuracies of one set under the networks with these roles.

    Args:
      rows: of ``rows_of``, for all sets.
      set_name: the set.
      roles: of ``ROLES``.

    Returns:
      [distillation seeds, networks, training seeds] in [0, 1], NaN where a training diverged.

    Raises:
      ValueError: for a role that is none of ``ROLES``, or where no row is of this set.
    """
    if not set(roles) <= set(ROLES):
        raise ValueError(f"roles {', '.join(roles)} must be of {', '.join(ROLES)}")
    if all(row["set"] != set_name for row in rows):
        there = ", ".join(dict.fromkeys(row["set"] for row in rows))
        raise ValueError(f"no rows of a set {set_name!r}; there are {there or 'none'}")
    chosen = [row for row in rows if row["set"] == set_name and row["role"] in roles]
    seeds = sorted({row["distill_seed"] for row in chosen})
    networks = list(dict.fromkeys(row["network"] for row in chosen))  # in their order in the rows, without repetition
    found = {(row["distill_seed"], row["network"]): row["accuracies"] for row in chosen}
    return np.array([[found[seed, network] for network in networks] for seed in seeds])


def compare(rows: Sequence[Mapping[str, Any]], first: str, second: str) -> dict[str, Any]:
    """Computes paired differences second - first for each role, and over all networks but the backbone ("foreign").

    Args:
      rows: of ``rows_of``, for all sets.
      first: name of a set, say without a component.
      second: name of the set with it.

    Returns:
      ``{first, second, by_role}``, by_role from a role to the numbers of ``statistics.paired``, or to
      ``{"diverged": "2 of 6 trainings"}`` where a training diverged, so that there is no difference.

    Raises:
      ValueError: if the rows were trained under different labels.
    """
    require_equal_labels(rows)
    present = {row["role"] for row in rows}
    # The networks that did not distil are what a method is judged by, seen or unseen.
    groups: dict[str, tuple[str, ...]] = {role: (role,) for role in ROLES if role in present}
    if {"seen", "unseen"} <= present:
        groups["foreign"] = ("seen", "unseen")
    by_role = {}
    for name, roles in groups.items():
        before, after = (accuracies(rows, which, roles=roles) for which in (first, second))
        # Of unequal shapes ``paired`` says what is wrong.
        lost = _diverged(np.stack([before, after])) if before.shape == after.shape else ""
        by_role[name] = {"diverged": lost} if lost else statistics.paired(before, after)
    return {"first": first, "second": second, "by_role": by_role}


def _diverged(values: np.ndarray) -> str:
    """How many of these accuracies are NaN, as text; "" if none is."""
    lost = int(np.isnan(values).sum())
    return f"{lost} of {values.size} trainings" if lost else ""


def repeats(sets: Mapping[str, Sequence[SyntheticSet]], seeds: Sequence[int]) -> dict[str, list[list[int]]]:
    """Finds distillation seeds that gave the very same images.

    Such seeds are one draw and not several: the spread over them is that of the trainings alone. k-means at one image
    per class finds the same centre from every start.

    Args:
      sets: for each name the sets of ``seeds``, in that order.
      seeds: the distillation seeds.

    Returns:
      Groups of two or more seeds, by the name of the set; sets without such a group are left out.
    """
    found: dict[str, list[list[int]]] = {}
    for name, group in sets.items():
        by_content: dict[str, list[int]] = {}
        for seed, synthetic in zip(seeds, group, strict=True):
            # + 0.0, because -0.0 and 0.0 are one number but not one bit pattern.
            by_content.setdefault(files.hash_arrays(np.asarray(synthetic.images) + 0.0), []).append(seed)
        if same := [members for members in by_content.values() if len(members) > 1]:
            found[name] = same
    return found


def table_lines(
    rows: Sequence[Mapping[str, Any]], *, repeats: Mapping[str, Sequence[Sequence[int]]] | None = None
) -> list[str]:
    """Writes the accuracies as a Markdown table: one row per set, one column per network, mean ± spread in percent.

    The spread is the standard deviation over distillation seeds of the mean over training seeds.

    Args:
      rows: of ``rows_of``, for all sets.
      repeats: of ``repeats``; a set that came out the same for several seeds says so beside its name.

    Raises:
      ValueError: if the rows were trained under different labels.
    """
    require_equal_labels(rows)
    networks = list(dict.fromkeys((row["network"], row["role"]) for row in rows))
    present = {role for _, role in networks}
    means = [role for role in ("seen", "unseen") if role in present]  # "same" is one network
    header = [f"{network} ({role})" for network, role in networks] + [f"**mean {role}**" for role in means]
    lines = ["| set | " + " | ".join(header) + " |", "|---" * (len(header) + 1) + "|"]
    for name in dict.fromkeys(row["set"] for row in rows):
        cells = [_cell(accuracies([row for row in rows if row["network"] == network], name)) for network, _ in networks]
        cells += [f"**{_cell(accuracies(rows, name, roles=(role,)))}**" for role in means]
        lines.append(f"| {name}{_repeated((repeats or {}).get(name, ()))} | " + " | ".join(cells) + " |")
    return lines


def _repeated(groups: Sequence[Sequence[int]]) -> str:
    return "".join(f" (one set for seeds {', '.join(map(str, group))})" for group in groups)


def _cell(values: np.ndarray) -> str:
    if lost := _diverged(values):
        return f"diverged ({lost})"
    # The spread is that of sets, so training seeds are averaged first; one set has none.
    by_seed = 100 * values.mean(axis=(1, 2))
    spread = f" ± {by_seed.std(ddof=1):.1f}" if len(by_seed) > 1 else ""
    return f"{by_seed.mean():.1f}{spread}"


def comparison_lines(comparison: Mapping[str, Any]) -> list[str]:
    """Writes ``comparison`` (of ``compare``) as a Markdown table: one row per role, differences in points."""
    lines = [
        f"Paired difference {comparison['second']} - {comparison['first']}, in points of accuracy "
        "(95 % intervals over distillation seeds):",
        "",
        "| networks | difference | bootstrap | t | sd of sets | sd of trainings | sign test over seeds x networks |",
        "|---|---|---|---|---|---|---|",
    ]
    for role, facts in comparison["by_role"].items():
        if "diverged" in facts:  # no number stands for a training that has no accuracy
            lines.append(f"| {role} | none: {facts['diverged']} diverged | . | . | . | . | . |")
            continue
        t = "one seed" if facts["t_interval"] is None else _interval(facts["t_interval"])
        # The t interval is the one to trust for few seeds, and the sign test is no proof (see ``statistics.paired``).
        sign = facts["sign_test"]
        cells = [f"{100 * facts['difference']:+.2f}", _interval(facts["bootstrap"]), t]
        cells += [_points(facts["sd_sets"]), _points(facts["sd_trainings"])]
        cells += [f"{sign['positive']} up, {sign['negative']} down, p = {sign['p']:.3g}"]
        lines.append(f"| {role} | " + " | ".join(cells) + " |")
    return lines + _seeds_lines(comparison["by_role"])


def _seeds_lines(by_role: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """How many seeds the intervals need; [] of one seed, and in results of versions that did not tell it."""
    told = {role: facts["seeds_needed"] for role, facts in by_role.items() if facts.get("seeds_needed")}
    each = [f"{role} {', '.join(f'{n} at {t}' for t, n in needed.items())}" for role, needed in told.items()]
    head = "Distillation seeds for t intervals of ±0.5 points, at so many trainings of each network on each set: "
    return ["", f"{head}{'; '.join(each)}."] if each else []


def spread_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Writes the components of each set's spread (``statistics.components``); [] if every set was trained on once.

    Args:
      rows: of ``rows_of``, for all sets.
    """
    lines = [
        # Readers ask whether a gain is luck of the set or of the training: more seeds of the other kind do not help.
        "What the spread of an accuracy is made of, in points: standard deviation from one distilled set to the next, "
        "and from one training on a set to the next (means over the networks of a role; see statistics.components):",
        "",
        "| set | networks | sd of sets | sd of trainings |",
        "|---|---|---|---|",
    ]
    heads = len(lines)
    for name in dict.fromkeys(row["set"] for row in rows):
        for role in dict.fromkeys(row["role"] for row in rows):
            values = accuracies(rows, name, roles=(role,))
            if _diverged(values):
                continue
            parts = statistics.components(values.mean(axis=1))
            if parts["sd_trainings"] is not None:
                lines.append(f"| {name} | {role} | {_points(parts['sd_sets'])} | {_points(parts['sd_trainings'])} |")
    return lines if len(lines) > heads else []


def _points(value: float | None) -> str:
    return "." if value is None else f"{100 * value:.2f}"


def _interval(pair: Sequence[float]) -> str:
    return f"[{100 * pair[0]:+.2f}, {100 * pair[1]:+.2f}]"


def agreement_lines(agreement: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """Writes meta ratios as a Markdown table.

    Args:
      agreement: set -> role -> numbers of ``evaluation.agreement``, averaged over distillation seeds.
    """
    lines = [
        "What trained networks agree on (high area: map >= 0.5; 1 = perfect, 0 = chance for the corrected ratio):",
        "",
        "| set | networks | meta ratio | chance-corrected | mean pairwise IoU | high area |",
        "|---|---|---|---|---|---|",
    ]
    for name, by_role in agreement.items():
        for role, facts in by_role.items():
            lines.append(
                f"| {name} | {role} | {facts['meta_ratio']:.3f} | {facts['chance_corrected']:+.3f} | "
                f"{facts['mean_iou']:.3f} | {np.mean(facts['high_area']):.3f} |"
            )
    return lines


def pull_lines(pulls: Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]]) -> list[str]:
    """Writes how the added terms pull as a Markdown table.

    Args:
      pulls: set -> "start" or "end" -> term -> ``norm`` (of its mean gradient over the base's) and ``cosine``.
    """
    lines = [
        "How the added terms pull at the images, at the start and at the end: mean gradient (weighted) over the base "
        "method's, by norm, and cosine of the two:",
        "",
        "| set | term | norm, start | norm, end | cosine, start | cosine, end |",
        "|---|---|---|---|---|---|",
    ]
    for name, by_time in pulls.items():
        for term, start in by_time["start"].items():
            end = by_time["end"][term]
            lines.append(
                f"| {name} | {term} | {start['norm']:.2f} | {end['norm']:.2f} | {start['cosine']:+.2f} | "
                f"{end['cosine']:+.2f} |"
            )
    return lines


def write(directory: str | pathlib.Path, results: Mapping[str, Any]) -> str:
    """Writes ``results.json`` (with its own hash, ``sha256``) and ``results.md``.

    Args:
      directory: the run's folder.
      results: as for ``markdown``; accuracies of trainings that diverged are null in the file.

    Returns:
      The Markdown.
    """
    text = markdown(results)  # first, so that incomplete results write no file
    write_rows(pathlib.Path(directory) / "results.json", results)
    files.write_text(pathlib.Path(directory) / "results.md", text)
    return text


def read(directory: str | pathlib.Path) -> dict[str, Any] | None:
    """Reads ``results.json`` of ``directory``; None if the file is absent or is not as ``write`` left it."""
    return read_rows(pathlib.Path(directory) / "results.json")


def write_rows(file: pathlib.Path, facts: Mapping[str, Any]) -> None:
    """Writes ``facts``, among them ``rows`` of ``rows_of``, as JSON with its own hash.

    Args:
      file: where.
      facts: JSON's own kinds; accuracies of trainings that diverged are null in the file.
    """
    # The hash tells results that were edited by hand, or cut, from those that a run may go on with.
    plain = files.plain({**facts, "rows": _without_nan(facts["rows"])})
    files.write_json(file, plain | {"sha256": files.hash_json(plain)})


def read_rows(file: pathlib.Path) -> dict[str, Any] | None:
    """Reads what ``write_rows`` wrote to ``file``; None if it is absent or is not as it was left."""
    # No error: results that cannot be read are made again.
    try:
        results = files.read_json(file)
    except (FileNotFoundError, ValueError):
        return None
    if not isinstance(results, dict) or results.pop("sha256", None) != files.hash_json(results):
        return None
    # Its hash says that it is whole, and not who wrote it: a folder may come from anywhere.
    if not isinstance(results.get("rows"), list) or not all(map(_is_row, results["rows"])):
        return None
    return {**results, "rows": _with_nan(results["rows"])}


def markdown(results: Mapping[str, Any]) -> str:
    """Writes the results as Markdown.

    Args:
      results: a dict of ``rows``, ``comparisons`` (of ``compare``), ``agreement`` (see ``agreement_lines``),
        ``whole_data`` (network -> accuracy on the split ``evaluated_on``), ``notes`` (lines on protocol, seeds and
        machine), ``repeats`` (see ``repeats``) and, where they were measured, ``gains`` (of ``scores.gains``),
        ``seconds`` (set -> seconds per step) and ``pulls`` (see ``pull_lines``).
    """
    parts = ["# Results", "", *results["notes"], "", *table_lines(results["rows"], repeats=results.get("repeats", {}))]
    if results["whole_data"]:
        whole = ", ".join(f"{net} {100 * value:.1f}" for net, value in results["whole_data"].items())
        where = results.get("evaluated_on", "test")
        parts += ["", f"Trained on the whole training split (percent on the {where} split): {whole}."]
    for comparison in results["comparisons"]:
        parts += ["", *comparison_lines(comparison)]
    if gained := scores.gain_lines(results.get("gains", {})):
        parts += ["", *gained]
    if spread := spread_lines(results["rows"]):
        parts += ["", *spread]
    if any(results["agreement"].values()):  # compared where there are two networks
        parts += ["", *agreement_lines(results["agreement"])]
    if results.get("pulls"):
        parts += ["", *pull_lines(results["pulls"])]
    if results.get("seconds"):
        timed = ", ".join(f"{name} {seconds:.3g}" for name, seconds in results["seconds"].items())
        parts += ["", f"Seconds a step (median over chunks, without compilation): {timed}."]
    return "\n".join(parts) + "\n"


def _without_nan(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Replaces NaN by None: JSON has no NaN, and ``json`` would write a word that other readers refuse."""
    return [{**row, "accuracies": [None if np.isnan(x) else x for x in row["accuracies"]]} for row in rows]


def _is_row(row: Any) -> bool:
    texts = ("set", "network", "role")
    return (
        isinstance(row, dict)
        and all(isinstance(row.get(name), str) for name in texts)
        and type(row.get("distill_seed")) is int
        and isinstance(row.get("accuracies"), list)
        and all(one is None or type(one) in (int, float) for one in row["accuracies"])
    )


def _with_nan(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{**row, "accuracies": [np.nan if x is None else x for x in row["accuracies"]]} for row in rows]
