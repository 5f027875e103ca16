"""The page of a report: what the files say stands in it as text, nothing is loaded, nothing foreign is replaced."""

import base64
import html.parser
import io
import json
import re

import numpy as np
import PIL.Image
import pytest
from example_runs import CLASSES, rows, run, study
from scipy import stats

from metadd_jax import pictures
from metadd_jax.evaluation import report as results
from metadd_jax.job import history, report, report_facts, report_images, report_plots, report_tables

VOID = {"meta", "link", "img", "input", "br", "path", "i"}


class Page(html.parser.HTMLParser):
    """The tags of a page, their texts, and whether they are nested as they must be."""

    def __init__(self, file):
        super().__init__()
        self.open, self.tags, self.text, self.ids = [], [], [], []
        self.feed(file.read_text())
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.ids += [value for name, value in attributes if name == "id"]
        if tag not in ("meta", "link", "img", "input", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, self.getpos()

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)

    def of(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return run(tmp_path_factory.mktemp("runs") / "one")


@pytest.fixture(scope="module")
def page(folder):
    report.run([str(folder)])
    return Page(folder / "report.html")


def test_the_page_is_whole_and_loads_nothing(folder, page):
    text = (folder / "report.html").read_text()
    assert text.isascii() and len(text) < 5e6
    assert len(set(page.ids)) == len(page.ids)
    for tag, attributes in page.tags:
        for name in ("src", "href", "action", "srcset"):
            assert re.match(r"data:|#", attributes.get(name) or "#"), (tag, attributes)
    assert {link["href"][1:] for link in page.of("a")} <= set(page.ids)
    assert all(image["alt"] for image in page.of("img"))
    assert "default-src 'none'" in text and not re.search(r"url\(|@import|https?://", text)


def test_what_files_say_is_text_and_no_markup(page):
    assert len(page.of("script")) == 1 and not page.of("b")
    whole = "".join(page.text)
    for name in (*CLASSES, "The <protocol> & its seeds.", "map: vgg<11>", "<none>"):
        assert name in whole, name
    assert any(image["alt"] == f"{CLASSES[1]}: image" for image in page.of("img"))


def test_the_table_has_the_numbers_of_results_md(folder, page):
    found = results.read(folder)
    told = [line.split(" | ") for line in results.table_lines(found["rows"])[2:]]
    cells = [text for line in told for text in (cell.strip("*| ") for cell in line[1:])]
    assert len(cells) == 3 * 6
    whole = "\n".join(page.text)
    assert [cell for cell in cells if cell not in whole] == []
    shown = [float(cell["data-v"]) for cell in page.of("td") if "data-v" in cell]
    np.testing.assert_allclose([float(cell.split(" ± ")[0]) for cell in cells], shown, atol=0.051)
    heats = [float(cell["style"].split(";")[0].removeprefix("--h:")) for cell in page.of("td") if "data-v" in cell]
    np.testing.assert_allclose(heats, (np.array(shown) - min(shown)) / np.ptp(shown), atol=1e-3)


def test_sections_have_links_and_each_view_a_button(page):
    links = [link["href"] for link in page.of("a")]
    assert links[1:] == [
        f"#{name}" for name in ["accuracy", "intervals", "images", "curves", "agreement", "history", "cost", "settings"]
    ]
    radios = [one for one in page.of("input") if one.get("type") == "radio"]
    assert len(radios) == 1 + 2 + 1 + 2 and sum("checked" in one for one in radios) == 1
    assert len(page.of("img")) == 4 * 3 * 6  # sets and seeds, classes, views
    assert "went on from" in "".join(page.text) and "dm/seed0 from step 25" in page.text


def test_intervals_are_those_of_student(folder):
    found = results.read(folder)["rows"]
    for role, lines in report_tables.role_means(found).items():
        for name, mean, pair in lines:
            own = [row for row in found if row["set"] == name and row["role"] == role]
            seeds = [np.mean([row["accuracies"] for row in own if row["distill_seed"] == seed]) for seed in (0, 1)]
            assert mean == pytest.approx(np.mean(seeds))
            assert pair == pytest.approx(stats.t.interval(0.95, 1, np.mean(seeds), stats.sem(seeds)))


def test_gains_are_the_mean_difference_to_random_images(folder, page):
    found = results.read(folder)["rows"]

    def mean(name):
        own = [row for row in found if row["set"] == name and row["role"] == "seen"]
        return np.mean([row["accuracies"] for row in own])

    said = page.text[page.text.index("Over random images, role 'seen'") :]
    shown = said[said.index("dm") :]
    number = next(text for text in shown if "[" in text)
    assert float(number.split(" ")[0]) == pytest.approx(100 * (mean("dm") - mean("random")), abs=0.051)


def test_no_number_stands_for_a_training_that_diverged():
    every = rows(["dm"], 2, rng=np.random.default_rng(0))
    every[0]["accuracies"][1] = np.nan
    table = report_tables.accuracy_table("x", every)
    ((_, cells),) = table.rows
    assert cells[0].text == "diverged (1 of 4)" and cells[0].value is None and cells[1].value is not None
    assert "same" not in report_tables.role_means(every)
    lone = report_tables.accuracy_table("x", [*every, {**every[1], "set": "other", "network": "new"}])
    assert [cell.text for cell in lone.rows[0][1]].count("") == 1  # a network that this set lacks


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3.2, 7.9), (1e-9, 2e-9), (5, 5), (0, 0), (1e6, 1.00001e6)])
def test_marks_are_round_and_cover(low, high):
    marks = report_plots.marks(low, high)
    steps = np.diff(marks)
    assert marks[0] <= low + 1e-12 and marks[-1] >= high - 1e-12 and 2 <= len(marks) <= 7
    np.testing.assert_allclose(steps, steps[0], rtol=1e-6)
    assert f"{steps[0]:.0e}"[0] in "125"


