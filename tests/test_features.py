"""Class activation maps against closed forms, NumPy and finite differences in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadd_jax import data, features, keys, zoo
from metadd_jax.structs import Auxiliary

SHAPE = (16, 16, 3)


def network(spec, shape=SHAPE):
    return zoo.parse(spec, num_classes=4, image_shape=shape)


def sample(key, net, batch=3):
    image_key, label_key, net_key = jax.random.split(key, 3)
    images = jax.random.normal(image_key, (batch, *net.image_shape))
    return jax.jit(net.init)(net_key), images, jax.random.randint(label_key, (batch,), 0, net.num_classes)


def raw_maps(net, *given, config=None):
    """``features.raw_maps``, compiled: op by op it takes ten times as long."""
    return jax.jit(lambda *given: features.raw_maps(net, *given, config=config))(*given)


def test_grad_cam_of_a_pooled_linear_head_is_the_classical_cam(key):
    """GAP + linear: alpha_k = w_ky / (h w), so the map is ReLU(sum_k w_ky A_k) / (h w)."""
    net = network("resnet18:width=4", (128, 128, 3))
    variables, images, labels = sample(key, net)
    maps, logits, out = raw_maps(net, variables, images, labels)
    head = next(
        leaf["kernel"]
        for leaf in variables["params"].values()
        if "kernel" in leaf and leaf["kernel"].ndim == 2 and leaf["kernel"].shape[-1] == 4
    )
    h, w = out["map"].shape[1:3]
    expected = np.einsum("bhwd,bd->bhw", np.asarray(out["map"]), np.asarray(head).T[np.asarray(labels)]) / (h * w)
    np.testing.assert_allclose(maps, np.maximum(expected, 0), atol=1e-6)
    np.testing.assert_allclose(logits, jax.jit(net.apply)(variables, images)[0], atol=1e-6)


def test_local_alpha_adds_up_to_the_logit_where_the_head_is_linear_in_every_pixel(key):
    """Flatten + linear: sum_ijk w_ijky A_ijk is the logit less its bias, before what is negative is cut off."""
    net = network("convnet:width=4,depth=2")
    variables, images, labels = sample(key, net)
    maps, logits, out = raw_maps(net, variables, images, labels, config=features.CamConfig(alpha="local"))
    head = variables["params"]["head"]
    rows = np.asarray(head["kernel"]).T[np.asarray(labels)].reshape(out["map"].shape)
    shares = (np.asarray(out["map"]) * rows).sum(-1)
    own = np.take_along_axis(np.asarray(logits), np.asarray(labels)[:, None], 1)[:, 0]
    np.testing.assert_allclose(shares.sum((1, 2)), own - np.asarray(head["bias"])[np.asarray(labels)], atol=1e-5)
    np.testing.assert_allclose(maps, np.maximum(shares, 0), atol=1e-6)


def test_local_alpha_is_grad_cam_where_the_head_averages(key):
    net = network("resnet18:width=4", (128, 128, 3))
    given = sample(key, net)
    mean, local = (raw_maps(net, *given, config=features.CamConfig(alpha=alpha))[0] for alpha in features.ALPHA)
    np.testing.assert_allclose(local, mean, atol=1e-6)


@pytest.mark.parametrize("spec", ["convnet:width=4,depth=2", "alexnet:width=4", "vit:width=12,depth=2,heads=2"])
def test_alpha_is_the_mean_derivative_of_the_logit_by_finite_differences(key, spec):
    with jax.enable_x64():
        net = network(spec)
        variables, images, labels = jax.tree.map(
            lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, sample(key, net, batch=1)
        )
        config = features.CamConfig(alpha="mean", transformer_method="grad")
        maps, _, out = raw_maps(net, variables, images, labels, config=config)

        @jax.jit
        def logit(shift):
            perturbed = {**variables, "perturbations": {"map": shift}}
            return net.apply(perturbed, images)[0][0, labels[0]]

        zeros = np.zeros(out["map"].shape)
        step, alpha = 1e-5, np.zeros(zeros.shape[-1])
        for channel in range(zeros.shape[-1]):
            direction = zeros.copy()
            direction[..., channel] = step / (zeros.shape[1] * zeros.shape[2])
            alpha[channel] = float(logit(direction) - logit(-direction)) / (2 * step)
        expected = np.maximum((np.asarray(out["map"]) * alpha).sum(-1), 0)
        np.testing.assert_allclose(maps, expected, atol=1e-7)


@pytest.mark.parametrize("stop_gradient_alpha", [False, True])
def test_the_gradient_through_the_map_to_the_pixels_by_finite_differences(key, stop_gradient_alpha):
    """Behind a ViT's map stands a whole block: alpha depends on the image, the exact gradient is second order."""
    config = features.CamConfig(
        transformer_method="grad", stop_gradient_alpha=stop_gradient_alpha, stop_gradient_range=False
    )
    with jax.enable_x64():
        net = network("vit:width=8,depth=1,heads=2")
        variables, images, labels = jax.tree.map(
            lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, sample(key, net, batch=2)
        )
        weights = jax.random.normal(key, (2, 16, 16), jnp.float64)

        def value(x):
            return (weights * features.activation_maps(net, variables, x, labels, config=config)).sum()

        direction = jax.random.normal(jax.random.fold_in(key, 1), images.shape, jnp.float64)
        both = jax.jit(jax.value_and_grad(value))
        slope = float((both(images)[1] * direction).sum())
        step = 1e-6
        difference = float(both(images + step * direction)[0] - both(images - step * direction)[0]) / (2 * step)
    if stop_gradient_alpha:
        assert abs(slope - difference) > 1e-3 * abs(difference)  # the stopped gradient is another one
    else:
        assert slope == pytest.approx(difference, rel=1e-4)


