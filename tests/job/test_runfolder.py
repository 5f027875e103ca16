"""A run's folder: one run at a time, only what is ours goes, whatever a kill left behind."""

import json
import os

import numpy as np
import pytest

from metadd_jax import augment, data, distillers, files, storage
from metadd_jax.job import options, runfolder

PICTURES = np.arange(2 * 8 * 8, dtype=np.uint8).reshape(2, 8, 8, 1)
DATA = data.from_arrays("two", PICTURES, [0, 1], PICTURES, [0, 1])


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run"


def take(folder, **settings):
    """What a start does with its folder, from the look at it to its end."""
    config = options.DistillConfig(run_dir=str(folder), **settings)
    folder.mkdir(exist_ok=True)
    runfolder.inspect(folder, config)
    runfolder.claim(folder, config, DATA).release()
    return config


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def fill(folder):
    """A run with one set, as it lies there, and two files of the user's."""
    take(folder)
    one = folder / "dm" / "seed0"
    storage.Checkpointer(one / "checkpoints").save(3, {"x": 1.0})
    for file in (one / "metrics.jsonl", one / "synthetic.npz", folder / "results.json", one / "notes.txt"):
        file.write_text("x")
    (folder / "mine" / "seed_bank").mkdir(parents=True)
    (folder / "mine" / "seed_bank" / "thesis.txt").write_text("years of work")
    return one


def test_a_folder_is_taken_and_given_back(folder):
    take(folder)
    assert names(folder) == ["config.json"]
    held = json.loads((folder / "config.json").read_text())
    assert held["format"] == runfolder.FORMAT and held["config"]["steps"] == 200


def test_another_run_at_work_is_named_and_not_disturbed(folder):
    take(folder)
    before = (folder / "config.json").read_bytes()
    with storage.Lock(folder / storage.LOCK):
        for settings in ({}, {"overwrite": True}, {"steps": 7, "overwrite": True}):
            with pytest.raises(
                ValueError,
                match=rf"run: another run \(host .*, process {os.getpid()}, since .*\) is at work here; wait",
            ):
                take(folder, **settings)
        config = options.DistillConfig(run_dir=str(folder), plan=True)
        runfolder.inspect(folder, config)  # a plan only looks
    assert (folder / "config.json").read_bytes() == before
    take(folder)


def test_a_run_that_came_between_look_and_claim_is_seen(folder):
    config = options.DistillConfig(run_dir=str(folder))
    folder.mkdir()
    runfolder.inspect(folder, config)
    take(folder, steps=7)
    with pytest.raises(ValueError, match=r"holds another run \(steps was 7, now 200\)"):
        runfolder.claim(folder, config, DATA)
    assert names(folder) == ["config.json"]


def test_what_a_kill_left_neither_bars_the_folder_nor_stays(folder):
    """Killed before the first rename, there is a hidden file and the lock; later, hidden files at every depth."""
    folder.mkdir()
    files.temporary_path(folder / "config.json").write_text("{")
    (folder / storage.LOCK).write_text("")
    take(folder)
    assert names(folder) == ["config.json"]
    one = folder / "dm" / "seed0" / "checkpoints"
    one.mkdir(parents=True)
    before = names(folder)
    for path in (one / "step_00000002", one.parent / "synthetic.npz", folder / "results.md"):
        files.temporary_path(path).mkdir()
    (folder / ".mine-abc.txt").write_text("mine")
    take(folder)
    assert names(folder) == [".mine-abc.txt", *before]


def test_hidden_files_of_others_bar_a_new_run(folder):
    folder.mkdir()
    (folder / ".config-abc123.json").write_text("{}")
    with pytest.raises(ValueError, match="is not empty and holds no run"):
        take(folder)
    assert names(folder) == [".config-abc123.json"]


@pytest.mark.parametrize("number", [None, 1, 2, 99])
def test_a_run_of_other_code_is_refused_and_can_be_overwritten(folder, number):
    """Before 2 the random keys were others; before 3 a 0 said what None says."""
    take(folder)
    held = json.loads((folder / "config.json").read_text()) | {"format": number}
    if number is None:
        del held["format"]
    (folder / "config.json").write_text(json.dumps(held))
    with pytest.raises(ValueError, match=rf"another version of metadd_jax \(format {number or 1}, this one writes 3\)"):
        take(folder)
    take(folder, overwrite=True)
    assert json.loads((folder / "config.json").read_text())["format"] == runfolder.FORMAT


