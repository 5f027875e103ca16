"""What networks are drawn from: frequencies, the drawn member's own weights, errors."""

import jax
import jax.numpy as jnp
import members
import numpy as np
import pytest

from metadd_jax import data, distillers, keys
from metadd_jax.distillers import networks
from metadd_jax.training import Recipe, fit

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


def test_dm_matches_embeddings_of_the_drawn_member(tiny):
    """|mean psi(real) - mean psi(synthetic)|^2 over the classes, written out, for either member."""
    nets, images = members.pool(), jax.random.normal(jax.random.key(1), (3, 2, *members.SHAPE))
    method = distillers.dm(nets, ipc=2, batch_size=8, augmentation="none")
    batch = method.sample(jax.random.key(2), tiny.train, 0)
    loss, init, found = jax.jit(method.loss), jax.jit(nets.init), set()
    for key in map(jax.random.key, range(8)):
        drawn = init(keys.named(key, "network"))
        net = nets.nets[int(drawn["which"])]
        theta = jax.jit(net.init)(jax.random.split(keys.named(key, "network"))[1])
        total = 0.0
        for real, weights, own in zip(batch["images"], batch["weights"], images, strict=True):
            seen = data.standardise(real[weights > 0], batch["mean"], batch["std"])
            means = [np.mean(net.apply(theta, side)[1]["embedding"], axis=0) for side in (seen, own)]
            total += float(np.sum((means[0] - means[1]) ** 2))
        value, _ = loss(key, {"images": images.reshape(6, *members.SHAPE)}, (), batch, ())
        assert float(value) == pytest.approx(total, rel=1e-4)
        found.add(net.name)
        if len(found) == 2:
            return
    raise AssertionError("8 keys drew one member alone")


def test_dc_trains_the_drawn_member_between_outer_steps(key, tiny):
    nets = members.pool()
    method = members.matching(distillers.dc, nets)  # outer 2, inner 2
    synthetic, _ = method.init(key, tiny)
    refresh = jax.jit(method.refresh)
    first = refresh(key, synthetic, {"network": nets.init(key)}, 0, ())["network"]
    jax.tree.map(np.testing.assert_array_equal, first, jax.jit(nets.init)(key))
    other = jax.random.key(7)
    trained = refresh(other, synthetic, {"network": first}, 1, ())["network"]
    assert int(trained["which"]) == int(first["which"])
    net = nets.nets[int(first["which"])]
    recipe = Recipe(epochs=2, learning_rate=0.01, momentum=0.0, weight_decay=0.0, augmentation="none")
    own, labels = jax.jit(net.init)(jax.random.split(key)[1]), np.repeat([0, 1, 2], 2).astype(np.int32)
    alone = fit(other, net, synthetic["images"], labels, recipe, shared_key=other, variables=own)
    vector = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(alone)])
    np.testing.assert_allclose(trained["vector"][: len(vector)], vector, rtol=1e-4, atol=1e-6)
    assert np.abs(vector - np.asarray(first["vector"][: len(vector)])).max() > 1e-3
    again = refresh(other, synthetic, {"network": trained}, 2, ())["network"]
    jax.tree.map(np.testing.assert_array_equal, again, jax.jit(nets.init)(other))


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
    with pytest.raises(ValueError, match="nets of a pool is a Architecture; give a list"):
        networks.pool(NETS[0])
    with pytest.raises(ValueError, match="probabilities of a pool is a float; give a list"):
        networks.pool(NETS, probabilities=0.5)
    with pytest.raises(ValueError, match="a pool of 0 networks"):
        networks.pool([])
    with pytest.raises(ValueError, match=r"a network is a Networks; give what zoo.parse or zoo.create returns"):
        networks.pool([networks.pool(NETS), NETS[0]])


def test_what_is_no_network_is_refused_by_every_method():
    for wrong, kind in (("convnet", "str"), ([NETS[0]], "list"), (None, "NoneType")):
        for method in (distillers.dm, distillers.dc, distillers.dsa):
            with pytest.raises(ValueError, match=rf"^a network is a {kind}; .* several of them as networks\.pool"):
                method(wrong, ipc=1)
    for method in (distillers.mtt, distillers.tesla, distillers.sre2l):
        with pytest.raises(ValueError, match=r"^a pool of 3 networks where the method needs one architecture"):
            method(networks.pool(NETS), None, ipc=1)
    for wrong in (1.5, "2", None):
        with pytest.raises(ValueError, match=r"^ipc=.* must be a whole number, at least 1$"):
            distillers.dm(NETS[0], ipc=wrong)
