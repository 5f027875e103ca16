"""Fuzz of what is read in folders that travel: runs, studies, cells, bundles, checkpoints, logs; and of study files."""

import dataclasses
import hashlib
import io
import json
import pathlib
import shutil
import sys
import warnings
import zipfile

import hostile
import numpy as np
import pytest
from fuzz_sets import FACTS, IMAGES, made
from hypothesis import given
from hypothesis import strategies as st

from metadd_jax import files, storage
from metadd_jax.evaluation import report
from metadd_jax.job import bundle, export, history, options, rejudge, report_facts, report_page, runfolder, studies
from metadd_jax.storage import folder as folders

sys.path.append(str(pathlib.Path(__file__).parents[1] / "job"))
import example_runs


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return example_runs.run(tmp_path_factory.mktemp("runs") / "one")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return example_runs.study(tmp_path_factory.mktemp("studies") / "tiny")


def signed(content):
    """JSON's text with a right hash: that a file is whole says nothing of who wrote it."""
    told = json.loads(content)
    if not isinstance(told, dict):
        return content
    told.pop("sha256", None)
    return json.dumps({**told, "sha256": files.hash_json(told)}).encode()


def page(folder):
    return report_page.html([report_facts.read(folder)], title="x")


def quietly(function):
    def read(place):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pictures that are not drawn
            return function(place)

    return read


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "results.json",
        "dm/seed0/synthetic.json",
        "dm/seed0/maps.npz",
        "dm/seed0/metrics.jsonl",
        "history.jsonl",
    ],
)
def test_a_report_of_a_hostile_run_is_a_page_or_refused(tmp_path, run, name):
    place = tmp_path / "run"
    shutil.copytree(run, place)
    whole = (place / name).read_bytes()

    @given(hostile.BOTH if name.endswith(".json") else hostile.DAMAGE)
    @hostile.cases(12)
    def fuzz(change):
        content = hostile.changed(whole, change)
        edited = not isinstance(change[0][0], str)
        (place / name).write_bytes(signed(content) if name == "results.json" and edited else content)
        found = hostile.read(f"report: {pathlib.PurePath(name).name}", quietly(page), place, root=tmp_path)
        assert isinstance(found, Exception) or "<script>alert(1)" not in found

    fuzz()
    (place / name).write_bytes(whole)
    assert "</html>" in quietly(page)(place)


@pytest.mark.slow
def test_a_report_of_a_hostile_study_is_a_page_or_refused(tmp_path, study):
    place = tmp_path / "study"
    shutil.copytree(study, place)
    whole = (place / "study.json").read_bytes()

    @given(hostile.BOTH)
    @hostile.cases(12)
    def fuzz(change):
        (place / "study.json").write_bytes(hostile.changed(whole, change))
        found = hostile.read("report: study.json", quietly(page), place, root=tmp_path)
        assert isinstance(found, Exception) or "<script>alert(1)" not in found

    fuzz()
    (place / "study.json").write_bytes(whole)
    assert "</html>" in quietly(page)(place)


def test_rows_of_results_and_cells_are_whole_or_nothing(tmp_path, run):
    whole, file = (run / "results.json").read_bytes(), tmp_path / "results.json"

    @given(hostile.BOTH)
    @hostile.cases(40)
    def fuzz(change):
        content = hostile.changed(whole, change)
        file.write_bytes(signed(content) if isinstance(change[0][0], int) else content)
        found = hostile.read("results.json, cell.json", report.read_rows, file, root=tmp_path)
        if isinstance(found, dict):
            assert all(isinstance(row["accuracies"], list) for row in found["rows"])

    fuzz()


def test_a_run_goes_on_or_is_refused(tmp_path, run):
    place = tmp_path / "run"
    shutil.copytree(run, place)
    whole = (place / "config.json").read_bytes()
    config = options.DistillConfig(run_dir=str(place), distill_seeds=2)

    def inspect(folder):
        # The lock is made and taken away again; what lies there stays.
        runfolder._refuse(folder, config)

    @given(hostile.BOTH)
    @hostile.cases(40)
    def fuzz(change):
        (place / "config.json").write_bytes(hostile.changed(whole, change))
        hostile.read("config.json of a run", inspect, place, root=tmp_path)

    fuzz()
    (place / "config.json").write_bytes(whole)
    inspect(place)  # what is whole goes on
    with pytest.raises(ValueError, match="steps"):
        runfolder._refuse(place, dataclasses.replace(config, steps=config.steps + 1))


