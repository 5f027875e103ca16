"""The terms of the invariant loss against NumPy in float64, the logit-gradient identity and hand-made maps."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadd_jax import features, invariant, zoo
from metadd_jax.invariant import InvariantConfig, terms

SHAPE = (8, 8, 1)
THREE = {"ai": 0.3, "pos": 0.1, "var": 0.1}


@pytest.fixture(scope="module")
def auxiliaries():
    made, key = [], jax.random.key(0)
    for index, spec in enumerate(["convnet:width=4,depth=1", "alexnet:width=4", "convnet:width=6,depth=1"]):
        net = zoo.parse(spec, num_classes=3, image_shape=SHAPE)
        images = jax.random.normal(jax.random.fold_in(key, index), (6, *SHAPE))
        variables = jax.jit(net.init)(jax.random.fold_in(key, 10 + index))
        made.append(features.make_auxiliary(net, variables, images, jnp.arange(6) % 3))
    return made


@pytest.fixture
def images(key):
    return jax.random.normal(jax.random.fold_in(key, 99), (6, *SHAPE))


LABELS = jnp.array([0, 0, 1, 1, 2, 2])


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_variance_of_hand_made_maps():
    maps = jnp.array([[[[0.0, 1.0]]], [[[1.0, 1.0]]]])  # two networks, one image of two pixels
    np.testing.assert_allclose(invariant.variance(maps), [0.125])  # pixel variances 1/4 and 0


def test_cross_entropy_and_divergence_against_numpy_float64():
    rng = np.random.default_rng(0)
    logits, reference, labels = rng.normal(size=(2, 5, 4)), rng.normal(size=(5, 4)), rng.integers(0, 4, 5)
    p_ref, p = softmax(reference / 2), softmax(logits / 2)
    np.testing.assert_allclose(
        invariant.cross_entropy(jnp.asarray(logits, jnp.float32), jnp.asarray(labels)),
        -np.log(softmax(logits))[:, np.arange(5), labels],
        rtol=1e-5,
    )
    forward = invariant.divergence(jnp.asarray(logits, jnp.float32), jnp.asarray(reference, jnp.float32), temperature=2)
    np.testing.assert_allclose(forward, (p_ref * (np.log(p_ref) - np.log(p))).sum(-1), rtol=1e-4)
    backward = invariant.divergence(
        jnp.asarray(logits, jnp.float32), jnp.asarray(reference, jnp.float32), temperature=2, reverse=True
    )
    np.testing.assert_allclose(backward, (p * (np.log(p) - np.log(p_ref))).sum(-1), rtol=1e-4)


def test_the_margins_gradient_is_that_of_the_cross_entropy_without_its_saturation():
    """CE = log(1 + e^margin) of each network, and its gradient (1 - p_y) of the margin's."""
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(scale=3, size=(1, 5, 4)), rng.integers(0, 4, 5)
    z, seen = jnp.asarray(logits, jnp.float32), lambda z: invariant.Seen(None, labels, z, None, (), None)
    p_own = softmax(logits)[0, np.arange(5), labels]
    np.testing.assert_allclose(np.log1p(np.exp(invariant.margin(seen(z)))), -np.log(p_own), rtol=1e-5)
    of_entropy = jax.grad(lambda z: invariant.cross_entropy(z, jnp.asarray(labels)).sum())(z)
    of_margin = jax.grad(lambda z: invariant.margin(seen(z)).sum())(z)
    np.testing.assert_allclose(of_entropy[0], (1 - p_own)[:, None] * of_margin[0], rtol=1e-4, atol=1e-7)
    # Over networks it is the sum, as the cross-entropy in L_ai is.
    alone = invariant.margin(seen(z)) + invariant.margin(seen(2 * z))
    np.testing.assert_allclose(invariant.margin(seen(jnp.concatenate([z, 2 * z]))), alone, rtol=1e-5)


