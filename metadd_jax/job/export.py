"""Hand a distilled set on: NumPy, folders of pictures, the tensors of the peers' programs, archives of loaders.

metadd export runs/mnist5k/dm/seed0 --format png --out exported
metadd export runs/mnist5k/dm/seed0 --format ddranking --out judged
metadd export res.pt --dataset cifar10 --space standardised --out set.npz
metadd export runs/mnist5k/dm/seed0 --bundle dm.zip    (the set, all that its run knows of it, and a data card)
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Annotated, Any

from metadd_jax import exchange
from metadd_jax.exchange import peer, peers
from metadd_jax.job import bundle, common, judged, parsing
from metadd_jax.job.parsing import Mark
from metadd_jax.ranges import OneOf, Real, Whole

# What a file's name says; folders may have any.
_SUFFIXES: dict[str, tuple[str, ...]] = {".npz": ("npz",), ".safetensors": ("safetensors",)}
_SUFFIXES |= dict.fromkeys((".pt", ".pth"), ("torch", "tensordataset"))
# Each returns the share of the values that 8 bits clip, or None where nothing is lost.
_WRITERS: dict[str, Callable[..., float | None]] = {
    "npz": exchange.export_npz,
    "png": exchange.export_png_folder,
    "torch": exchange.export_torch,
    "mtt": exchange.export_tensors,
    "ddranking": lambda *args, **options: exchange.export_tensors(*args, names="ddranking", **options),
    "idc": exchange.export_packed,
    "sre2l": lambda *args, **options: exchange.export_pictures(*args, style="sre2l", **options),
    "rded": lambda *args, **options: exchange.export_pictures(*args, style="rded", **options),
    "huggingface": lambda *args, **options: exchange.export_pictures(*args, style="huggingface", **options),
    "webdataset": exchange.export_webdataset,
    "tfds": exchange.export_array_record,
    "frepo": exchange.export_regression,
    "safetensors": exchange.export_safetensors,
    "tensordataset": exchange.export_tensor_dataset,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Write a distilled set in another form.

    Attributes:
      file: synthetic.npz, or the folder that holds it.
      out: file (npz, torch, tensordataset, safetensors) or folder (all others) to write.
      bundle: in place of out: one file with the set, configuration, versions, metrics, results, pictures, hashes and a
        data card, which metadd evaluate judges again by its own protocol; the set must lie in its run's folder.
      format: exact: "npz", "safetensors", of PyTorch "torch" (DC, DSA, DM), "tensordataset", "mtt" (MTT, DATM:
        images_best.pt, labels_best.pt with soft labels as logits, lr_best.pt), "ddranking" (images.pt, labels.pt,
        lr.pt), "idc" (a packed set: data.pt, and decoded.pt in IDC's order), "frepo" (a Flax checkpoint of FRePo's and
        RCIG's, KIP's npz). 8 bits, the share that is clipped is printed: "png", "huggingface" (imagefolder with a data
        card), "webdataset" (tar), "tfds" (ArrayRecord), and as JPEG "sre2l" and "rded".
      overwrite: replace what is there.
      read: what the file is: "metadd", or of a peer's "dc", "mtt" and so on; "auto" goes by what is there. The options
        that follow speak of a peer's file, as those of metadd evaluate do (docs/formats.md).
      dataset: the real data that a peer's set was made from.
      data_dir: where prepared TFDS data lies.
      cache_dir: where decoded images are kept (default: ~/.cache/metadd_jax).
      space: how a peer's numbers are scaled: "pixels", "standardised", "zca", "zca_frepo".
      factor: how many cells a side each packed image holds.
      set: of a file with several sets "last" or a number from 0 on.
      file_labels: how a peer's labels [N, K] are read: "logits", "probabilities" or "hard".
      learning_rate: the step size learned with a peer's set.
      image_size: side that the real images are brought to.
    """

    file: Annotated[str, Mark.POSITIONAL]
    out: str | None = None
    bundle: str | None = None
    format: Annotated[str, OneOf(tuple(_WRITERS))] = "npz"
    overwrite: bool = False
    read: Annotated[str, OneOf(("auto", "metadd", *peers.FORMATS))] = "auto"
    dataset: str | None = None
    data_dir: str | None = None
    cache_dir: str | None = None
    space: str | None = None
    factor: Annotated[int | None, Whole(1)] = None
    set: str = "last"
    file_labels: Annotated[str | None, OneOf(peer.LABELS)] = None
    learning_rate: Annotated[float | None, Real(0, above=True)] = None
    image_size: Annotated[int | None, Whole(1)] = None


def run(arguments: list[str], *, program: str = "metadd export") -> None:
    """Parses the command line and writes.

    Args:
      arguments: the words of the command line.
      program: what the user typed before ``arguments``, for ``--help``.
    """
    config = parsing.parse(ExportConfig, arguments, program=program, description=__doc__)
    if config.bundle is not None and config.out is None:
        _bundle(config, pathlib.Path(config.bundle).expanduser())
        return
    if config.out is None or config.bundle is not None:
        raise ValueError(
            "say where to write it: --out PLACE for the set alone, or --bundle FILE.zip for all of its facts"
        )
    # The name says what the user wants; an .npz called .pt would be refused by whoever opens it.
    wanted = _SUFFIXES.get(pathlib.Path(config.out).suffix, (config.format,))
    if config.format not in wanted:
        raise ValueError(f"--out {config.out} is the name of another format; add --format {wanted[0]}, or rename it")
    synthetic, metadata = _load(config)
    stored = [_packed(pathlib.Path(config.file))] if config.format == "idc" else []
    clipped = _WRITERS[config.format](config.out, *stored, synthetic, metadata, overwrite=config.overwrite)
    note = "" if clipped is None else f"; 8 bits clipped {100 * clipped:.1f} % of the values"
    if clipped is not None and (synthetic.soft_labels is not None or synthetic.learning_rate is not None):
        note += ", and pictures hold neither soft labels nor a step size"
    print(f"wrote {config.out}{note}")


def _load(config: ExportConfig) -> tuple[Any, dict[str, Any]]:
    """The set and what is said beside it; of a peer's file in the value space of the data that is named."""
    source = judged.Source.of(config, format=config.read)
    if judged.is_ours(source):
        if source.said or config.dataset is not None:
            named = (source.said or ["--dataset"])[0]
            raise ValueError(f"{named} is for files of others; {config.file} says itself what it holds")
        return common.load_set(config.file)
    if config.set == "all":
        raise ValueError("--set all: one set is written at a time; give its number, or last")
    sets, _, lines, metadata = judged.load(
        source, dataset=config.dataset, data_dir=config.data_dir, cache_dir=config.cache_dir
    )
    for line in lines:
        print(line)
    return sets[0], metadata


def _bundle(config: ExportConfig, file: pathlib.Path) -> None:
    """Writes the bundle that ``config`` asks for."""
    place = pathlib.Path(config.file).expanduser()
    common.load_set(config.file)  # of a run's folder it names the sets
    names = bundle.write(file, place if place.is_dir() else place.parent, overwrite=config.overwrite)
    print(f"wrote {file}: {', '.join(names)}")


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
