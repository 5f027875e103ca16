"""Images per class of the main job: above the smallest class by an explicit policy, another number in each class."""

import numpy as np
import pytest

from metadd_jax import distillers, exchange, features, keys
from metadd_jax.job import common, effects, options, plan, prepare, results, stages

SIZES = (5, 3, 8)
OWN = {"batch_size": 4, "augmentation": "none"}
DC = {"method": "dc", "own": distillers.DC(**OWN)}
PACKED = {"parameterisation": "factor2", "short_class": "repeat"}
TINY = {
    "backbone": "convnet:width=4,depth=1", "seen": (), "unseen": ("mlp:width=8",), "wrapped": False,
    "own": distillers.DM(**OWN), "distill_seeds": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three classes of 5, 3 and 8 training images; every picture is a number of its own."""
    labels = np.repeat([0, 1, 2], SIZES)
    images = np.arange(1, 17, dtype=np.uint8)[:, None, None, None] * np.full((1, 8, 8, 1), 15, np.uint8)
    folder = tmp_path_factory.mktemp("data")
    test = {"test_images": images[[0, 5, 8]], "test_labels": labels[[0, 5, 8]]}
    np.savez(folder / "own.npz", images=images, labels=labels, **test)
    return folder


@pytest.fixture
def job_of(data, tmp_path, monkeypatch):
    monkeypatch.setattr(common, "open_cache", lambda folder: None)  # JAX's own is this process's

    def ask(**changes):
        places = {"dataset": data / "own.npz", "cache_dir": data / "cache", "run_dir": tmp_path / "run"}
        settings = {name: str(path) for name, path in places.items()} | TINY | changes
        return prepare.open_job(options.DistillConfig(**settings))

    return ask


def counts_of(sets):
    return [tuple(np.bincount(np.asarray(one.labels), minlength=3).tolist()) for one in sets]


@pytest.mark.parametrize(
    ("changes", "own", "real"),
    [
        ({"ipc": 3}, (3, 3, 3), (3, 3, 3)),
        ({"ipc": 6, "short_class": "repeat"}, (6, 6, 6), (6, 6, 6)),
        ({"ipc": 6, "short_class": "fewer"}, (5, 3, 6), (5, 3, 6)),
        ({"ipc_per_class": (2, 1, 4)}, (2, 1, 4), (2, 1, 4)),
        ({"ipc": 6, **DC}, (6, 6, 6), (5, 3, 6)),
        ({"ipc": 6, **DC, "short_class": "repeat"}, (6, 6, 6), (6, 6, 6)),
        ({"ipc": 6, **DC, "short_class": "fewer"}, (5, 3, 6), (5, 3, 6)),
        (
            {"ipc": 6, "method": "sre2l", "own": distillers.SqueezeRecover(), "backbone": "convnet_bn:width=4,depth=1"},
            (6, 6, 6),
            (5, 3, 6),
        ),
        ({"ipc": 6, "short_class": "fewer", "stream_per_class": 4}, (4, 3, 4), (4, 3, 4)),
        ({"ipc_per_class": (1, 2, 1), **PACKED}, (4, 8, 4), (1, 2, 1)),
    ],
)
def test_what_the_set_and_the_real_rows_hold(changes, own, real, job_of):
    job = job_of(plan=True, **changes)
    assert (job.counts, job.real_counts) == (own, real)
    stored = job.stored_counts
    assert stored == (tuple(count // 4 for count in own) if job.packs else own)
    assert stages.metadata(job, "dm", 0)["ipc"] == (stored[0] if len(set(stored)) == 1 else list(stored))
    text = " ".join(results.notes(job))
    assert ("images per class" in text) == (len(set(own)) > 1 or real != own)
    assert plan.step_flops(job, None) > 0
    rows = stages.baselines(job)
    assert counts_of(rows["random"]) == counts_of(rows["kmeans"]) == [real]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"ipc": 1, **PACKED, "short_class": "error"},
            r"ipc is 4, .*\(--parameterisation factor2 takes 4 for 1 stored",
        ),
        ({"ipc": 1, **PACKED, "short_class": "fewer"}, "class 1 has 3 images, fewer than the 4 of a stored one; leave"),
        ({"ipc": 6}, "ipc is 6, but class 1 has 3 images; lower ipc, or set short_class"),
        ({"ipc_per_class": (6, 1, 1)}, "ipc is 6, but class 0 has 5 images"),
        ({"ipc_per_class": (1, 1)}, "ipc gives 2 numbers for 3 classes; give one number, or one a class"),
        ({"ipc_per_class": (1, 0, 1)}, "--ipc-per-class=.*must be a row whose every entry is a whole number"),
        (
            {"ipc": 5, "stream_per_class": 4, "method": "dsa", "own": distillers.DSA(**OWN)},
            "ipc is 5, but class 1 has 3 images",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_the_folder_is_taken(changes, words, job_of, tmp_path):
    with pytest.raises(ValueError, match=words):
        job_of(**changes)
    assert not (tmp_path / "run" / "config.json").exists()


def test_pictures_show_the_first_image_of_each_class(job_of, monkeypatch):
    job = job_of(plan=True, ipc_per_class=(2, 1, 4), seen=("convnet:width=6,depth=1",))
    shown = []
    monkeypatch.setattr(results.pictures, "grid", lambda *args, **kwargs: None)
    monkeypatch.setattr(results.pictures, "maps", lambda file, images, labels, *args, **kwargs: shown.append(labels))
    net = job.seen[0]
    frozen = {net.label: features.freeze(net, net.init(keys.root(0, "weights")), job.dataset)}
    results.draw(job, {"dm": stages.baselines(job)["random"]}, frozen)
    np.testing.assert_array_equal(shown, [[0, 1, 2]])


def test_the_same_numbers_go_on_in_the_folder_and_others_do_not(job_of):
    job_of(ipc_per_class=(2, 1, 4)).lock.release()
    again = job_of(ipc_per_class=(2, 1, 4))
    again.lock.release()
    assert again.counts == (2, 1, 4)
    with pytest.raises(ValueError, match=r"ipc_per_class was \[2, 1, 4\], now \[2, 2, 4\]"):
        job_of(ipc_per_class=(2, 2, 4))


def test_a_packed_set_is_exported_decoded_and_as_it_is_stored(job_of):
    job = job_of(ipc=1, **PACKED, steps=2, chunk=2, seen=())
    method, tx = prepare.make(job, None)
    made = stages.distil_all(job, [method], tx, effects.Stopwatch())["dm+factor2"][0]
    results.draw(job, {"dm+factor2": [made]}, {})
    job.lock.release()
    folder = job.directory / "dm+factor2" / "seed0"
    synthetic, facts = exchange.load_npz(folder / "synthetic.npz")
    latents, _ = exchange.load_latents(folder / "latents.npz")
    assert (len(synthetic.images), latents.shape) == (12, (3, 8, 8, 1))
    assert {name: facts[name] for name in ("ipc", "factor", "stored_values", "stored_values_per_class")} == {
        "ipc": 1, "factor": 2, "stored_values": 192, "stored_values_per_class": 64,
    }  # fmt: skip
    np.testing.assert_array_equal(distillers.factor(2).decode(latents, ()), synthetic.images)
    found = {"rows": [{"set": "dm+factor2"}]}
    assert results.unwritten(job, found) == []
    (folder / "packed.png").unlink()
    (folder / "latents.npz").write_bytes(b"")
    assert results.unwritten(job, found) == [folder / "latents.npz", folder / "packed.png"]
