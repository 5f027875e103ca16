"""What the methods share whose backbone is a teacher: it is trained on the real images, or read from a file."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Annotated, Any, ClassVar

from metadd_jax import training, zoo
from metadd_jax.distillers.registry import Method, Progress
from metadd_jax.ranges import Text
from metadd_jax.structs import Dataset


@dataclasses.dataclass(frozen=True, kw_only=True)
class Taught(Method):
    """Settings of a method that reads the real images, or their statistics, through the trained backbone.

    Attributes:
      weights: a file of torchvision's weights (.safetensors or .pth) for the teacher, the backbone; None trains it.
    """

    weights: Annotated[str | None, Text("zoo.torchvision.load")] = None

    # Whatever the teacher made, judged networks may learn from its labels.
    teaches: ClassVar[bool] = True
    file_fields: ClassVar[tuple[str, ...]] = ("weights",)

    def check_network(self, net: zoo.Architecture) -> None:
        """Refuses weights of torchvision for a network that is not."""
        # Small images go through a stem of 3x3 and no pooling, whose shapes are other than torchvision's.
        if self.weights and net.geometry != "imagenet":
            raise ValueError(
                f"weights={self.weights} are torchvision's, but {net.label} at {net.image_shape} is the field's "
                "network; leave them out or use images of at least 128 pixels"
            )

    def backbone_variables(self, net: zoo.Architecture) -> Any:
        """Those of the file ``weights``."""
        return zoo.torchvision.load(net, self.weights) if self.weights else None

    def prepare(
        self,
        net: zoo.Architecture,
        dataset: Dataset,
        trained: training.Trained,
        cache: pathlib.Path,
        *,
        progress: Progress,
    ) -> Any:
        """Takes the trained backbone as the teacher: its ``params`` (and ``batch_stats``).

        Args:
          net: the backbone's architecture.
          dataset: the real data.
          cache: the folder of what need not be made twice.
          progress: called as (what, done, in all).
          trained: the backbone.
        """
        del net, dataset, cache, progress
        return trained.variables

    def stand_in(self, net: zoo.Architecture, variables: Any) -> Any:
        """Takes a teacher of random weights.

        Args:
          net: the backbone.
          variables: random ones of it.
        """
        del net
        return variables
