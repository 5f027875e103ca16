"""Hand a distilled set on: NumPy, PNG folders (ImageFolder layout) or the DC family's .pt file.

metadd export runs/mnist5k/dm/seed0 --format png --out exported
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Annotated

from metadd_jax import exchange
from metadd_jax.job import common, parsing
from metadd_jax.job.parsing import Mark
from metadd_jax.ranges import OneOf

_FORMATS = {".npz": "npz", ".pt": "torch", ".pth": "torch"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Write a distilled set in another form.

    Attributes:
      file: synthetic.npz, or the folder that holds it.
      out: file (npz, torch) or folder (png) to write.
      format: "npz" (float32, exact), "png" (8 bits: clips, the share is printed) or "torch" (needs PyTorch).
      overwrite: replace what is there.
    """

    file: Annotated[str, Mark.POSITIONAL]
    out: str
    format: Annotated[str, OneOf(("npz", "png", "torch"))] = "npz"
    overwrite: bool = False


def run(arguments: list[str], *, program: str = "metadd export") -> None:
    """Parses the command line and writes.

    Args:
      arguments: the words of the command line.
      program: what the user typed before ``arguments``, for ``--help``.
    """
    config = parsing.parse(ExportConfig, arguments, program=program, description=__doc__)
    # The name says what the user wants; an .npz called .pt would be refused by whoever opens it.
    wanted = _FORMATS.get(pathlib.Path(config.out).suffix, config.format)
    if wanted != config.format:
        raise ValueError(f"--out {config.out} is the name of another format; add --format {wanted}, or rename it")
    synthetic, metadata = common.load_set(config.file)
    note = ""
    if config.format == "png":
        clipped = exchange.export_png_folder(config.out, synthetic, metadata, overwrite=config.overwrite)
        note = f"; 8 bits clipped {100 * clipped:.1f} % of the values"
    else:
        write = exchange.export_npz if config.format == "npz" else exchange.export_torch
        write(config.out, synthetic, metadata, overwrite=config.overwrite)
    print(f"wrote {config.out}{note}")
