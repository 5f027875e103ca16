"""Studies: every cell once, whoever does it and however often it is killed, and one table for each kind of labels."""

import dataclasses
import json
import pathlib

import pytest

from metadd_jax import files, storage
from metadd_jax.evaluation import report
from metadd_jax.job import cells, options, plan, prepare, stopping, studies, study, study_plan, study_table

ROWS = {"random": "random", "dm": "", "dm at 2": "--ipc 2"}
TINY = studies.Study(
    name="tiny",
    about="Two methods.",
    preset="smoke",
    options="--backbone mlp:width=8 --seen --unseen --no-wrapped --train-per-class 20 --eval-epochs 2 "
    # What compiles quickly: most of these tests' time is that.
    "--train-seeds 1 --device-mode jit --augmentation none --eval-augmentation none --pretrain-augmentation none",
    seeds=2,
    rows=ROWS,
    references=("dm",),
)


@pytest.fixture(autouse=True)
def without_a_cache_of_programs(monkeypatch):
    monkeypatch.setattr(storage, "cache_compilations", lambda folder: None)  # JAX's own is this process's


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def opened(cache, tmp_path):
    """Opens the study in a folder of the test's, as a process does that starts anew."""

    def work(folder="one", tiny=TINY, **settings):
        config = study.StudyConfig(name=tiny.name, run_dir=str(tmp_path / folder), cache_dir=str(cache), **settings)
        return study.Work.open(tiny, config)

    return work


def accuracy(cell):
    """What the stand-in below finds: the seed and the row decide it."""
    return 0.25 + 0.01 * cell.seed + 0.1 * list(ROWS).index(cell.row)


def draw_none(*args, **options):
    """The stand-in leaves no images behind."""


def found_by(cell, dataset, labels="hard"):
    rows = [
        {"set": cell.row, "distill_seed": cell.seed, "network": net, "role": role, "accuracies": [accuracy(cell)]}
        for net, role in (("convnet", "same"), ("mlp", "unseen"))
    ]
    said = {"dataset": "mnist5k", "train_per_class": 20, "evaluate_on": "test", "train_seeds": 1}
    return {
        "cell": cell.decides(dataset),
        "config": {**said, "eval_recipe": "short", "eval_epochs": 2, "eval_augmentation": "auto"},
        "set": cell.row,
        "rows": rows,
        "labels": labels,
        "images": 10,
        "stored_values": 7840,
        "frozen_values": 0,
        "distil_seconds": 2.0,
        "with_compilation": False,
        "wall_seconds": {"prepare": 1.0, "distil": 2.0, "judge": 3.0},
        "versions": {"jax": "0", "device": "cpu", "machine": "x"},
    }


@pytest.fixture
def done(monkeypatch):
    """Puts the writing of known numbers in place of the work; gives the list of the cells that were worked on."""
    worked = []

    def run(cell, folder, dataset, *, deadline=None, stop=None):
        worked.append((cell.row, cell.seed))
        folder.mkdir(exist_ok=True)
        report.write_rows(folder / cells.RESULT, found_by(cell, dataset))

    monkeypatch.setattr(cells, "run", run)
    monkeypatch.setattr(study.Work, "_draw", draw_none)
    return worked


KIND = "labels: hard; recipe 'short', 2 epochs, augmentation auto; test images of mnist5k (20 training images a class)"
IN_ORDER = [(row, seed) for seed in (0, 1) for row in ROWS]


def test_every_row_has_one_seed_before_any_has_two_and_nothing_is_done_twice(opened, done):
    assert opened().do(None) == ["Every cell is done."]
    assert done == IN_ORDER
    opened().do(None)
    assert done == IN_ORDER


def test_a_damaged_result_is_made_anew(opened, done):
    opened().do(None)
    file = opened().cells[0][1] / cells.RESULT
    file.write_text(file.read_text().replace("0.25", "0.99"))
    opened().do(None)
    assert done == [*IN_ORDER, ("random", 0)]


def test_a_cell_that_another_process_does_is_left_to_it(opened, done):
    held = opened().cells[1][1]
    with storage.Lock(held.parent / f".{held.name}{storage.LOCK}"):
        head, *left = opened().do(None)
        assert done == [pair for pair in IN_ORDER if pair != ("dm", 0)]
        assert head.startswith("1 of 6 cells are left") and "another run (host" in left[0]
    assert opened().do(None) == ["Every cell is done."]


