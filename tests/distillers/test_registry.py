"""Methods by name; what their records refuse, fill in and count; and a method of one's own."""

import ast
import dataclasses
import pathlib
from typing import Annotated, ClassVar

import jax
import members
import numpy as np
import pytest

from metadd_jax import augment, distillers, training
from metadd_jax.distillers import class_images
from metadd_jax.ranges import Real

NET = members.make_net("convnet:width=4,depth=1")
NORMED = members.make_net("convnet_bn:width=4,depth=1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shrink(distillers.Method):
    """Pulls all images towards zero, at so much a step."""

    group: ClassVar[str] = "shrink"
    pull: Annotated[float, Real(0)] = 1.0

    def make(self, net, counts, given=None, *, repeat=False):
        def init(key, dataset):
            return class_images.initial(key, dataset, net, counts=counts, init=self.start, repeat=repeat), ()

        def loss(key, synthetic, aux, batch, frozen, *, axis_name=None):
            return self.pull * (synthetic["images"] ** 2).sum() / 2, (aux, {})

        return distillers.Distiller(
            name="shrink",
            init=init,
            sample=lambda key, data, step, *, axis_name=None: (),
            loss=loss,
            refresh=lambda key, synthetic, aux, step, frozen: aux,
            decode=lambda synthetic, aux, frozen: class_images.as_set(synthetic["images"], counts),
        )


@pytest.fixture
def registered():
    distillers.register("shrink", Shrink)
    yield distillers.get("shrink")
    distillers.registry._METHODS.pop("shrink")


def test_every_method_has_its_name_and_its_own_record():
    every = {"dm", "dc", "dsa", "sre2l", "mtt", "tesla", "tesla_code", "datm", "datm_tesla", "rded", "ncfm", "idc"}
    assert set(distillers.names()) == every
    assert distillers.get("dm") == distillers.DM() and distillers.get("dsa") == distillers.DSA()
    assert distillers.get("tesla_code") == distillers.TESLA(variant="code")
    groups = {distillers.get(name).group for name in distillers.names()}
    assert groups == {"dm", "dc", "mtt", "sre2l", "datm", "rded", "ncfm", "idc"}


def test_an_unknown_name_is_told_its_nearest_and_a_taken_one_stays(registered):
    with pytest.raises(ValueError, match=r"unknown method 'dcc' \(did you mean 'dc'\?\); use one of .*\bdc, .*shrink$"):
        distillers.get("dcc")
    distillers.register("shrink", Shrink)  # its file is run once more
    with pytest.raises(ValueError, match=r"the method 'dm' is .*DM already"):
        distillers.register("dm", Shrink)
    with pytest.raises(ValueError, match=r"must be a registry\.Method"):
        distillers.register("other", dict)
    with pytest.raises(ValueError, match="can be named 'my method'"):
        distillers.register("my method", Shrink)


def test_a_method_of_ones_own_distils_and_is_wrapped(registered):
    """Gradient descent on |x|^2 / 2 multiplies by 1 - learning rate x pull; MetaDD adds its terms to that."""
    dataset, settings = members.tiny(), dataclasses.replace(registered, pull=2.0)
    method = settings.make(NET, (2, 2, 2))
    tx = settings.optimiser(0.1, 0.0, 3, dataset)
    state = distillers.init_state(jax.random.key(0), method, tx, dataset)
    after = state
    for _ in range(3):
        after, _ = distillers.make_update(method, tx)(after, dataset.train, method.frozen)
    np.testing.assert_allclose(
        after.synthetic["images"], 0.8**3 * np.asarray(state.synthetic["images"]), rtol=1e-5, atol=1e-6
    )
    wrapped = members.wrapped(members.auxiliaries(dataset), over=method, weighting="raw")
    state = distillers.init_state(jax.random.key(0), wrapped, tx, dataset)
    assert wrapped.name == "shrink+metadd" and set(state.aux["weights"]) == {"ai", "pos", "var"}
    assert settings.flops(10.0, (2, 1)) == 90 and settings.describe() == "pull 2.0"
    with pytest.raises(ValueError, match="pull=-1 must be"):
        dataclasses.replace(settings, pull=-1)


def test_settings_and_changes_make_the_same_method():
    """A record, its fields as keywords, and keywords over a record."""
    made = [
        distillers.dm(NET, ipc=2, batch_size=8, augmentation="flip"),
        distillers.dm(NET, ipc=2, settings=distillers.DM(batch_size=8, augmentation="flip")),
        distillers.dm(NET, ipc=2, settings=distillers.DM(batch_size=9, augmentation="flip"), batch_size=8),
        distillers.dm(NET, ipc=2, batch_size=8, augmentation=augment.strategy("flip")),
        distillers.DM(batch_size=8, augmentation="flip").make(NET, (2, 2, 2)),
    ]
    dataset, images = members.tiny(), []
    for method in made:
        state = distillers.init_state(jax.random.key(0), method, members.TX, dataset)
        state, _ = jax.jit(distillers.make_update(method, members.TX))(state, dataset.train, method.frozen)
        images.append(np.asarray(state.synthetic["images"]))
    for other in images[1:]:
        np.testing.assert_array_equal(other, images[0])
    with pytest.raises(TypeError, match="batch_sizes"):
        distillers.dm(NET, ipc=2, batch_sizes=8)


def test_a_strategy_of_ones_own_is_what_both_sides_are_seen_through():
    """Always mirrored is the loss of mirrored images that nothing is done to; and inner trainings take it as well."""
    always = dataclasses.replace(augment.strategy("flip"), flip_probability=1.0)
    dataset = members.tiny()
    mirrored, plain = members.base(augmentation=always), members.base(augmentation="none")
    synthetic, aux = plain.init(jax.random.key(1), dataset)
    batch = plain.sample(jax.random.key(2), dataset.train, 0)
    turned = {"images": synthetic["images"][:, :, ::-1]}, {**batch, "images": batch["images"][:, :, :, ::-1]}
    losses = [
        float(jax.jit(method.loss)(jax.random.key(3), images, aux, real, ())[0])
        for method, images, real in ((mirrored, synthetic, batch), (plain, *turned))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    untouched = float(jax.jit(plain.loss)(jax.random.key(3), synthetic, aux, batch, ())[0])
    assert losses[0] != pytest.approx(untouched, rel=1e-3)
    method = members.matching(distillers.dsa, augmentation=always)
    synthetic, aux = method.init(jax.random.key(1), dataset)
    jax.eval_shape(method.refresh, jax.random.key(2), synthetic, aux, 1, ())


@pytest.mark.parametrize(
    ("name", "settings", "counts", "flops"),
    [  # docs/scaling.md with f = 10, K = 3, N = 6, b = 4
        ("dm", {"batch_size": 4}, (2, 2, 2), 10 * (3 * 4 + 3 * 6)),
        ("dc", {"batch_size": 4, "outer": 2, "inner": 3}, (2, 2, 2), 10 * (3 * 3 * 4 + 9 * 6 + 3 * 6 * 3 / 2)),
        ("dsa", {"batch_size": 4}, (1, 1, 1), 10 * (3 * 3 * 4 + 9 * 3)),  # published: a new network at every step
        ("mtt", {"syn_steps": 4, "batch_syn": 5}, (2, 2, 2), 10 * 12 * 5 * 4),
        ("tesla", {"syn_steps": 4}, (1, 3, 2), 10 * 12 * 6 * 4),
        ("sre2l", {}, (2, 2, 2), 10 * 3 * 6),
        ("ncfm", {"batch_size": 4}, (2, 2, 2), 10 * (3 * 4 + 3 * 6 + 3 * 6)),
        ("ncfm", {"batch_size": 4, "calibration": 0.0, "sampler": "trained"}, (1, 3, 2), 10 * (2 * 3 * 4 + 4 * 6)),
        ("rded", {"candidates": 7, "crops": 2}, (2, 2, 2), 10 * 3 * 7 * 2),
    ],
)
def test_flops_of_a_step(name, settings, counts, flops):
    assert dataclasses.replace(distillers.get(name), **settings).flops(10.0, counts) == pytest.approx(flops)


def test_flops_and_disk_of_experts(tmp_path):
    mtt = distillers.MTT(experts=3, epochs=10, half=True)
    assert mtt.prepare_flops(10.0, 100) == {"experts": 3 * 10 * 3 * 10 * 100}
    [(folder, size)] = mtt.cached(NET, members.tiny(), tmp_path)
    assert folder.parent == tmp_path / "experts" and size == 3 * NET.num_params() * (4 + 2 * 10)
    stood_in = mtt.stand_in(NET, None)
    assert stood_in.nbytes + mtt.given_size(NET) == 4 * 3 * 7 * NET.num_params()


def test_what_the_data_set_decides_is_filled_in_where_it_is_not_said():
    """The published DSA tokens are by data set; DC has none; what is said stays."""
    for name, words in {"dm": "crop", "dsa": "crop", "mtt": "crop", "dc": "none"}.items():
        assert distillers.get(name).for_data(lambda: "crop").views == words
        said = dataclasses.replace(distillers.get(name), augmentation="flip")
        assert said.for_data(lambda: pytest.fail("nobody asked")) == said
    assert [distillers.get(name).start for name in ("dm", "dc", "dsa", "mtt", "sre2l")] == [
        "random", "noise", "random", "random", "noise",
    ]  # fmt: skip
    assert distillers.DC(init="real").start == "random"  # its first name
    assert distillers.MTT(init="noise").start == distillers.SqueezeRecover().start == "noise"


@pytest.mark.parametrize(("limit", "classes"), [(None, 1), (500, 1), (7000, 3), (1e6, 10)])
def test_classes_at_once_are_those_that_half_of_the_memory_holds(limit, classes):
    filled = distillers.DM(class_batch=None).for_memory(lambda one: 1000 * one.class_batch, limit, 10)
    assert filled.class_batch == classes
    assert distillers.DM(class_batch=2).for_memory(lambda one: 0, 1e9, 10).class_batch == 2


def test_all_classes_at_once_are_the_same_as_each_alone():
    """None is all of them; sums over classes agree to float rounding."""
    dataset, images = members.tiny(), []
    for together in (None, 1):
        method = members.base(class_batch=together)
        state = distillers.init_state(jax.random.key(0), method, members.TX, dataset)
        state, _ = jax.jit(distillers.make_update(method, members.TX))(state, dataset.train, method.frozen)
        images.append(np.asarray(state.synthetic["images"]))
    np.testing.assert_allclose(*images, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("check", "words"),
    [
        (lambda: distillers.MTT().check_network(NORMED), "has batch norm.*use its instance norm"),
        (lambda: distillers.SqueezeRecover().check_network(NET), "no batch-norm statistics.*such as resnet18_bn"),
        (
            lambda: distillers.SqueezeRecover(weights="resnet18.pth").check_network(NORMED),
            "resnet18.pth are torchvision's, but .*at least 128 pixels",
        ),
        (lambda: distillers.SqueezeRecover().check_pixels(zca=True), "leave zca out"),
        (
            lambda: distillers.SqueezeRecover(group_ipc=4, group_size=2),
            "group_ipc=4 must be at most group_size=2",
        ),
        (lambda: distillers.MTT(epochs=5).check_prepare(), "reach epoch 6 of experts of 5 epochs; raise epochs"),
        (lambda: distillers.DM(batch_size=8).check_devices(NET, 3, pmap=True), "batch_size=8 does not split over 3"),
        (lambda: distillers.DM(batch_size=8).check_devices(NORMED, 2, pmap=True), "runs on one device"),
        (lambda: distillers.DSA(augmentation="sparkle"), "unknown augmentation 'sparkle'"),
        (lambda: distillers.TESLA(augmentation="sparkle"), "unknown augmentation 'sparkle'"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(check, words):
    with pytest.raises(ValueError, match=words) as found:
        check()
    assert "\n" not in str(found.value)


def test_the_teacher_is_squeezed_as_published_or_in_short():
    usual = training.pretraining(7)
    published = distillers.SqueezeRecover(squeeze="tiny").backbone_recipe(usual)
    assert published == training.sre2l_squeeze("tiny") and published.epochs == 50
    shorter = distillers.SqueezeRecover(squeeze="tiny", squeeze_epochs=3).backbone_recipe(usual)
    assert (shorter.epochs, shorter.warmup_epochs, shorter.learning_rate) == (3, 2, published.learning_rate)
    assert distillers.SqueezeRecover(squeeze="short").backbone_recipe(usual) == usual
    assert distillers.DM().backbone_recipe(usual) == usual


def test_nobody_asks_what_a_method_is_called():
    """What differs between methods is said by their records: no name of one is compared with anywhere."""
    root = pathlib.Path(distillers.__file__).parents[2]
    found = []
    for file in [*(root / "metadd_jax").rglob("*.py"), *(root / "experiments").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            sides = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
            words = {word.value for side in sides for word in ast.walk(side) if isinstance(word, ast.Constant)}
            asked = {name.attr for side in sides for name in ast.walk(side) if isinstance(name, ast.Attribute)}
            if (words & set(distillers.names()) and "name" in asked) or (words and "method" in asked):
                found.append(f"{file.relative_to(root)}:{node.lineno}")
    assert found == []
