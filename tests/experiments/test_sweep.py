"""Cost curves: what a sweep measures and the straight lines through it."""

import dataclasses
import json

import pytest

import costs
import settings
import sweep

CONFIG = settings.BenchmarkConfig(works=("dm", "dm+metadd"))


def with_sweep(text, **changes):
    return dataclasses.replace(CONFIG, sweep=text, **changes)


def measured(seconds, megabytes, torch=None):
    return {
        "median_seconds": seconds,
        "peak_resident_bytes": megabytes * 1e6,
        "peak_device_bytes": None,
        "temporary_bytes": 5e6,
        "launches": 1234,
        "moved_bytes": 5e9,
        "flops": 2e9,
        "torch": torch,
    }


def test_without_a_sweep_every_work_is_measured_once_as_given():
    assert sweep.points(CONFIG) == [sweep.Point(work, {}, work) for work in CONFIG.works]
    assert sweep.lines(CONFIG, []) == []


def test_every_work_is_measured_at_every_value():
    points = sweep.points(with_sweep("ipc=1,10"))
    assert [(p.work, p.settings["ipc"]) for p in points] == [
        ("dm", 1), ("dm", 10), ("dm+metadd", 1), ("dm+metadd", 10),
    ]  # fmt: skip
    assert points[-1].line == "dm+metadd, ipc 10"


def test_auxiliaries_are_counted_and_none_is_the_bare_step():
    points = sweep.points(with_sweep("auxiliaries=0,2", works=("dm+metadd",)))
    assert [(p.work, p.settings["auxiliaries"]) for p in points] == [
        ("dm", ()),
        ("dm+metadd", ("resnet34", "googlenet")),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ipd=1,2", "cannot sweep 'ipd'; one of auxiliaries, batch_size"),
        ("ipc=1", "two or more whole numbers"),
        ("ipc=1,two", "two or more whole numbers"),
        ("auxiliaries=0,1", "1 auxiliary is too few"),
        ("auxiliaries=0,5", "5 auxiliaries are more than the 4 given"),
    ],
)
def test_what_cannot_be_swept_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        sweep.points(with_sweep(text))


def test_a_size_and_a_sweep_of_it_contradict_each_other():
    with pytest.raises(ValueError, match="contradict each other; write dm"):
        sweep.points(with_sweep("ipc=1,2", works=("dm@10",)))


def test_the_line_is_the_one_of_least_squares():
    assert sweep.fit([1, 2, 4], [3.0, 5.0, 9.0]) == pytest.approx((1, 2, 0))
    start, slope, deviation = sweep.fit([0, 1, 2], [1.0, 1.0, 4.0])  # by hand: mean 2, slope 3 / 2
    assert (start, slope) == pytest.approx((0.5, 1.5))
    assert deviation == pytest.approx(1)  # 2 where 1 was measured


def test_lines_of_time_memory_and_flops_ours_and_pytorchs():
    config = with_sweep("ipc=1,3", works=("dm",))
    theirs = {"median_seconds": 4.0, "peak_resident_bytes": 9e8, "peak_device_bytes": None}
    rows = sweep.lines(config, [measured(1, 100, theirs), measured(2, 300, theirs)])
    assert rows[3] == "| dm | s | 0.5 | 0.5 | 0 |"
    assert [float(cell) for cell in rows[4].split("|")[3:5]] == pytest.approx([0, 100], abs=1e-6)
    assert rows[7].startswith("| dm, PyTorch | s | 4 |") and len(rows) == 9


def test_the_child_is_told_what_differs(monkeypatch, capsys):
    told = []

    def run(program, work, environment):
        told.append(json.loads(environment["METADD_BENCHMARK_WORK"]))
        row = {"work": work, "seconds": [1.0], "compile_seconds": 1.0, "images": 1, "scan_ratio": None}
        return {**row, "matmul_flops_per_second": 1e10, **measured(1.0, 1.0)}

    monkeypatch.setattr(costs, "_in_a_fresh_process", run)
    costs.run(["--works", "dm", "--sweep", "num_classes=2,4"])
    assert told == [{"work": "dm", "settings": {"num_classes": n}} for n in (2, 4)]
    printed = capsys.readouterr().out
    assert "| dm, num_classes 4 |" in printed and "for one more" in printed