def test_attention_map_and_rollout_against_numpy(key):
    net = network("vit:width=12,depth=3,heads=2")
    variables, images, labels = sample(key, net, batch=2)
    out = jax.jit(net.apply)(variables, images)[1]
    attention, patch_logits = np.asarray(out["attention"]).mean(axis=2), np.asarray(out["patch_logits"])

    def maps(method):
        config = features.CamConfig(transformer_method=method)
        return np.asarray(raw_maps(net, variables, images, labels, config=config)[0])

    np.testing.assert_allclose(maps("attention"), attention[-1, :, 0, 1:].reshape(2, 4, 4), atol=1e-6)
    own = np.stack([patch_logits[i, :, :, label] for i, label in enumerate(np.asarray(labels))])
    np.testing.assert_allclose(maps("attention_logits"), maps("attention") * np.maximum(own, 0), atol=1e-6)
    flow = np.stack([np.eye(17)] * 2)
    for layer in attention:
        flow = (0.5 * layer + 0.5 * np.eye(17)) @ flow
    np.testing.assert_allclose(maps("rollout"), flow[:, 0, 1:].reshape(2, 4, 4), atol=1e-6)


def test_normalised_maps_span_zero_to_one_and_dead_maps_stay_zero():
    raw = jnp.stack([jnp.arange(16.0).reshape(4, 4), jnp.zeros((4, 4)), jnp.full((4, 4), 3.0)])
    maps = features.normalise_maps(raw, (4, 4), map_eps=1e-6)
    np.testing.assert_allclose(maps[0], np.arange(16).reshape(4, 4) / 15, atol=1e-6)
    np.testing.assert_array_equal(maps[1:], 0)
    assert features.normalise_maps(raw, (9, 12)).shape == (3, 9, 12)