@pytest.mark.parametrize("sign", [1.0, 0.0, -0.5])
def test_logit_gradient_of_ce_plus_s_kl(sign):
    """At T = 1 it is (1 + s) p - y - s p_ref."""
    rng = np.random.default_rng(1)
    logits = jnp.asarray(rng.normal(size=(1, 3, 4)), jnp.float32)
    reference = jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)
    labels = jnp.array([0, 3, 1])

    def value(x):
        return (invariant.cross_entropy(x, labels) + sign * invariant.divergence(x, reference)).sum()

    p, p_ref = softmax(np.asarray(logits[0])), softmax(np.asarray(reference))
    expected = (1 + sign) * p - np.eye(4)[np.asarray(labels)] - sign * p_ref
    np.testing.assert_allclose(jax.grad(value)(logits)[0], expected, atol=1e-6)


def test_positivity_kinds_on_known_maps():
    logits, labels = jnp.array([[[3.0, 1.0, 0.0]], [[0.0, 0.5, 0.0]]]), jnp.array([0])
    same = jnp.full((2, 1, 2, 2), 0.7)
    apart = jnp.stack([jnp.zeros((1, 2, 2)), jnp.ones((1, 2, 2))])
    dead = jnp.zeros((2, 1, 2, 2))
    half = jnp.array([[[[1.0, 0.5]]], [[[0.5, 0.5]]]])
    assert float(invariant.positivity(same, logits, labels)[0]) == pytest.approx(0, abs=1e-5)
    assert float(invariant.positivity(apart, logits, labels)[0]) == pytest.approx(1)
    assert float(invariant.positivity(dead, logits, labels)[0]) == pytest.approx(1)
    assert float(invariant.positivity(half, logits, labels)[0]) == pytest.approx(1 - 1.0 / 1.5, abs=1e-5)
    soft = invariant.positivity(same, logits, labels, kind="soft_ratio")
    assert float(soft[0]) == pytest.approx(1 - (1 / (1 + np.exp(-2.0))) ** 2, abs=1e-5)
    early = invariant.positivity(same, logits, labels, kind="soft_ratio", threshold=0.3)
    assert float(early[0]) == pytest.approx(1 - (1 / (1 + np.exp(-4.0))) ** 2, abs=1e-5)
    # Margins 2 and -0.5: hinges 0 and 1.5.
    assert float(invariant.positivity(same, logits, labels, kind="hinge")[0]) == pytest.approx(0.75)


def test_the_loss_is_the_weighted_sum_of_its_terms(key, images, auxiliaries):
    config = InvariantConfig(views="none", kl=1.0, **THREE)
    weights = {"ai": 2.0, "pos": 3.0, "var": 5.0}
    value = functools.partial(invariant.invariant_loss, config=config, weights=weights)
    loss, metrics = jax.jit(value)(key, images, LABELS, auxiliaries, reference=auxiliaries[0])
    logits = np.stack([np.asarray(jax.jit(a.net.apply)(a.variables, images)[0], np.float64) for a in auxiliaries])
    maps = np.asarray(jax.jit(features.stack_maps)(auxiliaries, images, LABELS), np.float64)
    log_p, log_ref = np.log(softmax(logits)), np.log(softmax(logits[0]))
    ai = -log_p[:, np.arange(6), np.asarray(LABELS)].sum(0).mean()
    ai += (np.exp(log_ref) * (log_ref - log_p)).sum(-1).sum(0).mean()
    var = maps.var(axis=0).mean()
    pos = (1 - maps.min(0).sum((1, 2)) / (maps.max(0).sum((1, 2)) + 1e-6)).mean()
    assert float(loss) == pytest.approx(2 * ai + 3 * pos + 5 * var, rel=1e-4)
    assert float(metrics["loss_var"]) == pytest.approx(var, rel=1e-4)
    assert 0 <= float(metrics["meta_ratio"]) <= 1


