"""One file that holds a distilled set and all that is known of it.

A bundle is a zip whose members are stored as they are, so that nothing unpacks to more than the file holds.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import pathlib
import tempfile
import zipfile
from typing import Any

import numpy as np

import metadd_jax as mdd
from metadd_jax import exchange, files
from metadd_jax.evaluation import report
from metadd_jax.exchange import checks
from metadd_jax.job import data_card

FORMAT = 1
MANIFEST = "bundle.json"
_OF_A_SET = (
    "synthetic.npz", "synthetic.json", "latents.npz", "latents.json", "metrics.jsonl", "synthetic.png", "packed.png",
    "maps.png", "maps.npz",
)  # fmt: skip
_RESULTS = ("results.json", "cell.json")  # of a run, or of a cell of a study
_KNOWN = frozenset({*_OF_A_SET, "README.md", "config.json", "results.json", MANIFEST})
# Places on the machine that made it: nobody else's business, and no number depends on them.
_PLACES = ("run_dir", "data_dir", "cache_dir", "coordinator", "process_id", "plugin")


@dataclasses.dataclass(frozen=True)
class Bundle:
    """What a bundle holds: the set, its metadata, and its manifest (name, seed, rows, config, versions)."""

    synthetic: mdd.SyntheticSet
    metadata: dict[str, Any]
    manifest: dict[str, Any]


def write(file: pathlib.Path, folder: pathlib.Path, *, overwrite: bool = False) -> list[str]:
    """Writes the bundle of a set of a run; the same files give the same bytes but for the moment.

    Args:
      file: the zip to write.
      folder: of the set, ``runs/mnist5k/dm/seed0``.
      overwrite: replace a bundle that lies there.

    Returns:
      The names of what is in it.

    Raises:
      ValueError: if the folder is none of a run's set, or ``file`` may not be replaced.
    """
    checks.refuse_existing(file, overwrite=overwrite, is_ours=is_bundle)
    config, versions, rows, results = _of_run(folder)
    _, metadata = exchange.load_npz(folder / "synthetic.npz")  # proves it whole
    members = {name: (folder / name).read_bytes() for name in _OF_A_SET if (folder / name).is_file()}
    members["config.json"] = _json(config)
    if results is not None:
        members["results.json"] = results
    members["README.md"] = data_card.card(metadata, config, rows).encode()
    manifest = {
        "format": FORMAT,
        "kind": "metadd_jax bundle",
        "set": folder.parent.name,
        "seed": metadata.get("seed"),
        "config": config,
        "rows": [{**row, "accuracies": [None if np.isnan(x) else x for x in row["accuracies"]]} for row in rows],
        "versions": versions,
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "files": {name: {"sha256": _hash(held), "bytes": len(held)} for name, held in sorted(members.items())},
    }
    with files.atomic_path(file) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for name, held in [(MANIFEST, _json(manifest)), *sorted(members.items())]:
            archive.writestr(zipfile.ZipInfo(name), held)
    return [MANIFEST, *sorted(members)]


def _of_run(folder: pathlib.Path) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]], bytes | None]:
    """Configuration, versions and rows of a set's run or its cell of a study, and its results as they lie there."""
    run = folder.resolve().parent.parent
    if not (run / "config.json").is_file():
        raise ValueError(f"{run} holds no run (config.json), so nothing is known of how {folder} was made and judged")
    held = files.read_json(run / "config.json")
    config = {name: value for name, value in held["config"].items() if name not in _PLACES}
    for file in _RESULTS:
        if found := report.read_rows(run / file):
            seed = int(folder.resolve().name.removeprefix("seed"))
            rows = [
                row
                for row in found["rows"]
                if (row["set"], row["distill_seed"]) == (folder.resolve().parent.name, seed)
            ]
            return config, held["versions"], rows, (run / file).read_bytes()
    return config, held["versions"], [], None


def is_bundle(file: str | pathlib.Path) -> bool:
    """Tells a bundle by its manifest, whatever it is called."""
    if not pathlib.Path(file).is_file():
        return False
    try:
        with zipfile.ZipFile(file) as archive:
            return MANIFEST in archive.namelist()
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return False


def read(file: str | pathlib.Path) -> Bundle:
    """Reads a bundle and proves every file in it whole.

    Args:
      file: what ``write`` wrote.

    Raises:
      ValueError: in one line, if it is damaged, changed or foreign; nothing is written but in a folder that goes again.
    """
    members = _members(pathlib.Path(file))
    try:
        manifest = json.loads(members.pop(MANIFEST))
        if manifest["format"] != FORMAT:
            raise ValueError(f"format {manifest['format']!r}, this version reads {FORMAT}")
        told = {name: facts["sha256"] for name, facts in manifest["files"].items()}
        rows, config = manifest["rows"], manifest["config"]
        if not isinstance(config, dict) or not isinstance(manifest["versions"], dict):
            raise ValueError("config or versions are no records")
        manifest["rows"] = [
            {
                **row,
                "network": str(row["network"]),
                "accuracies": [np.nan if x is None else float(x) for x in row["accuracies"]],
            }
            for row in rows
        ]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{file} has a {MANIFEST} that cannot be read ({error}); get it again") from error
    found = {name: _hash(held) for name, held in members.items()}
    if found != told:
        differs = sorted(name for name in {*found, *told} if found.get(name) != told.get(name))
        raise ValueError(f"{differs[0]} in {file} is not what {MANIFEST} tells (SHA-256); get the bundle again")
    with tempfile.TemporaryDirectory() as place:
        for name in ("synthetic.npz", "synthetic.json"):
            if name not in members:
                raise ValueError(f"{file} holds no {name}; get the bundle again")
            (pathlib.Path(place) / name).write_bytes(members[name])
        try:
            synthetic, metadata = exchange.load_npz(pathlib.Path(place) / "synthetic.npz")
        except ValueError as error:  # it would name a file that is gone again
            raise ValueError(f"{file}: {str(error).replace(f'{place}/', '')}") from error
    return Bundle(synthetic, metadata, manifest)


def _members(file: pathlib.Path) -> dict[str, bytes]:
    try:
        with zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
            odd = [one for one in infos if one.filename not in _KNOWN or one.compress_type != zipfile.ZIP_STORED]
            # Only names of ours, and stored: no path leads out, and nothing is larger than the file.
            if odd or len({one.filename for one in infos}) < len(infos):
                raise ValueError("it holds what no bundle does" + (f", {odd[0].filename[:80]!r}" if odd else ""))
            if sum(one.file_size for one in infos) > file.stat().st_size:
                raise ValueError("its members claim to be larger than the file")
            return {one.filename: archive.read(one) for one in infos}
    except (OSError, ValueError, RuntimeError, EOFError, zipfile.BadZipFile, NotImplementedError) as error:
        raise ValueError(f"{file} is no readable bundle ({' '.join(str(error).split())}); get it again") from error


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