def test_a_curve_can_be_read_back_from_its_path():
    steps, values = np.arange(1, 11), np.array([3.0, 1, 4, 1, 5, np.nan, 9, 2, np.inf, 5])
    chart = report_plots.chart("loss", [("dm", 3, steps, values)])
    (line,) = chart.lines
    drawn = np.array(re.findall(r"[ML]([\d.]+) ([\d.]+)", line.path), float)
    (x0, first), (x1, last) = chart.x_marks[0], chart.x_marks[-1]
    (y0, low), (y1, high) = chart.y_marks[0], chart.y_marks[-1]
    finite = np.isfinite(values)
    back = float(first) + (drawn[:, 0] - x0) / (x1 - x0) * (float(last) - float(first))
    np.testing.assert_allclose(back, steps[finite], atol=0.01)
    back = float(low) + (drawn[:, 1] - y0) / (y1 - y0) * (float(high) - float(low))
    np.testing.assert_allclose(back, values[finite], atol=0.01)
    assert line.path.count("M") == 3 and line.path.endswith("h0") and (line.first, line.last) == (3, 5)
    assert report_plots.chart("none", [("dm", 0, [1], [np.nan])]) is None


def test_long_curves_are_averaged_in_equal_parts():
    steps, values = np.arange(1000.0), np.random.default_rng(0).normal(size=1000)
    fewer, means = report_plots.thinned(steps, values, most=100)
    np.testing.assert_allclose(means, values.reshape(100, 10).mean(axis=1))
    np.testing.assert_array_equal(fewer, np.arange(9, 1000, 10))
    values[55] = np.nan
    assert np.flatnonzero(np.isnan(report_plots.thinned(steps, values, most=100)[1])).tolist() == [5]


def test_a_forest_puts_means_and_intervals_on_one_axis():
    forest = report_plots.forest("x", [("a", 0.02, (-0.01, 0.05)), ("b", -0.03, None)])
    ends = [float(text) for _, text in forest.marks]
    place = lambda value: 100 * (value - ends[0]) / (ends[-1] - ends[0])  # noqa: E731
    assert (forest.rows[0].low, forest.rows[0].high) == pytest.approx((place(-1), place(5)), abs=0.01)
    assert forest.zero == pytest.approx(place(0), abs=0.01) and forest.rows[1].low is None
    assert forest.rows[0].text == "+2.00 [-1.00, +5.00]" and forest.rows[1].text == "-3.00"


