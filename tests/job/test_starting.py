"""--init: each format of a saved set, brought into the run's value space, and what does not fit told in one line."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from metadd_jax import data, evaluation, exchange, storage, structs, zoo
from metadd_jax.data import whitening
from metadd_jax.distillers import starts
from metadd_jax.job import checks, options, prepare, results, runfolder, stages, starting

RNG = np.random.default_rng(0)
PICTURES = RNG.integers(0, 256, (40, 8, 8, 3)).astype(np.uint8)
DATA = data.from_arrays("two", PICTURES, np.arange(40) % 2, PICTURES[:4], [0, 1, 0, 1], class_names=["cat", "dog"])
COUNTS = (2, 1)


def a_set(**fields):
    images = RNG.normal(size=(3, 8, 8, 3)).astype(np.float32)
    return structs.SyntheticSet(images=images, labels=np.array([0, 0, 1], np.int32), **fields)


def facts(**changes):
    return {**exchange.value_space(DATA), "class_names": ["cat", "dog"], **changes}


def config(init, **changes):
    own = dataclasses.replace(options.settings_of("dm"), init=str(init))
    return options.DistillConfig(own=own, ipc_per_class=COUNTS, **changes)


def write_npz(folder, one):
    exchange.export_npz(folder / "synthetic.npz", one, facts())
    return folder


def write_orbax(folder, one):
    storage.save(folder / "set", one, facts())
    return folder / "set"


def write_torch(folder, one):
    torch = pytest.importorskip("torch")
    # As MTT's line keeps them, and not sorted by class.
    order = [2, 0, 1]
    torch.save(torch.tensor(np.moveaxis(one.images, 3, 1)[order].copy()), folder / "images_best.pt")
    torch.save(torch.tensor(one.labels[order].astype(np.int64)), folder / "labels_best.pt")
    return f"{folder / 'images_best.pt'}:standardised"


def write_tensor_dataset(folder, one):
    pytest.importorskip("torch")
    exchange.export_tensor_dataset(folder / "set.pt", one, facts())
    return f"{folder / 'set.pt'}:standardised"


def write_ours_for_dc(folder, one):
    pytest.importorskip("torch")
    exchange.export_torch(folder / "res.pt", one, facts())
    return folder / "res.pt"


def write_safetensors(folder, one):
    numpy = pytest.importorskip("safetensors.numpy")
    arrays = {"images": np.ascontiguousarray(np.moveaxis(one.images, 3, 1)), "labels": one.labels}
    numpy.save_file(arrays, folder / "set.safetensors")
    return f"{folder / 'set.safetensors'}:standardised"


def write_plain_npz(folder, one):
    np.savez(folder / "plain.npz", images=one.images[[2, 0, 1]], labels=one.labels[[2, 0, 1]].astype(np.int64))
    return f"{folder / 'plain.npz'}:standardised"


WRITERS = [write_npz, write_orbax, write_torch, write_tensor_dataset, write_ours_for_dc, write_safetensors]


@pytest.mark.parametrize("write", [*WRITERS, write_plain_npz])
def test_every_format_gives_the_very_images_of_the_set(write, tmp_path):
    one = a_set()
    place = write(tmp_path, one)
    np.testing.assert_array_equal(starting.given(config(place), DATA, COUNTS), one.images)
    path, _ = starts.place_of(str(place))
    assert starting.content(str(path)) == starting.content(str(path))


def test_a_set_of_another_value_space_comes_through_pixels(tmp_path):
    """Other constants by hand: pixels of the set, standardised by the run's constants."""
    one = a_set()
    exchange.export_npz(tmp_path / "a.npz", one, facts(mean=[0.1, 0.2, 0.3], std=[0.5, 0.6, 0.7]))
    pixels = one.images * np.array([0.5, 0.6, 0.7]) + np.array([0.1, 0.2, 0.3])
    expected = (pixels - np.asarray(DATA.train.mean)) / np.asarray(DATA.train.std)
    np.testing.assert_allclose(starting.given(config(tmp_path / "a.npz"), DATA, COUNTS), expected, rtol=2e-5, atol=2e-5)


def test_a_standardised_set_is_whitened_for_a_whitened_run_and_comes_back(tmp_path):
    white, one = whitening.whiten(DATA), a_set()
    exchange.export_npz(tmp_path / "a.npz", one, facts())
    there = starting.given(config(tmp_path / "a.npz"), white, COUNTS)
    pixels = (one.images * np.asarray(DATA.train.std) + np.asarray(DATA.train.mean)).reshape(3, -1).astype(np.float64)
    np.testing.assert_allclose(
        there.reshape(3, -1), (pixels - white.whitening.mean) @ white.whitening.matrix, rtol=1e-4, atol=1e-4
    )
    whitened = structs.SyntheticSet(images=there, labels=one.labels)
    exchange.export_npz(tmp_path / "b.npz", whitened, {**exchange.value_space(white), "class_names": ["cat", "dog"]})
    back = starting.given(config(tmp_path / "b.npz"), DATA, COUNTS)
    np.testing.assert_allclose(back, one.images, rtol=1e-3, atol=1e-3)
    # Between whitened runs nothing is rounded.
    np.testing.assert_array_equal(starting.given(config(tmp_path / "b.npz"), white, COUNTS), there)


