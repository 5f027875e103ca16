"""The controls against NumPy in float64, a stored vector of CCLoM, and hand-made maps; what they need, or a refusal."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadd_jax import data, features, invariant, zoo
from metadd_jax.invariant import controls, equipment
from metadd_jax.structs import RealSide

SHAPE, K = (8, 8, 1), 3
LABELS = jnp.array([0, 0, 1, 1, 2, 2])
RNG = np.random.default_rng(0)


def tiny():
    labels = np.repeat(np.arange(K), (11, 5, 8))
    images = (RNG.integers(0, 120, (len(labels), *SHAPE)) + 60 * labels[:, None, None, None]).astype(np.uint8)
    return data.from_arrays("tiny", images, labels, images[:4], labels[:4])


DATA = tiny()


@pytest.fixture(scope="module")
def auxiliaries():
    nets = [zoo.parse(spec, K, SHAPE) for spec in ("convnet:width=4,depth=1", "convnet_bn:width=6,depth=1")]
    return [features.freeze(net, jax.jit(net.init)(jax.random.key(seed)), DATA) for seed, net in enumerate(nets)]


@pytest.fixture(scope="module")
def equipped(auxiliaries):
    return invariant.equip(auxiliaries, DATA, invariant.CONTROLS.values())


def seen_of(embeddings=None, real=None, logits=None, maps=None, labels=LABELS, draws=None, real_maps=None):
    count = len(labels)
    logits = jnp.zeros((2, count, K)) if logits is None else logits
    images = jnp.zeros((count, *SHAPE))
    return invariant.Seen(images, labels, logits, maps, embeddings, None, real, None, draws, real_maps)


def side(embeddings, labels):
    """What ``real_side`` measures, in NumPy."""
    h, own = np.asarray(embeddings, np.float64), np.eye(labels.max() + 1)[labels]
    counts = own.sum(0)
    unit = h / np.linalg.norm(h, axis=1, keepdims=True)
    spread = np.sqrt(((h - h.mean(0)) ** 2).sum(1).mean())
    variances = np.stack([h[labels == k].var(0) for k in range(len(counts))])
    return RealSide(counts, own.T @ h / counts[:, None], own.T @ unit / counts[:, None], spread, variances)


def test_cos_gives_the_stored_vector_of_cclom():
    """Synthetic [1, 0], [1, 1]; real [2, 0] of class 0, [0, 1] and [-1, 0] of class 1: 0.377865 (notes 12.7)."""
    real = side([[2, 0], [0, 1], [-1, 0]], np.array([0, 1, 1]))
    seen = seen_of((jnp.array([[1.0, 0.0], [1.0, 1.0]]),), (real,), jnp.zeros((1, 2, 2)), labels=jnp.array([0, 1]))
    np.testing.assert_allclose(controls.cos(seen), [0.377865, 0.377865], atol=1e-6)


def test_cos_over_all_pairs_equals_the_sums_that_it_is_made_of():
    h, real = RNG.normal(size=(6, 5)), RNG.normal(size=(9, 5))
    labels = np.array([0, 0, 0, 0, 1, 1, 2, 2, 2])
    D = 1 - (h / np.linalg.norm(h, axis=1)[:, None]) @ (real / np.linalg.norm(real, axis=1)[:, None]).T
    M = np.asarray(LABELS)[:, None] == labels
    seen = seen_of((jnp.asarray(h, jnp.float32),), (side(real, labels),), jnp.zeros((1, 6, K)))
    np.testing.assert_allclose(controls.cos(seen), np.full(6, (D * M).sum() / D.sum()), rtol=1e-5)


def test_logits_and_cross_entropy_against_numpy():
    logits = RNG.normal(size=(2, 6, K))
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    seen = seen_of(logits=jnp.asarray(logits, jnp.float32))
    expected = -np.log(p)[:, np.arange(6), np.asarray(LABELS)].sum(0)
    np.testing.assert_allclose(controls.ce(seen), expected, rtol=1e-5)
    np.testing.assert_allclose(controls.ce(seen), invariant.l_ai(seen)[0], rtol=1e-6)
    z = logits - logits.mean(-1, keepdims=True)
    expected = (((z[0] - z[1]) / 2) ** 2).mean(-1)  # the variance of two numbers
    np.testing.assert_allclose(controls.logit_var(seen), expected, rtol=1e-5)
    # What a softmax does not see, this does not see either.
    np.testing.assert_allclose(
        controls.logit_var(seen_of(logits=jnp.asarray(logits + RNG.normal(size=(2, 6, 1)), jnp.float32))),
        expected,
        rtol=1e-4,
    )


def test_embeddings_of_other_widths_are_compared_by_class_directions():
    labels = np.repeat(np.arange(K), 4)
    real = [RNG.normal(size=(12, width)) + 2 for width in (5, 7)]
    h = [RNG.normal(size=(6, width)) + 2 for width in (5, 7)]

    def unit(x):
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    r, distance = [], []
    for own, all_real in zip(h, real, strict=True):
        means = np.stack([all_real[labels == k].mean(0) for k in range(K)])
        centre = all_real.mean(0)
        r.append(unit(own - centre) @ unit(means - centre).T)
        spread = ((all_real - centre) ** 2).sum(1).mean()
        mine = np.stack([own[np.asarray(LABELS) == k].mean(0) for k in range(K)])
        distance.append(((mine - means) ** 2).sum(1).mean() / spread)
    seen = seen_of(tuple(jnp.asarray(x, jnp.float32) for x in h), tuple(side(x, labels) for x in real))
    np.testing.assert_allclose(controls.embedding_var(seen), np.var(r, axis=0).mean(-1), rtol=1e-4)
    np.testing.assert_allclose(controls.class_mean(seen), np.full(6, np.mean(distance)), rtol=1e-4)
    # A network turned, scaled and moved in its own space is the same network.
    turn = np.linalg.qr(RNG.normal(size=(5, 5)))[0]
    moved = seen_of(
        (jnp.asarray(3 * h[0] @ turn + 1, jnp.float32), seen.embeddings[1]),
        (side(3 * real[0] @ turn + 1, labels), side(real[1], labels)),
    )
    np.testing.assert_allclose(controls.embedding_var(moved), controls.embedding_var(seen), rtol=1e-3)
    np.testing.assert_allclose(controls.class_mean(moved), controls.class_mean(seen), rtol=1e-3)
    # A class that no image of the step has is left out.
    two = seen_of(tuple(x[:4] for x in seen.embeddings), seen.real, jnp.zeros((2, 4, K)), labels=LABELS[:4])
    assert np.isfinite(controls.class_mean(two)).all()


def test_class_variances_are_compared_as_standard_deviations():
    labels = np.repeat(np.arange(K), 4)
    real = [RNG.normal(size=(12, width)) + 2 for width in (5, 7)]
    h = [RNG.normal(size=(6, width)) + 2 for width in (5, 7)]
    distance = []
    for own, all_real in zip(h, real, strict=True):
        spread = ((all_real - all_real.mean(0)) ** 2).sum(1).mean()
        # Two images a class: half their difference is their standard deviation.
        mine = np.stack([np.abs(own[2 * k] - own[2 * k + 1]) / 2 for k in range(K)])
        theirs = np.stack([np.std(all_real[labels == k], axis=0) for k in range(K)])
        distance.append(((mine - theirs) ** 2).sum(1).mean() / spread)
    seen = seen_of(tuple(jnp.asarray(x, jnp.float32) for x in h), tuple(side(x, labels) for x in real))
    np.testing.assert_allclose(controls.class_var(seen), np.full(6, np.mean(distance)), rtol=1e-4)
    # Classes of one image, or of none, say nothing; of none but such there is nothing to say, and no NaN.
    few = seen_of(tuple(x[:3] for x in seen.embeddings), seen.real, jnp.zeros((2, 3, K)), labels=LABELS[:3])
    alone = seen_of(tuple(x[:2] for x in seen.embeddings), seen.real, jnp.zeros((2, 2, K)), labels=LABELS[:2])
    np.testing.assert_allclose(controls.class_var(few)[0], controls.class_var(alone)[0], rtol=1e-6)
    single = seen_of(tuple(x[1:3] for x in seen.embeddings), seen.real, jnp.zeros((2, 2, K)), labels=LABELS[1:3])
    assert (np.asarray(controls.class_var(single)) == 0).all()


def test_alike_images_of_a_class_have_a_finite_gradient():
    real = side(RNG.normal(size=(12, 5)), np.repeat(np.arange(K), 4))
    value = jax.grad(lambda h: controls.class_var(seen_of((h,), (real,), jnp.zeros((1, 6, K)))).mean())
    assert np.isfinite(value(jnp.ones((6, 5)))).all()


def test_mean_and_variance_together_are_the_wasserstein_distance_of_normal_distributions():
    """One dimension, where it is an integral over quantiles that is taken here by numbers."""
    own, real, labels = RNG.normal(1.0, 2.0, 50), RNG.normal(-1.0, 0.5, 80), np.zeros(80, int)
    levels = (np.arange(200_000) + 0.5) / 200_000
    normal = np.asarray(jax.scipy.stats.norm.ppf(jnp.asarray(levels)), np.float64)
    quantiles = [x.mean() + x.std() * normal for x in (own, real)]
    seen = seen_of(
        (jnp.asarray(own[:, None], jnp.float32),),
        (side(real[:, None], labels),),
        jnp.zeros((1, 50, 1)),
        labels=jnp.zeros(50, int),
    )
    total = float(controls.class_mean(seen)[0] + controls.class_var(seen)[0]) * real.var()
    assert total == pytest.approx(((quantiles[0] - quantiles[1]) ** 2).mean(), rel=1e-3)


def test_maps_are_compared_with_the_mean_map_of_their_class():
    maps, real_maps = RNG.uniform(size=(2, 6, 4, 5)), RNG.uniform(size=(2, K, 4, 5))
    seen = seen_of(maps=jnp.asarray(maps, jnp.float32), real_maps=jnp.asarray(real_maps, jnp.float32))
    var, pos = np.zeros(6), np.zeros(6)
    for image, label in enumerate(np.asarray(LABELS)):
        for m in range(2):
            c, t = maps[m, image], real_maps[m, label]
            var[image] += ((t - c) ** 2).mean() / 2
            pos[image] += (1 - np.minimum(c, t).sum() / np.maximum(c, t).sum()) / 2
    np.testing.assert_allclose(controls.var_real(seen), var, rtol=1e-5)
    np.testing.assert_allclose(controls.pos_real(seen), pos, rtol=1e-5)


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_maps_that_agree_because_they_are_constant_do_not_agree_with_real_ones(level):
    real_maps = jnp.asarray(RNG.uniform(size=(2, K, 4, 4)), jnp.float32)
    seen = seen_of(maps=jnp.full((2, 6, 4, 4), level), real_maps=real_maps)
    assert invariant.l_var(seen).max() == 0
    assert controls.var_real(seen).min() > 0.01 and controls.pos_real(seen).min() > 0.1
    exact = seen._replace(maps=real_maps[:, LABELS])
    assert controls.var_real(exact).max() == 0 and controls.pos_real(exact).max() < 1e-5


def test_shuffled_maps_are_those_of_other_images_and_of_no_others():
    maps = np.zeros((3, 6, 2, 2), np.float32)
    maps += np.arange(6)[None, :, None, None]  # each image's map is its number, in every network
    seen = seen_of(maps=jnp.asarray(maps), draws=jnp.arange(6, dtype=jnp.uint32))
    assert invariant.l_var(seen).max() == 0 and controls.var_shuffled(seen).max() > 0
    shuffled = np.asarray(controls._shuffled(seen))[:, :, 0, 0]
    np.testing.assert_array_equal(shuffled[0], np.arange(6))
    for row in shuffled[1:]:
        assert sorted(row) == list(range(6)) and (row != np.arange(6)).any()
    np.testing.assert_allclose(controls.var_shuffled(seen), shuffled.var(0), rtol=1e-5)
    np.testing.assert_allclose(
        controls.pos_shuffled(seen), 1 - shuffled.min(0) / (shuffled.max(0) + 1e-6), rtol=1e-4, atol=1e-5
    )


def test_the_mask_has_a_maps_area_and_shape_at_another_place():
    maps = np.zeros((2, 200, 8, 8), np.float32)
    maps[:, :, 2:4, 1:4] = 0.9  # six pixels of 64
    maps[0, :, 2, 1] = 0.8
    seen = seen_of(maps=jnp.asarray(maps), labels=jnp.zeros(200, int), draws=jnp.arange(200, dtype=jnp.uint32))
    value = np.asarray(controls.mask(seen))
    # Where it does not meet the map: six pixels of (1 - 0)^2 and six of the map's own squares.
    apart = (6 + np.mean([5 * 0.81 + 0.64, 6 * 0.81])) / 64
    assert value.max() == pytest.approx(apart, rel=1e-5) and value.min() < apart
    # A shift of 64 brings 6 + 6 pixels together nowhere in 29 of 64 cases: chance of fewer than 60 in 200 under 1e-5.
    assert np.isclose(value, apart, rtol=1e-5).sum() > 60
    gradient = jax.grad(lambda m: controls.mask(seen._replace(maps=m)).sum())(seen.maps)
    assert (np.asarray(gradient) != 0).any(axis=(0, 2, 3)).all()


def test_the_real_side_is_that_of_all_training_images(equipped):
    images = (DATA.train.images / 255 - np.asarray(DATA.train.mean)) / np.asarray(DATA.train.std)
    labels = np.asarray(DATA.train.labels)
    for one in equipped:
        h = jax.jit(one.net.apply)(one.variables, jnp.asarray(images, jnp.float32))[1]["embedding"]
        expected = side(h, labels)
        for name in ("counts", "means", "directions", "spread", "variances"):
            np.testing.assert_allclose(getattr(one.real, name), getattr(expected, name), rtol=1e-4, atol=1e-5)
        assert one.untrained.net is one.net and one.untrained.map_eps


def test_the_mean_maps_are_those_of_all_training_images(equipped, auxiliaries):
    images = (DATA.train.images / 255 - np.asarray(DATA.train.mean)) / np.asarray(DATA.train.std)
    labels = np.asarray(DATA.train.labels)
    one = equipped[0]
    every = [
        np.asarray(
            features.activation_maps(
                one.net, one.variables, jnp.asarray(image[None], jnp.float32), jnp.array([label]),
                map_eps=one.map_eps["local"],
            )
        )[0]
        for image, label in zip(images, labels, strict=True)
    ]  # fmt: skip
    expected = [np.mean([m for m, own in zip(every, labels, strict=True) if own == k], axis=0) for k in range(K)]
    assert list(one.real_maps) == ["local"]
    np.testing.assert_allclose(one.real_maps["local"], expected, rtol=1e-4, atol=1e-5)
    # Another way to make maps is another target, and stands beside the first.
    soft, term = features.CamConfig(low_confidence="soft"), [invariant.TERMS["var_real"]]
    both = invariant.equip(equipped[:1], DATA, term, cam=soft)[0]
    assert set(both.real_maps) == {"local", "local, low confidence soft"}
    assert not np.array_equal(both.real_maps["local, low confidence soft"], both.real_maps["local"])
    assert invariant.equip([both], DATA, term, cam=soft)[0] is both


def test_a_stand_in_has_the_shapes_of_what_is_measured(auxiliaries, equipped):
    def shapes(one):
        return jax.tree.map(lambda leaf: (jnp.shape(leaf), str(jnp.result_type(leaf))), one)

    for bare, full in zip(auxiliaries, equipped, strict=True):
        assert shapes(invariant.stand_in(bare, invariant.CONTROLS.values())) == shapes(full)
    assert invariant.equip(auxiliaries, DATA, [invariant.TERMS["ai"]]) == auxiliaries


def test_the_real_side_in_parts_is_that_of_one(equipped, auxiliaries, monkeypatch):
    monkeypatch.setattr(equipment, "_PART", 7)  # 24 images: the last part is filled up
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        (equipment.real_side(auxiliaries[0], DATA), equipment.mean_maps(auxiliaries[0], DATA)),
        (equipped[0].real, equipped[0].real_maps["local"]),
    )


def test_each_has_a_gradient_in_every_image(equipped):
    images = jax.random.normal(jax.random.key(9), (6, *SHAPE))
    config = invariant.InvariantConfig(ai=0, pos=0, var=0, extra=tuple((name, 1.0) for name in invariant.CONTROLS))
    config = dataclasses.replace(config, views="none")

    def terms(images):
        found, _ = invariant.invariant_terms(jax.random.key(1), images, LABELS, equipped, config=config)
        return found, found

    gradients, values = jax.jit(jax.jacrev(terms, has_aux=True))(images)
    assert set(values) == set(invariant.CONTROLS)
    for name, value in values.items():
        assert np.isfinite(value) and np.isfinite(gradients[name]).all(), name
        assert (np.abs(gradients[name]).max(axis=(1, 2, 3)) > 0).all(), name


@pytest.mark.parametrize("name", ["cos", "class_mean", "class_var", "embedding_var", "logit_var", "ce"])
def test_the_gradient_agrees_with_finite_differences(name):
    labels = np.repeat(np.arange(K), 4)
    real = [RNG.normal(size=(12, width)) + 2 for width in (5, 7)]
    with jax.enable_x64():
        sides = tuple(jax.tree.map(jnp.asarray, side(x, labels)) for x in real)
        h = tuple(jnp.asarray(RNG.normal(size=(6, width))) for width in (5, 7))
        logits = jnp.asarray(RNG.normal(size=(2, 6, K)))

        @jax.jit
        def value(point):
            return controls.CONTROLS[name].value(seen_of(point[0], sides, point[1])).mean()

        along = jax.tree.map(lambda x: jnp.asarray(RNG.normal(size=x.shape)), (h, logits))
        there, back = (jax.tree.map(lambda x, a, s=sign: x + s * 1e-6 * a, (h, logits), along) for sign in (1, -1))
        slope = sum(
            jax.tree.leaves(jax.tree.map(lambda g, a: (g * a).sum(), jax.jit(jax.grad(value))((h, logits)), along))
        )
        assert slope == pytest.approx(float(value(there) - value(back)) / 2e-6, rel=1e-6)


@pytest.mark.parametrize("name", ["var_real", "pos_real"])
def test_the_gradient_in_the_maps_agrees_with_finite_differences(name):
    with jax.enable_x64():
        maps, real_maps = jnp.asarray(RNG.uniform(size=(2, 6, 4, 4))), jnp.asarray(RNG.uniform(size=(2, K, 4, 4)))
        along = jnp.asarray(RNG.normal(size=maps.shape))

        def value(maps):
            return controls.CONTROLS[name].value(seen_of(maps=maps, real_maps=real_maps)).mean()

        slope = float((jax.jit(jax.grad(value))(maps) * along).sum())
        # So short that no map crosses its target, where the smaller of two has a corner.
        assert slope == pytest.approx(float(value(maps + 1e-7 * along) - value(maps - 1e-7 * along)) / 2e-7, rel=1e-6)


def test_what_a_control_lacks_is_told_in_one_line(auxiliaries, equipped):
    images, config = jnp.zeros((6, *SHAPE)), invariant.InvariantConfig(ai=0, pos=0, var=0, extra=(("cos", 1.0),))

    def look(networks, **changes):
        changed = dataclasses.replace(config, **changes)
        return invariant.invariant_loss(jax.random.key(0), images, LABELS, networks, config=changed)

    with pytest.raises(ValueError, match=r"L_cos needs the real embeddings of convnet; give what invariant\.equip"):
        look(auxiliaries)
    with pytest.raises(ValueError, match=r"L_var_untrained needs the random weights"):
        look(auxiliaries, extra=(("var_untrained", 1.0),))
    real = dataclasses.replace(config, extra=(("var_real", 1.0),))
    told = r"L_var_real needs the mean maps of real images \(by the cam of the loss\) of convnet; give what"
    with pytest.raises(ValueError, match=told):
        look(auxiliaries, extra=real.extra)
    with pytest.raises(ValueError, match=told):
        look(equipped, extra=real.extra, cam=features.CamConfig(alpha="mean"))
    with pytest.raises(ValueError, match=r"L_cos looks at all 6 images at once; leave micro_batch=2 out"):
        look(equipped, micro_batch=2)
    with pytest.raises(ValueError, match="L_embedding_var compare"):
        look(equipped[:1], extra=(("embedding_var", 1.0),))
    with pytest.raises(ValueError, match="ask for maps, reference, real, untrained, draws and real_maps alone"):
        invariant.register("mine", controls.ce, needs=("map",))
    with pytest.raises(ValueError, match="term 'cos'"):
        invariant.register("cos", controls.ce)
