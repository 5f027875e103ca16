"""Pictures: every pixel of an image stands enlarged in the PNG, masks have their colours, text has room."""

import os

import numpy as np
import pytest

from metadd_jax import pictures

image_module = pytest.importorskip("matplotlib.image")


def read(file):
    """The PNG as [H, W, 3] levels 0..255."""
    return np.rint(image_module.imread(file)[..., :3] * 255).astype(int)


def contains(picture, block):
    """Whether ``block`` stands somewhere in ``picture``, pixel for pixel."""
    windows = np.lib.stride_tricks.sliding_window_view(picture, block.shape)[..., 0, :, :, :]
    corners = np.argwhere(
        (windows[..., 0, 0, :] == block[0, 0]).all(-1) & (windows[..., -1, -1, :] == block[-1, -1]).all(-1)
    )
    return any((windows[tuple(corner)] == block).all() for corner in corners)


def enlarged(unit, scale):
    levels = np.rint(np.broadcast_to(unit, (*unit.shape[:2], 3)) * 255).astype(int)
    return np.kron(levels, np.ones((scale, scale, 1), int))


def make_images(count, classes, side=8, channels=1):
    pixels = np.random.default_rng(0).integers(0, 256, (count, side, side, channels)) / 255
    return pixels, np.arange(count) * classes // count


def test_a_grid_shows_every_image_crisp_in_the_row_of_its_class(tmp_path):
    images, labels = make_images(6, 3)
    pictures.grid(tmp_path / "grid.png", images, labels, class_names=["a", "b", "c"])
    picture = read(tmp_path / "grid.png")
    height, width = picture.shape[0] // 3, picture.shape[1] // 2
    for index, image in enumerate(images):
        row, column = divmod(index, 2)
        cell = picture[row * height : (row + 1) * height + 6, column * width :]
        assert contains(cell, enlarged(image, 12))


@pytest.mark.parametrize(("side", "scale"), [(28, 3), (32, 3), (64, 2), (224, 1)])
def test_images_are_enlarged_by_whole_factors(tmp_path, side, scale):
    images, labels = make_images(1, 1, side=side, channels=3)
    pictures.grid(tmp_path / "one.png", images, labels, class_names=["a"])
    assert side * scale >= 64
    assert contains(read(tmp_path / "one.png"), enlarged(images[0], scale))


def test_one_image_a_class_makes_a_near_square(tmp_path):
    images, labels = make_images(10, 10)
    names = [str(label) for label in range(10)]
    pictures.grid(tmp_path / "g.png", images, labels, class_names=names, scores=np.arange(10.0))
    height, width = read(tmp_path / "g.png").shape[:2]
    assert 5 * 96 < width < 5 * 110 and 2 * 96 < height < 2 * 150


def test_values_outside_the_range_are_cut_and_many_images_are_left_out(tmp_path):
    images = np.full((30, 8, 8, 1), 100.0)
    images[15:] = -100
    pictures.grid(tmp_path / "g.png", images, np.repeat([0, 1], 15), class_names=["a", "b"])
    picture = read(tmp_path / "g.png")
    assert contains(picture, enlarged(np.zeros((8, 8, 1)), 12))
    assert 10 * 96 < picture.shape[1] < 11 * 110


