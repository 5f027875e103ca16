"""Sets as TensorFlow Datasets keeps them: ArrayRecord of encoded pictures and class labels, without TensorFlow.

This module imports ``tensorflow_datasets`` where it is called; the rest of the library does without.
"""

from __future__ import annotations

import functools
import io
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from metadd_jax import structs
from metadd_jax.data import prepared
from metadd_jax.exchange import pixels
from metadd_jax.exchange.peer import Peer
from metadd_jax.storage import folder as folders

NAME = "distilled_set"
"""What TFDS calls the set: ``tfds.data_source("distilled_set", data_dir=...)``."""
_VERSION = "1.0.0"


def read(place: pathlib.Path) -> Peer:
    """Reads the training split of a prepared set of images and class labels.

    Args:
      place: the folder with ``dataset_info.json``, or the ``data_dir`` that ``export_array_record`` made.

    Raises:
      ValueError: if TFDS is missing, or the set is damaged or holds something else.
    """
    prepared_there = records_of(place)
    if prepared_there is None:
        raise ValueError(f"{place} holds no dataset_info.json of TFDS; give the folder that does")
    images, labels, names = prepared.read_split(prepared_there, "train")
    return Peer(
        source=place,
        format="tfds",
        images=images / np.float32(255),
        labels=labels,
        space="pixels",
        said={"class_names": [str(name) for name in names]},
    )


def records_of(folder: pathlib.Path) -> pathlib.Path | None:
    """Finds the folder with ``dataset_info.json``: ``folder`` itself or what our export made in it; None without one.

    Args:
      folder: any folder.
    """
    places = (folder, folder / NAME / _VERSION)
    return next((place for place in places if (place / "dataset_info.json").is_file()), None)


def export_array_record(
    directory: str | os.PathLike,
    synthetic: structs.SyntheticSet,
    metadata: dict[str, Any],
    *,
    overwrite: bool = False,
) -> float:
    """Writes ``distilled_set/1.0.0`` for TFDS: 8-bit PNG images and class labels, whole or not at all.

    ``tfds.data_source("distilled_set", data_dir=directory, split="train")`` reads it, with TensorFlow or without.

    Args:
      directory: the folder to make, a ``data_dir``.
      synthetic: the set, 1 or 3 channels.
      metadata: see ``checks.check_set``.
      overwrite: replace a folder that this function wrote.

    Returns:
      The share (0..1) of pixel values that 8 bits clip.

    Raises:
      ValueError: if TFDS is missing, the folder exists, or the set is unfit.
    """
    try:
        import tensorflow_datasets  # noqa: F401
    except ImportError as error:
        raise ValueError(f"an ArrayRecord needs TFDS ({error}); run: pip install tensorflow-datasets") from error
    eight, clipped = pixels.to_eight_bits(synthetic, metadata)
    pictures = list(zip(eight, np.asarray(synthetic.labels), strict=True))
    facts = {"shape": eight.shape[1:], "names": list(metadata["class_names"]), "pictures": pictures}
    with folders.whole_folder(directory, overwrite=overwrite) as partial, tempfile.TemporaryDirectory() as unused:
        builder = _builder()(facts=facts, data_dir=partial, file_format="array_record")
        # TFDS makes a folder for downloads even where there are none.
        builder.download_and_prepare(download_dir=unused)
        folders.seal(partial)
    return clipped


@functools.cache  # TFDS knows a class by its name, and takes each name once
def _builder() -> Any:
    import tensorflow_datasets as tfds

    class DistilledSet(tfds.core.GeneratorBasedBuilder):
        """A distilled set of pictures."""

        VERSION = tfds.core.Version(_VERSION)

        def __init__(self, *, facts: dict[str, Any], **options: Any) -> None:
            # Before TFDS's own __init__, which asks _info for the class names.
            self._facts = facts
            super().__init__(**options)

        def _info(self) -> Any:
            features = {
                "image": tfds.features.Image(shape=self._facts["shape"], encoding_format="png"),
                "label": tfds.features.ClassLabel(names=self._facts["names"]),
            }
            return tfds.core.DatasetInfo(
                builder=self,
                description=f"A distilled set of {len(self._facts['pictures'])} images.",
                features=tfds.features.FeaturesDict(features),
                supervised_keys=("image", "label"),
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
            del dl_manager
            return {"train": self._generate_examples()}

        def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
            for number, (image, label) in enumerate(self._facts["pictures"]):
                stream = io.BytesIO()
                pixels.picture(image).save(stream, "png")
                # TFDS passes bytes through; only arrays would send it to TensorFlow's encoders.
                yield number, {"image": stream.getvalue(), "label": int(label)}

    return DistilledSet
