"""DC's ops against SciPy's rotation, PyTorch's nearest neighbours and the published program's slices in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from metadd_jax import dc_augment

SIDES = [(28, 28), (32, 32), (9, 9)]


def pictures(*shape, seed=0):
    return np.random.default_rng(seed).normal(0.5, 1, size=shape).astype(np.float32)


@pytest.mark.parametrize("side", SIDES)
def test_rotation_is_scipys_cut_out_of_its_larger_frame(side):
    degrees = np.arange(-45, 46)
    image = pictures(*side, 2)
    many = np.repeat(image[None], len(degrees), axis=0)
    turned = jax.jit(dc_augment.rotate)(many, degrees, 0.3)
    for angle, own in zip(degrees, np.asarray(turned), strict=True):
        frame = scipy.ndimage.rotate(image.transpose(2, 0, 1).astype(np.float64), int(angle), axes=(-2, -1), cval=0.3)
        top, left = (int((whole - part) / 2) for whole, part in zip(frame.shape[1:], side, strict=True))
        expected = frame[:, top : top + side[0], left : left + side[1]].transpose(1, 2, 0)
        np.testing.assert_allclose(own, expected, atol=2e-4, err_msg=str(angle))


def nearest(image, height, width):
    """PyTorch's rule: pixel j reads floor(j * (old / new)), all in float32."""
    places = [
        np.minimum(np.floor(np.arange(new, dtype=np.float32) * np.float32(np.float32(old) / np.float32(new))), old - 1)
        for old, new in zip(image.shape[:2], (height, width), strict=True)
    ]
    return image[np.ix_(*(place.astype(int) for place in places))]


def scaled(image, height, width, interpolate):
    """The published program: in the middle of a canvas of zeros, from whose middle the frame is cut."""
    side = image.shape[0]
    largest = max(height, width, side)
    canvas = np.zeros((largest, largest, image.shape[2]), np.float32)
    top, left = (largest - height) // 2, (largest - width) // 2
    canvas[top : top + height, left : left + width] = interpolate(image, height, width)
    start = (largest - side) // 2
    return canvas[start : start + side, start : start + side]


def of_torch(image, height, width):
    torch = pytest.importorskip("torch")
    made = torch.nn.functional.interpolate(torch.tensor(image.transpose(2, 0, 1))[None], [height, width])
    return made[0].numpy().transpose(1, 2, 0)


@pytest.mark.parametrize("interpolate", [nearest, of_torch])
@pytest.mark.parametrize("side", [28, 32, 9])
def test_scaling_is_to_the_nearest_pixel_on_a_canvas_of_zeros(side, interpolate):
    sizes = np.arange(int(0.8 * side), int(1.2 * side) + 1)
    heights, widths = (grid.ravel() for grid in np.meshgrid(sizes, sizes, indexing="ij"))
    image = pictures(side, side, 2)
    seen = jax.jit(dc_augment.resize)(np.repeat(image[None], len(heights), axis=0), heights, widths)
    for own, height, width in zip(np.asarray(seen), heights, widths, strict=True):
        np.testing.assert_array_equal(own, scaled(image, height, width, interpolate), err_msg=f"{height}x{width}")


def test_a_shift_is_a_slice_of_the_padded_image():
    image, outside = pictures(10, 10, 2), np.array([0.25, -3.0], np.float32)
    padded = np.stack([np.pad(image[..., c], 4, constant_values=outside[c]) for c in range(2)], axis=-1)
    places = np.stack(np.meshgrid(np.arange(8), np.arange(8), indexing="ij"), -1).reshape(-1, 2)
    moved = jax.jit(dc_augment.shift)(np.repeat(image[None], 64, axis=0), places[:, 0] - 4, places[:, 1] - 4, outside)
    for own, (y, x) in zip(np.asarray(moved), places, strict=True):
        np.testing.assert_array_equal(own, padded[y : y + 10, x : x + 10])


def draw(token, images, seed=0):
    return np.asarray(jax.jit(functools.partial(dc_augment.augment_each, tokens=token))(jax.random.key(seed), images))


def found(seen, candidates):
    """For each image which candidate it is (the nearest), and how far off the worst is."""
    off = np.abs(seen[:, None] - np.asarray(candidates)[None]).max(axis=(2, 3, 4))
    return off.argmin(axis=1), off.min(axis=1).max()


def test_one_op_an_image_drawn_uniformly():
    one = pictures(1, 12, 12, 1)
    seen = draw(("crop", "noise"), np.repeat(one, 4000, axis=0))
    difference = np.abs(seen - one).max(axis=(1, 2, 3))
    noisy = (difference > 1e-5) & (difference < 0.01)  # a shift by nothing leaves rounding alone
    assert noisy.mean() == pytest.approx(0.5, abs=0.03)
    assert (seen[noisy] - one).std() == pytest.approx(0.001, rel=0.01)
    padded = np.pad(one[0], ((4, 4), (4, 4), (0, 0)), constant_values=one.mean())
    which, off = found(seen[~noisy], [padded[y : y + 12, x : x + 12] for y in range(8) for x in range(8)])
    counts = np.bincount(which, minlength=64)
    assert off < 1e-5 and counts.min() > 0  # every shift from -4 to 3, both ways
    assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 103.4  # chi-square, 63 degrees: p = 0.001


def test_scales_and_angles_are_drawn_as_published():
    """int(U(.8, 1.2) * 12): 9 to 14, the outer ones rarer; whole degrees from -45 to 44."""
    one = pictures(1, 12, 12, 1)
    many = np.repeat(one, 3000, axis=0)
    sizes = [(h, w) for h in range(9, 15) for w in range(9, 15)]
    which, off = found(draw(("scale",), many), [scaled(one[0], *size, nearest) for size in sizes])
    heights = np.bincount([sizes[i][0] for i in which], minlength=15)[9:] / 3000
    np.testing.assert_allclose(heights, np.array([0.4, 1, 1, 1, 1, 0.4]) / 4.8, atol=0.03)
    assert off == 0
    angles = np.arange(-45, 46)
    turned = jax.jit(dc_augment.rotate)(np.repeat(one, 91, axis=0), angles, one.mean())
    which, off = found(draw(("rotate",), many), turned)
    assert set(angles[which]) == set(range(-45, 45)) and off < 1e-5


def test_filling_of_a_batch_has_no_part_in_its_mean():
    images = pictures(6, 12, 12, 1)
    bright = np.concatenate([images, np.full_like(images[:2], 100.0)])
    weights = jnp.arange(8) < 6
    for token in ("crop", "rotate"):
        cut = jax.jit(lambda x, token=token: dc_augment.augment_each(jax.random.key(0), x, (token,), weights=weights))
        seen = cut(bright)[:6]
        assert np.abs(seen).max() < 10
        assert np.isclose(seen, images.mean(), atol=1e-5).any()


def test_gradients_are_those_of_a_linear_op():
    images, direction = pictures(6, 12, 12, 2), pictures(6, 12, 12, 2, seed=1)

    @jax.jit
    def some(x):
        return (dc_augment.augment_each(jax.random.key(2), x, ("crop", "scale", "rotate")) * direction).sum()

    slope = jax.jit(jax.grad(some))(jnp.asarray(images))
    np.testing.assert_allclose((slope * images).sum(), some(images), rtol=1e-4)
    assert np.isfinite(slope).all()
