"""Architecture's functions and the registry: batch norm, initialisation, names, options, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadd_jax import zoo


@pytest.fixture(scope="module")
def batch_norm_net():
    net = zoo.create("convnet_bn", 3, (8, 8, 1), width=4, depth=1)
    variables = net.init(jax.random.key(0))
    images = 2 + 3 * jax.random.normal(jax.random.key(1), (6, 8, 8, 1))
    return net, variables, images


def _first_convolution(variables, images):
    layer = variables["params"]["conv1"]
    return np.asarray(
        jax.lax.conv_general_dilated(
            images, layer["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        + layer["bias"]
    )


def _rest(variables, features, mean, variance):
    """Norm (scale 1, bias 0), ReLU, average pool and head, in NumPy."""
    x = np.maximum((features - mean) / np.sqrt(variance + 1e-5), 0)
    x = x.reshape(6, 4, 2, 4, 2, 4).mean((2, 4)).reshape(6, -1)
    head = variables["params"]["head"]
    return x @ head["kernel"] + head["bias"]


def test_evaluation_uses_the_running_statistics(batch_norm_net):
    net, variables, images = batch_norm_net
    features = _first_convolution(variables, images)
    mean, variance = np.linspace(-1, 1, 4, dtype=np.float32), np.linspace(0.5, 2, 4, dtype=np.float32)
    statistics = {"norm1": {"mean": jnp.asarray(mean), "var": jnp.asarray(variance)}}
    logits, _ = jax.jit(net.apply)({**variables, "batch_stats": statistics}, images)
    np.testing.assert_allclose(logits, _rest(variables, features, mean, variance), rtol=1e-4, atol=1e-5)


def test_training_uses_and_updates_with_the_batch(batch_norm_net):
    net, variables, images = batch_norm_net
    features = _first_convolution(variables, images)
    mean, variance = features.mean((0, 1, 2)), features.var((0, 1, 2))
    logits, out, statistics = jax.jit(net.apply_train)(variables, images)
    expected = _rest(variables, features, mean, variance)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(statistics["norm1"]["mean"], 0.1 * mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(statistics["norm1"]["var"], 0.9 + 0.1 * variance, rtol=1e-4)
    batch_logits, batch_out = jax.jit(net.apply_batch)(variables, images)
    np.testing.assert_array_equal(batch_logits, logits)
    np.testing.assert_array_equal(batch_out["map"], out["map"])


def test_training_without_batch_norm_is_evaluation(key):
    net = zoo.create("convnet", 3, (8, 8, 1), width=4, depth=1)
    variables = net.init(key)
    images = jax.random.normal(key, (2, 8, 8, 1))
    logits, _, statistics = jax.jit(net.apply_train)(variables, images)
    assert statistics == {}
    np.testing.assert_allclose(logits, jax.jit(net.apply)(variables, images)[0], rtol=1e-6)


def test_init_under_vmap_and_jit_equals_init(key):
    net = zoo.create("convnet_bn", 3, (8, 8, 1), width=4, depth=1)
    keys = jax.random.split(key, 2)
    stacked = jax.jit(jax.vmap(net.init))(keys)
    alone = net.init(keys[1])
    assert set(alone) == {"params", "batch_stats"}
    assert type(alone) is dict
    for a, b in zip(jax.tree.leaves(stacked), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(a[1], b, rtol=1e-6)
    assert np.any(stacked["params"]["head"]["kernel"][0] != stacked["params"]["head"]["kernel"][1])


def test_equal_options_give_equal_hashable_networks():
    first = zoo.create("resnet18", num_classes=10, image_shape=(32, 32, 3), width=8, norm="batch")
    second = zoo.parse("resnet18:norm=batch,width=8", 10, [32, 32, 3])
    assert first == second
    assert hash(first) == hash(second)
    assert first != zoo.create("resnet18", 10, (32, 32, 3), width=8)
    assert first.label == second.label == "resnet18:width=8,norm=batch"
    assert zoo.parse(first.label, 10, (32, 32, 3)) == first


def test_default_options_leave_no_trace_in_the_label():
    net = zoo.create("vgg11", 10, (32, 32, 3), width=64)
    assert (net.name, net.label) == ("vgg11", "vgg11")
    assert net == zoo.create("vgg11", 10, (32, 32, 3))


def test_from_128_pixels_on_a_name_of_torchvision_means_its_network():
    assert [zoo.create("resnet18", 10, (side, 8, 3)).geometry for side in (127, 128)] == ["small", "imagenet"]
    assert zoo.create("convnet", 10, (128, 128, 3)).geometry == "small"
    large = zoo.create("vgg11_bn", 10, (128, 128, 3), width=4)
    assert large.label == "vgg11_bn:width=4"
    assert large == zoo.create("vgg11_bn", 10, (128, 128, 3), width=4, geometry="imagenet")


def test_geometry_can_be_chosen_and_stands_in_the_label():
    field = zoo.create("resnet18", 10, (128, 128, 3), geometry="small", width=4)
    assert field.label == "resnet18:geometry=small,width=4"
    assert zoo.parse(field.label, 10, (128, 128, 3)) == field
    assert not field.has_batch_stats
    published = zoo.parse("resnet18:geometry=imagenet,width=4", 10, (32, 32, 3))
    assert published.label == "resnet18:geometry=imagenet,width=4"
    assert published.has_batch_stats
    assert jax.eval_shape(published.init, jax.random.key(0))["params"]["stem_conv"]["kernel"].shape == (7, 7, 3, 4)


def test_parse_reads_true_and_false():
    net = zoo.parse("googlenet:transform_input=True", 10, (128, 128, 3))
    assert net.module.transform_input is True
    assert net.label == "googlenet:transform_input=True"
    assert zoo.parse("googlenet:transform_input=False", 10, (128, 128, 3)).label == "googlenet"


def test_parse_reads_whole_numbers_decimals_and_words():
    net = zoo.parse("vit: width=12, mlp_ratio=0.5", 10, (32, 32, 3))
    assert (net.module.width, net.module.mlp_ratio) == (12, 0.5)
    assert zoo.parse("convnet:activation=swish", 10, (32, 32, 3)).module.activation == "swish"


@pytest.mark.parametrize(
    ("spec", "image_shape", "message"),
    [
        ("resnet19", (32, 32, 3), "unknown network 'resnet19' (did you mean 'resnet18'?); choose one of mlp"),
        ("convnet:colour=1", (32, 32, 3), "options are: width, depth, norm, activation, pooling"),
        ("convnet_bn:norm=batch", (32, 32, 3), "options are: width, depth, activation, pooling"),
        ("lenet:width=3", (32, 32, 3), "options are: compute"),
        ("convnet:norm=banana", (32, 32, 3), "choose one of instance, batch"),
        ("convnet:width=0", (32, 32, 3), "whole number of at least 1"),
        ("convnet:width=1.5", (32, 32, 3), "whole number of at least 1"),
        ("vit:mlp_ratio=-1", (32, 32, 3), "number above 0"),
        ("convnet:width", (32, 32, 3), "cannot read 'width'"),
        ("convnet", (32, 32), "height, width, channels"),
        ("convnet:depth=4,norm=batch", (8, 8, 3), "on 8x8x3 images: a 1x1 feature map cannot be halved"),
        ("convnet:depth=4", (8, 8, 3), "convnet:depth=4 on 8x8x3 images: instance norm over one number each"),
        ("resnet18:width=4", (8, 8, 1), "instance norm over one number each (a map of 1x1 pixels, 32 channels)"),
        ("resnet50:width=4", (8, 8, 1), "use larger images, or another norm such as norm=batch"),
        ("resnet18_ap:width=4", (15, 15, 1), "instance norm over one number each"),
        ("googlenet", (2, 2, 3), "instance norm over one number each"),
        ("convnet:depth=1,pooling=none,width=4,norm=group", (1, 1, 3), "group norm over one number each"),
        ("convnet:depth=1,pooling=none,width=1,norm=layer", (1, 1, 3), "layer norm over one number each"),
        ("convnet:norm=group,width=6", (8, 8, 3), "multiples of 4, not 6"),
        ("vgg11_bn", (16, 16, 3), "cannot be halved"),
        ("lenet", (8, 8, 1), "too small for kernel 5"),
        ("vit", (30, 32, 3), "patches of 4 pixels do not tile 30x32"),
        ("vit:width=10", (32, 32, 3), "width 10 is no multiple of 3 heads"),
        ("vgg11:geometry=large", (32, 32, 3), "vgg11: geometry=large; choose one of small, imagenet"),
        ("convnet:geometry=imagenet", (32, 32, 3), "convnet has no option 'geometry'"),
        ("resnet18:norm=instance", (128, 128, 3), "resnet18 has no option 'norm'; its options are: width, geometry"),
        ("alexnet:geometry=imagenet", (32, 32, 3), "feature map is too small to pool by 3"),
        ("googlenet:transform_input=1", (128, 128, 3), "transform_input=1; choose one of True, False"),
        ("googlenet:transform_input=True", (128, 128, 1), "transform_input needs 3 channels, not 1"),
    ],
)
def test_bad_requests_are_refused_in_one_line(spec, image_shape, message):
    with pytest.raises(ValueError, match=r"\A.*\Z") as caught:
        zoo.parse(spec, 10, image_shape)
    assert message in str(caught.value)


def test_images_of_another_shape_are_refused():
    net = zoo.create("convnet", 10, (8, 8, 1), width=4, depth=1)
    variables = jax.eval_shape(net.init, jax.random.key(0))
    with pytest.raises(ValueError, match=r"created for images \(8, 8, 1\), not \(8, 8, 3\)"):
        jax.eval_shape(net.apply, variables, jnp.zeros((2, 8, 8, 3)))


def test_the_map_of_an_mlp_is_refused():
    net = zoo.create("mlp", 10, (8, 8, 1), width=4)
    assert not net.has_map
    with pytest.raises(ValueError, match="mlp:width=4 has no spatial feature map"):
        _ = net.map_shape


@pytest.mark.parametrize("spec", ["convnet_bn:width=8", "resnet18:width=4", "vit:width=24,depth=2"])
def test_bfloat16_computes_narrowly_and_keeps_everything_wide(key, spec):
    """A bfloat16 has 8 bits: each layer is off by at most 2^-9, and nothing that comes out is a bfloat16."""
    wide, narrow = (zoo.parse(f"{spec},compute={compute}", 3, (16, 16, 3)) for compute in ("float32", "bfloat16"))
    assert wide.label == spec and "compute=bfloat16" in narrow.label
    variables = jax.jit(wide.init)(key)
    images = jax.random.normal(jax.random.key(1), (4, 16, 16, 3))

    def look(net):
        def loss(variables, images):
            logits, out, statistics = net.apply_train(variables, images)
            return jax.nn.logsumexp(logits, axis=1).sum(), (logits, out, statistics)

        return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(variables, images)

    exact, rounded = look(wide), look(narrow)
    for a, b in zip(jax.tree.leaves(exact), jax.tree.leaves(rounded), strict=True):
        assert a.dtype == b.dtype == jnp.float32
    apart = jnp.linalg.norm(exact[1][0] - rounded[1][0]) / jnp.linalg.norm(exact[1][0])
    assert 1e-5 < apart < 0.05
    assert "bf16" in str(jax.make_jaxpr(narrow.apply)(variables, images))
    assert "bf16" not in str(jax.make_jaxpr(wide.apply)(variables, images))


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="compute=float16; choose one of float32, bfloat16"):
        zoo.parse("convnet:compute=float16", 3, (16, 16, 3))


@pytest.mark.parametrize("spec", ["vgg11_bn:width=4", "resnet18:width=4", "alexnet:width=4", "convnet:width=4"])
def test_the_stage_of_the_map_is_a_choice(spec):
    sides = {side: zoo.parse(f"{spec},map_side={side}", 3, (32, 32, 3)) for side in (4, 16)}
    assert {side: net.map_shape[:2] for side, net in sides.items()} == {4: (4, 4), 16: (16, 16)}
    assert zoo.parse(sides[4].label, 3, (32, 32, 3)) == sides[4] != sides[16]
    assert zoo.parse(spec, 3, (32, 32, 3)).map_shape[:2] == (8, 8)  # nothing of the wish stays behind


def test_another_stage_changes_nothing_but_the_map():
    net, other = (zoo.parse(f"alexnet:width=2{more}", 3, (32, 32, 3)) for more in ("", ",map_side=16"))
    variables = net.init(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, other.init(jax.random.key(0)), variables)
    images = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
    shift = jax.random.normal(jax.random.key(2), (2, *other.map_shape))
    apply = jax.jit(lambda shift: other.apply({**variables, "perturbations": {"map": shift}}, images)[0])
    logits = jax.jit(net.apply)(variables, images)[0]
    np.testing.assert_allclose(apply(0 * shift), logits, rtol=1e-5)  # two programs
    # The logits hang on this very map: what is added to it moves them.
    assert float(jnp.abs(apply(shift) - logits).max()) > 1e-3


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("vit:width=24,depth=1,map_side=4", "always taken at one place; leave map_side out"),
        ("googlenet:width=4,map_side=4", "always taken at one place"),
        ("alexnet:width=4,map_side=64", "its finest map is 32x32; lower map_side"),
        ("vgg11:map_side=0", "map_side=0; give a whole number of at least 1"),
    ],
)
def test_a_stage_that_there_is_not_is_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        zoo.check(spec)
