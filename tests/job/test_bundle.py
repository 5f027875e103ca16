"""A bundle: what is in it is what lay there, it is judged again by its own protocol, and a damaged one is refused."""

import hashlib
import io
import json
import zipfile

import numpy as np
import pytest
from example_runs import CLASSES, run

from metadd_jax import data, exchange
from metadd_jax.evaluation import report
from metadd_jax.job import bundle, data_card, evaluate, export, options, prepare, rejudge, stages
from metadd_jax.job.options import DistillConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return run(tmp_path_factory.mktemp("runs") / "one")


@pytest.fixture(scope="module")
def file(folder, tmp_path_factory):
    file = tmp_path_factory.mktemp("out") / "dm.zip"
    export.run([str(folder / "dm" / "seed1"), "--bundle", str(file)])
    return file


def test_everything_lies_in_it_and_the_hashes_are_of_the_files(folder, file):
    with zipfile.ZipFile(file) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    manifest = json.loads(held.pop("bundle.json"))
    names = {"README.md", "config.json", "maps.npz", "metrics.jsonl", "results.json", "synthetic.json", "synthetic.npz"}
    assert set(held) == names == set(manifest["files"])
    for name, content in held.items():
        assert manifest["files"][name] == {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    assert held["synthetic.npz"] == (folder / "dm" / "seed1" / "synthetic.npz").read_bytes()
    rows = [row for row in json.loads((folder / "results.json").read_text())["rows"] if row["set"] == "dm"]
    assert manifest["rows"] == [row for row in rows if row["distill_seed"] == 1]
    assert len(manifest["rows"]) == 4
    assert str(folder).encode() not in b"".join(held.values()) + json.dumps(manifest).encode()  # nobody's business


def test_the_card_says_what_it_is(file):
    with zipfile.ZipFile(file) as archive:
        text = archive.read("README.md").decode()
    head, _, body = text.removeprefix("---\n").partition("---\n")
    facts = {line.partition(": ")[0]: json.loads(line.partition(": ")[2]) for line in head.splitlines()}
    assert facts["source_datasets"] == ["mnist5k"] and facts["license_name"].startswith("CC BY-SA 3.0")
    for words in ("## How it was made", "## How well it trains", "## What not to use it for", "| convnet | same |"):
        assert words in body
    assert "<script>" not in body.replace("\\<", "") and "\n".join(CLASSES) not in body
    assert "has not been judged" in data_card.card({"class_names": []}, {}, [])
    assert data_card.licence("imagewoof").startswith("for non-commercial") and "ask" in data_card.licence("mine")


def test_it_is_read_back_and_a_second_one_replaces_a_bundle_alone(folder, file, tmp_path):
    held = bundle.read(file)
    with np.load(folder / "dm" / "seed1" / "synthetic.npz") as content:
        np.testing.assert_array_equal(held.synthetic.images, content["images"])
    assert held.metadata["class_names"] == CLASSES
    words = [str(folder / "dm" / "seed1" / "synthetic.npz"), "--bundle", str(file)]
    with pytest.raises(ValueError, match="exists already"):
        export.run(words)
    export.run([*words, "--overwrite"])
    (tmp_path / "mine.zip").write_text("mine")
    with pytest.raises(ValueError, match="is not what metadd_jax wrote"):
        export.run([*words[:2], str(tmp_path / "mine.zip"), "--overwrite"])
    for wrong in ([words[0]], [*words, "--out", "x.npz"]):
        with pytest.raises(ValueError, match="say where to write it"):
            export.run(wrong)
    exchange.export_npz(
        tmp_path / "set.npz", held.synthetic, {k: v for k, v in held.metadata.items() if "sha" not in k}
    )
    with pytest.raises(ValueError, match="holds no run"):
        export.run([str(tmp_path / "set.npz"), "--bundle", str(tmp_path / "new.zip")])


def rewritten(file, place, **changes):
    """A copy of a bundle with other members; None leaves one out."""
    with zipfile.ZipFile(file) as archive:
        held = {name: archive.read(name) for name in archive.namelist()} | changes
    with zipfile.ZipFile(place, "w") as archive:
        for name, content in held.items():
            if content is not None:
                archive.writestr(zipfile.ZipInfo(name), content)
    return place


def test_what_is_damaged_or_foreign_is_refused_in_one_line(file, tmp_path):
    place = tmp_path / "x.zip"
    manifest = json.loads(zipfile.ZipFile(file).read("bundle.json"))
    cases = {
        "README.md in .* is not what bundle.json tells": {"README.md": b"changed"},
        "metrics.jsonl in": {"metrics.jsonl": None},
        "holds what no bundle does, '../../evil'": {"../../evil": b"x"},
        "format 99": {"bundle.json": json.dumps(manifest | {"format": 99}).encode()},
        "bundle.json that cannot be read": {"bundle.json": b"[]"},
        "'config'": {"bundle.json": json.dumps({k: v for k, v in manifest.items() if k != "config"}).encode()},
    }
    for said, changes in cases.items():
        with pytest.raises(ValueError, match=said) as caught:
            bundle.read(rewritten(file, place, **changes))
        assert "\n" not in str(caught.value)
    whole = file.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(60):  # cut, and with a byte changed: refused, or the byte is one that nobody reads
        broken = bytearray(whole[: rng.integers(1, len(whole))] if rng.integers(2) else whole)
        broken[rng.integers(len(broken))] ^= 1 << rng.integers(8)
        place.write_bytes(broken)
        try:
            held = bundle.read(place)
        except ValueError as error:
            assert "\n" not in str(error)
        else:
            np.testing.assert_array_equal(held.synthetic.images, bundle.read(file).synthetic.images)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:  # a bomb would be packed
        archive.writestr("bundle.json", b"0" * 10_000_000)
    place.write_bytes(stream.getvalue())
    with pytest.raises(ValueError, match="holds what no bundle does"):
        bundle.read(place)


def test_the_protocol_is_the_runs_own(file):
    config = rejudge.judging(bundle.read(file))
    usual = DistillConfig()
    for name in ("backbone", "seen", "unseen", "eval_recipe", "eval_epochs", "train_seeds", "evaluate_on"):
        assert getattr(config, name) == getattr(usual, name)
    assert config.first_seed == 0 and config.ipc_per_class == (2, 2, 2)  # the set says seed 0, and no ipc


@pytest.mark.parametrize("name", ["eval_labels", "backbone", "seen", "eval_epochs", "dataset"])
@pytest.mark.parametrize("value", [[], 1.5, {"a": 1}, [True]])
def test_a_protocol_of_wrong_types_is_refused_in_a_line(file, tmp_path, name, value):
    with zipfile.ZipFile(file) as archive:
        manifest = json.loads(archive.read("bundle.json"))
    manifest["config"][name] = value
    place = tmp_path / "set.zip"
    held = bundle.read(rewritten(file, place, **{"bundle.json": json.dumps(manifest).encode()}))
    if (name, value) == ("seen", []):
        return  # none is as good as some
    with pytest.raises(ValueError, match=f"the bundle's own protocol .*{name}") as caught:
        rejudge.judging(held)
    assert "\n" not in str(caught.value)


def test_differences_are_told_in_points():
    told = [{"network": name, "role": "same", "accuracies": [0.5, 0.6]} for name in ("a", "b")]
    now = [{"network": "a", "accuracies": [0.5, 0.6]}, {"network": "b", "accuracies": [0.52, 0.57]}]
    lines = rejudge.differences(told, now)
    assert lines[2:4] == ["| a | same | 55.0 | 55.0 | +0.00 | 0.00 |", "| b | same | 55.0 | 54.5 | -0.50 | 3.00 |"]
    assert lines[-1] == "The largest difference of one training: 3.00 points."
    assert rejudge.differences(told[:1], now[:1])[-1] == "Every accuracy is the same to the bit."
    assert "cannot be compared" in rejudge.differences(told, [])[-1]


def test_a_set_is_judged_again_to_the_same_numbers(tmp_path, monkeypatch, capsys):
    """Rows as the job's own stage gives them, among other sets; then the bundle alone, by the command."""
    monkeypatch.setenv("METADD_CACHE", str(tmp_path / "cache"))
    config = DistillConfig(
        run_dir=str(tmp_path / "run"), train_per_class=20, backbone="mlp:width=4", seen=(), unseen=("mlp:width=6",),
        eval_epochs=3, first_seed=3, distill_seeds=1, eval_augmentation="crop", own=options.settings_of("dm"),
    )  # fmt: skip
    dataset = prepare.load_data(config)
    nets = [prepare.common.networks((spec,), dataset) for spec in ("mlp:width=4", "mlp:width=6")]
    job = prepare.Job(config, tmp_path / "run", dataset, nets[0][0], (), nets[1])
    sets = stages.baselines(job)
    stages.export_real(job, "random", 3, sets["random"][0])
    rows = stages.judge(job, sets, [])
    (tmp_path / "run" / "config.json").write_text(
        json.dumps({"format": 3, "config": prepare.runfolder.plain(config), "versions": {"jax": "0.0.1"}})
    )
    report.write_rows(tmp_path / "run" / "results.json", {"rows": rows})
    export.run([str(tmp_path / "run" / "random" / "seed3"), "--bundle", str(tmp_path / "b.zip")])
    capsys.readouterr()
    evaluate.run([str(tmp_path / "b.zip")])
    text = capsys.readouterr().out
    assert "Every accuracy is the same to the bit." in text and "jax: 0.0.1 then" in text
    told = [row for row in rows if row["set"] == "random"]
    assert all(f"| {row['network']} | {row['role']} | {100 * np.mean(row['accuracies']):.1f} |" in text for row in told)
    evaluate.run([str(tmp_path / "b.zip"), "--networks", "mlp:width=4", "--epochs", "1", "--seeds", "1"])
    assert "recipe 'dc', 1 epochs" in capsys.readouterr().out
    assert data.load("mnist5k", train_per_class=20).fingerprint == dataset.fingerprint