def test_gradient_reaches_the_images_and_agrees_with_finite_differences(key, images, auxiliaries):
    config = InvariantConfig(views="none", kl=1.0, **THREE, cam=features.CamConfig(stop_gradient_range=False))
    with jax.enable_x64():
        wide = jax.tree.map(lambda x: jnp.asarray(np.asarray(x), jnp.float64), auxiliaries)
        x = jnp.asarray(np.asarray(images), jnp.float64)
        direction = jnp.asarray(np.random.default_rng(0).normal(size=x.shape))

        def value(x):
            return invariant.invariant_loss(key, x, LABELS, wide, reference=wide[0], config=config)[0]

        # The KL's reference is a constant of the loss, so the numerical derivative must hold it fixed too.
        smooth = jax.jit(jax.value_and_grad(lambda x: value_without_kl(key, x, wide)))
        slope = float((smooth(x)[1] * direction).sum())
        step = 1e-6
        ahead, behind = (smooth(x + sign * step * direction)[0] for sign in (1, -1))
        assert slope == pytest.approx(float(ahead - behind) / (2 * step), rel=1e-4)
        assert float(jnp.abs(jax.jit(jax.grad(value))(x)).max()) > 0


def value_without_kl(key, x, wide):
    config = InvariantConfig(views="none", kl=0.0, **THREE, cam=features.CamConfig(stop_gradient_range=False))
    return invariant.invariant_loss(key, x, LABELS, wide, config=config)[0]


def test_the_papers_reading_against_numpy_float64(key, images, auxiliaries):
    """sum_m [CE + KL(p_ref || p_m)] + L_pos + L_var with plain weights, and Grad-CAM maps."""
    config = InvariantConfig.paper(views="none")
    assert config.strengths == {"ai": 1, "pos": 1, "var": 1} and (config.weighting, config.kl) == ("raw", 1)
    assert (config.cam.alpha, config.cam.transformer_method) == ("mean", "attention")
    value = jax.jit(functools.partial(invariant.invariant_loss, config=config))
    loss = value(key, images, LABELS, auxiliaries, reference=auxiliaries[1])[0]
    logits, maps = [], []
    for auxiliary in auxiliaries:
        net, variables = auxiliary.net, auxiliary.variables

        def score(shift, net=net, variables=variables):
            found, out = net.apply({**variables, "perturbations": {"map": shift}}, images)
            return found[jnp.arange(6), LABELS].sum(), (found, out["map"])

        alpha, (found, feature) = jax.jit(jax.grad(score, has_aux=True))(jnp.zeros((6, *net.map_shape)))
        raw = np.maximum((np.asarray(feature) * np.asarray(alpha).mean((1, 2), keepdims=True)).sum(-1), 0)
        up = np.asarray(jax.image.resize(raw, (6, 8, 8), "bilinear"), np.float64)
        low, high = up.min((1, 2), keepdims=True), up.max((1, 2), keepdims=True)
        maps.append((up - low) / (high - low + float(auxiliary.map_eps["mean"])))
        logits.append(np.asarray(found, np.float64))
    maps, log_p = np.stack(maps), np.log(softmax(np.stack(logits)))
    ce = -log_p[:, np.arange(6), np.asarray(LABELS)]
    kl = (np.exp(log_p[1]) * (log_p[1] - log_p)).sum(-1)
    pos = 1 - maps.min(0).sum((1, 2)) / (maps.max(0).sum((1, 2)) + 1e-6)
    expected = (ce + kl).sum(0).mean() + pos.mean() + maps.var(axis=0).mean()
    assert float(loss) == pytest.approx(expected, rel=1e-4)
    assert InvariantConfig.paper(kl=0.0, views="none") == dataclasses.replace(config, kl=0.0)


def test_unused_terms_are_not_computed(key, images, auxiliaries):
    def computed(networks, **settings):
        config = InvariantConfig(**settings)
        return jax.eval_shape(lambda: invariant.invariant_terms(key, images, LABELS, networks, config=config))

    terms, metrics = computed(auxiliaries[:1], pos=0, var=0, kl=0)
    assert set(terms) == {"ai"} and "meta_ratio" not in metrics
    terms, metrics = computed(auxiliaries, ai=0, pos=0.1, positivity="hinge")
    assert set(terms) == {"pos"} and "meta_ratio" not in metrics