def test_maps_paint_meta_blue_and_heterogeneous_orange(tmp_path):
    images = np.zeros((2, 8, 8, 1))  # Black: what is seen is the colour itself.
    stack = np.zeros((2, 2, 8, 8))
    stack[0, 0, :4], stack[1, 0, 2:6] = 1, 0.6  # Network 0 sees rows 0..3, network 1 rows 2..5.
    names = {"class_names": ["a", "b"], "network_names": ["one", "two"]}
    pictures.maps(tmp_path / "m.png", images, [0, 1], stack, title="t", **names)
    picture = read(tmp_path / "m.png")
    top = np.argmax((picture == 0).all(-1).sum(1) > 96)  # Where the first black image begins.
    row = picture[top : top + 96]

    def rows_of(colour, column):
        cell = row[:, picture.shape[1] - (3 - column) * 102 :][:, :96]
        hits = np.flatnonzero((cell == np.rint(0.75 * 255 * np.array(colour))).all(-1).all(1))
        return sorted({int(hit) // 12 for hit in hits})

    assert rows_of((0.10, 0.45, 0.95), 0) == [2, 3]
    assert rows_of((1.00, 0.50, 0.05), 1) == [0, 1]
    assert rows_of((1.00, 0.50, 0.05), 2) == [4, 5]


def test_shapes_that_do_not_fit_are_refused(tmp_path):
    images, labels = make_images(4, 2)
    constants = {"class_names": ["a", "b"]}
    with pytest.raises(ValueError, match=r"labels \(3,\); give"):
        pictures.grid(tmp_path / "g.png", images, labels[:3], **constants)
    with pytest.raises(ValueError, match="labels reach 2 but there are 2 class names"):
        pictures.grid(tmp_path / "g.png", images, labels + 1, **constants)
    with pytest.raises(ValueError, match=r"maps \(1, 4, 8, 8\) do not fit 2 networks"):
        stack = np.zeros((1, 4, 8, 8))
        pictures.maps(tmp_path / "m.png", images, labels, stack, network_names=["x", "y"], **constants)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "names", [("$", "$$"), ("$5_$10", r"$\frac{"), (os.fsdecode(b"caf\xe9"), "b\nc"), ("x" * 9999, "y")]
)
def test_names_are_drawn_literally(tmp_path, names):
    """Price ranges are no formulas, foreign bytes no letters, and a long name makes no wide picture."""
    images, labels = make_images(4, 2)
    stack = np.zeros((2, 4, 8, 8))
    pictures.grid(tmp_path / "g.png", images, labels, class_names=names)
    pictures.grid(tmp_path / "one.png", images[::2], labels[::2], class_names=names)
    pictures.maps(
        tmp_path / "m.png", images, labels, stack, class_names=names, network_names=names, title=names[0][:20]
    )
    pictures.curves(tmp_path / "c.png", {name: ([0, 1], [1.0, 0.5]) for name in names}, ylabel=names[1])
    assert all(max(read(tmp_path / f"{name}.png").shape) < 1500 for name in ("g", "one", "m", "c"))


def test_a_dollar_is_seen_where_it_stands(tmp_path):
    """ "$5 to $9" has two dollars more than "5 to 9", which it is as a formula: its picture has more ink."""
    images, labels = make_images(2, 2)
    ink = {}
    for name in ("$5to$9", "5to9"):
        pictures.grid(tmp_path / f"{name}.png", images, labels, class_names=[name, "b"])
        ink[name] = (read(tmp_path / f"{name}.png")[:18] < 128).sum()
    assert ink["$5to$9"] > ink["5to9"] + 10


def test_only_pictures_of_ours_are_drawn_over(tmp_path):
    images, labels = make_images(4, 2)
    constants = {"class_names": ["a", "b"]}
    for _ in range(2):
        pictures.grid(tmp_path / "ours.png", images, labels, **constants)
    image_module.imsave(tmp_path / "theirs.png", np.zeros((4, 4, 3)))
    (tmp_path / "text.png").write_text("mine")
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    for name in ("theirs", "text"):
        with pytest.raises(ValueError, match=rf"{name}\.png is not what metadd_jax wrote"):
            pictures.grid(tmp_path / f"{name}.png", images, labels, **constants)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_curves_are_drawn_with_gaps_where_values_are_not_finite(tmp_path):
    series = {"dm": ([0, 1, 2, 3], [1.0, 0.5, np.nan, 0.2]), "dm + metadd": ([0, 3], [1.2, np.inf])}
    pictures.curves(tmp_path / "deep" / "c.png", series, ylabel="loss")
    picture = read(tmp_path / "deep" / "c.png")
    blue = (np.abs(picture - [31, 119, 180]).max(-1) < 8).sum()
    assert picture.shape == (400, 700, 3) and blue > 100
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["c.png"]