def test_a_bundle_is_read_as_it_was_or_refused(tmp_path, run):
    export.run([str(run / "dm" / "seed1"), "--bundle", str(tmp_path / "whole.zip")])
    whole, file = (tmp_path / "whole.zip").read_bytes(), tmp_path / "set.zip"
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    images = bundle.read(tmp_path / "whole.zip").synthetic.images

    def packed(held, compression=zipfile.ZIP_STORED):
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", compression) as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name, content in held:
                info = zipfile.ZipInfo("x")
                info.filename, info.compress_type = name, compression
                archive.writestr(info, content)
        return stream.getvalue()

    def wrong(kind, number, name, change):
        held, names = dict(members), sorted(members)
        one = names[number % len(names)]
        if kind == "manifest":
            held["bundle.json"] = hostile.changed(held["bundle.json"], change)
        elif kind == "renamed":
            return packed([(name if each == one else each, content) for each, content in held.items()])
        elif kind == "twice":
            return packed([*held.items(), (one, held[one])])
        elif kind == "packed":
            return packed([*held.items(), ("README.md" if number % 2 else one, bytes(10**7))], zipfile.ZIP_DEFLATED)
        else:  # another content, and the manifest tells its hash
            steps = change if isinstance(change[0][0], str) else [("cut", 0.5)]
            held[one] = hostile.damaged(held[one], steps)
            if one != "bundle.json":
                manifest = json.loads(held["bundle.json"])
                manifest["files"][one] = {"sha256": hashlib.sha256(held[one]).hexdigest(), "bytes": len(held[one])}
                held["bundle.json"] = json.dumps(manifest).encode()
        return packed(held.items())

    def read(file):
        found = bundle.read(file)
        rejudge.judging(found)
        return found

    kinds = st.sampled_from(["bytes", "manifest", "manifest", "manifest", "renamed", "twice", "packed", "content"])

    @given(kinds, st.integers(0, 20), hostile.NAMES, hostile.DAMAGE, hostile.EDITS)
    @hostile.cases(40)
    def fuzz(kind, number, name, steps, edits):
        content = (
            hostile.damaged(whole, steps)
            if kind == "bytes"
            else wrong(kind, number, name, edits if number % 3 else steps)
        )
        file.write_bytes(content)
        found = hostile.read("bundle", read, file, root=tmp_path, says=("the bundle",))
        if not isinstance(found, Exception):
            np.testing.assert_array_equal(found.synthetic.images, images)

    fuzz()


