"""A network of one's own is held to the contract when it is made, in one line; a right one is taken."""

import jax
import numpy as np
import pytest
from flax import linen as nn

from metadd_jax import zoo
from metadd_jax.zoo import contract

SHAPE, CLASSES = (6, 6, 1), 3


class Own(nn.Module):
    """A convolution, the mean over space, one Linear; ``fault`` names what it does wrong."""

    fault: str = ""

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.relu(nn.Conv(4, (3, 3))(x))
        shifted = {"no perturb": lambda: x, "another name": lambda: self.perturb("maps", x)}
        maps = shifted.get(self.fault, lambda: self.perturb("map", x))()
        embedding = (x if self.fault == "beside" else maps).mean((1, 2))
        logits = nn.Dense(CLASSES + (self.fault == "head"))(embedding)
        if self.fault == "state":
            self.variable("memory", "steps", lambda: embedding)
        out = {"embedding": embedding, "map": maps.mean(3) if self.fault == "flat map" else maps}
        if self.fault == "embedding":
            del out["embedding"]
        if self.fault == "long embedding":
            out["embedding"] = maps
        return {"logits alone": logits, "one logit": (logits[0], out)}.get(self.fault, (logits, out))


class NeedsMore(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(CLASSES)(x.mean((1, 2))), {}


class Empty(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        return x.mean((1, 2)), {"embedding": x.mean((1, 2))}


def test_a_right_one_is_taken():
    net = zoo.Architecture("own", "own", Own(), CLASSES, SHAPE)
    assert net.has_map and net.map_shape == (6, 6, 4) and not net.has_batch_stats
    logits, out = net.apply(net.init(jax.random.key(0)), np.ones((2, *SHAPE), np.float32))
    assert logits.shape == (2, CLASSES) and out["embedding"].shape == (2, 4)


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (Own("head"), r"its logits are \(1, 4\) for 1 image; return \[1, 3\]"),
        (Own("one logit"), r"its logits are \(3,\)"),
        (Own("logits alone"), r"return \(logits, out\)"),
        (Own("embedding"), r'out\["embedding"\] is missing'),
        (Own("long embedding"), r'out\["embedding"\] has the shape \(1, 6, 6, 4\)'),
        (Own("flat map"), r'out\["map"\] has the shape \(1, 6, 6\); it must have 4'),
        (Own("no perturb"), r'out\["map"\] is not what self\.perturb'),
        (Own("another name"), r'out\["map"\] is not what self\.perturb'),
        (Own("beside"), r"its logits do not depend on self\.perturb"),
        (Own("state"), "it keeps 'memory'"),
        (NeedsMore(), r"it cannot be called as module\(images, train=False\)"),
        (Empty(), "it has no weights to train"),
    ],
)
def test_a_broken_one_is_refused_in_one_line(module, words):
    shape = (6, 6, CLASSES) if isinstance(module, Empty) else SHAPE
    with pytest.raises(ValueError, match=r"\Aown breaks the contract of a network: [^\n]*\Z") as refusal:
        zoo.Architecture("own", "own", module, CLASSES, shape)
    assert refusal.match(words)


@pytest.mark.parametrize("name", ["convnet", "alexnet", "vgg11", "resnet18", "googlenet", "lenet", "vit", "swin_t"])
def test_the_zoos_own_go_on_with_their_maps(name):
    """The check that only foreign modules pay for at every start."""
    net = zoo.create(name, CLASSES, (32, 32, 3))
    module = net.module
    variables = jax.eval_shape(lambda k, x: module.init_with_output(k, x, train=False), jax.random.key(0), _images())[1]
    contract.check_map(net.label, module, variables, jax.eval_shape(lambda: np.zeros((1, *net.map_shape))), _images())


def _images():
    return jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