def decoded(uri):
    with PIL.Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,")))) as picture:
        return np.asarray(picture)


def test_images_are_the_pixels_of_the_set_and_its_maps(folder):
    place = folder / "dm" / "seed0"
    gallery = report_images.gallery(place, "dm")
    with np.load(place / "synthetic.npz") as content:
        unit = np.clip(content["images"][::2] * 0.25 + 0.5, 0, 1)
    assert [figure.name for figure in gallery.figures] == CLASSES and gallery.in_all == 6
    with np.load(place / "maps.npz") as content:
        high = content["maps"] >= 0.5
    for i, figure in enumerate(gallery.figures):
        grey = np.rint(255 * unit[i, ..., 0]).astype(int)
        np.testing.assert_array_equal(decoded(figure.views["image"]), grey)
        # Where it is not high for both, the image is dimmed and grey; elsewhere the meta colour's blue is strongest.
        meta = decoded(figure.views["meta"]).astype(int)
        np.testing.assert_allclose(
            meta[~high[:, i].all(0)], np.repeat(0.6 * grey[~high[:, i].all(0)], 3).reshape(-1, 3), atol=1
        )
        assert (meta[high[:, i].all(0)].argmax(-1) == 2).all()
        own = decoded(figure.views["heterogeneous: lenet"]).astype(int)
        assert ((own.argmax(-1) == 0) & (np.ptp(own, axis=-1) > 0) == (high[0, i] & ~high[1, i])).all()
        assert decoded(figure.views["map: vgg<11>"]).shape == (8, 8, 3)


def test_views_are_as_many_as_said():
    assert len(pictures.views(np.zeros((2, 4, 4, 3)), np.zeros((3, 2, 4, 4)))) == 2 + 2 * 3


def test_large_images_are_reduced_by_whole_blocks():
    image = np.random.default_rng(0).uniform(size=(224, 200, 3))
    small = report_images.reduced(image)
    assert small.shape == (74, 66, 3)
    np.testing.assert_allclose(small[3, 5], image[9:12, 15:18].mean((0, 1)))
    np.testing.assert_array_equal(report_images.reduced(image[:96, :96]), image[:96, :96])


def test_maps_of_other_images_are_not_shown(folder, tmp_path):
    from example_runs import write_set

    write_set(tmp_path / "set", rng=np.random.default_rng(0))
    report_images.write_maps(tmp_path / "set", np.array([0, 1, 4]), np.zeros((1, 3, 8, 8)), ["lenet"])
    assert set(report_images.gallery(tmp_path / "set", "x").figures[0].views) == {"image"}
    (tmp_path / "set" / "maps.npz").write_bytes(b"PK\x03\x04 torn")
    assert set(report_images.gallery(tmp_path / "set", "x").figures[0].views) == {"image"}


def test_images_are_left_out_of_every_set_alike_until_they_fit():
    figure = report_images.Figure("a", {"image": "x" * 100})
    sets = [report_images.Gallery("a", (figure,) * 5, 5), report_images.Gallery("b", (figure,) * 2, 2, "y" * 50)]
    assert [len(one.figures) for one in report_images.fitting(sets, budget=550)] == [3, 2]
    assert [one.maps_png for one in report_images.fitting(sets, budget=550)] == ["", "y" * 50]
    assert [len(one.figures) for one in report_images.fitting(sets, budget=199)] == [0, 0]


def test_a_comparison_names_the_folder_of_each_set(folder, tmp_path):
    other = run(tmp_path / "one", names=("dc",), seeds=1)
    third = study(tmp_path / "study")
    report.run([str(folder), str(other), str(third), "--out", str(tmp_path / "all.html")])
    page = Page(tmp_path / "all.html")
    heads = [text for text in page.text if text.endswith(": random")]
    assert {f"{folder.parent.name}/one: random", f"{tmp_path.name}/one: random"} <= set(heads)
    assert "study tiny: <i>" in page.text
    assert len([1 for one in page.of("table") if "heat" in (one.get("class") or "")]) == 1  # of equal labels and recipe