def test_a_cell_that_cannot_be_costs_the_others_nothing(opened, done, monkeypatch):
    working = cells.run

    def run(cell, folder, dataset, *, deadline=None, stop=None):
        if cell.row == "dm at 2":
            raise ValueError("no such thing")
        working(cell, folder, dataset)

    monkeypatch.setattr(cells, "run", run)
    head, *left = opened().do(None)
    assert len(done) == 4 and head.startswith("2 of 6 cells")
    assert [line.startswith("- dm at 2, seed") and "no such thing" in line for line in left] == [True, True]


def test_a_budget_does_what_fits_and_says_what_is_left(opened, done, monkeypatch):
    """A cell takes 6 s by its own result; the clock stands still but for what the stand-in takes."""
    now, working = [100.0], cells.run

    def run(cell, folder, dataset, *, deadline=None, stop=None):
        now[0] += 6
        working(cell, folder, dataset)

    monkeypatch.setattr(cells, "run", run)
    monkeypatch.setattr(study.time, "monotonic", lambda: now[0])
    head, *left = opened().do(now[0] + 15)
    # The first is unknown and is tried; a third would end 3 s too late.
    assert done == IN_ORDER[:2] and len(left) == 4
    assert head == "4 of 6 cells are left, about 0:01 hours; the same command goes on:"


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("12m", 720), ("1.5h", 5400)])
def test_times_are_read(text, seconds):
    assert stopping.seconds_of(text, option="--budget") == seconds


@pytest.mark.parametrize("text", ["12", "m", "0m", "-3m", "1d", ""])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(ValueError, match="is no time above 0"):
        stopping.seconds_of(text, option="--budget")


def test_two_folders_come_together_as_one_that_did_it_all(opened, done):
    opened("whole").do(None)
    for name in ("left", "right"):
        work = opened(name)
        work.cells = work.cells[:4] if name == "left" else work.cells[2:]
        work.do(None)
    both = opened("left")
    both.take_over(opened("right").folder)
    count = len(done)
    assert opened("left").do(None) == ["Every cell is done."] and len(done) == count
    assert opened("left").write_table() == opened("whole").write_table()
    with pytest.raises(ValueError, match="is no study's folder"):
        both.take_over(both.folder / "cells")


def test_the_plan_tells_what_cells_took_and_else_goes_by_flops(opened, done):
    work = opened()
    work.cells = work.cells[:2]
    work.do(None)
    lines = opened().plan_lines()
    assert lines[2:4] == ["| random | 0 | 1 | 0.1 |", "| dm | 0 | 1 | 0.1 |"]
    # Twice the images are between the same and twice the work of "dm", which took 6 s.
    assert lines[4].startswith("| dm at 2 | . | 0 1 | ~ 0.") and lines[-2].startswith(
        "4 of 6 cells are left, about 0:01"
    )
    work = opened()
    seconds = study_plan.estimate({cell.row: cell for cell, _ in work.cells}, work.data, {"dm": [6.0, 2.0, 7.0]})
    assert seconds["dm"] == 6 and seconds["random"] < 6 < seconds["dm at 2"] < 12


def test_the_plan_of_a_study_of_which_nothing_is_done(opened, monkeypatch):
    monkeypatch.setattr(study_plan.plan, "estimate", lambda job: ([plan.Plan("dm", 1e6, 0.5, ())], {}))
    work = opened()
    text = "\n".join(work.plan_lines())
    assert "| dm | . | 0 1 | ~ " in text and "6 of 6 cells are left" in text
    assert not list((work.folder / "cells").iterdir())  # a plan leaves nothing behind


def test_only_the_rows_that_are_asked_for(opened, done):
    opened(only=("dm",)).do(None)
    assert done == [("dm", 0), ("dm", 1)]


def test_the_table_holds_the_numbers(opened, done):
    work = opened()
    work.do(None)
    text = work.write_table()
    # 25 and 26 % by hand: mean 25.5, standard deviation 1/sqrt(2).
    assert "| random | 2 | 25.5 ± 0.7 | . | 25.5 ± 0.7 | 2.0 | . | 7,840 |" in text
    assert f"## L{KIND[1:]}" in text
    table = files.read_json(work.folder / "study.json")
    (comparison,) = table["tables"][KIND]["comparisons"]
    assert comparison["reference"] == "dm"
    numbers = comparison["rows"]["random"]["unseen"]
    assert numbers["difference"] == pytest.approx(-0.1) and numbers["seeds"] == 2
    assert len(table["cells"]) == 6 and table["done"] == 6


