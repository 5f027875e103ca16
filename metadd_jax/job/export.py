"""Hand a distilled set on: NumPy, PNG folders (ImageFolder layout), the DC family's .pt file, MTT's or IDC's tensors.

metadd export runs/mnist5k/dm/seed0 --format png --out exported
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Annotated, Any

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
      out: file (npz, torch) or folder (png, mtt, idc) to write.
      format: "npz" (float32, exact), "png" (8 bits: clips, the share is printed), or of PyTorch "torch" (DC, DSA, DM),
        "mtt" (MTT, DATM: images_best.pt, labels_best.pt with soft labels as logits, lr_best.pt) or "idc" (a packed
        set: data.pt, and decoded.pt in IDC's order).
      overwrite: replace what is there.
    """

    file: Annotated[str, Mark.POSITIONAL]
    out: str
    format: Annotated[str, OneOf(("npz", "png", "torch", "mtt", "idc"))] = "npz"
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
    elif config.format == "mtt":
        exchange.export_tensors(config.out, synthetic, metadata, overwrite=config.overwrite)
    elif config.format == "idc":
        stored = _packed(pathlib.Path(config.file))
        exchange.export_packed(config.out, stored, synthetic, metadata, overwrite=config.overwrite)
    else:
        write = exchange.export_npz if config.format == "npz" else exchange.export_torch
        write(config.out, synthetic, metadata, overwrite=config.overwrite)
    print(f"wrote {config.out}{note}")


def _packed(file: pathlib.Path) -> Any:
    """The packed images that lie beside a set.

    Raises:
      ValueError: if the set is not packed, or was decoded from something else than packed images.
    """
    place = (file if file.is_dir() else file.parent) / "latents.npz"
    if not place.is_file():
        raise ValueError(f"{place} is missing, so the set is not packed; distil with --parameterisation factor2")
    latents, facts = exchange.load_latents(place)
    if "factor" not in facts:
        raise ValueError(f"{place} holds latents of {facts['parameterisation']}, and IDC's file packed images alone")
    return latents