def test_a_random_subset_is_unbiased(images, auxiliaries):
    @functools.partial(jax.jit, static_argnums=1)
    def variance_term(key, subset):
        config = InvariantConfig(ai=0, var=0.1, kl=0, views="none", subset=subset)
        return invariant.invariant_terms(key, images, LABELS, auxiliaries, config=config)[0]["var"]

    draws = jax.jit(jax.vmap(lambda k: variance_term(k, 2)))(jax.random.split(jax.random.key(5), 600))
    spread = float(draws.std()) / np.sqrt(600)
    assert float(draws.mean()) == pytest.approx(float(variance_term(jax.random.key(0), None)), abs=4 * spread)
    assert float(draws.std()) > 0


@pytest.mark.parametrize("terms", [THREE, {"ai": 0.3}])
def test_images_in_parts_change_memory_and_nothing_else(key, images, auxiliaries, terms):
    """Six images, four at once and the two that are left."""

    def value(x, micro_batch):
        config = InvariantConfig(views="none", micro_batch=micro_batch, **terms)
        return invariant.invariant_loss(key, x, LABELS, auxiliaries[:2], config=config)

    (whole, slope), (parts, other) = (
        jax.jit(jax.value_and_grad(lambda x, n=size: value(x, n), has_aux=True))(images) for size in (None, 4)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), whole, parts)
    np.testing.assert_allclose(other, slope, rtol=1e-3, atol=1e-5 * np.abs(slope).max())
    assert "scan" in str(jax.make_jaxpr(lambda x: value(x, 4)[0])(images))


@pytest.mark.parametrize("micro_batch", [None, 4])
def test_the_gradient_in_the_weights_is_true_in_one_part_and_in_several(key, images, auxiliaries, micro_batch):
    """Finite differences in float64: of the loss, and of its slope in the images, which a learner of weights needs."""
    config = InvariantConfig(views="none", micro_batch=micro_batch, **THREE)
    with jax.enable_x64():
        pair = jax.tree.map(lambda x: jnp.asarray(np.asarray(x), jnp.float64), auxiliaries[::2])
        x = jnp.asarray(np.asarray(images), jnp.float64)
        direction = jnp.asarray(np.random.default_rng(0).normal(size=x.shape))

        def loss(x, weights):
            return invariant.invariant_loss(key, x, LABELS, pair, config=config, weights=weights)[0]

        @jax.jit
        def both(weights):
            value, gradient = jax.value_and_grad(loss)(x, weights)
            return jnp.stack([value, (gradient * direction).sum()])

        weights = {"ai": jnp.float64(2.0), "pos": jnp.float64(3.0), "var": jnp.float64(5.0)}
        for name, slopes in jax.jit(jax.jacrev(both))(weights).items():
            ahead, behind = (both({**weights, name: weights[name] + step}) for step in (0.5, -0.5))
            np.testing.assert_allclose(slopes, ahead - behind, rtol=1e-5)
            assert np.abs(slopes).min() > 1e-6


@pytest.mark.parametrize("micro_batch", [None, 4])
def test_networks_their_ranges_and_the_reference_are_constants(key, images, auxiliaries, micro_batch):
    """So are the metrics: what no gradient reaches in one part, none reaches in several."""
    config = InvariantConfig(views="none", kl=1.0, micro_batch=micro_batch, **THREE)

    def loss(networks, reference):
        return invariant.invariant_loss(key, images, LABELS, networks, reference=reference, config=config)[0]

    slopes = jax.jit(jax.grad(loss, argnums=(0, 1)))(auxiliaries[:2], auxiliaries[2])
    assert len(jax.tree.leaves(slopes[0][0].map_eps)) == 2
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(slopes))

    def metrics(images, weight):
        weights = {"ai": weight, "pos": 1.0, "var": 1.0}
        found = invariant.invariant_loss(
            key, images, LABELS, auxiliaries[:2], reference=auxiliaries[2], config=config, weights=weights
        )[1]
        return sum(found.values())

    assert not any(np.asarray(leaf).any() for leaf in jax.jit(jax.grad(metrics, argnums=(0, 1)))(images, 1.0))


