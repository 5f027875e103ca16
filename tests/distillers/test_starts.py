"""Every method starts from the images that it is given, however it is wrapped, or says why not."""

import dataclasses

import jax
import jax.numpy as jnp
import members
import numpy as np
import pytest

from metadd_jax import distillers
from metadd_jax.distillers import class_images

GIVEN = np.random.default_rng(3).normal(size=(6, *members.SHAPE)).astype(np.float32)
METHODS = {
    "dm": lambda a, d: (members.base(), members.TX),
    "dc": members.MEMBERS["dc"],
    "dsa": members.MEMBERS["dsa"],
    "mtt": members.MEMBERS["mtt"],
    "tesla, soft labels, raw rate": members.MEMBERS["tesla, soft labels, raw rate"],
    "sre2l": members.MEMBERS["sre2l"],
    "metadd": lambda a, d: members.wrapped(a, weighting="calibrated"),
}


def made(name, auxiliaries, tiny):
    method = METHODS[name](auxiliaries, tiny)
    return method if type(method) is tuple else (method, members.TX)


@pytest.mark.parametrize("name", METHODS)
def test_the_first_images_are_those_given(name, auxiliaries, tiny):
    method, tx = made(name, auxiliaries, tiny)
    started = distillers.start_from(method, GIVEN)
    state = distillers.init_state(jax.random.key(0), started, tx, tiny)
    np.testing.assert_array_equal(state.synthetic["images"], GIVEN)
    assert started.name == method.name and started.loss is method.loss
    # All else is as without it: the start alone is another.
    own = distillers.init_state(jax.random.key(0), method, tx, tiny)
    assert jax.tree.structure(own) == jax.tree.structure(state)
    assert not np.array_equal(own.synthetic["images"], GIVEN) and tiny.start is None


def test_the_weights_of_a_penalty_are_calibrated_on_the_given_start(auxiliaries, tiny):
    method = members.wrapped(auxiliaries, weighting="calibrated")
    elsewhere, own = (
        one.init(jax.random.key(0), tiny)[1]["weights"] for one in (distillers.start_from(method, GIVEN), method)
    )
    by_hand = members.wrapped(
        auxiliaries,
        over=members.base()._replace(init=lambda key, dataset: ({"images": jnp.asarray(GIVEN)}, ())),
        weighting="calibrated",
    ).init(jax.random.key(0), tiny)[1]["weights"]
    assert elsewhere == by_hand != own


def test_a_parameterisation_makes_its_latents_of_the_given_start(tiny):
    images = np.random.default_rng(0).normal(size=(3 * members.PACKED, *members.SHAPE)).astype(np.float32)
    state = distillers.start_from(members.packed(), images).init(jax.random.key(0), tiny)[0]
    np.testing.assert_array_equal(state["latents"], distillers.factor(2).init(jax.random.key(1), jnp.asarray(images)))


def test_random_and_noise_are_for_every_method(auxiliaries, tiny, net):
    noise = members.trajectories(distillers.mtt, init="noise").init(jax.random.key(0), tiny)[0]["images"]
    real = members.recover(init="random")[0].init(jax.random.key(0), tiny)[0]["images"]
    pixels = tiny.train.images / 255
    assert len({image.tobytes() for image in np.asarray(real)}) == 6
    shown = np.asarray(real) * np.asarray(tiny.train.std) + np.asarray(tiny.train.mean)
    assert np.abs(shown[:, None] - np.asarray(pixels)[None]).max(axis=(2, 3, 4)).min(axis=1).max() < 1e-6
    assert np.abs(shown[0] - np.asarray(noise[0])).max() > 1  # noise is in no [0, 1]


def test_what_cannot_be_a_start_is_refused_in_one_line(tiny, net):
    with pytest.raises(ValueError, match=r"start has images \(5, 8, 8, 1\), but the set is \(6, 8, 8, 1\)"):
        distillers.start_from(members.base(), GIVEN[:5]).init(jax.random.key(0), tiny)
    with pytest.raises(ValueError, match=r"must be one of random, noise where a method draws.*start_from"):
        members.base(init="kmeans").init(jax.random.key(0), tiny)
    deaf = members.base()._replace(init=lambda key, dataset: ({"images": jnp.zeros((6, *members.SHAPE))}, ()))
    with pytest.raises(ValueError, match=r"dm does not start from the images.*dataset\.start"):
        distillers.start_from(deaf, GIVEN).init(jax.random.key(0), tiny)
    with pytest.raises(ValueError, match="give a method"):
        distillers.start_from(GIVEN, GIVEN)


def test_the_given_images_outlive_updates_that_consume_the_state(tiny, net):
    given = jnp.asarray(GIVEN)
    first = class_images.initial(
        jax.random.key(0), dataclasses.replace(tiny, start=given), net, counts=(2, 2, 2), init="random"
    )
    assert first["images"].unsafe_buffer_pointer() != given.unsafe_buffer_pointer()