def test_what_does_not_fit_is_told_in_one_line(tmp_path, capsys):
    place = write_npz(tmp_path, a_set(soft_labels=np.full((3, 2), 0.5, np.float32)))
    starting.given(config(place), DATA, COUNTS)
    assert "soft labels play no part" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"has 2 images of class 0, but this run's sets have 3; set --ipc"):
        starting.given(config(place), DATA, (3, 1))
    small = data.from_arrays("small", PICTURES[:, :4, :4], np.arange(40) % 2, PICTURES[:4, :4, :4], [0, 1, 0, 1])
    with pytest.raises(ValueError, match=r"holds \(8, 8, 3\) images, but small has \(4, 4, 3\)"):
        starting.given(config(place), small, COUNTS)
    with pytest.raises(ValueError, match="has 2 classes, first 'cat' in place of 'bird', but two has 2"):
        starting.given(config(place), dataclasses.replace(DATA, class_names=("bird", "dog")), COUNTS)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty"):
        starting.given(config(tmp_path / "empty"), DATA, COUNTS)


def test_pictures_are_pixels_whatever_the_run_is(tmp_path):
    one = a_set()
    exchange.export_pictures(tmp_path / "jpeg", one, facts(), style="sre2l")
    exchange.export_png_folder(tmp_path / "png", one, facts())
    unit = np.clip(one.images * np.asarray(DATA.train.std) + np.asarray(DATA.train.mean), 0, 1)
    pixels = np.round(255 * unit) / 255
    expected = (pixels - np.asarray(DATA.train.mean)) / np.asarray(DATA.train.std)
    np.testing.assert_allclose(starting.given(config(tmp_path / "png"), DATA, COUNTS), expected, atol=1e-5)
    # JPEG is another picture than the one that was written, and near it: not scaled by anything else.
    jpeg = starting.given(config(tmp_path / "jpeg"), DATA, COUNTS)
    assert np.corrcoef(jpeg.ravel(), expected.ravel())[0, 1] > 0.9
    white = whitening.whiten(DATA)
    there = starting.given(config(tmp_path / "png"), white, COUNTS).reshape(3, -1)
    by_hand = (pixels.reshape(3, -1).astype(np.float64) - white.whitening.mean) @ white.whitening.matrix
    np.testing.assert_allclose(there, by_hand, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("space", "kind"), [("zca", "mtt"), ("zca_frepo", "frepo")])
def test_whitened_numbers_of_a_peer_come_back_to_pixels(space, kind, tmp_path):
    """By hand: whitened as the peer does, from pixels that are known."""
    many = RNG.integers(0, 256, (300, 8, 8, 3)).astype(np.uint8)
    two = data.from_arrays("two", many, np.arange(300) % 2, many[:4], [0, 1, 0, 1], class_names=["cat", "dog"])
    white = whitening.whiten(two, kind=kind).whitening
    pixels = RNG.uniform(size=(3, 8 * 8 * 3))
    np.savez(
        tmp_path / "x.npz",
        images=((pixels - white.mean) @ white.matrix).reshape(3, 8, 8, 3).astype(np.float32),
        labels=np.array([0, 0, 1]),
    )
    there = starting.given(config(f"{tmp_path / 'x.npz'}:{space}"), two, COUNTS)
    expected = (pixels.reshape(3, 8, 8, 3) - np.asarray(two.train.mean)) / np.asarray(two.train.std)
    np.testing.assert_allclose(there, expected, rtol=1e-3, atol=2e-3)


