"""Two processes of two devices each, on this machine: what they make together is what one process makes alone."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest
import two_processes

from metadd_jax import storage

HERE = pathlib.Path(__file__).parent


def start_two(*command, **arguments):
    """Starts ``command`` twice, joined on a free port of this machine; returns what each printed and its errors."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    processes = [
        subprocess.Popen(
            [sys.executable, *[str(word).format(coordinator=coordinator, process=number) for word in command]],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **arguments,
        )
        for number in range(2)
    ]
    try:
        printed = [process.communicate(timeout=1500) for process in processes]
    finally:
        for process in processes:
            process.kill()  # one that waits for a lost other would never end
    # Both: the one that fails last often only waited for the one that failed first.
    assert [process.returncode for process in processes] == [0, 0], "\n\n".join(text[-3000:] for _, text in printed)
    return printed


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    folder = tmp_path_factory.mktemp("together")
    printed = start_two(HERE / "two_processes.py", folder, "{coordinator}", "{process}")
    return folder, printed, [dict(np.load(folder / f"process{number}.npz")) for number in range(2)]


def test_both_processes_end_with_the_same_bits(together):
    _, _, (first, second) = together
    assert set(first) == set(second) == {"pmap", "sharded", "experts", "accuracy", "accuracies"}
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)


def test_two_processes_make_what_one_makes(together, tmp_path):
    _, _, (made, _) = together
    for name, value in two_processes.job(tmp_path).items():
        np.testing.assert_allclose(made[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


def test_every_file_is_written_once(together):
    folder, _, _ = together
    for mode in ("pmap", "sharded"):
        log = storage.JsonLines(folder / mode / "metrics.jsonl").read()
        assert [line["step"] for line in log] == [2, 4]
        checkpoints = storage.Checkpointer(folder / mode / "checkpoints")
        checkpoints.verify()
        assert checkpoints.latest() == 4
    assert len(json.loads((folder / "experts" / "manifest.json").read_text())["files"]) == 1
    assert len(list((folder / "networks").iterdir())) == 1
    assert not [path for path in folder.rglob(".*") if "partial" in path.name or "old" in path.name]


def test_processes_that_disagree_are_stopped(together):
    _, printed, _ = together
    for text, _ in printed:
        assert "process 1 would start from other data, networks or checkpoints than process 0" in text


@pytest.mark.slow
def test_every_method_on_two_processes(tmp_path):
    """Two processes of two devices, by pmap and by sharded jit, make the images that one device makes."""
    start_two(HERE / "two_processes.py", tmp_path, "{coordinator}", "{process}", "methods")
    alone = two_processes.methods("jit")
    for mode in ("pmap", "sharded"):
        first, second = (dict(np.load(tmp_path / f"{mode}{number}.npz")) for number in range(2))
        assert set(alone) - set(first) == ({"dm batch norm"} if mode == "pmap" else set())
        for name, images in first.items():
            np.testing.assert_array_equal(images, second[name], err_msg=f"{mode}, {name}")
            np.testing.assert_allclose(images, alone[name], rtol=1e-3, atol=1e-4, err_msg=f"{mode}, {name}")


SMOKE = [
    "smoke", "--backbone", "convnet:width=4,depth=1", "--seen", "convnet:width=4,depth=2", "convnet:width=6,depth=1",
    "--unseen", "mlp:width=8", "--steps", "4", "--distill-seeds", "1", "--eval-epochs", "2",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["pmap", "sharded"])
def test_the_main_job_on_two_processes(mode, tmp_path):
    """Only the first prints; the sets are those of one process with one device."""
    arguments = [HERE.parent / "experiments" / "distill.py", *SMOKE, "--cache-dir", tmp_path / "cache"]

    def devices(number):
        return {"env": {**os.environ, "JAX_NUM_CPU_DEVICES": str(number)}}

    hosts = ["--coordinator", "{coordinator}", "--num-processes", "2", "--process-id", "{process}"]
    printed = start_two(*arguments, "--run-dir", tmp_path / "two", "--device-mode", mode, *hosts, **devices(2))
    assert "| dm+metadd |" in printed[0][0]
    own = [line for line in printed[1][0].splitlines() if not line.startswith("[Gloo]")]  # which the runtime prints
    assert own == [] and "judge" not in printed[1][1] and "seed 0" not in printed[1][1]
    alone = [sys.executable, *map(str, arguments), "--run-dir", tmp_path / "one"]
    subprocess.run(alone, check=True, capture_output=True, **devices(1))
    for name in ("dm", "dm+metadd"):
        ours, theirs = (np.load(tmp_path / run / name / "seed0" / "synthetic.npz") for run in ("two", "one"))
        np.testing.assert_allclose(ours["images"], theirs["images"], rtol=1e-3, atol=1e-4)
    assert {path.name for path in (tmp_path / "two").iterdir()} == {path.name for path in (tmp_path / "one").iterdir()}
