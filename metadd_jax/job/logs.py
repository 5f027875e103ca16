"""Metrics of a job beside ``metrics.jsonl``: TensorBoard and Weights & Biases (``--log-to``)."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pathlib
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from metadd_jax import files, parallel, storage

PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}
BOARD = "tensorboard"  # in a set's folder
ID = "wandb.id"  # of the run that is gone on with, in a set's folder


def require(kinds: Sequence[str]) -> None:
    """Checks that what ``--log-to`` names is installed, before any work.

    Args:
      kinds: of ``PACKAGES``.

    Raises:
      ValueError: naming what to install.
    """
    for kind in kinds:
        if importlib.util.find_spec(PACKAGES[kind]) is None:
            raise ValueError(f"--log-to {kind} needs {PACKAGES[kind]}; run: pip install {PACKAGES[kind]}")


@contextlib.contextmanager
def opened(
    kinds: Sequence[str], folder: pathlib.Path, *, settings: Mapping[str, Any]
) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    """Gives a function that takes the metrics of a set's chunks, on the first process; on others one that forgets them.

    Args:
      kinds: of ``PACKAGES``.
      folder: of the set, RUN/SET/seedN.
      settings: facts to show beside the curves.

    Yields:
      A function of the steps done and their metrics, which are empty where a run goes on.
    """
    if not kinds or not parallel.is_main():
        yield lambda done, metrics: None
        return
    made: list[storage.TensorBoard | storage.WeightsAndBiases] = []
    # Whose first lines a killed start may have left.
    went_before = (folder / BOARD).is_dir()
    try:
        if "tensorboard" in kinds:
            made.append(storage.TensorBoard(folder / BOARD))
        if "wandb" in kinds:
            name = "/".join(folder.parts[-3:])
            made.append(storage.WeightsAndBiases(folder, name=name, key=_key(folder), settings=settings))
        begun = False

        def take(done: int, metrics: Mapping[str, float]) -> None:
            nonlocal begun
            if not begun and went_before:
                for one in made:
                    one.truncate_after(0 if metrics else done)
            begun = True
            if metrics:
                for one in made:
                    one.write(done, {f"distill/{name}": value for name, value in metrics.items()})

        yield take
    finally:
        for one in made:
            one.close()


def _key(folder: pathlib.Path) -> str:
    """The number of the set's run at Weights & Biases, the same for every start."""
    file = folder / ID
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        files.write_text(file, f"{secrets.token_hex(8)}\n")
    return file.read_text().strip()


def clear(folder: pathlib.Path) -> None:
    """Removes what was logged of a set in its folder; other files stay.

    Args:
      folder: of the set.
    """
    (folder / ID).unlink(missing_ok=True)
    for events in (folder / BOARD).glob("events.out.tfevents.*"):
        events.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # absent, or a file of the user's is in it
        os.rmdir(folder / BOARD)
