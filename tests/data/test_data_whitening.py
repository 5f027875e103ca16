"""ZCA against NumPy and a closed form; a whitened set on its way in, through files and back to pixels."""

import jax
import numpy as np
import pytest

from metadd_jax import data, exchange, structs
from metadd_jax.data import whitening

SHAPE = (4, 3, 3)
SIZE = 36


def pictures(count=90, shape=SHAPE, seed=0):
    """Neighbouring pixels are alike, as in pictures: the covariance is far from diagonal."""
    rng = np.random.default_rng(seed)
    rough = rng.normal(0, 40, (count, *shape)) + rng.normal(0, 50, (count, 1, 1, 1))
    return np.clip(128 + rough, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def dataset():
    images = pictures()
    labels = np.arange(90) % 3
    return data.from_arrays(
        "pictures", images, labels, pictures(20, seed=1), np.arange(20) % 3, validation_fraction=0.2
    )


@pytest.fixture(scope="module")
def white(dataset):
    return data.whiten(dataset)


def test_the_transform_is_numpys_inverse_root_of_the_unbiased_covariance(monkeypatch):
    images = pictures()
    monkeypatch.setattr(whitening, "_CHUNK", 13)  # several chunks and a remainder
    fitted = whitening.fit_whitening(images)
    x = images.reshape(90, SIZE) / 255
    np.testing.assert_allclose(fitted.mean, x.mean(axis=0), rtol=1e-6)
    wanted = np.cov(x, rowvar=False) + 0.1 * np.eye(SIZE)  # unbiased; eps on the diagonal = on the eigenvalues
    matrix, inverse = (m.astype(np.float64) for m in (fitted.matrix, fitted.inverse))
    np.testing.assert_allclose(matrix @ wanted @ matrix, np.eye(SIZE), atol=1e-5)
    np.testing.assert_allclose(inverse @ inverse, wanted, atol=1e-6)
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-6)
    assert (np.linalg.eigvalsh(matrix) > 0).all()  # the positive root, not another one
    assert not np.allclose(matrix @ (wanted - 0.05 * np.eye(SIZE)) @ matrix, np.eye(SIZE), atol=1e-2)
    assert {array.dtype.name for array in fitted} == {"float32"}
    white = whitening.whiten_images(images, fitted)
    np.testing.assert_allclose(white.reshape(90, SIZE), (x - x.mean(axis=0)) @ matrix, atol=1e-5)


def test_two_pixels_by_hand():
    """Pixels (0, 0) and (1, 1): variance 1/2 and covariance 1/2, eigenvalues 1 along (1, 1) and 0 across."""
    images = np.array([0, 255], np.uint8)[:, None, None, None] * np.ones((1, 1, 2, 1), np.uint8)
    fitted = whitening.fit_whitening(images)
    along, across = 1 / np.sqrt(1.1), 1 / np.sqrt(0.1)
    np.testing.assert_allclose(np.diag(fitted.matrix), (along + across) / 2, rtol=1e-6)
    np.testing.assert_allclose(fitted.matrix[0, 1], (along - across) / 2, rtol=1e-6)
    white = whitening.whiten_images(images, fitted).ravel()
    np.testing.assert_allclose(white, np.array([-0.5, -0.5, 0.5, 0.5]) * along, rtol=1e-5)


def test_there_and_back():
    images = pictures()
    fitted = whitening.fit_whitening(images)
    back = whitening.unwhiten_images(whitening.whiten_images(images, fitted), fitted.mean, fitted.inverse)
    error = np.abs(back - images / 255).max()
    print(f"\nlargest error of the round trip {error:.1e}")
    assert error < 1e-5


def test_the_order_of_flattening_does_not_matter():
    """Channels first or last: the matrix is permuted, the whitened image is the same."""
    images = pictures()
    last = whitening.whiten_images(images, whitening.fit_whitening(images))
    turned = images.transpose(0, 3, 1, 2)
    first = whitening.whiten_images(turned, whitening.fit_whitening(turned))
    np.testing.assert_allclose(first.transpose(0, 2, 3, 1), last, atol=1e-5)


