"""A full disk and a read-only one at each writing place: one line, nothing lost or left, and the next try succeeds."""

import contextlib
import errno
import gc
import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys

import hostile
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fuzz_sets import FACTS, SOFT, made

from metadd_jax import distillers, exchange, files, pictures, storage
from metadd_jax.data import cache
from metadd_jax.evaluation import report
from metadd_jax.generators import weights
from metadd_jax.job import bundle, logs, report_images
from metadd_jax.job import report as report_command

sys.path += [str(pathlib.Path(__file__).parents[1] / name) for name in ("job", "distillers")]
import example_runs
import members

SIZE = 4 << 20


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    """A file system of its own of 4 MB."""
    place = tmp_path_factory.mktemp("disk")
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(place)]
    if sys.platform != "linux" or os.getuid() or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("needs a file system of its own, which root may mount here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@contextlib.contextmanager
def full(disk, room):
    """Leaves so many bytes free on the disk, down to whole pages."""
    ballast = disk / "ballast"
    free = shutil.disk_usage(disk).free
    with open(ballast, "wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, max(free - room, 1))
    try:
        yield
    finally:
        ballast.unlink()


@contextlib.contextmanager
def read_only(disk, room):
    command = ["mount", "-o", "remount,ro", str(disk)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        gc.collect()  # a file that a library left open bars it
        subprocess.run(command, check=True)
    try:
        yield
    finally:
        subprocess.run(["mount", "-o", f"remount,rw,size={SIZE}", str(disk)], check=True)


def contents(place):
    if place.is_file():
        return {place.name: place.read_bytes()}
    return {
        path.relative_to(place).as_posix(): path.read_bytes() for path in sorted(place.rglob("*")) if path.is_file()
    }


def a_run(folder):
    if not (folder / "config.json").is_file():
        example_runs.run(folder)
    return folder


ROWS = example_runs.rows(["dm"], 1, rng=np.random.default_rng(0))
RESULTS = {"notes": [], "rows": ROWS, "repeats": {}, "whole_data": {}, "comparisons": [], "agreement": {}}
SOFT_SET = made(soft_labels=jnp.asarray(SOFT))
LATENTS = {"w": np.ones((60, 400), np.float32)}
# Each writes one place: the file or folder that it is given.
WRITERS = {
    "npz": lambda place: exchange.export_npz(place / "set.npz", SOFT_SET, FACTS, overwrite=True),
    "latents": lambda place: exchange.export_latents(
        place / "latents.npz", LATENTS, {"parameterisation": "x", "stored_values": 1}, overwrite=True
    ),
    "png": lambda place: exchange.export_png_folder(place / "out", made(), FACTS, overwrite=True),
    "sre2l": lambda place: exchange.export_pictures(place / "out", made(), FACTS, style="sre2l", overwrite=True),
    "huggingface": lambda place: exchange.export_pictures(
        place / "out", made(), FACTS, style="huggingface", overwrite=True
    ),
    "webdataset": lambda place: exchange.export_webdataset(place / "out", SOFT_SET, FACTS, overwrite=True),
    "safetensors": lambda place: exchange.export_safetensors(
        place / "set.safetensors", SOFT_SET, FACTS, overwrite=True
    ),
    "frepo": lambda place: exchange.export_regression(place / "out", made(), FACTS, overwrite=True),
    "tfds": lambda place: exchange.export_array_record(place / "out", made(), FACTS, overwrite=True),
    "checkpoint": lambda place: storage.save(place / "out", made(), FACTS, overwrite=True),
    "results": lambda place: report.write(place, RESULTS),
    "weights": lambda place: weights.dump(LATENTS, place / "w.safetensors"),
    "picture": lambda place: pictures.grid(
        place / "grid.png", np.full((6, 4, 6, 3), 0.5), np.arange(6) % 3, class_names=list("abc")
    ),
    "maps": lambda place: report_images.write_maps(
        place, np.arange(3), np.random.default_rng(0).random((2, 3, 40, 40)), ["a", "b"]
    ),
    "json": lambda place: files.write_json(place / "x.json", list(range(9000))),
    "report": lambda place: report_command.write([RUN[0]], place / "report.html"),
    "bundle": lambda place: bundle.write(place / "set.zip", RUN[0] / "dm" / "seed0", overwrite=True),
    "network": lambda place: storage.save_tree(
        place / "net", {"params": np.ones((300, 300), np.float32)}, overwrite=True
    ),
}
if importlib.util.find_spec("torch"):
    WRITERS |= {
        "torch": lambda place: exchange.export_torch(place / "set.pt", SOFT_SET, FACTS, overwrite=True),
        "mtt": lambda place: exchange.export_tensors(place / "out", SOFT_SET, FACTS, overwrite=True),
        "tensordataset": lambda place: exchange.export_tensor_dataset(
            place / "set.pt", SOFT_SET, FACTS, overwrite=True
        ),
    }
RUN: list[pathlib.Path] = []
TIMED = (
    "report",
    "bundle",
    "checkpoint",
    "network",
    "tfds",
    "torch",
    "mtt",
    "tensordataset",
)  # files that hold a time or a random part


@pytest.fixture(scope="module")
def a_finished_run(tmp_path_factory):
    RUN[:] = [example_runs.run(tmp_path_factory.mktemp("run") / "one")]


@pytest.mark.parametrize("how", [full, read_only])
@pytest.mark.parametrize("name", WRITERS)
def test_a_disk_that_takes_nothing_is_one_line_and_costs_nothing(disk, tmp_path, a_finished_run, name, how):
    write, place = WRITERS[name], disk / "place"
    pytest.importorskip("safetensors") if name in ("safetensors", "weights") else None
    place.mkdir()
    try:
        (tmp_path / "whole").mkdir()
        write(tmp_path / "whole")
        whole = contents(tmp_path / "whole")
        size = sum(map(len, whole.values()))
        before = set(os.listdir(disk))
        for share in (0.0, 0.3, 0.6) if how is full else (0.0,):
            if share and share * size < 2 * 4096:  # less than pages
                continue
            with how(disk, int(share * size)):
                with pytest.raises((OSError, ValueError)) as told:
                    write(place)
                told_line(told.value, disk)
            # A folder that was made for a file may stay; nothing half-written does.
            assert not [path for path in place.rglob("*") if path.is_file() and path.name not in whole], share
            assert set(os.listdir(disk)) == before
        write(place)
        again = contents(place)
        assert again.keys() == whole.keys() or name in TIMED
        assert again == whole or name in TIMED
        if name == "weights":  # never replaced
            return
        # What stands there stays whole while a new one cannot be written.
        with how(disk, 0), pytest.raises((OSError, ValueError)) as told:
            write(place)
        told_line(told.value, disk)
        assert contents(place) == again
    finally:
        shutil.rmtree(place)


def told_line(error, disk):
    hostile.require_line(error, names=(str(disk),))
    assert not isinstance(error, OSError) or error.errno in (errno.ENOSPC, errno.EROFS)


@pytest.mark.parametrize("how", [full, read_only])
def test_a_distillation_goes_on_when_there_is_room_again(disk, tmp_path, how):
    """At a checkpoint, and in the log of metrics: the state before it stays, and the end is the same to the bit."""
    dataset = members.tiny()
    start = np.random.default_rng(0).normal(size=(6, *members.SHAPE)).astype(np.float32)
    method, tx = members.quadratic(start, np.zeros_like(start)), optax.sgd(0.1)
    config = distillers.RunConfig(steps=8, chunk=2, save_every=2, device_mode="jit")
    chunks = distillers.compile_chunks(method, tx, config)
    shared = {"chunk_of": chunks}
    whole = distillers.distil(0, method, tx, dataset, config, directory=tmp_path / "whole", **shared)
    hold = contextlib.ExitStack()

    def fill(done, metrics):
        if done == 4 and metrics:
            hold.enter_context(how(disk, 0))

    place = disk / "run"
    with pytest.raises((OSError, ValueError)) as told:
        distillers.distil(0, method, tx, dataset, config, directory=place, on_chunk=fill, **shared)
    told_line(told.value, disk)
    kept = storage.Checkpointer(place / "checkpoints").latest()
    hold.close()
    assert kept in (2, 4)
    state = distillers.distil(0, method, tx, dataset, config, directory=place, **shared)
    np.testing.assert_array_equal(method.synthetic(state).images, method.synthetic(whole).images)
    assert (place / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    shutil.rmtree(place)


@pytest.mark.parametrize("how", [full, read_only])
def test_decoded_images_that_cannot_be_kept_are_used_all_the_same(disk, how, caplog):
    images = np.random.default_rng(0).integers(0, 256, (4, 40, 40, 3), np.uint8)
    raw = cache.RawSet(images, np.arange(4), images, np.arange(4), np.array(list("abcd")))
    with how(disk, 0):
        found = cache.cached(disk, "mine", {"how": how.__name__}, lambda: raw)
    np.testing.assert_array_equal(found.train_images, images)
    (record,) = caplog.records
    assert "decoded images are not kept: cannot write" in record.getMessage() and "\n" not in record.getMessage()
    assert not list(disk.glob("*mine*")) and not list(disk.glob(".*mine*"))
    assert cache.cached(disk, "mine", {"how": how.__name__}, lambda: raw) is raw
    (kept,) = disk.glob("mine-*.npz")
    kept.unlink()


@pytest.mark.parametrize("how", [full, read_only])
def test_small_places(disk, how, tmp_path):
    """Lock, log of metrics, identity of a run at Weights & Biases; a diary costs no result."""
    place = disk / f"small {how.__name__}"
    place.mkdir()
    log = storage.JsonLines(place / "metrics.jsonl")
    log.write(1, {"a": 1.0})
    before = (place / "metrics.jsonl").read_bytes()
    with how(disk, 0):
        for write in (
            lambda: storage.Lock(place / ".metadd.lock"),
            lambda: files.require_writable(place),
            lambda: storage.cache_compilations(place / "programs"),
            lambda: [log.write(2, {"a": 1.0}) for _ in range(200)],
            lambda: logs._key(place),
        ):
            with pytest.raises((OSError, ValueError)) as told:
                write()
            told_line(told.value, disk)
    # A line that was cut is left out, and cut off when the run goes on.
    log.truncate_after(1)
    assert (place / "metrics.jsonl").read_bytes() == before
    storage.Lock(place / ".metadd.lock").release()
    assert os.listdir(place) == ["metrics.jsonl"] or set(os.listdir(place)) <= {"metrics.jsonl", "programs"}
    shutil.rmtree(place)
