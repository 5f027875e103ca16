"""Metrics of a run as JSON lines: one object a step, readable during the run and after it was killed."""

from __future__ import annotations

import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from metadd_jax import files


class JsonLines:
    """Appends one line of metrics a step to a file, e.g. ``{"step": 100, "distill/loss": 0.25}``.

    Args:
      path: the file; it and its folder are made when first written to.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path).expanduser().absolute()

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Appends the metrics of a step.

        Args:
          step: updates done so far.
          metrics: scalars by name; names are paths ("distill/loss"). Values that are not finite are written as the
            strings "nan", "inf" and "-inf": JSON has no such numbers.
        """
        line = {"step": int(step)} | {name: _plain(float(value)) for name, value in metrics.items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # One write call of one whole line: a killed process tears at most the last line.
        with files.full_disk_as_such(self.path), open(self.path, "a") as stream:
            stream.write(json.dumps(line, allow_nan=False) + "\n")

    def read(self) -> list[dict[str, Any]]:
        """Reads every whole line, oldest first; a torn last line is left out.

        Returns:
          One dictionary a line: "step", and the metrics as floats ("nan" and "inf" too).

        Raises:
          ValueError: naming the first line that is not a JSON object with a step.
        """
        return [line for _, line in self._lines()]

    def truncate_after(self, step: int) -> None:
        """Drops the lines of later steps and a torn last line: what a resumed run writes anew.

        Args:
          step: of the checkpoint that the run goes on from.

        Raises:
          ValueError: as ``read``; the file is left as it was.
        """
        if self.path.exists():
            kept = [text for text, line in self._lines() if line["step"] <= step]
            files.write_text(self.path, "".join(kept))

    # With its text, so that a file that is cut keeps the other lines to the byte.
    def _lines(self) -> list[tuple[str, dict[str, Any]]]:
        if not self.path.exists():
            return []
        # Bytes that are no text are replaced: an error of the decoder would name a byte, _parse names the line.
        texts = self.path.read_bytes().decode(errors="replace").splitlines(keepends=True)
        if texts and not texts[-1].endswith("\n"):
            texts.pop()
        return [(text, self._parse(number, text)) for number, text in enumerate(texts, start=1)]

    def _parse(self, number: int, text: str) -> dict[str, Any]:
        try:
            line = json.loads(text)
            return {"step": int(line.pop("step"))} | {name: float(value) for name, value in line.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{self.path} line {number} is no metrics line; mend or move the file away") from error


class NoMetrics:
    """Takes metrics and keeps none, so that a loop needs no ``if``."""

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Forgets the metrics of ``step``, as ``JsonLines.write`` takes them."""

    def truncate_after(self, step: int) -> None:
        """Has nothing to drop after ``step``."""


class TensorBoard:
    """Writes the same metrics as TensorBoard events: ``distil(..., on_chunk=TensorBoard(directory).write)``.

    Args:
      directory: the folder of the event files; made where it is absent.

    Raises:
      ValueError: if tensorboardX is not installed.
    """

    def __init__(self, directory: str | os.PathLike):
        try:
            import tensorboardX
        except ImportError as error:
            raise ValueError("TensorBoard events need tensorboardX; run: pip install tensorboardX") from error
        self._directory = str(directory)
        self._make_writer = tensorboardX.SummaryWriter
        self._writer = self._make_writer(self._directory)

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Writes the metrics of a step, so that a page that is open shows them.

        Args:
          step: updates done so far.
          metrics: scalars by name, as ``JsonLines.write`` takes them.
        """
        for name, value in metrics.items():
            self._writer.add_scalar(name, float(value), int(step))
        self._writer.flush()  # tensorboardX would keep events for two minutes

    def truncate_after(self, step: int) -> None:
        """Hides the events of later steps.

        Args:
          step: of the checkpoint that the run goes on from.
        """
        # Events cannot be taken out of a file; TensorBoard drops the later ones when it meets this mark.
        self._writer.close()
        self._writer = self._make_writer(self._directory, purge_step=int(step) + 1)

    def close(self) -> None:
        """Ends the file of events."""
        self._writer.close()


class WeightsAndBiases:
    """Sends the same metrics to Weights & Biases, or keeps them for ``wandb sync`` (``WANDB_MODE=offline``).

    Args:
      directory: where the files of wandb go, in a folder ``wandb``.
      name: what the run is called there.
      key: the run's identity: a second start under it goes on in the same curves.
      settings: facts that stand beside them.

    Raises:
      ValueError: if wandb is not installed.
    """

    def __init__(self, directory: str | os.PathLike, *, name: str, key: str, settings: Mapping[str, Any]):
        try:
            import wandb
        except ImportError as error:
            raise ValueError("Weights & Biases needs wandb; run: pip install wandb") from error
        project = os.environ.get("WANDB_PROJECT", "metadd_jax")
        pathlib.Path(directory).mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            dir=str(directory), project=project, name=name, id=key, resume="allow", config=dict(settings)
        )

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Sends the metrics of a step.

        Args:
          step: updates done so far.
          metrics: scalars by name, as ``JsonLines.write`` takes them.
        """
        self._run.log({name: float(value) for name, value in metrics.items()}, step=int(step))

    def truncate_after(self, step: int) -> None:
        """Has nothing to drop after ``step``: what is sent stays, and a run that goes on sends the same once more."""

    def close(self) -> None:
        """Ends the run there."""
        self._run.finish()


def _plain(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
