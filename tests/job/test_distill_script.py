"""The main job as a user meets it: killed and started again, and every mistake answered in one line."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest

from metadd_jax import data, parallel, structs, zoo
from metadd_jax.job import command, common, distill, options, prepare, results

ROOT = pathlib.Path(__file__).parents[2]
TINY = [
    "smoke", "--backbone", "convnet:width=4,depth=2", "--seen", "convnet:width=4,depth=1", "convnet:width=6,depth=1",
    "--unseen", "mlp:width=8", "--steps", "30", "--distill-seeds", "1", "--eval-epochs", "2",
    # Few views and no maps in the loss: compiling them is most of what these tests wait for.
    "--metadd.views", "crop", "--metadd.pos", "0", "--metadd.var", "0",
    "--pretrain-augmentation", "none", "--eval-augmentation", "none",
]  # fmt: skip
TINY_DM = [*TINY, "--augmentation", "crop", "--train-per-class", "50"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def start(arguments, cache):
    return subprocess.Popen(
        [sys.executable, ROOT / "experiments" / "distill.py", *map(str, arguments)],
        env={**os.environ, "METADD_CACHE": str(cache), "JAX_NUM_CPU_DEVICES": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(condition, process, limit=240):
    end = time.monotonic() + limit
    while not condition():
        assert process.poll() is None, process.communicate()[0][-2000:]
        assert time.monotonic() < end
        time.sleep(0.01)


def run(arguments, cache, folder):
    process = start([*arguments, "--run-dir", folder], cache)
    text = process.communicate(timeout=550)[0]
    assert process.returncode == 0, text[-3000:]
    return folder


@pytest.fixture(scope="module")
def unbroken(cache, tmp_path_factory):
    return run(TINY_DM, cache, tmp_path_factory.mktemp("runs") / "unbroken")


def test_the_run_folder_is_complete(unbroken):
    for name in ("dm/seed0", "dm+metadd/seed0"):
        for file in ("synthetic.npz", "synthetic.json", "synthetic.png", "maps.png", "metrics.jsonl"):
            assert (unbroken / name / file).stat().st_size > 0
    assert (unbroken / "report.html").stat().st_size > 50_000  # with pictures in it
    assert json.loads((unbroken / "history.jsonl").read_text().splitlines()[1])["how"] == "finished"
    results = json.loads((unbroken / "results.json").read_text())
    assert {row["set"] for row in results["rows"]} == {"random", "kmeans", "dm", "dm+metadd"}
    assert {row["role"] for row in results["rows"]} == {"same", "seen", "unseen"}
    assert set(results["rows"][0]) == {"set", "distill_seed", "network", "role", "labels", "accuracies"}
    assert {row["labels"] for row in results["rows"]} == {"hard"} == {results["labels"]["rule"]}
    assert "| dm+metadd |" in (unbroken / "results.md").read_text()
    both = [
        [row["accuracies"] for row in results["rows"] if (row["set"], row["role"]) == (name, "unseen")]
        for name in ("dm", "kmeans")
    ]
    gain = results["gains"]["dm"]["kmeans"]["unseen"]["difference"]
    assert gain == pytest.approx(np.mean(both[0]) - np.mean(both[1]))
    assert "over k-means images" in (unbroken / "results.md").read_text()


def test_numpy_alone_opens_the_export(unbroken):
    code = (
        "import sys, numpy as np; f = np.load(sys.argv[1], allow_pickle=False); "
        "print(f['images'].shape, f['labels'].shape, f['mean'].shape, f['std'].shape, 'jax' in sys.modules)"
    )
    file = unbroken / "dm" / "seed0" / "synthetic.npz"
    printed = subprocess.run([sys.executable, "-I", "-c", code, file], capture_output=True, text=True, check=True)
    assert printed.stdout.split("\n")[0] == "(10, 28, 28, 1) (10,) (1,) (1,) False"


def arrays_of(run, method):
    """The bytes of every array of the bare set and of the one under MetaDD."""
    sets = {name: np.load(run / name / "seed0" / "synthetic.npz") for name in (method, f"{method}+metadd")}
    return {(name, field): file[field].tobytes() for name, file in sets.items() for field in file}


def killed_and_started_again(arguments, cache, folder, method):
    """Kills the run in the middle of its second set, starts it again and waits for that set."""
    steps = folder / f"{method}+metadd" / "seed0" / "checkpoints"
    process = start([*arguments, "--run-dir", folder], cache)
    wait_for(lambda: steps.is_dir() and len(list(steps.glob("step_*"))) >= 2, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (steps.parent / "synthetic.npz").exists()
    process = start([*arguments, "--run-dir", folder], cache)
    wait_for((steps.parent / "synthetic.npz").exists, process)  # the last file of a set
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # of a shell's background job: processes inherit it
        process.kill()
        process.wait()
        return folder
    process.send_signal(signal.SIGINT)  # and Ctrl-C ends it in one line
    text = process.communicate(timeout=60)[0]
    assert process.returncode == 130 and "Traceback" not in text, text[-2000:]
    assert text.splitlines()[-1] == "interrupted; the same command goes on from the last checkpoint"
    return folder


def test_killed_in_the_middle_and_started_again_ends_in_the_same_bits(unbroken, cache, tmp_path):
    broken = killed_and_started_again(TINY_DM, cache, tmp_path / "broken", "dm")
    assert arrays_of(broken, "dm") == arrays_of(unbroken, "dm")


TRAJECTORIES = [
    "--mtt.experts", "2", "--mtt.epochs", "2", "--mtt.at-once", "2", "--mtt.syn-steps", "2", "--mtt.expert-epochs", "1",
    "--mtt.max-start-epoch", "2", "--train-per-class", "20", "--zca",
]  # fmt: skip
OPTIONS = {
    "dc": ["--ipc", "2", "--dc.outer", "2", "--dc.inner", "2", "--batch-size", "8"],
    "dsa": ["--ipc", "2", "--dc.outer", "2", "--dc.inner", "2", "--batch-size", "8"],
    "mtt": TRAJECTORIES,
    "tesla": [*TRAJECTORIES, "--mtt.soft-labels"],
    "sre2l": [
        "--backbone", "convnet_bn:width=4,depth=2", "--sre2l.squeeze", "short", "--sre2l.squeeze-epochs", "1",
        "--eval-recipe", "sre2l_cifar",
    ],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("method", OPTIONS)
def test_every_method_survives_a_kill(method, cache, tmp_path):
    arguments = [*TINY, "--method", method, *OPTIONS[method]]
    whole = run(arguments, cache, tmp_path / "whole")
    broken = killed_and_started_again(arguments, cache, tmp_path / "broken", method)
    assert arrays_of(broken, method) == arrays_of(whole, method)
    results = (whole / "results.md").read_text()
    assert f"| {method}+metadd | metadd |" in results and "Seconds a step" in results


def the_line(text):
    lines = text.strip().splitlines()
    assert lines[-1].startswith("error: ") and "Traceback" not in text
    assert not any("pretrain" in line for line in lines)  # before any long work
    return lines[-1]


def test_a_mistake_is_one_line_and_exit_status_1(cache):
    process = start(["smok"], cache)
    text = process.communicate(timeout=120)[0]
    assert process.returncode == 1 and "did you mean 'smoke'" in the_line(text)


@pytest.fixture
def here(cache, monkeypatch):
    """The script in this process."""
    monkeypatch.setenv("METADD_CACHE", str(cache))
    monkeypatch.setattr(common, "open_cache", lambda folder: None)  # JAX's own is this process's
    monkeypatch.setattr(parallel, "choose_mode", lambda mode: "jit")  # the runs had one device
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # put back afterwards


@pytest.fixture
def fails(here, monkeypatch, capfd):
    """What the script says when it ends with an error."""

    def ask(arguments):
        monkeypatch.setattr(sys, "argv", ["distill.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            command.main(distill.run, program="distill.py")
        assert left.value.code == 1
        return the_line("".join(capfd.readouterr()))

    return ask


@pytest.fixture
def refused(here, tmp_path):
    """What the script says to options that it refuses, asked in this process."""

    def ask(*options):
        with pytest.raises(ValueError) as found:
            distill.run([*TINY, "--run-dir", str(tmp_path / "new"), *map(str, options)])
        assert "\n" not in str(found.value) and not (tmp_path / "new" / "config.json").exists()
        return str(found.value)

    return ask


def test_what_cannot_work_is_refused_before_any_work(refused, tmp_path):
    cases = {
        "unknown network": ["--backbone", "convnext"],
        "no_such_set": ["--dataset", "no_such_set", "--data-dir", tmp_path],
        "--ipc=0 must be": ["--ipc", "0"],
        "--no-wrapped": ["--seen"],
        "set short_class: repeat (its images again) or fewer": ["--ipc", "401"],
        "did you mean 'dm'": ["--method", "dmm"],
        "wants the labels of a teacher": ["--eval-recipe", "sre2l_cifar"],
        "has no batch-norm statistics to match": ["--method", "sre2l"],
        "reach epoch 12 of experts of 10 epochs": ["--method", "mtt", "--mtt.max-start-epoch", "11"],
        "cannot write": ["--run-dir", "/proc/nowhere/run"],
    }
    for part, options_given in cases.items():
        assert part in refused(*options_given)


def test_arrays_that_are_no_data_set_are_refused(refused, tmp_path):
    bad = tmp_path / "bad.npz"
    images = np.zeros((20, 8, 8, 1), np.uint8)
    np.savez(bad, images=images, labels=np.full(20, -1))
    assert "label" in refused("--dataset", bad)
    np.savez(bad, images=np.full((20, 8, 8, 1), np.nan), labels=np.arange(20) % 2)
    assert "nan" in refused("--dataset", bad).lower()
    np.savez(bad, images=np.zeros((20, 8, 8, 5), np.uint8), labels=np.arange(20) % 2)
    assert "channel" in refused("--dataset", bad)


def test_a_folder_of_another_run_or_a_damaged_checkpoint_is_refused_and_left(unbroken, fails, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(unbroken, folder)
    assert "holds another run (steps was 30, now 31)" in fails([*TINY_DM, "--steps", "31", "--run-dir", folder])
    victim = max(
        (folder / "dm" / "seed0" / "checkpoints").rglob("*"), key=lambda file: file.is_file() and file.stat().st_size
    )
    victim.write_bytes(victim.read_bytes()[:-7])
    left = victim.read_bytes()
    assert str(folder) in fails([*TINY_DM, "--run-dir", folder])
    assert victim.read_bytes() == left
    other = tmp_path / "precious"
    other.mkdir()
    (other / "thesis.txt").write_text("years of work")
    assert "not empty" in fails([*TINY_DM, "--overwrite", "--run-dir", other])
    assert (other / "thesis.txt").read_text() == "years of work"


def test_a_bare_run_without_auxiliaries_has_pictures_and_no_maps(unbroken, tmp_path):
    config = options.DistillConfig(run_dir=str(tmp_path), wrapped=False, seen=())
    arrays = np.load(unbroken / "dm" / "seed0" / "synthetic.npz")
    noise, labels = np.random.default_rng(0).integers(0, 256, (10, 28, 28, 1), np.uint8), np.arange(10)
    dataset = data.from_arrays("noise", noise, labels, noise, labels)
    job = prepare.Job(config, tmp_path, dataset, zoo.parse("mlp", 10, (28, 28, 1)), (), ())
    results.draw(job, {"dm": [structs.SyntheticSet(images=arrays["images"], labels=arrays["labels"])] * 3}, {})
    assert {path.name for path in (tmp_path / "dm" / "seed0").iterdir()} == {"synthetic.png"}


def test_a_finished_run_is_told_from_its_results(unbroken, here, capsys):
    distill.run([*TINY_DM, "--run-dir", str(unbroken)])
    text = "".join(capsys.readouterr())
    assert "is finished" in text and "pretrain" not in text
