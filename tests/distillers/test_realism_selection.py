"""RDED against stored numbers, NumPy, and a PyTorch program of the whole selection."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metadd_jax import distillers, keys, transforms, zoo
from metadd_jax.data import sampling
from metadd_jax.distillers import realism_selection

NET = zoo.parse("convnet_bn:width=4,depth=1", 3, (8, 8, 1))
KEY = jax.random.key(4)
SMALL = {"candidates": 9, "crops": 2, "micro_batch": 4}


@pytest.fixture(scope="module")
def teacher():
    return NET.init(jax.random.key(1))


def test_the_lowest_losses_are_kept():
    losses = jnp.array([[0.9, 0.2, 1.5, 0.7, 0.4], [0.3, 0.6, 0.8, 0.1, 0.5]]).T  # [image, crop]
    images, crops = realism_selection.choose(losses, 5)
    assert images.tolist()[:4] == [3, 1, 0, 4]
    by_image = dict(zip(images.tolist(), crops.tolist(), strict=True))
    assert [by_image[image] for image in range(5)] == [1, 0, 1, 1, 0]
    np.testing.assert_allclose(losses.min(axis=1), [0.3, 0.2, 0.8, 0.1, 0.4])


def test_rank_r_goes_to_image_r_mod_ipc_at_place_r_div_ipc():
    patches = jnp.arange(8.0).reshape(1, 8, 1, 1, 1) * jnp.ones((1, 8, 2, 2, 1))
    made = np.asarray(realism_selection.stitch(patches, (2,), 2, (4, 4)))[..., 0]
    for image, corners in zip(made, ([[0, 2], [4, 6]], [[1, 3], [5, 7]]), strict=True):
        np.testing.assert_array_equal(image, np.kron(corners, np.ones((2, 2))))


def test_classes_of_another_count_have_their_own_ranks():
    patches = jnp.arange(24.0).reshape(2, 12, 1, 1, 1)
    made = np.asarray(realism_selection.stitch(patches, (1, 3), 2, (2, 2)))[..., 0]
    np.testing.assert_array_equal(made[0], [[0, 1], [2, 3]])
    np.testing.assert_array_equal(made[1:], 12 + np.array([[[0, 3], [6, 9]], [[1, 4], [7, 10]], [[2, 5], [8, 11]]]))


@pytest.mark.parametrize(("side", "factor", "sizes"), [(7, 2, [4, 3]), (224, 3, [75, 75, 74]), (32, 1, [32])])
def test_the_first_parts_are_one_larger(side, factor, sizes):
    part, line = realism_selection._places(side, factor, side // factor)
    assert np.bincount(part).tolist() == sizes and line.max() == side // factor - 1


def test_a_part_larger_than_its_patch_repeats_the_nearest_line():
    _, line = realism_selection._places(7, 2, 3)
    assert line.tolist() == [0, 0, 1, 2, 0, 1, 2]  # 3 -> 4, and 3 -> 3


def test_a_patch_stands_in_the_middle_of_the_mean_colour():
    shown = np.asarray(realism_selection._centred(jnp.ones((1, 3, 2, 1)), (6, 4)))[0, ..., 0]
    expected = np.zeros((6, 4))
    expected[1:4, 1:3] = 1  # of three free rows one is above
    np.testing.assert_array_equal(shown, expected)


def test_a_crop_is_resized_as_pytorch_does():
    torch = pytest.importorskip("torch")
    image = np.random.default_rng(0).normal(size=(9, 12, 2)).astype(np.float32)
    box = transforms.Box(*(np.array(row) for row in ([0, 2, 1], [1, 0, 5], [9, 5, 2], [8, 12, 3])))
    made = transforms.resized_crop_to(jnp.asarray(image), box, (4, 5))
    for own, top, left, height, width in zip(made, *box, strict=True):
        part = torch.tensor(image[top : top + height, left : left + width].transpose(2, 0, 1).copy())[None]
        expected = torch.nn.functional.interpolate(part, (4, 5), mode="bilinear", antialias=True)[0]
        np.testing.assert_allclose(own, expected.numpy().transpose(1, 2, 0), atol=1e-5)


@pytest.mark.parametrize("factor", [1, 2])
def test_the_set_is_the_best_patches_of_the_drawn_images(tiny, teacher, factor):
    """Crops, scores, ranks and places again in NumPy, from the same draws; class 1 has 5 images for 9 places."""
    ipc, side = (1, 1, 2), 8 // factor
    method = distillers.rded(NET, teacher, ipc=ipc, factor=factor, **SMALL)
    made, aux = method.init(KEY, tiny)
    expected, kept, edge = [], [], (8 - side) // 2
    for label, class_key in enumerate(jax.random.split(KEY, 3)):
        image_key, crop_key = jax.random.split(class_key)
        rows, present = sampling.class_indices(image_key, tiny.train, label, 9)
        boxes = transforms.draw_resized_crop(crop_key, 18, (8, 8), ratio=(1.0, 1.0))
        images = np.asarray(sampling.standardise(tiny.train.images[np.asarray(rows)], tiny.train.mean, tiny.train.std))
        patches = resize(np.repeat(images, 2, axis=0), boxes, side)
        shown = np.zeros((18, 8, 8, 1), np.float32)
        shown[:, edge : edge + side, edge : edge + side] = patches
        scores = -np.asarray(jax.nn.log_softmax(NET.apply(teacher, shown)[0]))[:, label]
        best = [2 * n + int(scores[2 * n + 1] < scores[2 * n]) for n in range(9) if present[n]]
        ranked = sorted(best, key=lambda crop: scores[crop])
        kept += [scores[crop] for crop in ranked[: ipc[label] * factor**2]]
        for image in range(ipc[label]):
            picture = np.zeros((8, 8, 1))
            for place in range(factor**2):
                y, x = side * (place // factor), side * (place % factor)
                picture[y : y + side, x : x + side] = patches[ranked[image + ipc[label] * place]]
            expected.append(picture)
    np.testing.assert_allclose(made["images"], expected, atol=1e-5)
    assert float(aux["cross_entropy"]) == pytest.approx(np.mean(kept), rel=1e-4)


def resize(images, boxes, side):
    """Antialiased bilinear crops by two loops over the outputs."""
    out = np.zeros((len(images), side, side, 1), np.float32)
    for n, (image, top, left, height, width) in enumerate(zip(images, *map(np.asarray, boxes), strict=True)):
        part = image[top : top + height, left : left + width]
        rows, columns = (np.stack([hat(i, side, length) for i in range(side)]) for length in (height, width))
        out[n] = np.einsum("yh,xw,hwc->yxc", rows, columns, part)
    return out


def hat(i, out, length):
    weights = np.maximum(0, 1 - np.abs((i + 0.5) * length / out - 0.5 - np.arange(length)) / max(1, length / out))
    return weights / weights.sum()


def test_what_cannot_serve_is_refused_in_one_line(tiny, teacher):
    for make, words in (
        (
            lambda: distillers.rded(NET, teacher, ipc=3, factor=2, candidates=9),
            "candidates=9 give one patch.*takes 12",
        ),
        (lambda: distillers.rded(NET, teacher, ipc=1, factor=9), "factor=9 patches do not fit into 8 pixels"),
        (lambda: distillers.rded(NET, teacher, ipc=2, factor=2).init(KEY, tiny), "class 1 has 5 images, and ipc=2 at"),
        (lambda: distillers.RDED().check_pixels(zca=True), "leave zca out"),
        (lambda: distillers.RDED(init="noise"), "init='noise': a set that is not trained"),
        (lambda: distillers.start_from(distillers.rded(NET, teacher, ipc=1), None), "trains nothing"),
        (lambda: distillers.rded(NET, teacher, ipc=1, weights="x.pth"), "weights=x.pth are torchvision's"),
        (lambda: distillers.penalise(distillers.rded(NET, teacher, ipc=1), [], {}), "rded chooses real images"),
        (lambda: distillers.parameterise(distillers.rded(NET, teacher, ipc=4), distillers.factor(2)), "trains nothing"),
    ):
        with pytest.raises(ValueError, match=words) as found:
            make()
        assert "\n" not in str(found.value)


def test_a_class_of_too_few_images_gives_its_patches_again(tiny, teacher):
    method = distillers.rded(NET, teacher, ipc=2, factor=2, **SMALL, repeat=True)
    made, _ = method.init(KEY, tiny)
    corners = np.asarray(made["images"]).reshape(6, 2, 4, 2, 4).transpose(0, 1, 3, 2, 4).reshape(6, 4, 16)[2:4]
    ranked = corners.swapaxes(0, 1).reshape(8, 16)  # of the class with 5 images
    np.testing.assert_array_equal(ranked[5:], ranked[:3])
    assert len(np.unique(ranked, axis=0)) == 5


def test_a_run_is_one_update_that_moves_nothing_and_goes_on(tiny, teacher, tmp_path):
    method, tx = distillers.rded(NET, teacher, ipc=1, **SMALL), optax.sgd(1.0, momentum=0.5)
    start = distillers.init_state(keys.root(3, "distil"), method, tx, tiny)
    config = distillers.RunConfig(steps=1, chunk=1, device_mode="jit")
    for _ in range(2):  # the second time from the checkpoint
        state = distillers.distil(3, method, tx, tiny, config, directory=tmp_path)
        np.testing.assert_array_equal(method.synthetic(state).images, start.synthetic["images"])
        assert int(state.step) == 1
    other = distillers.distil(4, method, tx, tiny, config)
    assert not np.array_equal(method.synthetic(other).images, start.synthetic["images"])