def test_low_confidence_is_removed_hard_or_soft():
    raw = jnp.arange(16.0).reshape(1, 4, 4)
    hard = features.normalise_maps(raw, (4, 4), config=features.CamConfig(low_confidence="hard"))
    soft = features.normalise_maps(raw, (4, 4), config=features.CamConfig(low_confidence="soft"))
    np.testing.assert_array_equal(np.asarray(hard)[0] > 0, np.arange(16).reshape(4, 4) >= 8)
    assert float(soft[0, 0, 1]) < 1e-3
    assert float(soft[0, 3, 3]) == pytest.approx(1.0, abs=1e-3)


def test_what_counts_as_low_is_a_switch():
    """Sixteen steps from 0 to 1: from 0.25 on, 4/15 and more stay; the gate is half open at the threshold."""
    raw = jnp.arange(16.0).reshape(1, 4, 4)
    hard = features.normalise_maps(raw, (4, 4), config=features.CamConfig(low_confidence="hard", threshold=0.25))
    np.testing.assert_array_equal(np.asarray(hard).ravel() > 0, np.arange(16) >= 4)
    soft = features.normalise_maps(raw, (4, 4), config=features.CamConfig(low_confidence="soft", threshold=0.4))
    assert float(soft.ravel()[6]) == pytest.approx(0.4 / 2, abs=1e-4)
    assert features.CamConfig(threshold=0.4).describe().endswith(", high from 0.4")


def test_no_gradient_reaches_an_auxiliary(key):
    net = network("convnet:width=4,depth=1")
    variables, images, labels = sample(key, net)

    def value(variables):
        auxiliary = Auxiliary(variables=variables, map_eps={"local": jnp.float32(1e-3)}, net=net)
        maps, logits, _ = features.observe(auxiliary, images, labels)
        return maps.sum() + logits.sum()

    assert all(float(jnp.abs(leaf).max()) == 0 for leaf in jax.tree.leaves(jax.jit(jax.grad(value))(variables)))


def test_auxiliary_of_another_size_gives_maps_of_the_sets_size(key):
    net = network("convnet:width=4,depth=2", (32, 32, 3))
    variables, _, labels = sample(key, net)
    images = jax.random.normal(key, (3, 16, 16, 1))
    preprocess = zoo.Preprocess(
        source_mean=(0.1,), source_std=(0.3,), target_mean=(0.5,) * 3, target_std=(0.2,) * 3, size=(32, 32), channels=3
    )
    auxiliary = features.make_auxiliary(net, variables, images, labels, preprocess=preprocess)
    assert features.stack_maps([auxiliary, auxiliary], images, labels).shape == (2, 3, 16, 16)


def config_of(kind):
    """The switches that ask a network for this kind of map."""
    if kind in features.ALPHA:
        return features.CamConfig(alpha=kind, transformer_method="grad")
    return features.CamConfig(transformer_method=kind)


@pytest.mark.parametrize(
    ("spec", "kinds"),
    [
        ("convnet:width=4,depth=2", {"mean", "local"}),
        ("vit:width=8,depth=2,heads=2,patch=4", {"mean", "local", "attention", "attention_logits", "rollout"}),
    ],
)
def test_each_kind_of_map_has_its_own_range_a_hundredth_of_the_median(key, spec, kinds):
    net = network(spec)
    variables, images, labels = sample(key, net, batch=5)
    auxiliary = jax.jit(lambda *given: features.make_auxiliary(net, *given))(variables, images, labels)
    assert set(auxiliary.map_eps) == kinds == set(features.map_kinds(net))
    for kind, map_eps in auxiliary.map_eps.items():
        raw = np.asarray(raw_maps(net, variables, images, labels, config=config_of(kind))[0])
        expected = 1e-2 * np.median(raw.max((1, 2)) - raw.min((1, 2)))
        assert float(map_eps) == pytest.approx(max(expected, 1e-8), rel=1e-4), kind


