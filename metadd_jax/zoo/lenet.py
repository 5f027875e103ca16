"""LeNet-5 (LeCun et al. 1998) as the DC family uses it: with ReLU and max pools."""

from __future__ import annotations

from typing import Any

import jax
from flax import linen as nn

from metadd_jax.zoo import layers


class LeNet(nn.Module):
    """6 filters 5x5, max pool, 16 filters 5x5, max pool, Linear 120 and 84, head; ReLU, no norm.

    Images of 28x28x1 get padding 2 in the first convolution, others none. 62,006 parameters on CIFAR-10, 61,706 on
    MNIST, as in DC's program.

    Attributes:
      num_classes: K.
    """

    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> tuple[jax.Array, dict[str, Any]]:
        del train
        padding, least = 2 if layers.is_grey_28(x) else 0, layers.least_map_side(x)
        x = nn.relu(layers.Conv(6, 5, padding=padding, name="conv1")(x))
        x = layers.pool(x, "max")
        x = nn.relu(layers.Conv(16, 5, name="conv2")(x))
        # The stages are the second convolution before and after its pooling: the last spatial map, as fine as need be.
        on_pooled = layers.map_stage(layers.halvings(x, 1), least) == 1
        if on_pooled:
            x = layers.pool(x, "max")
        x = maps = self.perturb("map", x)
        if not on_pooled:
            x = layers.pool(x, "max")
        x = layers.flatten(x)
        x = nn.relu(layers.linear(x, 120, name="fc1"))
        x = nn.relu(layers.linear(x, 84, name="fc2"))
        return layers.linear(x, self.num_classes, name="head"), {"embedding": x, "map": maps}
