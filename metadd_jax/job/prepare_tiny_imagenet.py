"""Prepare Tiny-ImageNet for the other scripts: from the original download to an ArrayRecord, without TensorFlow.

metadd prepare_tiny_imagenet tiny-imagenet-200.zip --data-dir ~/tensorflow_datasets
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

from metadd_jax.job import parsing
from metadd_jax.job.parsing import Mark


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Prepare Tiny-ImageNet once; then `--dataset tiny_imagenet` works with the same --data-dir.

    Attributes:
      source: tiny-imagenet-200.zip, or the folder that it unpacks to.
      data_dir: where prepared TFDS data lies (default: $TFDS_DATA_DIR, or else ~/tensorflow_datasets).
    """

    source: Annotated[str, Mark.POSITIONAL]
    data_dir: str | None = None


def run(arguments: list[str], *, program: str = "metadd prepare_tiny_imagenet") -> None:
    """Parses the command line and prepares.

    Args:
      arguments: the words of the command line.
      program: what the user typed before ``arguments``, for ``--help``.
    """
    config = parsing.parse(PrepareConfig, arguments, program=program, description=__doc__)
    try:
        from metadd_jax.data import tiny_imagenet
    except ImportError as error:
        raise ValueError(
            f"preparing needs TensorFlow Datasets ({error}); run: pip install 'metadd_jax[experiments]'"
        ) from error

    print(f"wrote {tiny_imagenet.prepare(config.source, config.data_dir)}")
