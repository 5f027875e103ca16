"""Networks of one's own by name: their options, what is refused, and that a changed one is never taken for the old."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from metadd_jax import data, training, zoo
from metadd_jax.training import pretrained
from metadd_jax.zoo import registry

SHAPE, CLASSES = (6, 6, 1), 3
SOURCE = """
from flax import linen as nn
import jax.numpy as jnp

def activation(x):
    return jnp.tanh(x)

class Net(nn.Module):
    num_classes: int
    width: int

    @nn.compact
    def __call__(self, images, *, train):
        x = self.perturb("map", activation(nn.Conv(self.width, (3, 3))(images)))
        embedding = x.mean((1, 2))
        return nn.Dense(self.num_classes)(embedding), {"embedding": embedding, "map": x}

def build(num_classes, image_shape, *, width=4, slope=1.0, wide=False, word="a"):
    return Net(num_classes, 2 * width if wide else width)
"""


class Own(nn.Module):
    """A Linear layer on the flattened images; ``training`` names what it does while it is trained."""

    num_classes: int
    width: int = 4
    start: nn.initializers.Initializer = nn.initializers.lecun_normal()
    training: str = ""

    @nn.compact
    def __call__(self, images, *, train):
        embedding = nn.Dense(self.width, kernel_init=self.start)(images.reshape(len(images), -1))
        if train and self.training == "dropout":
            embedding = nn.Dropout(0.5, deterministic=False)(embedding)
        if train and self.training == "state":
            self.variable("memory", "steps", lambda: embedding)
        if train and self.training == "arguments":
            embedding = nn.Dense(self.width)(embedding, embedding)
        return nn.Dense(self.num_classes)(embedding), {"embedding": embedding}


def local(num_classes):
    class Local(Own):
        pass

    return Local(num_classes)


@pytest.fixture(scope="module")
def dataset():
    images, labels = np.random.default_rng(0).random((9, *SHAPE)), np.arange(9) % CLASSES
    return data.from_arrays("three", images, labels, images, labels)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setattr(registry, "_OWN", {})


def load(text=SOURCE):
    """The module of a file of plugins, as another start or another run of a notebook's cell makes it."""
    space = {"__name__": "my_networks"}
    exec(text, space)
    return space


def test_a_registered_network_is_read_wherever_a_network_is():
    zoo.register("mynet", load()["build"])
    assert zoo.names()[-1] == "mynet"
    net = zoo.parse("mynet:width=2,wide=True", CLASSES, SHAPE)
    assert net.map_shape == (6, 6, 4) and net.label == "mynet:width=2,wide=True"
    assert net == zoo.create("mynet", CLASSES, SHAPE, wide=True, width=2) == zoo.parse(net.label, CLASSES, SHAPE)
    assert zoo.parse("mynet:width=4", CLASSES, SHAPE).label == "mynet"
    assert zoo.parse("mynet:compute=bfloat16", CLASSES, SHAPE).compute == "bfloat16"


def test_a_module_class_serves_as_builder_and_its_plain_fields_are_options():
    zoo.register("own", Own)
    assert zoo.parse("own:width=2", CLASSES, SHAPE).module == Own(CLASSES, width=2)
    with pytest.raises(
        ValueError, match=r"own has no option 'start'; its options are: width, training, compute, map_side$"
    ):
        zoo.parse("own:start=zeros", CLASSES, SHAPE)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("mynt", r"unknown network 'mynt' \(did you mean 'mynet'\?\); choose one of mlp, .*, mynet$"),
        ("mynet:widht=2", "mynet has no option 'widht'; its options are: width, slope, wide, word, compute, map_side$"),
        ("mynet:width=2.5", "mynet: width=2.5; give a whole number, such as 4$"),
        ("mynet:width=True", "mynet: width=True; give a whole number, such as 4$"),
        ("mynet:slope=steep", "mynet: slope=steep; give a number, such as 1.0$"),
        ("mynet:wide=1", "mynet: wide=1; give True or False, such as False$"),
        ("mynet:word=3", "mynet: word=3; give text, such as 'a'$"),
        ("mynet,mlp", "'mynet,mlp' names several networks"),
        ("mlp,mynet", "'mlp,mynet' names several networks"),
    ],
)
def test_a_typo_is_found_before_there_are_images(spec, words):
    zoo.register("mynet", load()["build"])
    for read in (zoo.check, lambda text: zoo.parse(text, CLASSES, SHAPE)):
        with pytest.raises(ValueError, match=words):
            read(spec)