@pytest.fixture
def bright(monkeypatch):
    """An own term by name, gone after the test: the brightness of each image, and a fact of its own."""
    monkeypatch.setattr(terms, "_OWN", {})
    for name in [name for name in terms.TERMS if name not in ("ai", "pos", "var")]:
        monkeypatch.delitem(terms.TERMS, name)
    monkeypatch.setitem(terms.TERMS, "bright", None)  # so that the name is taken away again
    monkeypatch.delitem(terms.TERMS, "bright")
    invariant.register("bright", brightness, needs=())
    return "bright"


def brightness(seen):
    return seen.images.mean(axis=(1, 2, 3)), {"widest": seen.logits.max(axis=2)}


@pytest.mark.parametrize("micro_batch", [None, 4])
def test_an_own_term_by_name_joins_the_sum_and_logs_its_facts(key, images, auxiliaries, bright, micro_batch):
    config = InvariantConfig(pos=0, var=0, ai=2.0, extra=((bright, 3.0),), views="none", micro_batch=micro_batch)
    loss, metrics = invariant.invariant_loss(key, images, LABELS, auxiliaries, config=config)
    logits = np.stack([np.asarray(a.net.apply(a.variables, images)[0], np.float64) for a in auxiliaries])
    ai = -np.log(softmax(logits))[:, np.arange(6), np.asarray(LABELS)].sum(0).mean()
    mean = np.asarray(images, np.float64).mean()
    assert float(loss) == pytest.approx(2 * ai + 3 * mean, rel=1e-5)
    assert float(metrics["loss_bright"]) == pytest.approx(mean, abs=1e-6)
    assert float(metrics["widest"]) == pytest.approx(logits.max(2).mean(), rel=1e-5)
    assert "meta_ratio" not in metrics


