"""Fuzz of the reader of TensorFlow Datasets' folders: descriptions, names, and the ArrayRecord files themselves."""

import shutil
import subprocess
import sys

import hostile
import pytest
from fuzz_sets import FACTS as SAID
from fuzz_sets import fit, judged, made
from hypothesis import given

from metadd_jax import exchange
from metadd_jax.data import prepared

pytest.importorskip("tensorflow_datasets")


@pytest.fixture
def folder(tmp_path):
    exchange.export_array_record(tmp_path / "set", made(), SAID)
    return tmp_path / "set" / "distilled_set" / "1.0.0"


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json", "label.labels.txt"])
def test_a_description_is_believed_or_refused(tmp_path, folder, real, name):
    whole = (folder / name).read_bytes()
    (tmp_path / "evil_feature.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')")
    sys.path.insert(0, str(tmp_path))

    @given(hostile.BOTH if name.endswith("json") else hostile.DAMAGE)
    @hostile.cases(20)
    def fuzz(change):
        (folder / name).write_bytes(hostile.changed(whole, change))
        found = hostile.read(f"TFDS: {name}", judged(real), folder, root=tmp_path, says=("the set",))
        fit(found)

    try:
        fuzz()
        if name == "features.json":
            # TFDS imports the module of every class that a description names.
            for text in ("image_feature.Image", "class_label_feature.ClassLabel", "features_dict.FeaturesDict"):
                evil = whole.replace(f"tensorflow_datasets.core.features.{text}".encode(), b"evil_feature.Feature")
                assert evil != whole
                (folder / name).write_bytes(evil)
                found = hostile.read(f"TFDS: {name}", judged(real), folder, root=tmp_path)
                assert isinstance(found, ValueError)
            (folder / name).write_bytes(whole.replace(b'"numClasses": "3"', b'"numClasses": "1000000000000"'))
            assert isinstance(hostile.read(f"TFDS: {name}", judged(real), folder, root=tmp_path), ValueError)
    finally:
        sys.path.remove(str(tmp_path))
    assert not (tmp_path / "canary").exists()


def test_the_newest_version_is_found_or_refused(tmp_path, folder):
    place = tmp_path / "data" / "mine" / "1.0.0"
    shutil.copytree(folder, place)
    whole = (place / "dataset_info.json").read_bytes()

    def find(data_dir):
        return prepared.find("mine", data_dir)

    @given(hostile.BOTH)
    @hostile.cases(20)
    def fuzz(change):
        (place / "dataset_info.json").write_bytes(hostile.changed(whole, change))
        found = hostile.read("TFDS: finding a set", find, tmp_path / "data", root=tmp_path)
        assert isinstance(found, Exception) or found == place

    fuzz()
    (place / "dataset_info.json").write_bytes(whole)
    assert find(tmp_path / "data") == place


# In a process of its own: the reader of the records is a library in C++, which may end the process.
CHILD = """
import pathlib, sys
sys.path[:0] = [{here!r}]
import fuzz_sets, hostile
from hypothesis import given
real, folder = fuzz_sets.real_data(), pathlib.Path({folder!r})
(file,) = folder.glob("*.array_record*")
whole, progress = file.read_bytes(), pathlib.Path({progress!r})

@given(hostile.DAMAGE)
@hostile.cases({cases})
def fuzz(steps):
    progress.write_text(repr(steps))
    file.write_bytes(hostile.damaged(whole, steps))
    found = hostile.read("ArrayRecord", fuzz_sets.judged(real), folder, root=folder)
    fuzz_sets.fit(found)

with hostile.counted():
    fuzz()
print("ended")
"""


def test_damaged_records_are_read_or_refused(tmp_path, folder):
    values = {
        "here": str(hostile.__file__.rpartition("/")[0]),
        "folder": str(folder),
        "progress": str(tmp_path / "case"),
        "cases": 30,
    }
    command = [sys.executable, "-c", CHILD.format(**values)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=500)
    case = (tmp_path / "case").read_text() if (tmp_path / "case").exists() else ""
    assert done.returncode == 0 and done.stdout.endswith("ended\n"), f"{case}\n{done.stderr[-3000:]}"
