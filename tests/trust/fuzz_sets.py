"""A small set, the real data that it belongs to, and what is asked of whatever is read."""

import jax.numpy as jnp
import numpy as np

from metadd_jax import data, exchange, structs

NAMES = ["ant", "bee", "cow"]
FACTS = {"mean": [0.5, 0.4, 0.3], "std": [0.25, 0.2, 0.1], "class_names": NAMES, "value_space": "standardised"}
RNG = np.random.default_rng(3)
IMAGES = RNG.normal(size=(6, 4, 6, 3)).astype(np.float32)
LABELS = np.repeat(np.arange(3), 2)
SOFT = np.full((6, 3), 1 / 3, np.float32)


def real_data():
    pixels = RNG.integers(0, 256, (30, 4, 6, 3), np.uint8)
    facts = {"class_names": NAMES, "mean": FACTS["mean"], "std": FACTS["std"]}
    return data.from_arrays("pets", pixels, np.arange(30) % 3, pixels[:6], np.arange(6) % 3, **facts)


def made(**fields):
    return structs.SyntheticSet(images=jnp.asarray(IMAGES), labels=jnp.asarray(LABELS, jnp.int32), **fields)


def judged(real):
    """What ``metadd evaluate`` does with a peer's file before it trains."""

    def read(file):
        sets = []
        for peer in exchange.load_peer(file):
            space = None if peer.space else "standardised"
            exchange.space_of(peer, space)
            synthetic, facts = exchange.settle(peer, real, space=space)
            exchange.check_belongs(facts, real, other_data=True)
            sets.append(synthetic)
        return sets

    return read


def fit(found):
    """Sets that were taken, if they were not refused, are such as can be trained on."""
    for one in () if isinstance(found, Exception) else found:
        assert one.images.shape[1:] == (4, 6, 3) and np.isfinite(one.images).all()
        assert ((one.labels >= 0) & (one.labels < 3)).all()