def test_an_own_function_sees_all_that_the_networks_can_give(key, images, auxiliaries):
    kept = {}

    def nosy(seen):
        kept["seen"] = seen
        return jnp.zeros(len(seen.labels))

    def look_at(networks, reference=None):
        config, named = InvariantConfig(views="none"), {"nosy": invariant.as_term(nosy)}
        invariant.invariant_terms(key, images, LABELS, networks, reference=reference, config=config, terms=named)
        return kept["seen"]

    seen = look_at(auxiliaries, auxiliaries[1])
    out = [auxiliary.net.apply(auxiliary.variables, images) for auxiliary in auxiliaries]
    np.testing.assert_array_equal(seen.images, images)
    np.testing.assert_array_equal(seen.labels, LABELS)
    np.testing.assert_allclose(seen.logits, np.stack([logits for logits, _ in out]), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(seen.reference, out[1][0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(seen.maps, features.stack_maps(auxiliaries, images, LABELS), rtol=1e-4, atol=1e-5)
    for embedding, (_, found) in zip(seen.embeddings, out, strict=True):
        np.testing.assert_allclose(embedding, found["embedding"], rtol=1e-5, atol=1e-6)
    mlp = zoo.parse("mlp:width=4", num_classes=3, image_shape=SHAPE)
    flat = features.Auxiliary(variables=mlp.init(key), map_eps={}, net=mlp)
    assert look_at([*auxiliaries, flat]).maps is None and look_at(auxiliaries).reference is None


def test_what_is_no_term_is_one_clear_line(key, images, auxiliaries, bright):
    def use(**named):
        known = {name: invariant.as_term(term) for name, term in named.items()}
        invariant.invariant_terms(key, images, LABELS, auxiliaries, config=InvariantConfig(views="none"), terms=known)

    with pytest.raises(ValueError, match=r"'flat' gives an array of shape \(\) for 6 images.*shape \(6,\)"):
        use(flat=lambda seen: seen.logits.mean())
    with pytest.raises(ValueError, match="two terms log a fact 'widest'"):
        use(bright=bright, wide=brightness)
    with pytest.raises(ValueError, match="'ai' is one of metadd_jax"):
        invariant.register("ai", brightness)
    with pytest.raises(ValueError, match=r"the term 'bright' is .*brightness already"):
        invariant.register("bright", test_variance_of_hand_made_maps)
    with pytest.raises(
        ValueError, match="needs 'map'; a term can ask for maps, reference, real, untrained, draws and real_maps alone"
    ):
        invariant.register("sharp", brightness, needs=("map",))


def test_checkpointing_changes_memory_and_nothing_else(key, images, auxiliaries):
    def value(x, config):
        return invariant.invariant_loss(key, x, LABELS, auxiliaries, config=config)[0]

    plain, kept = (InvariantConfig(kl=0.0, views="none", checkpoint=again, **THREE) for again in (False, True))
    # A convolution on the CPU has checkpoints of its own: what counts is one more for each auxiliary.
    regions = [str(jax.make_jaxpr(lambda x, c=c: value(x, c))(images)).count("remat2[") for c in (plain, kept)]
    assert regions[1] == regions[0] + len(auxiliaries)
    both = jax.jit(jax.value_and_grad(value), static_argnums=1)
    (expected, wanted), (found, gradient) = both(images, plain), both(images, kept)
    assert float(found) == pytest.approx(float(expected), rel=1e-6)
    np.testing.assert_allclose(gradient, wanted, rtol=1e-4, atol=1e-7)


def test_kl_is_capped_where_it_is_pushed_up(key, images, auxiliaries):
    config = InvariantConfig(pos=0, var=0, kl=-0.5, kl_cap=1e-3, views="none")
    _, metrics = invariant.invariant_terms(key, images, LABELS, auxiliaries, reference=auxiliaries[0], config=config)
    assert float(metrics["kl"]) <= 1e-3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weighting": "magic"}, "weighting"),
        ({"positivity": "love"}, "positivity"),
        ({"ai": -1}, "ai=-1 must be a finite float32 number, at least 0"),
        ({"kl": -0.5}, "kl_cap"),
        ({"temperature": 0}, "temperature"),
        ({"subset": 0}, "subset=0 must be a whole number, at least 1"),
        ({"kl_cap": 0}, "kl_cap=0 must be"),
        (
            {"extra": (("brigt", 1.0),)},
            r"unknown term 'brigt' \(did you mean 'bright'\?\); use one of ai, pos, var, bright",
        ),
        ({"extra": (("ai", 1.0),)}, "second strength for the term 'ai'"),
        ({"extra": (("bright", -1.0),)}, "extra=.* must be pairs"),
    ],
)
def test_bad_settings_are_refused(settings, message, bright):
    with pytest.raises(ValueError, match=message):
        InvariantConfig(**settings)


def test_bad_arguments_are_refused(key, images, auxiliaries):
    def terms(given, **settings):
        return invariant.invariant_terms(key, images, LABELS, given, config=InvariantConfig(**settings))

    with pytest.raises(ValueError, match="at least 1 auxiliary"):
        terms([], kl=0)
    with pytest.raises(ValueError, match="at least 2 auxiliaries"):
        terms(auxiliaries[:1], kl=0, var=0.1)
    with pytest.raises(ValueError, match="reference"):
        terms(auxiliaries, kl=1.0)
    with pytest.raises(ValueError, match="subset=7"):
        terms(auxiliaries, kl=0, subset=7)
    with pytest.raises(ValueError, match="unknown augmentation"):
        terms(auxiliaries, kl=0, views="sparkle")
