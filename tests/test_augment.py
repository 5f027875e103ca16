"""The augmentation against slow NumPy loops written from the table of ops, and its randomness."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadd_jax import augment

NATURAL = "color_crop_cutout_flip_scale_rotate"
DIGITS = "color_crop_cutout_scale_rotate"


def pictures(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def bilinear(image, y, x):
    """One bilinear sample of [H, W, C] at pixel (y, x); neighbours outside the image count as zero."""
    height, width, channels = image.shape
    value = np.zeros(channels)
    for i in range(height):
        for j in range(width):
            if abs(y - i) < 1 and abs(x - j) < 1:
                value += (1 - abs(y - i)) * (1 - abs(x - j)) * image[i, j]
    return value


def affine(image, theta):
    """affine_grid + grid_sample, align_corners: theta maps output to input coordinates (x, y) in [-1, 1]."""
    height, width, _ = image.shape
    result = np.zeros_like(image)
    for i, v in enumerate(np.linspace(-1, 1, height)):
        for j, u in enumerate(np.linspace(-1, 1, width)):
            x, y = theta @ [u, v]
            result[i, j] = bilinear(image, (y + 1) * (height - 1) / 2, (x + 1) * (width - 1) / 2)
    return result


@pytest.mark.parametrize("shape", [(2, 7, 7, 3), (2, 6, 8, 1)])
def test_scale_and_rotate_follow_the_affine_grid(shape):
    images = pictures(*shape)
    sy, sx, angle = np.array([0.84, 1.19]), np.array([1.1, 0.9]), np.array([0.26, -0.2])
    turns = [np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]) for a in angle]
    scaled = [affine(x, np.diag([b, a])) for x, a, b in zip(images, sy, sx, strict=True)]
    rotated = [affine(x, turn) for x, turn in zip(images, turns, strict=True)]
    scale, rotate = jax.jit(augment.scale), jax.jit(augment.rotate)
    np.testing.assert_allclose(scale(images, sy, sx), scaled, atol=1e-5)
    np.testing.assert_allclose(rotate(images, angle), rotated, atol=1e-5)
    # One parameter for the batch takes the unbatched path.
    np.testing.assert_allclose(scale(images, sy[0], sx[0])[0], scaled[0], atol=1e-5)
    np.testing.assert_allclose(rotate(images, angle[1:])[1], rotated[1], atol=1e-5)


def test_identities_are_exact():
    images = pictures(3, 9, 9, 2)

    @jax.jit
    def untouched(x):
        zero = jnp.zeros(3)
        rotated = augment.rotate(x, 0.0), augment.rotate(x, zero)
        return *rotated, augment.scale(x, 1.0, 1.0), augment.crop(x, zero, zero), augment.flip(x, False)

    for same in untouched(images):
        np.testing.assert_array_equal(same, images)


def test_a_quarter_turn_moves_the_right_edge_to_the_top():
    images = pictures(1, 5, 5, 1)
    turned = jax.jit(augment.rotate)(images, np.pi / 2)
    np.testing.assert_allclose(turned[0], np.rot90(images[0]), atol=1e-5)


def test_flip_and_crop_move_pixels():
    images = pictures(2, 5, 6, 3)
    np.testing.assert_array_equal(augment.flip(images, [True, False]), [images[0][:, ::-1], images[1]])
    wanted = np.zeros_like(images)
    wanted[0, :3, 1:] = images[0, 2:, :-1]  # down by 2 in the input, left by 1
    wanted[1, 1:, :3] = images[1, :-1, 3:]
    np.testing.assert_array_equal(augment.crop(images, [2, -1], [-1, 3]), wanted)


@pytest.mark.parametrize("size", [(4, 4), (3, 2)])
def test_cutout_clips_its_box_at_the_border(size):
    images = pictures(4, 8, 8, 2)
    centres = np.array([[0, 0], [8, 4], [3, 7], [5, 5]])
    wanted = images.copy()
    for image, (y, x) in zip(wanted, centres, strict=True):
        for i in range(y - size[0] // 2, y - size[0] // 2 + size[0]):
            for j in range(x - size[1] // 2, x - size[1] // 2 + size[1]):
                if 0 <= i < 8 and 0 <= j < 8:
                    image[i, j] = 0
    np.testing.assert_array_equal(augment.cutout(images, centres[:, 0], centres[:, 1], size), wanted)


def test_colour_ops_are_the_formulas_of_the_table():
    images, u = pictures(2, 4, 5, 3), np.array([0.3, 1.7], np.float32)
    results = [op(images, u) for op in (augment.brightness, augment.saturation, augment.contrast)]
    for image, factor, bright, grey, flat in zip(images, u, *results, strict=True):
        per_pixel = image.mean(-1, keepdims=True)
        np.testing.assert_allclose(bright, image + factor, atol=1e-6)
        np.testing.assert_allclose(grey, (image - per_pixel) * factor + per_pixel, atol=1e-6)
        np.testing.assert_allclose(flat, (image - image.mean()) * factor + image.mean(), atol=1e-6)


def test_siamese_transform_depends_on_the_key_and_not_on_the_batch_size():
    images = pictures(5, 8, 8, 3)
    plan = augment.strategy(NATURAL)
    both = jax.jit(lambda key: (augment.transform(key, images, plan), augment.transform(key, images[3:4], plan)))
    results = [both(jax.random.key(seed)) for seed in range(12)]
    for many, one in results:
        np.testing.assert_allclose(many[3:4], one, atol=1e-6)
    np.testing.assert_array_equal(results[4][0], both(jax.random.key(4))[0])
    assert len({np.asarray(many).tobytes() for many, _ in results}) > 8


def test_individual_parameters_differ_between_equal_images(key):
    images = np.repeat(pictures(1, 8, 8, 3), 6, axis=0)
    plans = {token: augment.strategy(token) for token in augment.TOKENS}
    own = jax.jit(lambda k: {t: augment.transform(k, images, p, siamese=False) for t, p in plans.items()})(key)
    for token, results in own.items():
        assert len(np.unique(np.round(results, 4), axis=0)) > 1, token


def test_ops_are_drawn_uniformly_and_one_a_call():
    # Each op alone, with the key's own parameters, is one of six candidates: find the one that was applied.
    images = pictures(1, 8, 8, 3)
    plan = dataclasses.replace(augment.strategy(NATURAL), flip_probability=1.0)

    def candidates(key):
        alone = [dataclasses.replace(plan, tokens=(token,)) for token in plan.tokens]
        results = jnp.stack([augment.transform(key, images, p) for p in alone])
        return jnp.all(jnp.abs(augment.transform(key, images, plan) - results) < 1e-5, axis=(1, 2, 3, 4))

    matches = np.asarray(jax.jit(jax.vmap(candidates))(jax.random.split(jax.random.key(1), 1200)))
    counts = matches[matches.sum(1) == 1].sum(0)  # a shift by (0, 0) equals nothing else here
    assert (matches.sum(1) >= 1).all()
    assert counts.sum() > 1190
    assert ((counts - 200) ** 2 / 200).sum() < 20.5  # chi-square, 5 degrees of freedom: p = 0.001


def test_op_key_chooses_the_op_and_key_the_parameters(key):
    images, plan = pictures(2, 8, 8, 3), augment.strategy("crop_color")
    fn = jax.jit(lambda key, op_key: augment.transform(key, images, plan, op_key=op_key))
    op_keys = jax.random.split(key, 8)
    results = [np.asarray(fn(key, op_key)) for op_key in op_keys]
    assert len({r.tobytes() for r in results}) == 2
    assert not np.array_equal(fn(jax.random.key(5), op_keys[0]), results[0])


def test_parameters_stay_in_their_ranges(key):
    images = np.ones((400, 8, 8, 1), np.float32)
    # On a constant picture saturation and contrast change nothing, so only the brightness shows.
    color = dataclasses.replace(augment.strategy("color"), saturation=0.0)

    @jax.jit
    def draw(key):
        plans = color, augment.strategy("cutout"), augment.strategy("crop")
        return [augment.transform(key, images, plan, siamese=False) for plan in plans]

    bright, cut, moved = (np.asarray(x) for x in draw(key))
    offsets = bright[:, 0, 0, 0] - 1
    assert -0.5 <= offsets.min() < -0.45 and 0.45 < offsets.max() <= 0.5
    areas = {int(a) for a in (cut == 0).sum((1, 2, 3))}
    assert areas == {a * b for a in (2, 3, 4) for b in (2, 3, 4)}  # 4 x 4 boxes, centres 0 ... 8
    assert {int(a) for a in moved.sum((1, 2, 3))} == {64, 56, 49}  # at most 1 pixel an axis


def test_mode_m_applies_all_in_order(key):
    images = pictures(1, 8, 8, 3)
    plan = dataclasses.replace(augment.strategy("flip_cutout", mode="M"), flip_probability=1.0)
    result = np.asarray(jax.jit(lambda key: augment.transform(key, images, plan))(key))
    kept = result != 0
    np.testing.assert_array_equal(result[kept], images[:, :, ::-1][kept])
    assert 0 < (~kept).sum() <= 4 * 4 * 3


@pytest.mark.parametrize(("siamese", "tokens"), [(True, NATURAL), (False, "rotate_scale")])
def test_gradient_is_finite_and_matches_finite_differences(siamese, tokens):
    images, direction = pictures(2, 6, 6, 2), pictures(2, 6, 6, 2, seed=1)

    def loss(x, token):
        return (augment.transform(jax.random.key(3), x, augment.strategy(token), siamese=siamese) ** 2).sum()

    @jax.jit
    def slopes(x, step):  # a quadratic: central differences are exact
        numeric = {t: (loss(x + step, t) - loss(x - step, t)) / 2 for t in tokens.split("_")}
        return numeric, {t: jax.grad(loss)(x, t) for t in tokens.split("_")}

    numeric, gradient = slopes(images, direction)
    for token, value in gradient.items():
        np.testing.assert_allclose((value * direction).sum(), numeric[token], rtol=1e-4, err_msg=token)
    chex.assert_tree_all_finite(slopes(np.zeros_like(images), direction)[1])


def test_strategy_texts():
    assert augment.strategy(NATURAL).tokens == tuple(augment.TOKENS)
    assert "flip" not in augment.strategy(DIGITS).tokens
    images = pictures(1, 4, 4, 1)
    for text in ("", "none"):
        assert augment.transform(jax.random.key(0), images, augment.strategy(text)) is images
    assert hash(augment.strategy(NATURAL)) == hash(augment.strategy(NATURAL))
    with pytest.raises(ValueError, match=r"'noise'.*color, crop, cutout, flip, scale, rotate"):
        augment.strategy("crop_noise")
    with pytest.raises(ValueError, match="mode 'X'"):
        augment.strategy("crop", mode="X")


def shifted(key, images, siamese):
    """Adds one number to the batch, or one to each image."""
    return images + jax.random.normal(key, (1 if siamese else len(images), 1, 1, 1))


@pytest.fixture
def own(monkeypatch):
    monkeypatch.setattr(augment, "_OWN", {})
    augment.register("shifted", shifted)


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize("siamese", [True, False])
def test_an_own_op_gets_the_key_of_the_draw_and_the_mode(key, siamese):
    images = pictures(3, 4, 4, 1)
    seen = augment.transform(key, images, augment.strategy("shifted"), siamese=siamese)
    draws = jax.random.normal(jax.random.split(key)[1], (1 if siamese else 3,))
    np.testing.assert_allclose(seen, images + np.asarray(draws).reshape(-1, 1, 1, 1), rtol=1e-6)
    assert len(np.unique(np.round(np.asarray(seen - images), 3))) == (1 if siamese else 3)


@pytest.mark.usefixtures("own")
def test_an_own_op_is_drawn_beside_the_others_and_differentiated():
    images, strategy = pictures(2, 6, 6, 1), augment.strategy("cutout_shifted")
    change = jax.jit(jax.vmap(lambda k: augment.transform(k, images, strategy) - images))
    moved = np.asarray(change(jax.random.split(jax.random.key(0), 200))).reshape(200, -1)
    is_shift = (np.abs(moved) > 1e-6).all(axis=1)  # a cut box leaves pixels as they are
    assert 70 < is_shift.sum() < 130
    slope = jax.grad(lambda x: augment.transform(jax.random.key(0), x, augment.strategy("shifted")).sum())(images)
    np.testing.assert_array_equal(slope, np.ones_like(images))


@pytest.mark.usefixtures("own")
def test_what_an_own_op_may_be():
    strategy = augment.strategy("flip_shifted")
    assert augment.strategy(strategy) is strategy and strategy == augment.Strategy(("flip", "shifted"))
    for token in ("my_op", "", "dc", "none", "a b", 3):
        with pytest.raises(ValueError, match=r"is no token of|no augmentation can be named"):
            augment.register(token, shifted)
    with pytest.raises(ValueError, match="'flip' is one of metadd_jax"):
        augment.register("flip", shifted)
    with pytest.raises(ValueError, match=r"'shifted' is .*shifted already, not .*pictures"):
        augment.register("shifted", pictures)
    with pytest.raises(
        ValueError, match=r"unknown augmentation 'shiftd' \(did you mean 'shifted'\?\); .*rotate, shifted"
    ):
        augment.strategy("shiftd")
    with pytest.raises(
        ValueError, match=r"the augmentation is a int; give tokens joined by '_', or an augment.Strategy"
    ):
        augment.strategy(3)
    for op, shape in ((lambda key, x, siamese: x[:, 1:], "(2, 5, 6, 1)"), (lambda key, x, siamese: x > 0, "bool")):
        augment.register("bad", op)
        with pytest.raises(ValueError, match=r"the augmentation 'bad' gives .* return the same shape") as caught:
            augment.transform(jax.random.key(0), pictures(2, 6, 6, 1), augment.strategy("bad"))
        assert shape in str(caught.value)
        augment._OWN.pop("bad")


@pytest.mark.usefixtures("own")
def test_a_strategy_holds_the_op_that_its_token_had():
    """What was compiled for it never serves a changed op."""

    def load(text):
        space = {"__name__": "my_ops"}
        exec(f"def op(key, images, siamese):\n    return {text}", space)
        augment.register("mine", space["op"])
        return augment.strategy("mine")

    apply = jax.jit(lambda strategy, x: augment.transform(jax.random.key(0), x, strategy), static_argnums=0)
    images = pictures(2, 4, 4, 1)
    doubled, negated = load("2 * images"), load("-images")
    np.testing.assert_array_equal(apply(doubled, images), 2 * images)
    np.testing.assert_array_equal(apply(negated, images), -images)
    assert doubled != negated == augment.strategy("mine")
    assert dataclasses.replace(negated, mode="M").own == negated.own


@pytest.mark.parametrize(
    "wrong", [{"flip_probability": 1.1}, {"scale_ratio": 0.9}, {"crop_ratio": -0.1}, {"rotate_degrees": np.nan}]
)
def test_a_strategy_out_of_range_is_refused(wrong):
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))}="):
        augment.Strategy(("flip",), **wrong)
