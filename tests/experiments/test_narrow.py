"""How far bfloat16 turns MetaDD's gradient: the comparison by hand, and two networks in both types."""

import numpy as np
import pytest

import narrow
from metadd_jax import data, features, zoo


def test_gradients_are_compared_as_by_hand():
    wide = np.array([[3.0, 4.0], [0.0, 1.0]]).reshape(2, 1, 2, 1)
    turned = np.array([[6.0, 8.0], [2.0, 0.0]]).reshape(2, 1, 2, 1)  # twice as long, the second by a right angle
    assert narrow.compare(wide, turned) == pytest.approx((25 / 26, 2.0, 0.5))


def test_networks_in_bfloat16_turn_it_a_little():
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 1), np.uint8)
    dataset = data.from_arrays("noise", images, np.arange(12) % 3, images, np.arange(12) % 3)
    x, labels = data.standardise(images, dataset.train.mean, dataset.train.std), np.arange(12) % 3
    sides = []
    for word in ("", ",compute=bfloat16"):
        nets = [zoo.parse(f"convnet:depth=1,width={width}{word}", 3, (8, 8, 1)) for width in (4, 6)]
        frozen = [features.freeze(net, net.init(narrow.jax.random.key(7)), dataset) for net in nets]
        sides.append(narrow.gradients(frozen, x, labels))
    assert set(sides[0]) == {"ai", "pos", "var"}
    for term, wide in sides[0].items():
        cosine, length, _ = narrow.compare(wide, sides[1][term])
        assert 0.9 < cosine < 1 - 1e-9 and length == pytest.approx(1, abs=0.1), term