def test_gains_are_plotted_beside_the_agreement_that_was_measured(opened, done):
    work = opened()
    work.do(None)
    rows = {row: {"seen": dict.fromkeys(["0.3", "0.4", "0.5", "0.6", "0.7", "area"], 0.0), "seeds": 2} for row in ROWS}
    for row, ratio in zip(ROWS, (0.1, 0.2, 0.4), strict=True):
        rows[row] |= {"unseen": {"mlp": ratio}, "known": {"mlp": 0.5}}
    work.agreed = {"reference": "dm", "rows": rows, "transfer": None}
    work.write_table()
    (plot,) = files.read_json(work.folder / "study.json")["plots"]
    assert {point["row"]: point["meta_ratio"] for point in plot["ratio"]} == {"random": 0.1, "dm": 0.2, "dm at 2": 0.4}
    assert (work.folder / "study_plots.png").stat().st_size > 0


def test_rows_of_different_labels_never_share_a_table(opened):
    dataset = prepare.load_data(opened().cells[0][0].config)
    every = [
        (cell, found_by(cell, dataset, "hard" if cell.row != "dm" else "of a teacher")) for cell, _ in opened().cells
    ]
    table = study_table.summary(TINY, [(cell.row, cell.seed, found) for cell, found in every], cells=6)
    rows = {kind: [row["row"] for row in one["rows"]] for kind, one in table["tables"].items()}
    other = KIND.replace("hard", "of a teacher")
    assert rows == {KIND: ["random", "dm at 2"], other: ["dm"]}
    # The reference has other labels than they, so nothing is compared with it.
    assert [len(one["comparisons"]) for one in table["tables"].values()] == [0, 1]
    assert table["tables"][other]["comparisons"][0]["rows"] == {}
    assert study_table.markdown(table).count("| row | seeds |") == 2


def test_a_diverged_training_has_no_number(opened):
    dataset = prepare.load_data(opened().cells[0][0].config)
    found = [(cell.row, cell.seed, found_by(cell, dataset)) for cell, _ in opened().cells]
    found[1][2]["rows"][0]["accuracies"] = [float("nan")]
    table = study_table.summary(TINY, found, cells=6)
    text = study_table.markdown(json.loads(json.dumps(table, allow_nan=False)))
    assert "| dm | 2 | diverged (1) |" in text
    assert "same" not in table["tables"][KIND]["comparisons"][0]["rows"]["random"]


def key_of(config, dataset, real=None):
    return cells.Cell("row", real, config).folder(pathlib.Path("cells"), dataset).name


def test_a_cell_is_another_one_by_what_decides_it_and_by_nothing_else(opened):
    cell = opened().cells[1][0]
    dataset = prepare.load_data(cell.config)
    first = key_of(cell.config, dataset)
    for same in ({"at_once": 3}, {"run_dir": "elsewhere"}, {"cache_dir": None}, {"save_every": 7}, {"plan": True}):
        assert key_of(dataclasses.replace(cell.config, **same), dataset) == first
    other = [
        key_of(dataclasses.replace(cell.config, **change), dataset)
        for change in ({"ipc": 3}, {"first_seed": 4}, {"eval_epochs": 3}, {"image_lr": 0.5}, {"wrapped": True})
    ]
    other.append(key_of(cell.config, dataset, "random"))
    other.append(
        key_of(dataclasses.replace(cell.config, own=dataclasses.replace(cell.config.own, batch_size=9)), dataset)
    )
    other.append(key_of(cell.config, dataclasses.replace(dataset, fingerprint="another")))
    assert len({first, *other}) == len(other) + 1


def test_the_name_of_a_row_is_none_of_what_decides(opened):
    cell = opened().cells[1][0]
    dataset = prepare.load_data(cell.config)
    renamed = dataclasses.replace(cell, row="another")
    assert renamed.folder(pathlib.Path("x"), dataset) == cell.folder(pathlib.Path("x"), dataset)


def test_a_default_that_is_said_is_no_difference():
    """So that an option that is new in a later version makes no old cell another one."""
    usual = options.DistillConfig(distill_seeds=1)
    said = cells.Cell("row", None, usual).settings
    assert set(said) == {"real", "method", "seed", "distill_seeds"}


