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
            means = [np.mean(jax.jit(net.apply)(theta, side)[1]["embedding"], axis=0) for side in (seen, own)]
            total += float(np.sum((means[0] - means[1]) ** 2))
        value, _ = loss(key, {"images": images.reshape(6, *members.SHAPE)}, (), batch, ())
        assert float(value) == pytest.approx(total, rel=1e-4)
        found.add(net.name)
        if len(found) == 2:
            return
    raise AssertionError("8 keys drew one member alone")


def test_dm_takes_batch_norms_statistics_over_all_classes_in_a_pool_too(tiny):
    nets, key = networks.pool(NETS[:2], probabilities=[0.0, 1.0]), jax.random.key(4)
    method, images = members.base(nets, augmentation="none"), jax.random.normal(jax.random.key(1), (6, *members.SHAPE))
    batch, net = method.sample(jax.random.key(2), tiny.train, 0), NETS[1]
    theta = net.init(jax.random.split(keys.named(key, "network"))[1])
    real = data.standardise(batch["images"], batch["mean"], batch["std"]).reshape(-1, *members.SHAPE)
    weights = batch["weights"]
    embedded = net.apply_batch(theta, real, weights.ravel())[1]["embedding"].reshape(*weights.shape, -1)
    means = jnp.einsum("kb,kbd->kd", weights, embedded) / weights.sum(axis=1, keepdims=True)

    def written_out(images):
        own = net.apply_batch(theta, images)[1]["embedding"].reshape(3, 2, -1).mean(axis=1)
        return jnp.sum((own - means) ** 2)

    value, slope = jax.jit(jax.value_and_grad(lambda x: method.loss(key, {"images": x}, (), batch, ())[0]))(images)
    wanted, its = jax.jit(jax.value_and_grad(written_out))(images)
    assert float(value) == pytest.approx(float(wanted), rel=1e-4)
    np.testing.assert_allclose(slope, its, atol=1e-4 * float(jnp.abs(its).max()))


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


def test_a_pool_warms_up_with_its_main_network(tiny):
    pool = networks.beside(NETS[0], NETS[1:], main=0.2, warmup=3)
    assert pool.probabilities == pytest.approx((0.2, 0.4, 0.4)) and networks.beside(NETS[0], NETS[1:]).warmup == 500
    draw = jax.jit(lambda before: jax.vmap(lambda key: pool.init(key, before)["which"])(keys_of))
    keys_of = jax.random.split(jax.random.key(0), 2000)
    for before, shares in ((0, [1, 0, 0]), (2, [1, 0, 0]), (3, [0.2, 0.4, 0.4]), (900, [0.2, 0.4, 0.4])):
        found = np.bincount(draw(jnp.int32(before)), minlength=3) / len(keys_of)
        assert np.abs(found - shares).max() < 0.05, before  # 4.5 standard deviations
    with pytest.raises(ValueError, match="warms up over 3 networks must be told how many were drawn"):
        pool.init(jax.random.key(0))
    for wrong in ({"main": 1.5}, {"warmup": -1}):
        with pytest.raises(ValueError, match=rf"^{next(iter(wrong))}="):
            networks.beside(NETS[0], NETS[1:], **wrong)
    with pytest.raises(ValueError, match="no networks beside the main one"):
        networks.beside(NETS[0], [])


def test_a_warm_up_counts_the_networks_that_a_method_draws(tiny):
    """DM draws at every step; DC every ``outer`` steps, so its warm-up is so many times longer."""
    pool = networks.beside(members.make_net("mlp:width=4"), [members.make_net("mlp:width=6")], main=0.0, warmup=2)
    dm, dc = members.base(pool, augmentation="none"), members.matching(distillers.dc, pool)  # outer 2
    synthetic, aux = dc.init(jax.random.key(0), tiny)
    refresh, found = jax.jit(dc.refresh), []
    for step in range(6):
        aux = refresh(jax.random.key(step), synthetic, aux, step, ())
        found.append(int(aux["network"]["which"]))
    assert found == [0, 0, 0, 0, 1, 1]
    synthetic, aux = dm.init(jax.random.key(0), tiny)
    batch, loss = dm.sample(jax.random.key(1), tiny.train, 0), jax.jit(dm.loss)
    for step, member in ((1, 0), (2, 1)):
        key = jax.random.key(9)
        value, _ = loss(key, synthetic, dm.refresh(key, synthetic, aux, step, ()), batch, ())
        theta = pool.nets[member].init(jax.random.split(keys.named(key, "network"))[1])
        means = []
        for side in (data.standardise(batch["images"], batch["mean"], batch["std"]), None):
            images = synthetic["images"].reshape(3, 2, *members.SHAPE) if side is None else side
            weights = np.ones((3, 2)) if side is None else np.asarray(batch["weights"])
            seen = [pool.nets[member].apply(theta, one)[1]["embedding"] for one in images]
            means.append([np.average(x, axis=0, weights=w) for x, w in zip(seen, weights, strict=True)])
        assert float(value) == pytest.approx(float(((np.array(means[0]) - np.array(means[1])) ** 2).sum()), rel=1e-4)


def test_modelpools_pool_is_three_networks():
    net = members.make_net("convnet:width=4,depth=2")
    pool = networks.convnets(net)
    assert [one.name for one in pool.nets] == ["convnet", "convnets", "convnets"] and pool.warmup == 500
    assert pool.probabilities == pytest.approx((0.9, 0.075, 0.025))
    assert [one.count for one in pool.nets[1:]] == [24, 8]  # 32, each .1 / 32
    assert "width=4,depth=2" in pool.nets[1].label
    many = networks.convnets(members.make_net("mlp"), main=0.5, warmup=0, width=(4, 8, 16), depth=(1, 2, 3))
    assert sum(one.count for one in many.nets[1:]) == 288 and many.probabilities[0] == 0.5


@pytest.mark.parametrize("distance", ["ours", pytest.param("mse", marks=pytest.mark.slow)])
def test_dc_over_a_switched_convnet_is_dc_over_that_convnet(tiny, distance):
    """Narrower and shallower than the widest and deepest, with a layer norm's places: in value and gradient."""
    words = {"activation": ("swish",), "pooling": ("avg",)}
    net = members.zoo.variants(3, members.SHAPE, width=(4, 8), depth=(1, 2), norm=("instance", "layer"), **words)[0]
    base = members.zoo.Architecture.init(net, jax.random.key(0))
    method = members.matching(distillers.dc, networks.one(net), distance=distance)
    synthetic, _ = method.init(jax.random.key(0), tiny)
    batch, loss = (
        method.sample(jax.random.key(1), tiny.train, 0),
        jax.jit(jax.value_and_grad(method.loss, argnums=1, has_aux=True)),
    )
    for norm, depth in ((1, 0),) if distance == "ours" else ((0, 0), (1, 1)):
        variables = net.set(base, {"activation": 0, "norm": norm, "pooling": 0, "width": 0, "depth": depth})
        (value, _), slope = loss(jax.random.key(2), synthetic, {"network": variables}, batch, ())
        alone, own = net.alone(variables)
        other = members.matching(distillers.dc, alone, distance=distance)
        (wanted, _), its = jax.jit(jax.value_and_grad(other.loss, argnums=1, has_aux=True))(
            jax.random.key(2), synthetic, {"network": own}, batch, ()
        )
        assert float(value) == pytest.approx(float(wanted), rel=1e-4)
        largest = float(jnp.abs(its["images"]).max())
        np.testing.assert_allclose(slope["images"], its["images"], atol=1e-4 * largest)


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