def test_what_a_peer_does_not_say_is_asked(tmp_path, capsys):
    place = tmp_path / "a:b"  # a colon of the path's own
    place.mkdir()
    one = a_set()
    np.savez(place / "plain.npz", images=one.images, labels=one.labels)
    with pytest.raises(ValueError, match=r"does not say how its numbers were scaled .*plain\.npz:standardised, :zca"):
        starting.given(config(place / "plain.npz"), DATA, COUNTS)
    np.testing.assert_array_equal(
        starting.given(config(f"{place / 'plain.npz'}:standardised"), DATA, COUNTS), one.images
    )
    with pytest.raises(ValueError, match="--space standardised:mars is unknown"):
        starting.given(config(f"{place / 'plain.npz'}:standardised:mars"), DATA, COUNTS)
    with pytest.raises(ValueError, match="the run is whitened, so say by whose constants"):
        starting.given(config(f"{place / 'plain.npz'}:standardised"), whitening.whiten(DATA), COUNTS)
    write_npz(place, one)
    with pytest.raises(ValueError, match=r"says itself how its images are scaled; leave :zca out"):
        starting.given(config(f"{place / 'synthetic.npz'}:zca"), DATA, COUNTS)
    with pytest.raises(ValueError, match=r"images_best\.pt:zca\), and nothing lies there"):
        config(f"{place / 'absent.npz'}:zca")
    torch = pytest.importorskip("torch")
    torch.save([torch.rand(3, 3, 8, 8), torch.tensor([0, 0, 1])], tmp_path / "data.pt")
    with pytest.raises(ValueError, match=r"how many images each of its holds; .*metadd export .*--factor 2"):
        starting.given(config(tmp_path / "data.pt"), DATA, COUNTS)
    exchange.export_png_folder(tmp_path / "png", one, facts())
    with pytest.raises(ValueError, match=r"holds pixels in .0, 1. by its format, not zca"):
        starting.given(config(f"{tmp_path / 'png'}:zca"), DATA, COUNTS)


def test_a_run_goes_on_from_the_same_file_alone(tmp_path):
    for name in ("set", "run"):
        (tmp_path / name).mkdir()
    place, folder = write_npz(tmp_path / "set", a_set()), tmp_path / "run"
    started = config(place, run_dir=str(folder))
    runfolder.claim(folder, started, DATA).release()
    runfolder.inspect(folder, started)
    exchange.export_npz(place / "synthetic.npz", a_set(), facts(), overwrite=True)
    with pytest.raises(ValueError, match=r"another run \(own\.init was .*SHA-256"):
        runfolder.inspect(folder, started)


def test_a_k_means_start_is_the_row_of_the_same_seed(tmp_path):
    net = zoo.parse("convnet:width=4,depth=1", 2, (8, 8, 3))
    job = prepare.Job(config("kmeans", distill_seeds=2), tmp_path, DATA, net, (), ())
    rows = stages.baselines(job, names=["kmeans"])["kmeans"]
    for seed, row in enumerate(rows):
        np.testing.assert_array_equal(stages.start_of(job, seed), row.images)
        np.testing.assert_array_equal(row.images, evaluation.kmeans_real(seed, DATA, COUNTS).images)
    # Until it is found, NaN stands for it, which no run takes for images.
    assert np.isnan(starting.given(job.config, DATA, COUNTS)).all()
    drawn = dataclasses.replace(job, config=config("random"), found={})
    assert stages.start_of(drawn, 0) is None and starting.given(drawn.config, DATA, COUNTS) is None


class Dark:
    """Stands in for a network: it is the surer of class 0 the darker an image is, and of class 1 the brighter."""

    name = "dark"

    def apply(self, variables, images):
        grey = images.mean(axis=(1, 2, 3))
        return jnp.stack([-grey, grey], axis=1), {"embedding": grey[:, None]}


def test_a_consensus_start_is_the_row_of_the_same_seed_and_stands_in_the_table(tmp_path):
    net = zoo.parse("convnet:width=4,depth=1", 2, (8, 8, 3))
    job = prepare.Job(config("consensus", distill_seeds=2, wrapped=False), tmp_path, DATA, net, (net,), ())
    looking = stages.looking_of(job, {net.label: structs.Auxiliary(variables=(), map_eps={}, net=Dark())})
    rows = stages.baselines(job, names=job.real_rows, looking=looking)
    assert list(rows) == ["random", "kmeans", "consensus"]
    for seed, row in enumerate(rows["consensus"]):
        np.testing.assert_array_equal(stages.start_of(job, seed, looking=looking), row.images)
        np.testing.assert_array_equal(row.images, evaluation.consensus_real(seed, DATA, COUNTS, looking).images)
        means = row.images.mean(axis=(1, 2, 3))
        assert max(means[:2]) < 0 < means[2]  # of class 0 dark ones, of class 1 the brightest of all
    assert np.isnan(starting.given(job.config, DATA, COUNTS)).all()
    assert "from the consensus images of the same seed" in " ".join(results.notes(job))
    usual = dataclasses.replace(job, config=config("kmeans", wrapped=False))
    assert usual.real_rows == ("random", "kmeans") and stages.looking_of(usual, {}) == ()


def test_a_consensus_of_no_network_is_refused_before_any_work():
    with pytest.raises(ValueError, match="--init consensus asks the seen networks: name some by --seen"):
        checks.check_options(config("consensus", seen=(), wrapped=False))
