"""The published vision transformers and Swin: counts, maps, windows against loops in NumPy, options."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadd_jax import features, zoo
from metadd_jax.zoo import swin

GREY, SMALL, TINY, MEDIUM, LARGE = (28, 28, 1), (32, 32, 3), (64, 64, 3), (128, 128, 3), (224, 224, 3)
SWIN = "swin_t:width=12,depths=2-1"


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("vit_ti_16", 5_717_416),
        ("vit_s_16", 22_050_664),
        ("vit_b_16", 86_567_656),
        ("swin_t", 28_288_354),
        ("swin_s", 49_606_258),
        ("swin_b", 87_768_224),
    ],
)
def test_counts_at_224_are_the_published_ones(name, count):
    assert zoo.create(name, 1000, LARGE).num_params() == count


@pytest.mark.parametrize(
    ("name", "image_shape", "map_shape"),
    [
        ("vit_ti_16", GREY, (7, 7, 192)),
        ("vit_ti_16", SMALL, (8, 8, 192)),
        ("vit_ti_16", TINY, (8, 8, 192)),
        ("vit_ti_16", LARGE, (14, 14, 192)),
        ("swin_t", GREY, (7, 7, 384)),
        ("swin_t", SMALL, (8, 8, 384)),
        ("swin_t", TINY, (16, 16, 192)),
        ("swin_t", MEDIUM, (4, 4, 768)),
        ("swin_t", LARGE, (7, 7, 768)),
        ("swin_t", (16, 16, 1), (4, 4, 384)),  # the last grid is 2x2, so the stage before gives the map
    ],
)
def test_maps_are_never_below_4x4(name, image_shape, map_shape):
    assert zoo.create(name, 10, image_shape).map_shape == map_shape


@pytest.mark.parametrize(("side", "patch", "window"), [(32, 1, 4), (64, 2, 4), (127, 2, 4), (128, 4, 7), (224, 4, 7)])
def test_swin_patches_and_windows_follow_the_image(side, patch, window):
    params = jax.eval_shape(zoo.parse(SWIN, 10, (side, side, 3)).init, jax.random.key(0))["params"]
    assert params["patches"]["kernel"].shape[:2] == (patch, patch)
    assert params["stage1_block1"]["position_bias"].shape == ((2 * window - 1) ** 2, 3)


@pytest.mark.parametrize("image_shape", [(16, 16, 3), (13, 18, 3)])  # the second pads windows and odd grids
def test_swin_grad_cam_is_the_classical_cam(key, image_shape):
    """The head behind the map is mean + Linear, so alpha_k = w_ky / (h w)."""
    net = zoo.parse(SWIN, 4, image_shape)
    variables = jax.jit(net.init)(key)
    images = jax.random.normal(key, (3, *image_shape))
    labels = jnp.array([0, 3, 1])
    maps, logits, out = jax.jit(lambda v, x, y: features.raw_maps(net, v, x, y))(variables, images, labels)
    head = np.asarray(variables["params"]["head"]["kernel"])
    expected = np.einsum("bhwd,bd->bhw", out["map"], head.T[labels]) / np.prod(net.map_shape[:2])
    np.testing.assert_allclose(maps, np.maximum(expected, 0), rtol=1e-4, atol=1e-7)
    mean = np.asarray(out["map"]).mean((1, 2))
    np.testing.assert_allclose(out["embedding"], mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(logits, mean @ head + variables["params"]["head"]["bias"], rtol=1e-4, atol=1e-6)


def test_position_index_is_one_row_for_each_offset():
    index = swin.position_index(3)
    for first in range(9):
        for second in range(9):
            down, across = first // 3 - second // 3, first % 3 - second % 3
            assert index[first, second] == (down + 2) * 5 + across + 2


def test_shift_mask_separates_what_the_roll_brings_together():
    """Tokens of a rolled window may meet where the roll kept their distance in the unrolled grid."""
    height, width, window, shifts = 4, 8, 4, [0, 2]
    mask = swin.shift_mask([height, width], shifts, window)
    assert mask.shape == (2, 16, 16)
    for number in range(2):
        columns = [(4 * number + token % 4 + shifts[1]) % width for token in range(16)]
        for first in range(16):
            for second in range(16):
                near = columns[first] - columns[second] == first % 4 - second % 4
                assert mask[number, first, second] == (0 if near else -100)


@pytest.mark.parametrize("shifted", [False, True])
def test_a_window_sees_itself_and_nothing_else(key, shifted):
    """Gradient of one token of one block: zero outside its window, whose place the shift moves."""
    block = swin.Block(heads=2, window=4, shifted=shifted)
    x = jax.random.normal(key, (1, 8, 8, 4))
    params = jax.jit(block.init)(key, x)
    params = jax.tree.map(lambda leaf: leaf + 0.3 * jax.random.normal(key, leaf.shape), params)
    gradient = jax.jit(jax.grad(lambda x: block.apply(params, x)[0, 3, 0].sum()))(x)
    seen = np.abs(np.asarray(gradient[0])).max(-1) > 1e-12
    expected = np.zeros((8, 8), bool)
    # Row 3 lies in window rows 0-3, or shifted by two in rows 2-5; column 0 in 0-3, or shifted in 0-1, as the other
    # half of its window came around from the far side.
    expected[(slice(2, 6), slice(0, 2)) if shifted else (slice(0, 4), slice(0, 4))] = True
    np.testing.assert_array_equal(seen, expected)


def test_merging_puts_down_before_across(key):
    x = jnp.arange(6.0).reshape(1, 2, 3, 1)
    merging = swin.Merging()
    params = merging.init(key, x)["params"]
    kernel = jnp.eye(4)[:, :2]
    y = merging.apply({"params": {**params, "reduction": {"kernel": kernel}}}, x)
    quads = np.array([[0, 3, 1, 4], [2, 5, 0, 0]], np.float64)  # the odd column is padded with zeros
    quads = (quads - quads.mean(1, keepdims=True)) / np.sqrt(quads.var(1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(y[0, 0], quads[:, :2], rtol=1e-4)


def test_initial_deviations(key):
    net = zoo.parse("swin_t:width=48,depths=1-1", 10, SMALL)
    params = jax.jit(net.init)(key)["params"]
    block = params["stage2_block1"]
    for kernel in (block["qkv"]["kernel"], block["mlp1"]["kernel"], params["merging1"]["reduction"]["kernel"]):
        assert float(np.std(kernel)) == pytest.approx(0.02 * 0.88, rel=0.02)  # 0.88: truncated at two deviations
    assert float(np.abs(block["mlp2"]["bias"]).max()) == 0
    assert float(np.abs(params["patches"]["bias"]).max()) <= 3**-0.5


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("swin_t:depths=2", "depths=2; give text such as 2-2-6-2"),
        ("swin_t:depths=2-0", "depths '2-0'; give the blocks of two stages or more"),
        ("swin_t:width=10", "width 10 is no multiple of 3 heads"),
        ("swin_b:width=96", "swin_b has no option 'width'; its options are: patch, window"),
        ("vit_b_16:depth=2", "vit_b_16 has no option 'depth'; its options are: patch"),
        ("swin_t:patch=64", "too small for kernel 64"),
    ],
)
def test_bad_requests_are_refused_in_one_line(spec, message):
    with pytest.raises(ValueError, match=r"\A.*\Z") as caught:
        zoo.parse(spec, 10, SMALL)
    assert message in str(caught.value)


def test_label_reads_back():
    net = zoo.parse(SWIN, 10, SMALL)
    assert zoo.parse(net.label, 10, SMALL) == net == zoo.create("swin_t", 10, SMALL, width=12, depths="2-1")