@pytest.mark.parametrize(
    "held", [[True], [[]], [{"file": 1, "sha256": "a"}], [{"file": "a.py"}], {"file": "a.py"}, "a.py"]
)
def test_plugins_that_are_none_are_another_run(folder, held):
    take(folder)
    said = json.loads((folder / "config.json").read_text())
    said["config"]["plugin"] = held
    (folder / "config.json").write_text(json.dumps(said))
    with pytest.raises(ValueError, match="holds another run"):
        take(folder)


@pytest.mark.parametrize("content", ["[]", "{}", '{"config": null}', '{"format": 2, "config": 3}', '{"config"'])
def test_another_json_is_no_run(folder, content):
    folder.mkdir()
    (folder / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config\.json is not (a run's|readable JSON)"):
        take(folder, overwrite=True)
    assert (folder / "config.json").read_text() == content


def test_starting_anew_removes_the_run_and_nothing_else(folder):
    fill(folder)
    take(folder, overwrite=True, steps=7)
    assert names(folder) == [
        "config.json", "dm", "dm/seed0", "dm/seed0/notes.txt", "mine", "mine/seed_bank", "mine/seed_bank/thesis.txt",
    ]  # fmt: skip
    assert json.loads((folder / "config.json").read_text())["config"]["steps"] == 7


def test_killed_while_it_starts_anew_the_folder_still_holds_a_run(folder, monkeypatch):
    fill(folder)

    def die(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(runfolder.folders, "remove", die)
    with pytest.raises(KeyboardInterrupt):
        take(folder, overwrite=True, steps=7)
    monkeypatch.undo()
    take(folder)  # the old run goes on
    take(folder, overwrite=True, steps=7)


def test_exports_that_are_missing_or_damaged_are_found(folder):
    one = fill(folder)
    found = runfolder.unwritten(folder, ["dm"], [0], latents=True, pictures=["synthetic.png"])
    assert found == [one / "synthetic.npz", one / "latents.npz", one / "synthetic.png"]


@pytest.mark.parametrize(
    ("file", "settings", "message"),
    [
        (
            "teacher.pth",
            lambda path: {"method": "sre2l", "own": distillers.SqueezeRecover(weights=path)},
            r"holds another run \(own\.weights was .*teacher\.pth \(SHA-256 .*now ",
        ),
        (
            "g.safetensors",
            lambda path: {"parameterisation": f"stylegan:weights={path},layer=2"},
            r"holds another run \(parameterisation was .*\(g\.safetensors: SHA-256 .*now ",
        ),
    ],
)
def test_weights_of_the_same_name_count_by_what_they_hold(folder, tmp_path, file, settings, message):
    weights = tmp_path / file
    weights.write_bytes(b"one")
    config = options.DistillConfig(run_dir=str(folder), **settings(str(weights)))
    folder.mkdir()
    files.write_json(folder / "config.json", {"format": runfolder.FORMAT, "config": runfolder.plain(config)})
    runfolder.inspect(folder, config)
    weights.write_bytes(b"two")
    with pytest.raises(ValueError, match=message):
        runfolder.inspect(folder, config)


def test_an_augmentation_of_ones_own_counts_by_its_code(folder, monkeypatch):
    """Given as a Strategy, in code; on a command line it is words, and the plugin's text counts."""

    def config(op):
        monkeypatch.setitem(augment._OWN, "dim", op)
        own = distillers.DM(augmentation=augment.strategy("flip_dim"))
        return options.DistillConfig(run_dir=str(folder), own=own)

    def halved(key, images, siamese):
        return images / 2

    def doubled(key, images, siamese):
        return images * 2

    files.require_writable(folder)
    held = {"format": runfolder.FORMAT, "config": runfolder.plain(config(halved))}
    (folder / "config.json").write_text(json.dumps(held))
    runfolder.inspect(folder, config(halved))
    with pytest.raises(ValueError, match=r"holds another run \(own\.augmentation\.own\.dim was "):
        runfolder.inspect(folder, config(doubled))