def test_a_whitened_set_keeps_everything_but_its_pixels(dataset, white):
    fitted = whitening.fit_whitening(dataset.train.images)
    for split in ("arrays", "test", "validation"):
        before, after = getattr(dataset, split), getattr(white, split)
        assert after.images.dtype == np.float32
        np.testing.assert_allclose(after.images, whitening.whiten_images(before.images, fitted), atol=1e-6)
        np.testing.assert_array_equal(after.labels, before.labels)
        np.testing.assert_array_equal([after.mean, after.std], [[0] * 3, [1] * 3])
        np.testing.assert_array_equal(after.counts, before.counts)
    assert white.image_shape == SHAPE and white.class_names == dataset.class_names
    assert dataset.whitening is None
    np.testing.assert_array_equal(white.whitening.matrix, fitted.matrix)
    assert white.fingerprint != dataset.fingerprint
    assert white.fingerprint == data.whiten(dataset).fingerprint != data.whiten(dataset, eps=0.2).fingerprint


def test_draws_are_the_whitened_pixels_themselves(white):
    images, labels = data.random_per_class(jax.random.key(0), white.train, 2)
    assert images.shape == (6, *SHAPE) and images.dtype == np.float32
    for image, label in zip(np.asarray(images), labels, strict=True):
        own = white.train.images[white.train.labels == label]
        assert (own == image).all(axis=(1, 2, 3)).any()


def test_what_cannot_be_whitened_is_refused(white):
    with pytest.raises(ValueError, match="not 1 of uint8"):
        whitening.fit_whitening(pictures(1))
    with pytest.raises(ValueError, match="eps=0; whiten a set once"):
        whitening.fit_whitening(pictures(), eps=0)
    with pytest.raises(ValueError, match="not 72 of float32"):
        data.whiten(white)


def test_it_is_loaded_by_name(tmp_path):
    np.savez(tmp_path / "set.npz", images=pictures(), labels=np.arange(90) % 3)
    plain = data.load(str(tmp_path / "set.npz"), on_device=False)
    loaded = data.load(str(tmp_path / "set.npz"), zca=True)
    assert isinstance(loaded.train.images, jax.Array)
    np.testing.assert_array_equal(loaded.train.images, data.whiten(plain).train.images)


@pytest.fixture
def synthetic(dataset, white):
    """Two whitened real images of each class, their pixels, and the metadata of the whitened set."""
    picks = np.concatenate([offset + np.arange(2) for offset in white.train.offsets])
    made = structs.SyntheticSet(images=white.train.images[picks], labels=white.train.labels[picks])
    facts = {"class_names": list(white.class_names), **exchange.value_space(white)}
    return made, dataset.train.images[picks], facts


def test_a_whitened_file_knows_its_pixels(synthetic, tmp_path):
    made, pixels, facts = synthetic
    assert facts["value_space"] == "zca" and facts["mean"] == [0, 0, 0] and facts["std"] == [1, 1, 1]
    exchange.export_npz(tmp_path / "set.npz", made, facts)
    with np.load(tmp_path / "set.npz", allow_pickle=False) as content:
        alone = content["images"].reshape(6, -1) @ content["zca_inverse"] + content["zca_mean"]
    np.testing.assert_allclose(alone.reshape(pixels.shape), pixels / 255, atol=1e-5)
    assert "zca" not in (tmp_path / "set.json").read_text().replace('"value_space": "zca"', "")
    loaded, metadata = exchange.load_npz(tmp_path / "set.npz")
    np.testing.assert_allclose(exchange.to_pixels(loaded.images, metadata), pixels / 255, atol=1e-5)
    exchange.export_npz(tmp_path / "again.npz", loaded, metadata)
    again = exchange.load_npz(tmp_path / "again.npz")[1]
    np.testing.assert_array_equal(again["zca_inverse"], facts["zca_inverse"])


