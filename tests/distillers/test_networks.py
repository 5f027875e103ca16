"""What networks are drawn from: frequencies, the drawn member's own weights, errors."""

import jax
import jax.numpy as jnp
import members
import numpy as np
import pytest

from metadd_jax.distillers import networks

SPECS = ("convnet:width=4,depth=1", "convnet_bn:width=6,depth=1", "mlp:width=8")
NETS = tuple(map(members.make_net, SPECS))
LARGEST = 64 * 8 + 8 + 8 * 8 + 8 + 8 * 3 + 3  # numbers of the mlp
PROBABILITIES = (0.6, 0.1, 0.3)


@pytest.fixture(scope="module")
def pool():
    return networks.pool(NETS, probabilities=PROBABILITIES)


@pytest.fixture(scope="module")
def draws(pool):
    """For each member a key that draws it, and what it draws."""
    init = jax.jit(pool.init)
    found = {}
    for key in map(jax.random.key, range(40)):
        drawn = init(key)
        found.setdefault(int(drawn["which"]), (key, drawn))
    return found


@pytest.mark.parametrize("probabilities", [PROBABILITIES, None])
def test_members_are_drawn_as_often_as_asked(probabilities):
    pool, count = networks.pool(NETS, probabilities=probabilities), 4000
    drawn = jax.jit(jax.vmap(lambda key: pool.init(key)["which"]))(jax.random.split(jax.random.key(0), count))
    wanted = np.asarray(probabilities or [1 / 3] * 3)
    found = np.bincount(drawn, minlength=3) / count
    assert (np.abs(found - wanted) < 4 * np.sqrt(wanted * (1 - wanted) / count)).all()


def test_a_pool_of_one_is_that_one(key):
    assert networks.pool(NETS[:1]) == networks.one(NETS[0]) == networks.as_networks(NETS[0])
    drawn = networks.one(NETS[0]).init(key)
    jax.tree.map(np.testing.assert_array_equal, drawn, NETS[0].init(key))


@pytest.mark.parametrize("member", range(3))
def test_a_function_sees_the_drawn_member_with_fresh_weights_of_its_own(pool, draws, member):
    (key, drawn), net = draws[member], NETS[member]
    images = jax.random.normal(jax.random.key(1), (2, *members.SHAPE))
    own = jax.jit(net.init)(jax.random.split(key)[1])

    def squared(net, variables, images):
        return jnp.sum(net.apply(variables, images)[0] ** 2)

    @jax.jit
    @jax.value_and_grad
    def through_the_pool(images):
        return pool.use(drawn, lambda net, variables: squared(net, variables, images))

    value, gradient = through_the_pool(images)  # differentiated in what the function closes over
    alone, wanted = jax.jit(jax.value_and_grad(lambda images: squared(net, own, images)))(images)
    assert float(value) == pytest.approx(float(alone), rel=1e-5)
    np.testing.assert_allclose(gradient, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("member", [1, 2])
def test_training_changes_the_drawn_member_alone(pool, draws, member):
    _, drawn = draws[member]
    size = sum(leaf.size for leaf in jax.tree.leaves(NETS[member].init(jax.random.key(0))))
    assert drawn["vector"].shape == (LARGEST,) and not np.asarray(drawn["vector"][size:]).any()

    def twice(net, variables):
        return jax.tree.map(lambda leaf: 2 * leaf, variables), jnp.asarray(float(net.has_batch_stats))

    changed, result = jax.jit(lambda drawn: pool.change(drawn, twice))(drawn)
    assert int(changed["which"]) == member and float(result) == (member == 1)
    np.testing.assert_array_equal(changed["vector"], 2 * np.asarray(drawn["vector"]))


def test_what_cannot_be_a_pool_is_refused_with_the_numbers():
    other = members.zoo.parse("mlp:width=8", num_classes=4, image_shape=members.SHAPE)
    with pytest.raises(
        ValueError, match=r"convnet:.* takes \(8, 8, 1\) images of 3 classes, but mlp:width=8 .* and 4; a"
    ):
        networks.pool([NETS[0], other])
    for wrong in ([0.5, 0.2, 0.2], [1.5, -0.5, 0.0], [float("nan"), 0.5, 0.5]):
        with pytest.raises(ValueError, match="give numbers from 0 that add up to 1"):
            networks.pool(NETS, probabilities=wrong)
    with pytest.raises(ValueError, match="a pool of 3 networks with 2 probabilities; give one each"):
        networks.pool(NETS, probabilities=[0.5, 0.5])
    with pytest.raises(ValueError, match="a pool of 0 networks"):
        networks.pool([])