def test_a_study_shows_its_cells(tmp_path):
    report.run([str(study(tmp_path / "s"))])
    page = Page(tmp_path / "s" / "report.html")
    assert len(page.of("img")) == 4 * 3 and "What <it> asks." in page.text
    assert "To DM, role 'unseen'" in page.text and "seconds of a whole cell" in page.text


def test_an_unfinished_run_and_a_damaged_one_have_pages(tmp_path):
    folder = run(tmp_path / "run", finished=False)
    report.run([str(folder)])
    page = Page(folder / "report.html")
    assert "The run is not finished: there are no results yet." in page.text and len(page.of("svg")) == 2
    (folder / "results.json").write_text('{"rows": []}')
    (folder / "dm" / "seed0" / "metrics.jsonl").write_text("no json\n")
    (folder / "dm" / "seed0" / "synthetic.json").write_text("{}")
    report.run([str(folder)])
    page = Page(folder / "report.html")
    assert any("results.json is not what was written" in text for text in page.text)
    assert any("dm, seed 0: " in text and "synthetic.json" in text for text in page.text)
    (folder / "config.json").write_text('{"config": {"steps": []}}')
    report.run([str(folder)])
    assert "config.json: " in "".join(Page(folder / "report.html").text)


def test_only_a_report_is_replaced(folder, tmp_path):
    mine = tmp_path / "mine.html"
    mine.write_text("<p>mine</p>")
    with pytest.raises(ValueError, match=r"mine\.html is not what metadd_jax wrote"):
        report.run([str(folder), "--out", str(mine)])
    assert mine.read_text() == "<p>mine</p>"
    for words, said in (
        ([], "no folder to report on"),
        ([str(tmp_path)], "holds neither a run"),
        ([str(folder), "--out", str(tmp_path)], "is a folder"),
    ):
        with pytest.raises(ValueError, match=said):
            report.run(words)
    (tmp_path / "report.html").write_text("mine")
    with pytest.warns(UserWarning, match=r"no report\.html"):
        report.leave(tmp_path)


def test_the_diary_tells_how_each_start_ended(tmp_path):
    with history.kept(tmp_path):
        pass
    with history.kept(tmp_path) as end:
        end.how = "out of time"
    for error in (KeyboardInterrupt(), ValueError("no such\nthing"), SystemExit("stopped")):
        with pytest.raises(type(error)), history.kept(tmp_path, resumed="dm/seed0 from step 5"):
            raise error
    with open(tmp_path / history.FILE, "a") as file:
        file.write('{"event": "start", "start": 1, "time": "then"}\n{"event": "end", "start": 7}\n[]\nno json\n{"eve')
    found = history.read(tmp_path)
    told = ["finished", "out of time", "interrupted by Ctrl-C", "error: ValueError: no such thing", "stopped"]
    assert [str(one["how"]).partition(" (")[0] for one in found[:5]] == told
    assert len(found) == 6 and "how" not in found[5]  # killed, or at work
    assert [one.get("resumed") for one in found[1:3]] == ["", "dm/seed0 from step 5"]
    assert json.loads((tmp_path / history.FILE).read_text().splitlines()[1])["seconds"] < 5


def test_facts_of_a_folder_with_odd_names(tmp_path):
    folder = run(tmp_path / "run", names=("dm", "dm<x>"), seeds=1)
    (folder / "notes" / "seedling").mkdir(parents=True)
    found = report_facts.read(folder)
    assert [(one.name, one.seed) for one in found.sets] == [("dm", 0), ("dm<x>", 0)]
    assert found.cost["dm"] == {
        "stored numbers": "384",
        "steps": "200",
        "seconds a step": "0.25",
        "seconds of all steps, one set": "50",
    }
