"""A data set of 34 pictures, a network of 4 channels and two frozen ones, shared by the distillers' tests."""

import jax
import numpy as np
import pytest

from metadd_jax import data, distillers, zoo

SHAPE = (8, 8, 1)
COUNTS = (20, 5, 9)  # one class is smaller than the batches of 8


@pytest.fixture(scope="session")
def tiny():
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(np.arange(3), COUNTS))
    # Classes differ in brightness, so that there is something to match.
    images = rng.integers(0, 120, (len(labels), *SHAPE)) + 60 * labels[:, None, None, None]
    return data.from_arrays("tiny", images.astype(np.uint8), labels, images[:7].astype(np.uint8), labels[:7])


@pytest.fixture(scope="session")
def net():
    return make_net("convnet:width=4,depth=1")


def make_net(spec):
    return zoo.parse(spec, num_classes=3, image_shape=SHAPE)


@pytest.fixture(scope="session")
def auxiliaries(tiny):
    nets = [make_net("convnet:width=4,depth=1"), make_net("convnet_bn:width=6,depth=1")]
    return [distillers.freeze(net, net.init(jax.random.key(seed)), tiny) for seed, net in enumerate(nets, start=10)]
