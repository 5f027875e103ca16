"""The folder of a run: who is at work in it, which run it holds, what in it is ours."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeGuard

import numpy as np

from metadd_jax import augment, exchange, files, parallel, registries, storage, structs
from metadd_jax.distillers import starts
from metadd_jax.job import checks, command, logs, plugins, starting
from metadd_jax.job.options import DistillConfig
from metadd_jax.storage import folder as folders
from metadd_jax.training import views

# Of a run's folder: raise it when a run begun before a change would not go on as it began.
FORMAT = 3
# Settings that do not change a number: a run may go on under other values of these.
HOSTS = ("coordinator", "num_processes", "process_id")
FREE = (
    "run_dir", "overwrite", "plan", "time_limit", "log_to", "data_dir", "cache_dir", "at_once", "save_every", *HOSTS,
)  # fmt: skip
# What a run writes for each set, beside its checkpoints.
_OF_A_SET = (
    "metrics.jsonl", "synthetic.npz", "synthetic.json", "latents.npz", "latents.json", "synthetic.png", "packed.png",
    "maps.png", "maps.npz",
)  # fmt: skip
_SEED = re.compile(r"seed\d+")


def inspect(directory: pathlib.Path, config: DistillConfig) -> None:
    """Refuses a folder in which another run is at work, or that holds another one, something else, or damage.

    Changes nothing: what is refused later, such as a network of an unknown name, leaves the folder untaken.

    Args:
      directory: the run's folder.
      config: the settings of this start.

    Raises:
      ValueError: one line that says what to mend.
    """
    # Taken and given back at once: whether somebody is at work is to be known before the data are read.
    if not config.plan and (lock := _take(directory)):
        lock.release()
    _refuse(directory, config)
    if not config.overwrite:
        for folder in _seeds(directory):
            # A damaged checkpoint is refused by name and left as it is (docs/files.md).
            storage.Checkpointer(folder / "checkpoints").verify()


def claim(directory: pathlib.Path, config: DistillConfig, dataset: structs.Dataset) -> storage.Lock | None:
    """Takes an inspected folder: goes on in it, or starts anew; never removes what is not a run's.

    Args:
      directory: the run's folder.
      config: the settings of this start.
      dataset: the real data, which must be what the run began with.

    Returns:
      The lock to release when the work is done (the end of the process does it too); None on all processes but the
      first, which holds it for all.

    Raises:
      ValueError: as ``inspect``, if things have changed since.
    """
    # Nobody writes before all have looked: a process that is late would take this run's own files for another's.
    parallel.barrier("all processes have inspected it")
    lock = _take(directory)
    try:
        _refuse(directory, config)
        if not config.overwrite:
            checks.check_data(directory, dataset)
        parallel.barrier("all processes have inspected it again")
        if parallel.is_main():
            _tidy(directory)
            if config.overwrite:
                _clear(directory)
            if config.overwrite or not (directory / "config.json").exists():
                facts = {"data": checks.data_facts(dataset), "versions": command.versions()}
                files.write_json(directory / "config.json", {"format": FORMAT, "config": plain(config), **facts})
        parallel.barrier("it is taken")
    except BaseException:  # Ctrl-C too: the folder must be free for the next start
        if lock:
            lock.release()
        raise
    return lock


def _take(directory: pathlib.Path) -> storage.Lock | None:
    """The folder's lock, on the first process; all processes are refused together."""
    lock, refusal = None, f"another run is at work in {directory}"
    if parallel.is_main():
        try:
            lock = storage.Lock(directory / storage.LOCK)
        except storage.HeldError as error:
            refusal = f"{directory}: {error}; wait for it, or use another --run-dir"
    # Of all processes: where the first is refused, the others would wait for it for ever.
    if not parallel.from_main(np.int32(lock is not None)):
        raise ValueError(refusal)
    return lock


def _refuse(directory: pathlib.Path, config: DistillConfig) -> None:
    file = directory / "config.json"
    if not file.exists():
        # A start that was killed at once leaves a hidden file or two.
        if any(path.name != storage.LOCK and not files.is_temporary(path) for path in directory.iterdir()):
            raise ValueError(f"{directory} is not empty and holds no run; choose another --run-dir")
        return
    held, wanted = files.read_json(file), plain(config)
    if not isinstance(held, dict) or not isinstance(held.get("config"), dict):
        raise ValueError(f"{file} is not a run's config.json; choose another --run-dir")
    if config.overwrite:
        return
    # Never misread: a run of older code would not go on as it began.
    if held.get("format") != FORMAT:
        raise ValueError(
            f"{directory} was made by another version of metadd_jax (format {held.get('format', 1)}, this one writes "
            f"{FORMAT}); use another --run-dir, or --overwrite to start anew"
        )
    if differs := _difference({**held["config"], **{name: wanted[name] for name in FREE}}, wanted):
        raise ValueError(
            f"{directory} holds another run ({differs}); use another --run-dir, or --overwrite to start anew"
        )