def resealed(place, name):
    """Writes the manifest of a folder anew for one file: its hash proves that it is whole, and not whose it is."""
    manifest = json.loads((place / "manifest.json").read_bytes())
    content = (place / name).read_bytes()
    manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (place / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("seal", [False, True])
def test_a_checkpoint_is_restored_as_it_was_or_refused(tmp_path, seal):
    storage.save(tmp_path / "whole", made(), FACTS)
    names = sorted(
        path.relative_to(tmp_path / "whole").as_posix() for path in (tmp_path / "whole").rglob("*") if path.is_file()
    )
    place = tmp_path / "set"
    like = made()

    @given(st.integers(0, 40), hostile.BOTH)
    @hostile.cases(12)
    def fuzz(number, change):
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(tmp_path / "whole", place)
        name = names[number % len(names)]
        whole = (place / name).read_bytes()
        text = name.endswith(".json")
        steps = change if isinstance(change[0][0], str) else [("flip", 0.3, 2)]
        (place / name).write_bytes(hostile.changed(whole, change) if text else hostile.damaged(whole, steps))
        if seal and name != "manifest.json":
            resealed(place, name)
        for restore in (storage.restore, lambda folder: storage.restore_tree(folder, like)):
            found = hostile.read(f"checkpoint{', sealed anew' if seal else ''}", restore, place, root=tmp_path)
            # Sealed anew it may be another set, but a set.
            if not isinstance(found, Exception) and not seal:
                images = found[0].images if isinstance(found, tuple) else found.images
                np.testing.assert_array_equal(images, IMAGES)

    fuzz()


@pytest.mark.parametrize("name", ["metrics.jsonl", "history.jsonl"])
def test_lines_of_metrics_and_history_are_read_or_refused(tmp_path, name):
    log = storage.JsonLines(tmp_path / "metrics.jsonl")
    for step in range(3):
        log.write(step, {"distill/loss": 1.5, "nan": float("nan")})
    with history.kept(tmp_path):
        pass
    read = {
        "metrics.jsonl": lambda file: storage.JsonLines(file).read(),
        "history.jsonl": lambda file: history.read(file.parent),
    }
    whole, file = (tmp_path / name).read_bytes(), tmp_path / name

    @given(hostile.DAMAGE, st.one_of(st.none(), hostile.JSON))
    @hostile.cases(40)
    def fuzz(steps, value):
        file.write_bytes(hostile.damaged(whole, steps) if value is None else json.dumps(value).encode() + b"\n" + whole)
        hostile.read(name, read[name], file, root=tmp_path)

    fuzz()
    file.write_bytes(whole)
    assert len(read[name](file)) == (3 if name == "metrics.jsonl" else 1)


STUDY = b"""about = "what it asks"
preset = "smoke"
options = "--seen-epochs 1"
seeds = 2
references = ["dm"]
split = "test"
[rows]
random = "random"
dm = "--no-wrapped"
metadd = ""
[against]
metadd = "dm"
"""


def test_a_study_of_toml_is_read_or_refused(tmp_path):
    file = tmp_path / "mine.toml"
    words = [
        "--plugin x.py",
        "'",
        "--run-dir /",
        "[",
        "random",
        "1e9",
        "--plan",
        "--steps",
        "\\u0007",
        "a = 1\na = 2",
        "=",
        "x" * 3000,
    ]

    @given(hostile.DAMAGE, st.lists(st.tuples(st.floats(0, 1), st.sampled_from(words)), max_size=2))
    @hostile.cases(40)
    def fuzz(steps, more):
        content = hostile.damaged(STUDY, steps)
        for where, word in more:
            at = int(where * len(content))
            content = content[:at] + word.encode() + content[at:]
        file.write_bytes(content)

        def read(file):
            found = studies.get(str(file))
            return [found.words(row) for row in found.rows], found.compared()

        hostile.read("study in TOML", read, file, root=tmp_path, says=("mine", "the study"))

    fuzz()


@pytest.mark.parametrize("what", ["manifest of experts", "labels of a teacher", "listing of programs", "lock"])
def test_small_json_is_read_or_refused(tmp_path, what):
    file = tmp_path / "held.json"
    whole = json.dumps(
        {"files": {"a.npy": {"bytes": 3, "sha256": "x"}}, "sha256": "y", "format": 1, "host": "h", "pid": 3}
    ).encode()

    def sealed(file):
        folder = file.parent / "folder"
        folder.mkdir(exist_ok=True)
        shutil.copy(file, folder / "manifest.json")
        try:
            folders.check(folder)
        finally:
            shutil.rmtree(folder)

    readers = {
        "manifest of experts": sealed,
        "labels of a teacher": files.read_json,
        "listing of programs": storage.programs._read_listing,
        "lock": storage.lock.remove_free,
    }

    @given(st.one_of(hostile.DAMAGE, hostile.EDITS, hostile.JSON.map(lambda value: [("all", value)])))
    @hostile.cases(20)
    def fuzz(change):
        content = json.dumps(change[0][1]).encode() if change[0][0] == "all" else hostile.changed(whole, change)
        file.write_bytes(content)
        if what == "lock":
            (tmp_path / ".x.metadd.lock").write_bytes(content)
            storage.lock.remove_free(tmp_path)
            assert not (tmp_path / ".x.metadd.lock").exists()
            hostile.COUNTS[what, "taken"] += 1
            return
        if what == "manifest of experts":
            (tmp_path / "folder").mkdir(exist_ok=True)
            (tmp_path / "folder" / "manifest.json").write_bytes(content)
            hostile.read(what, folders.check, tmp_path / "folder", root=tmp_path)
            return
        hostile.read(what, readers[what], file, root=tmp_path)

    fuzz()