def test_without_the_inverse_nothing_is_guessed(synthetic, tmp_path):
    made, _, facts = synthetic
    for name in ("zca_mean", "zca_inverse"):
        bare = {key: value for key, value in facts.items() if key != name}
        for export in (exchange.export_npz, exchange.export_png_folder):
            with pytest.raises(ValueError, match=f"the set is whitened but {name} is missing"):
                export(tmp_path / "set.npz", made, bare)
        with pytest.raises(ValueError, match=f"whitened but {name} is missing"):
            exchange.to_pixels(made.images, bare)
    with pytest.raises(ValueError, match=r"zca_inverse \(36, 35\); zca_inverse must be \(36, 36\)"):
        exchange.to_pixels(made.images, facts | {"zca_inverse": facts["zca_inverse"][:, 1:]})
    assert not list(tmp_path.iterdir())


def test_standardised_sets_have_pixels_too(dataset):
    facts = exchange.value_space(dataset)
    assert facts["value_space"] == "standardised" and set(facts) == {"value_space", "mean", "std"}
    arrays = dataset.train
    images = data.standardise(arrays.images, arrays.mean, arrays.std)
    np.testing.assert_allclose(exchange.to_pixels(images, facts), arrays.images / 255, atol=1e-6)


def test_png_files_show_the_pixels(synthetic, tmp_path):
    image = pytest.importorskip("PIL.Image")
    made, pixels, facts = synthetic
    assert exchange.export_png_folder(tmp_path / "png", made, facts) == 0
    found = sorted((tmp_path / "png").rglob("*.png"))
    np.testing.assert_array_equal(np.stack([np.asarray(image.open(path)) for path in found]), pixels)


def test_pytorch_files_carry_the_inverse_channels_first(synthetic, tmp_path):
    torch = pytest.importorskip("torch")
    made, pixels, facts = synthetic
    exchange.export_torch(tmp_path / "set.pt", made, facts)
    content = torch.load(tmp_path / "set.pt", weights_only=True)
    images = content["data"][0][0]
    alone = (images.flatten(1) @ content["zca_inverse"] + content["zca_mean"]).reshape(images.shape)
    np.testing.assert_allclose(alone.permute(0, 2, 3, 1), pixels / 255, atol=1e-5)
    constants = {"mean": [0, 0, 0], "std": [1, 1, 1], "class_names": facts["class_names"]}
    loaded, metadata = exchange.load_torch(tmp_path / "set.pt", **constants)
    np.testing.assert_allclose(exchange.to_pixels(loaded.images, metadata), pixels / 255, atol=1e-5)


def test_frepos_whitening_is_numpys_by_its_own_steps():
    """Standardise, subtract the mean, covariance over N, a tenth of its mean eigenvalue on the diagonal, SVD."""
    images, mean, std = pictures(80), np.array([0.4, 0.5, 0.6]), np.array([0.2, 0.25, 0.3])
    made = data.from_arrays("p", images, np.arange(80) % 3, images[:9], np.arange(9) % 3, mean=mean, std=std)
    white = data.whiten(made, kind="frepo")
    x = ((np.asarray(made.train.images) / 255 - mean) / std).reshape(80, SIZE)
    centred = x - x.mean(axis=0)
    covariance = centred.T @ centred / 80
    u, s, _ = np.linalg.svd(covariance + 0.1 * np.trace(covariance) / SIZE * np.eye(SIZE))
    wanted = centred @ (u * s**-0.5 @ u.T)
    np.testing.assert_allclose(np.asarray(white.train.images).reshape(80, SIZE), wanted, atol=2e-5)
    # Back to pixels, by the way that every whitened set goes; and another data set than MTT's whitening makes.
    back = exchange.to_pixels(white.train.images, exchange.value_space(white))
    np.testing.assert_allclose(back, np.asarray(made.train.images) / 255, atol=1e-5)
    mtt = data.whiten(made)
    assert mtt.fingerprint != white.fingerprint
    facts = {**exchange.value_space(white), "class_names": list(made.class_names)}
    assert exchange.check_belongs(facts, white) is None
    with pytest.raises(ValueError, match="whitened for other images"):
        exchange.check_belongs(facts, mtt)


def test_frepos_whitening_is_refused_where_their_program_does_something_else():
    with pytest.raises(ValueError, match="at least 36 images of uint8, at most 64 pixels a side, not for 20"):
        whitening.fit_frepo_whitening(pictures(20), np.ones(3))
