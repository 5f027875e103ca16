"""Parameterisations by name: what a text means, what it is refused for; latents with learning rates of their own."""

import types

import jax
import jax.numpy as jnp
import members
import numpy as np
import optax
import pytest

from metadd_jax import distillers, generators
from metadd_jax.distillers import latents, parameterisations


@pytest.fixture(autouse=True)
def registered():
    before = dict(parameterisations._BUILDS)
    yield
    parameterisations._BUILDS.clear()
    parameterisations._BUILDS.update(before)


def split(dataset, *, rate=0.5, word="x", whole=True, none=None):
    """Images as the sum of two arrays."""
    assert dataset.image_shape == members.SHAPE
    return types.SimpleNamespace(
        init=lambda key, images: {"a": images, "b": jnp.zeros_like(images)},
        decode=lambda latents, frozen: latents["a"] + latents["b"],
        frozen=(),
        rates={"b": rate},
        options=(rate, word, whole, none),
    )


def test_a_text_names_a_parameterisation_and_its_options(tiny):
    assert parameterisations.parse("pixels", tiny) == distillers.pixels()
    assert parameterisations.parse("factor2", tiny) == distillers.factor(2)
    assert parameterisations.parse("factor:size=3, pad=1", tiny) == distillers.factor(3, pad=1)
    nets = parameterisations.parse("siren:width=5,depth=3,w0=40,fit_steps=7,fill=False", tiny)
    assert nets == generators.Siren(members.SHAPE, width=5, depth=3, w0=40, fit_steps=7, fill=False)
    styles = parameterisations.parse("decoder:weights=random,width=2,epochs=3", tiny)
    assert styles.generator == generators.Decoder(members.SHAPE, 3, width=2) and styles.training.epochs == 3
    parameterisations.register("split", split)
    assert parameterisations.names()[-1] == "split"
    assert parameterisations.parse("split:rate=1,word=y,whole=False,none=7", tiny).options == (1, "y", False, 7)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("factor4", r"unknown parameterisation 'factor4' \(did you mean 'factor'\?\); choose one of pixels, factor2"),
        ("factor:sice=2", r"factor has no option 'sice' \(did you mean 'size'\?\); its options are: size, pad"),
        ("pixels:size=2", "pixels has no option 'size'; it has none"),
        ("factor:size", "cannot read 'size' in parameterisation 'factor:size'; write name:option=value"),
        ("factor:size=two", "factor: size=two; give a whole number, such as 2"),
        ("factor:size=True", "factor: size=True; give a whole number"),
    ],
)
def test_a_typo_is_told_before_any_data_is_read(text, words):
    with pytest.raises(ValueError, match=words):
        parameterisations.check(text)


def test_what_only_the_builder_can_refuse_is_its_own_words(tiny):
    parameterisations.check("factor:size=0")
    with pytest.raises(ValueError, match="size=0 must be a whole number, at least 1"):
        parameterisations.parse("factor:size=0", tiny)
    parameterisations.register("nothing", lambda dataset: dataset)
    with pytest.raises(ValueError, match="a parameterisation has init, decode and frozen"):
        parameterisations.parse("nothing", tiny)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: None, "build takes no data set"),
        (lambda dataset, **rest: None, r"build takes \*\*rest; name every option"),
        (lambda dataset, size: None, "build asks for 'size'; give this option a default"),
        (lambda dataset, size=(1, 2): None, "build asks for 'size'; give this option a default"),
    ],
)
def test_a_builder_with_other_arguments_is_refused(build, words):
    with pytest.raises(ValueError, match=words):
        parameterisations.register("mine", build)
    with pytest.raises(ValueError, match=r"the parameterisation 'factor2' is .*_factor2 already"):
        parameterisations.register("factor2", lambda dataset: None)


@pytest.mark.parametrize("name", ["dm", "mtt"])
def test_latents_have_learning_rates_of_their_own(name, tiny):
    """Two momentum steps by hand; the step size that MTT learns keeps its rate."""
    made, plain = members.make(name, None, tiny)
    method = distillers.parameterise(made, split(tiny, rate=0.25))
    tx = distillers.with_rates(plain, split(tiny, rate=0.25))
    assert distillers.with_rates(plain, distillers.pixels()) is plain
    synthetic = distillers.init_state(jax.random.key(0), method, tx, tiny).synthetic
    gradients = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 2.0), synthetic)

    def two_updates(tx):
        state = tx.init(synthetic)
        _, state = tx.update(gradients, state, synthetic)
        return tx.update(gradients, state, synthetic)

    (own, state), (usual, plain_state) = two_updates(tx), two_updates(plain)
    rate = 0.1 if name == "dm" else 1.0
    np.testing.assert_allclose(usual["latents"]["a"], -rate * 1.5 * 2, rtol=1e-6)
    np.testing.assert_allclose(own["latents"]["b"], -0.25 * rate * 1.5 * 2, rtol=1e-6)
    own["latents"]["b"] = usual["latents"]["b"]
    jax.tree.map(np.testing.assert_array_equal, own, usual)
    jax.tree.map(np.testing.assert_array_equal, state, plain_state)


