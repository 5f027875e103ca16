"""Resized crops and mixing against NumPy loops, and the crops against PyTorch's interpolation."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadd_jax import transforms

IMAGES = np.random.default_rng(0).normal(size=(3, 6, 8, 2)).astype(np.float32)
BOX = transforms.Box(*(np.array(row) for row in ([1, 0, 2], [3, 0, 7], [4, 6, 1], [5, 8, 1])))


def test_boxes_are_inside_and_of_the_published_laws():
    boxes = jax.jit(lambda key: transforms.draw_resized_crop(key, 4000, (50, 40)))(jax.random.key(0))
    top, left, height, width = map(np.asarray, boxes)
    assert (top >= 0).all() and (left >= 0).all() and (height > 0).all() and (width > 0).all()
    assert (top + height <= 50).all() and (left + width <= 40).all()
    assert (top + height).max() == 50 and (left + width).max() == 40 and top.min() == left.min() == 0
    share, aspect = height * width / 2000, width / height
    # Rounding to pixels moves both a little.
    assert share.min() > 0.07 and share.max() <= 1 and 0.68 < aspect.min() < 0.8 and 1.25 < aspect.max() < 1.45
    small = share < 0.45  # boxes that always fit, so their areas are uniform and their aspects log-symmetric
    assert share[small].mean() == pytest.approx((0.08 + 0.45) / 2, abs=0.015)
    assert np.log(aspect[small]).mean() == pytest.approx(0, abs=0.02)
    free = 50 - height
    assert (top[free > 0] / free[free > 0]).mean() == pytest.approx(0.5, abs=0.02)


def test_an_image_that_no_box_fits_gives_the_largest_central_one():
    box = transforms.draw_resized_crop(jax.random.key(0), 500, (3, 900))
    assert set(zip(*(np.asarray(x).tolist() for x in box), strict=True)) == {(0, 448, 3, 4)}


def by_hand(image, top, left, height, width):
    """Half-pixel centres, bilinear, neighbours held inside the box."""
    rows, columns, _ = image.shape
    out = np.zeros_like(image)
    part = image[top : top + height, left : left + width]
    for i in range(rows):
        for j in range(columns):
            y = np.clip((i + 0.5) * height / rows - 0.5, 0, height - 1)
            x = np.clip((j + 0.5) * width / columns - 0.5, 0, width - 1)
            y0, x0 = int(y), int(x)
            y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
            fy, fx = y - y0, x - x0
            upper = (1 - fx) * part[y0, x0] + fx * part[y0, x1]
            out[i, j] = (1 - fy) * upper + fy * ((1 - fx) * part[y1, x0] + fx * part[y1, x1])
    return out


def test_a_crop_of_each_image():
    expected = [by_hand(*item) for item in zip(IMAGES, *BOX, strict=True)]
    np.testing.assert_allclose(transforms.resized_crop(IMAGES, BOX), expected, atol=1e-5)
    np.testing.assert_array_equal(expected[1], IMAGES[1])  # the whole image


def test_one_crop_of_all_images():
    one = transforms.Box(*(row[:1] for row in BOX))
    expected = [by_hand(image, *(row[0] for row in BOX)) for image in IMAGES]
    np.testing.assert_allclose(transforms.resized_crop(IMAGES, one), expected, atol=1e-5)


def test_a_crop_is_that_of_pytorch():
    torch = pytest.importorskip("torch")
    for image, top, left, height, width in zip(IMAGES, *BOX, strict=True):
        part = torch.tensor(image[top : top + height, left : left + width].transpose(2, 0, 1).copy())[None]
        expected = torch.nn.functional.interpolate(part, (6, 8), mode="bilinear", antialias=True)[0]
        box = transforms.Box(*(np.array([value]) for value in (top, left, height, width)))
        own = transforms.resized_crop(image[None], box)[0]
        np.testing.assert_allclose(own, expected.numpy().transpose(1, 2, 0), atol=1e-5)


def test_mixup():
    how = transforms.draw_mixup(jax.random.key(3), 3, (6, 8), 0.8)
    share, partner = float(how.share[0, 0]), np.asarray(how.partner)
    assert 0 < share < 1 and (np.asarray(how.share) == share).all() and sorted(partner) == [0, 1, 2]
    np.testing.assert_allclose(transforms.mix(IMAGES, how), share * IMAGES + (1 - share) * IMAGES[partner], atol=1e-6)


def test_cutmix():
    how = transforms.Mix(jnp.array([1, 2, 0]), jnp.ones((6, 8)).at[1:3, 4:].set(0))
    expected = IMAGES.copy()
    expected[:, 1:3, 4:] = IMAGES[[1, 2, 0], 1:3, 4:]
    np.testing.assert_array_equal(transforms.mix(IMAGES, how), expected)


def test_the_laws_of_the_shares():
    def draw(kind, alpha):
        keys = jax.random.split(jax.random.key(0), 4000)
        return np.asarray(jax.jit(jax.vmap(lambda key: kind(key, 2, (20, 20), alpha).share))(keys))

    mixup = draw(transforms.draw_mixup, 0.8)[:, 0, 0]
    assert mixup.mean() == pytest.approx(0.5, abs=0.02)
    assert mixup.var() == pytest.approx(1 / (4 * (2 * 0.8 + 1)), rel=0.05)  # of Beta(a, a)
    cutmix = draw(transforms.draw_cutmix, 1.0)
    assert set(np.unique(cutmix)) == {0, 1}
    sides = (1 - cutmix).max(axis=2).sum(axis=1)  # rows that the box touches
    np.testing.assert_array_equal((1 - cutmix).sum(axis=(1, 2)), sides * (1 - cutmix).max(axis=1).sum(axis=1))
    # NumPy's draw of the same law, boxes clipped at the border.
    rng = np.random.default_rng(0)
    half = (20 * np.sqrt(1 - rng.beta(1, 1, 40000))).astype(int) // 2
    centre = rng.integers(0, 20, 40000)
    assert sides.mean() == pytest.approx(
        (np.minimum(centre + half, 20) - np.maximum(centre - half, 0)).mean(), rel=0.02
    )


def test_filling_is_mixed_with_filling_alone(key):
    weights = jnp.array([1.0, 0, 1, 1, 0, 1])
    real, filling = {0, 2, 3, 5}, {1, 4}
    orders = np.asarray(jax.vmap(lambda k: transforms.partners(k, 6, weights=weights))(jax.random.split(key, 200)))
    for order in orders:
        assert {int(i) for i in order[[0, 2, 3, 5]]} == real and {int(i) for i in order[[1, 4]]} == filling
    assert len({tuple(order[[0, 2, 3, 5]]) for order in orders}) == 24  # every permutation of the four
    everyone = transforms.partners(key, 6, weights=jnp.ones(6))
    np.testing.assert_array_equal(everyone, transforms.partners(key, 6))


def test_a_crop_of_the_whole_area_is_the_whole_square():
    """RDED at factor 1: no aspect but 1 fits, and the fall-back of a square is all of it."""
    box = transforms.draw_resized_crop(jax.random.key(0), 1000, (32, 32), scale=(1.0, 1.0))
    assert {tuple(np.asarray(x).tolist()) for x in zip(*box, strict=True)} == {(0, 0, 32, 32)}


def test_patches_are_permuted_by_columns_and_by_rows():
    """Each image is one of the (3!)^2 products of a permutation of its columns of patches and one of its rows."""
    place = np.arange(7 * 6).reshape(7, 6)
    images = np.broadcast_to(place[None, :, :, None], (60, 7, 6, 1)).astype(np.float32)
    made = np.asarray(jax.jit(lambda key: transforms.shuffle_patches(key, images, 3))(jax.random.key(1)))[..., 0]
    orders = list(itertools.permutations(range(3)))
    rows = [np.concatenate([[[0, 1], [2, 3], [4, 5, 6]][part] for part in order]) for order in orders]  # 7 = 2 + 2 + 3
    columns = [np.concatenate([[2 * part, 2 * part + 1] for part in order]) for order in orders]
    wanted = {(i, j): place[np.ix_(row, column)] for i, row in enumerate(rows) for j, column in enumerate(columns)}
    found = [next(name for name, image in wanted.items() if (image == one).all()) for one in made]
    assert len(set(found)) > 20  # 60 draws of 36: fewer than 21 different ones never happen by chance
    np.testing.assert_array_equal(transforms.shuffle_patches(jax.random.key(1), images, 1), images)


def test_cutmix_boxes_in_numbers():
    """lam .75 and .3: half the side of the box is int(32 sqrt(1 - lam)) // 2; clipped, its area counts as it is."""
    for lam, (y, x), box in ((0.75, (30, 5), (22, 32, 0, 13)), (0.3, (16, 16), (3, 29, 3, 29))):
        share = 1.0 - np.asarray(transforms.cut_box((32, 32), jnp.float32(lam), (y, x)))
        top, bottom, left, right = box
        expected = np.zeros((32, 32))
        expected[top:bottom, left:right] = 1
        np.testing.assert_array_equal(share, expected)
    how = transforms.Mix(jnp.array([1, 0]), transforms.cut_box((32, 32), jnp.float32(0.75), (30, 5)))
    labels = transforms.mix_labels(jnp.eye(2), how)
    np.testing.assert_allclose(labels, [[0.873047, 0.126953], [0.126953, 0.873047]], atol=1e-6)