def test_a_study_of_equal_rows_is_refused(opened):
    twins = dataclasses.replace(TINY, rows={"a": "--ipc 2", "b": "--ipc 2"}, references=())
    with pytest.raises(ValueError, match="the rows 'a' and 'b' of tiny have the same options"):
        opened(tiny=twins)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("--stepz 3", "row 'x' of the study tiny: unknown option --stepz; did you mean --steps"),
        ("--ipc 0", "row 'x' of the study tiny: --ipc=0 must"),
        ("--unseen lenot", "row 'x' of the study tiny: unknown network 'lenot'"),
        ("--evaluate-on validation", "row 'x' of the study tiny: --evaluate-on validation needs"),
    ],
)
def test_a_mistake_in_a_row_is_one_line_before_any_work(opened, row, words):
    with pytest.raises(ValueError, match=words):
        opened(tiny=dataclasses.replace(TINY, rows={"x": row}, references=()))


def test_the_command_prints_the_table_and_fails_where_a_cell_failed(opened, done, cache, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(studies.STUDIES, "tiny", TINY)
    words = ["tiny", "--run-dir", str(tmp_path / "one"), "--cache-dir", str(cache), "--seeds", "1"]
    study.run([*words, "--only", "random"])
    text = capsys.readouterr().out
    assert "| random | 1 | 25.0 |" in text and "2 of 3 cells are left" not in text and "1 of 3 cells are done" in text

    def run(*args, **options):
        raise ValueError("no numbers")

    monkeypatch.setattr(cells, "run", run)
    with pytest.raises(ValueError, match=r"^2 cell\(s\) failed: .*no numbers"):
        study.run([*words, "--budget", "10m"])
    text = capsys.readouterr().out
    assert "| random | 1 | 25.0 |" in text and "2 of 3 cells are left" in text


def test_times_of_a_start_that_goes_on_leave_out_its_compilation(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(cells.effects.time, "perf_counter", lambda: now[0])

    def start(*moments):
        watch = cells._Watch(tmp_path, None, stopping.Stop(), 8)
        watch.start()
        for done, now[0] in moments:
            watch.lap("dm", done)
        return watch.median()

    assert start((2, 30.0), (4, 34.0)) == 2  # 30 s of compilation, then 2 s a step
    (tmp_path / "dm" / "seed0" / "checkpoints" / "step_4").mkdir(parents=True)
    assert start((4, 1.0), (6, 31.0), (8, 39.0)) == 3  # 15 s a step are left out: the median of 2 and 4
    assert start((8, 50.0)) == 3


def test_a_deadline_stops_at_the_end_of_a_chunk(tmp_path):
    watch = cells._Watch(tmp_path, cells.time.monotonic() - 1, stopping.Stop(), 8)
    with pytest.raises(cells.OutOfTimeError):
        watch.lap("dm", 2)


class KilledError(BaseException):
    """Stands for kill -9: nothing of ours catches it."""


def test_killed_while_it_distils_and_while_it_judges_a_cell_ends_in_the_same_numbers(opened, monkeypatch):
    """The real work, in this process; tests/job/test_study_killed.py kills processes."""
    tiny = dataclasses.replace(TINY, rows={"dm": "", "random": "random"}, seeds=1)
    opened("whole", tiny).do(None)
    lap, judge = cells._Watch.lap, cells.stages.judge

    def killed(self, method, done):
        lap(self, method, done)
        if done == 4:
            raise KilledError

    def killed_too(*args):
        raise KilledError

    for place, function in ((cells._Watch, ("lap", killed)), (cells.stages, ("judge", killed_too))):
        with monkeypatch.context() as patch, pytest.raises(KilledError):
            patch.setattr(place, *function)
            opened("broken", tiny).do(None)
    monkeypatch.setattr(cells._Watch, "lap", lap)
    monkeypatch.setattr(cells.stages, "judge", judge)
    assert opened("broken", tiny).do(None) == ["Every cell is done."]
    whole, broken = (opened(name, tiny) for name in ("whole", "broken"))
    for (_, one), (_, other) in zip(whole.cells, broken.cells, strict=True):
        assert whole.result(one)["rows"] == broken.result(other)["rows"]
        ours, theirs = (sorted(folder.glob("*/seed0/synthetic.npz"))[0].read_bytes() for folder in (one, other))
        assert ours == theirs
    assert broken.result(broken.cells[0][1])["distil_seconds"] > 0
    broken.write_table()
    assert (broken.folder / "study.png").stat().st_size > 0