def test_rates_reach_the_update_of_a_run(tiny):
    """DM's gradient in both addends is the same, so b has moved a half of what a has."""
    made = split(tiny)
    method, tx = distillers.parameterise(members.base(), made), distillers.with_rates(optax.adam(0.05), made)
    start = distillers.init_state(jax.random.key(0), method, tx, tiny)
    after, _ = jax.jit(distillers.make_update(method, tx))(start, tiny.train, method.frozen)
    moved = {name: after.synthetic["latents"][name] - start.synthetic["latents"][name] for name in "ab"}
    assert np.abs(moved["a"]).max() > 0.04
    np.testing.assert_allclose(moved["b"], 0.5 * moved["a"], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", ["dm", "mtt"])
def test_latents_have_an_optimiser_of_their_own(name, tiny):
    """Adam's first step is its rate in every number; what is trained beside them moves as it did."""
    made, plain = members.make(name, None, tiny)
    own = split(tiny)
    own.optimiser = optax.adam(0.003)
    method, tx = distillers.parameterise(made, own), distillers.with_rates(plain, own)
    synthetic = distillers.init_state(jax.random.key(0), method, tx, tiny).synthetic
    gradients = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 2.0), synthetic)
    update, _ = tx.update(gradients, tx.init(synthetic), synthetic)
    usual, _ = plain.update(gradients, plain.init(synthetic), synthetic)
    for part in ("a", "b"):
        np.testing.assert_allclose(update["latents"][part], -0.003, rtol=1e-5)
    assert set(update) == set(synthetic) and len(update) == 1 + (name == "mtt")
    jax.tree.map(np.testing.assert_array_equal, {**update, "latents": 0}, {**usual, "latents": 0})


def test_a_set_counts_by_images_or_by_storage():
    siren = generators.Siren((32, 32, 3))
    for made, stored, images in ((distillers.factor(2), 3, 12), (siren, 1, 37), (siren, 10, 379), (split, 4, 4)):
        assert latents.images_for(made, stored) == images
        assert latents.stored_for(made, images) == stored
    assert latents.stored_for(siren, 38) == 2


def test_the_loss_reaches_an_optimiser_that_asks_for_it(tiny):
    told = []
    inner = optax.GradientTransformationExtraArgs(
        lambda params: (), lambda updates, state, params=None, *, value: (told.append(value), (updates, state))[1]
    )
    params = {"latents": {"a": jnp.ones(2), "b": jnp.ones(2)}, "log_lr": jnp.ones(())}
    for made in (split(tiny), types.SimpleNamespace(optimiser=optax.sgd(1.0))):
        tx = distillers.with_rates(inner, made)
        tx.update(params, tx.init(params), params, value=3.0)
    assert told == [3.0, 3.0]


def test_a_start_may_read_the_labels_of_what_is_stored(tiny):
    seen = []
    made = types.SimpleNamespace(
        init=lambda key, images, labels: (seen.append(labels), images[::2])[1],
        decode=lambda latents, frozen: jnp.repeat(latents, 2, axis=0),
        frozen=(), takes_labels=True, per_stored=2, name="twice",
    )  # fmt: skip
    method = distillers.parameterise(members.base(ipc=(2, 4, 2)), made)
    method.init(jax.random.key(0), tiny)
    np.testing.assert_array_equal(seen, [[0, 1, 1, 2]])
    jax.eval_shape(lambda: method.init(jax.random.key(0), tiny)[0])
    np.testing.assert_array_equal(seen[1], [0, 1, 1, 2])


def test_a_parameterisation_says_how_many_items_it_decodes_at_once(tiny):
    seen = []
    made = types.SimpleNamespace(
        init=lambda key, images: images, decode=lambda latents, frozen: (seen.append(len(latents)), latents)[1],
        frozen=(), micro_batch=2,
    )  # fmt: skip
    for given, found in ((None, 2), (3, 3)):
        distillers.parameterise(members.base(), made, micro_batch=given).init(jax.random.key(0), tiny)
        assert seen.pop() == found
