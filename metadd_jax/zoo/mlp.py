"""The multi-layer perceptron: no spatial map."""

from __future__ import annotations

from typing import Any

import jax
from flax import linen as nn

from metadd_jax.zoo import layers


class MLP(nn.Module):
    """Flatten, two hidden layers with ReLU, one Linear (DC's ``MLP``).

    411,146 parameters on CIFAR-10, 118,282 on MNIST, as in DC's program.

    Attributes:
      num_classes: K.
      width: size of both hidden layers.
    """

    num_classes: int
    width: int = 128

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> tuple[jax.Array, dict[str, Any]]:
        del train
        x = layers.flatten(x)
        x = nn.relu(layers.linear(x, self.width, name="fc1"))
        x = nn.relu(layers.linear(x, self.width, name="fc2"))
        # No "map": a class activation map of an MLP is refused (``Architecture.map_shape``), and it can be judged on.
        return layers.linear(x, self.num_classes, name="head"), {"embedding": x}