def _difference(held: dict[str, Any], wanted: dict[str, Any], path: str = "") -> str:
    """The first setting that is another one, with both values; "" if there is none."""
    for name, value in wanted.items():
        was = held.get(name)
        if isinstance(was, dict) and isinstance(value, dict):
            if differs := _difference(was, value, f"{path}{name}."):
                return differs
        # The first difference is enough for one line; both values are in it.
        elif path + name == "plugin" and _are_plugins(was):
            if differs := _of_plugins(was, value):
                return differs
        elif was != value:
            return f"{path}{name} was {was!r}, now {value!r}"
    return ""


def _are_plugins(held: Any) -> TypeGuard[list[dict[str, str]]]:
    """Whether these are facts of plugins, as ``plugins.facts`` gives them; the file may hold anything."""
    return isinstance(held, list) and all(
        isinstance(one, dict) and all(isinstance(one.get(name), str) for name in ("file", "sha256")) for one in held
    )


def _of_plugins(held: list[dict[str, str]], wanted: list[dict[str, str]]) -> str:
    """What differs; a plugin counts by its text, wherever it lies."""
    was, now = ([(pathlib.Path(one["file"]).name, one["sha256"]) for one in every] for every in (held, wanted))
    if [text for _, text in was] == [text for _, text in now]:
        return ""
    names, others = ([name for name, _ in every] for every in (was, now))
    if names == others:
        changed = next(name for (name, before), (_, after) in zip(was, now, strict=True) if before != after)
        return f"the plugin {changed} had another text"
    return f"its plugins were {', '.join(names) or 'none'}, now {', '.join(others) or 'none'}"


def unwritten(
    directory: pathlib.Path, sets: Iterable[str], seeds: Iterable[int], *, latents: bool, pictures: Sequence[str]
) -> list[pathlib.Path]:
    """Lists the exported sets and pictures that are missing or damaged.

    Args:
      directory: the run's folder.
      sets: names of the distilled sets.
      seeds: their seeds.
      latents: whether there are latents beside each set.
      pictures: names of the pictures of each set.
    """
    found = []
    readers: dict[str, Callable[[pathlib.Path], Any]] = {"synthetic.npz": exchange.load_npz}
    if latents:
        readers["latents.npz"] = exchange.load_latents
    for folder in (directory / name / f"seed{seed}" for name in sets for seed in seeds):
        for name, read in readers.items():
            try:
                read(folder / name)
            # Damaged counts as missing: both are made anew from the checkpoint (docs/files.md).
            except (OSError, ValueError):
                found.append(folder / name)
        found += [folder / name for name in pictures if not (folder / name).is_file()]
    return found


def _seeds(directory: pathlib.Path) -> list[pathlib.Path]:
    """The folders of the sets that were begun."""
    return sorted(path for path in directory.glob("*/seed*") if _SEED.fullmatch(path.name) and path.is_dir())


def _tidy(directory: pathlib.Path) -> None:
    """Removes what killed starts were writing. Nobody else writes here: this run has the lock."""
    sets = _seeds(directory)
    for place in (directory, *sets, *(folder / "checkpoints" for folder in sets)):
        for path in place.glob(".*"):
            if files.is_temporary(path):
                files.discard(path)


def _clear(directory: pathlib.Path) -> None:
    """Removes a run's files, results first: killed on the way, the rest still is a run that can go on."""
    for name in ("report.html", "history.jsonl", "results.md", "results.json"):
        (directory / name).unlink(missing_ok=True)
    for folder in _seeds(directory):
        for step in (folder / "checkpoints").glob("step_*"):
            folders.remove(step)
        # By name: other files in the folder are the user's and stay.
        for name in _OF_A_SET:
            (folder / name).unlink(missing_ok=True)
        logs.clear(folder)
        for place in (folder / "checkpoints", folder, folder.parent):
            # Only what is empty: a folder with a file of the user's stays.
            if place.is_dir() and not any(place.iterdir()):
                place.rmdir()


def _facts(value: Any) -> Any:
    """Records as dictionaries; of augmentations of the user's own the hash of their code."""
    if isinstance(value, augment.Strategy):
        return views.facts(value)
    if dataclasses.is_dataclass(value):
        return {field.name: _facts(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return value


def _named_files(parameterisation: str) -> list[pathlib.Path]:
    """The files, such as a generator's weights, that the options in the text of a parameterisation name."""
    _, said = registries.read(parameterisation, kind="parameterisation")
    paths = [pathlib.Path(value).expanduser() for value in said.values() if isinstance(value, str)]
    # A file of weights ends in .safetensors; "trained" and "random" are words, whatever lies here under these names.
    return [path for path in paths if path.suffix and path.is_file()]


def plain(config: DistillConfig) -> dict[str, Any]:
    """Gives the settings of ``config`` as JSON; a file counts by what it holds."""
    found = files.plain(_facts(config))
    if config.own.start not in starts.INITS:
        place, _ = starts.place_of(config.own.start)
        found["own"]["init"] = f"{config.own.init} (SHA-256 {starting.content(place)})"
    for name in config.own.file_fields:
        file = getattr(config.own, name)
        if file and pathlib.Path(file).expanduser().exists():
            found["own"][name] = f"{file} (SHA-256 {starting.content(file)})"
    for file in _named_files(config.parameterisation):
        found["parameterisation"] += f" ({file.name}: SHA-256 {files.hash_file(file)})"
    found["plugin"] = plugins.facts(config.plugin)
    return found