def test_a_map_is_scaled_by_the_range_of_its_own_kind(key):
    """AlexNet's ranges of "local" and "mean" maps are far apart, and a map scaled by the other's is another map."""
    net = network("alexnet:width=4")
    variables, images, labels = sample(key, net, batch=8)
    auxiliary = features.make_auxiliary(net, variables, images, labels)
    ranges = sorted(map(float, auxiliary.map_eps.values()))
    assert ranges[1] > 5 * ranges[0]

    def scaled(kind, of):
        raw = raw_maps(net, variables, images, labels, config=config_of(kind))[0]
        up = np.asarray(jax.image.resize(raw, images.shape[:3], "bilinear"), np.float64)
        low, high = up.min((1, 2), keepdims=True), up.max((1, 2), keepdims=True)
        return (up - low) / (high - low + float(auxiliary.map_eps[of]))

    for kind, other in (("local", "mean"), ("mean", "local")):
        maps = jax.jit(lambda x, y, k=kind: features.stack_maps([auxiliary], x, y, config=config_of(k)))(images, labels)
        np.testing.assert_allclose(maps[0], scaled(kind, kind), atol=1e-4)
        assert np.abs(scaled(kind, kind) - scaled(kind, other)).max() > 0.01


def test_an_auxiliary_without_the_range_of_a_kind_is_refused(key):
    net = network("convnet:width=4,depth=1")
    variables, images, labels = sample(key, net)
    for map_eps in ({}, {"local": jnp.float32(1.0)}, jnp.float32(1.0)):
        auxiliary = Auxiliary(variables=variables, map_eps=map_eps, net=net)
        with pytest.raises(ValueError, match="convnet holds no range of 'mean' maps"):
            features.observe(auxiliary, images, labels, config=features.CamConfig(alpha="mean"))
    mlp = network("mlp:width=4")
    assert features.map_kinds(mlp) == ()
    with pytest.raises(ValueError, match="mlp has no spatial feature map"):
        features.make_auxiliary(mlp, jax.jit(mlp.init)(key), images, labels)


def test_a_network_without_a_map_is_refused(key):
    net = network("mlp:width=4")
    variables, images, labels = sample(key, net)
    with pytest.raises(ValueError, match="no spatial feature map"):
        features.activation_maps(net, variables, images, labels)
    with pytest.raises(ValueError, match="transformer_method"):
        features.CamConfig(transformer_method="magic")
    with pytest.raises(ValueError, match="low_confidence"):
        features.CamConfig(low_confidence="some")


def test_freeze_measures_the_median_range_in_parts_as_at_once(monkeypatch):
    """Its probes are 5 of each class, all that the smallest has; in parts of 4 they give the same median."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), (20, 5, 9))
    images = rng.integers(0, 255, (34, 8, 8, 1)).astype(np.uint8)
    dataset = data.from_arrays("tiny", images, labels, images[:3], labels[:3])
    net = zoo.parse("convnet:width=4,depth=1", 3, (8, 8, 1))
    variables = net.init(jax.random.key(1))
    probes, of = data.random_per_class(keys.root(0, "probe"), dataset.train, 5)
    assert of.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    raw = raw_maps(net, variables, probes, of, config=features.CamConfig(alpha="local"))[0]
    ranges = np.asarray(raw).max((1, 2)) - np.asarray(raw).min((1, 2))
    frozen = features.freeze(net, variables, dataset)
    np.testing.assert_allclose(frozen.map_eps["local"], 1e-2 * np.median(ranges), rtol=1e-5)
    sizes = []
    kinds_of = features.all_raw_maps
    monkeypatch.setattr(
        features, "all_raw_maps", lambda net, v, x, y: (sizes.append(x.shape), kinds_of(net, v, x, y))[1]
    )
    monkeypatch.setattr(features, "_PART_PIXELS", 4 * 64)
    parts = features.freeze(net, variables, dataset)
    assert sizes == [(4, 8, 8, 1)]  # traced once, for all parts
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), parts.map_eps, frozen.map_eps)
    mlp = zoo.parse("mlp:width=4", 3, (8, 8, 1))
    flat = features.freeze(mlp, mlp.init(jax.random.key(0)), dataset)
    assert flat.map_eps == {} and flat.net == mlp