def test_a_network_for_one_shape_alone_passes_the_check_and_is_refused_with_other_images():
    def build(num_classes, image_shape):
        if image_shape != SHAPE:
            raise zoo.SizeError(f"only {SHAPE}")
        return Own(num_classes)

    zoo.register("only", build)
    zoo.check("only")
    assert zoo.parse("only", CLASSES, SHAPE).num_classes == CLASSES
    with pytest.raises(zoo.SizeError, match=r"^only on 8x8x1 images: only \(6, 6, 1\)$"):
        zoo.parse("only", CLASSES, (8, 8, 1))


def test_the_zoo_itself_is_checked_without_images_too():
    zoo.check("vgg11:width=4")
    zoo.check("vit")
    with pytest.raises(ValueError, match="convnet has no option 'widht'"):
        zoo.check("convnet:widht=4")


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda num_classes: 3, "bad: build gives int; return the Linen module"),
        (local, "bad: build gives another module at each call"),
        (lambda num_classes: Own(num_classes, training="dropout"), "draws random numbers in training, and gets none"),
        (lambda num_classes: Own(num_classes, training="state"), r"cannot be called as module\(images, train=True\)"),
        (lambda num_classes: Own(num_classes, training="arguments"), r"module\(images, train=True\): .*argument"),
        (lambda num_classes: Own(num_classes + 1), r"its logits are \(1, 4\) for 1 image; return \[1, 3\]"),
    ],
)
def test_what_a_builder_must_give(build, words):
    zoo.register("bad", build)
    with pytest.raises(ValueError, match=words) as caught:
        zoo.create("bad", CLASSES, SHAPE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda width=3: Own(width), "build does not take num_classes"),
        (lambda num_classes, width: Own(num_classes), "build asks for 'width'; give this option a default"),
        (lambda num_classes, **options: Own(num_classes), r"build takes \*\*options; name every option"),
        (
            lambda num_classes, compute="fast": Own(num_classes),
            "build has an option 'compute', which all networks share",
        ),
    ],
)
def test_what_a_builder_must_take(build, words):
    with pytest.raises(ValueError, match=f"^network bad: {words}"):
        zoo.register("bad", build)
    assert "bad" not in zoo.names()


def test_a_name_is_given_once():
    build = load()["build"]
    zoo.register("mynet", build)
    zoo.register("mynet", build)
    zoo.register("mynet", load()["build"])  # the same file again
    with pytest.raises(
        ValueError, match=r"'mynet' is my_networks.build already, not .*Own; register one of them under"
    ):
        zoo.register("mynet", Own)
    with pytest.raises(ValueError, match="'resnet18' is one of metadd_jax"):
        zoo.register("resnet18", Own)
    for name in ("my-net", "a:b", "", "none"):
        with pytest.raises(ValueError, match="no network can be named"):
            zoo.register(name, Own)


def test_a_changed_builder_is_not_served_by_what_was_compiled_or_cached_for_the_old_one(dataset):
    apply = jax.jit(lambda net, variables, images: net.apply(variables, images)[0], static_argnums=0)
    recipe = training.Recipe(epochs=1)
    images = np.linspace(-1, 1, 2 * np.prod(SHAPE), dtype=np.float32).reshape(2, *SHAPE)
    found, keys = [], []
    for text in (SOURCE, SOURCE.replace("tanh", "sin"), SOURCE):
        zoo.register("mynet", load(text)["build"])
        net = zoo.create("mynet", CLASSES, SHAPE)
        variables = net.init(jax.random.key(0))
        found.append(np.asarray(apply(net, variables, images)))
        as_it_is_now = net.apply(variables, images)[0]
        np.testing.assert_allclose(found[-1], as_it_is_now, atol=1e-6)
        keys.append(pretrained.cache_key(net, dataset, recipe, 0))
    assert np.abs(found[0] - found[1]).max() > 1e-3
    np.testing.assert_array_equal(found[0], found[2])
    assert keys[0] == keys[2] != keys[1]  # "activation" is a function beside the class


def test_the_cache_key_holds_the_options_and_what_a_builder_closes_over(dataset):
    recipe = training.Recipe(epochs=1)

    def keyed(slope):
        # As in a notebook's cell that is run again with another number.
        space = {"__name__": "__main__", "nn": nn, "jnp": jnp, "slope": slope}
        exec(SOURCE.replace("jnp.tanh(x)", "jnp.tanh(slope * x)"), space)
        zoo.register("mynet", space["build"])
        return pretrained.cache_key(zoo.create("mynet", CLASSES, SHAPE), dataset, recipe, 0)

    assert keyed(1.0) == keyed(1.0) != keyed(2.0)
    zoo.register("own", Own)
    narrow, wide = (zoo.create("own", CLASSES, SHAPE, width=width) for width in (2, 4))
    assert pretrained.cache_key(narrow, dataset, recipe, 0) != pretrained.cache_key(wide, dataset, recipe, 0)
