"""Folders of pictures: labels by name, grey and colour, the cache's key, and what is refused."""

import os
import struct
import zlib

import numpy as np
import PIL.Image
import pytest

from metadd_jax import data
from metadd_jax.data import decoding, folders


def paint(path, value, *, mode="L", size=(5, 4)):
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(value)
    channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    pixels = generator.integers(0, 256, (size[1], size[0], *channels), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save(path)
    return pixels


@pytest.fixture
def root(tmp_path):
    """Two classes with 3 and 2 training pictures and one test picture each, all grey."""
    root = tmp_path / "set"
    for label, count in {"dog": 2, "cat": 3}.items():
        for i in range(count):
            paint(root / "train" / label / f"{i}.png", 10 * count + i)
        paint(root / "val" / label / "a.png", count)
    (root / "train" / "notes.txt").write_text("no picture")
    return root


def load(root):
    return data.load(str(root), cache_dir=root.parent / "cache", progress=False)


def test_grey_pictures_with_labels_in_the_order_of_names(root):
    dataset = load(root)
    assert dataset.class_names == ("cat", "dog") and dataset.image_shape == (4, 5, 1)
    np.testing.assert_array_equal(dataset.train.counts, [3, 2])
    np.testing.assert_array_equal(dataset.test.counts, [1, 1])
    expected = np.array(PIL.Image.open(root / "train" / "dog" / "1.png"))
    np.testing.assert_array_equal(dataset.train.images[4, ..., 0], expected)


def test_a_folders_name_in_latin_1_is_read_as_that(root):
    """Bytes that are no UTF-8 can be no file's name elsewhere, no JSON, no title of a picture."""
    for split in ("train", "val"):
        (root / split / "dog").rename(root / split / os.fsdecode(b"ch\xe9vre"))
    assert load(root).class_names == ("cat", "chévre")


def test_one_colour_picture_makes_all_rgb_and_alpha_is_dropped(root):
    pixels = paint(root / "train" / "cat" / "9.png", 7, mode="RGBA")
    dataset = load(root)
    assert dataset.image_shape == (4, 5, 3)
    np.testing.assert_array_equal(dataset.train.images[3], pixels[..., :3])
    grey = dataset.train.images[0]
    assert (grey[..., 0] == grey[..., 2]).all()


def test_cache_is_used_until_a_picture_changes(root, monkeypatch):
    first = load(root)

    def forbid(*args, **options):
        raise AssertionError("decoded again")

    with monkeypatch.context() as patch:
        patch.setattr(folders, "read_pictures", forbid)
        assert load(root).fingerprint == first.fingerprint
        patch.setenv("METADD_CACHE", str(root.parent / "cache"))
        assert data.load(str(root)).fingerprint == first.fingerprint
    picture = root / "train" / "cat" / "0.png"
    paint(picture, 99)
    os.utime(picture, ns=(1, 1))
    assert load(root).fingerprint != first.fingerprint


def empty_class(root):
    (root / "train" / "eel").mkdir()


def lone_class(root):
    paint(root / "train" / "eel" / "0.png", 1)


def other_size(root):
    paint(root / "val" / "dog" / "b.png", 1, size=(6, 4))


def deep_pixels(root):
    PIL.Image.fromarray(np.zeros((4, 5), np.uint16)).save(root / "val" / "dog" / "b.png")


def not_a_picture(root):
    (root / "train" / "cat" / "7.jpg").write_text("text")


def cut_short(root):
    picture = root / "train" / "cat" / "1.png"
    picture.write_bytes(picture.read_bytes()[:45])


def no_test(root):
    (root / "val").rename(root / "held_out")


def no_classes(root):
    (root / "test").mkdir()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (empty_class, r"eel holds 0 pictures \(0 other files; .* are read\); fill it"),
        (lone_class, "1 classes of .* only in train/ or only in val/, such as eel"),
        (other_size, r"b.png is 6 x 4 pixels but .*0.png is 5 x 4; resize"),
        (deep_pixels, "b.png has pixels of kind I;16; save it as 8-bit"),
        (not_a_picture, "7.jpg is no readable picture"),
        (cut_short, "1.png is no readable picture"),
        (no_test, "must hold train/CLASS"),
        (no_classes, "test holds 0 class folders"),
    ],
)
def test_bad_folders_are_refused_in_one_line(root, spoil, message):
    spoil(root)
    with pytest.raises(ValueError, match=message) as caught:
        load(root)
    assert "\n" not in str(caught.value)
    assert not (root.parent / "cache").exists()


def as_type(root, suffix):
    """Two of the three cats in another format, lossless."""
    for picture in sorted((root / "train" / "cat").iterdir())[:2]:
        PIL.Image.open(picture).save(picture.with_suffix(suffix), **({"lossless": True} if suffix == ".webp" else {}))
        picture.unlink()


@pytest.mark.parametrize("suffix", [".webp", ".bmp", ".gif", ".tif", ".tiff", ".pgm", ".PNG"])
def test_whatever_pillow_reads_of_torchvisions_list_is_read(root, suffix):
    before = load(root)
    as_type(root, suffix)
    after = load(root)
    np.testing.assert_array_equal(after.train.counts, [3, 2])
    # WebP has no grey pictures, so it makes all of them RGB; the values stay.
    np.testing.assert_array_equal(after.train.images[..., :1], before.train.images)


def test_folders_within_a_class_are_walked_in_torchvisions_order(root):
    cats, pixels = root / "train" / "cat", np.array(PIL.Image.open(root / "train" / "cat" / "0.png"))
    for place in ("a-b", "a/deep"):
        (cats / place).mkdir(parents=True)
    (cats / "0.png").rename(cats / "a-b" / "0.png")
    (cats / "1.png").rename(cats / "a" / "deep" / "9.png")
    (root / "elsewhere").mkdir()
    paint(root / "elsewhere" / "x.png", 77)
    (cats / "linked").symlink_to(root / "elsewhere")
    listed = folders.list_pictures(root)["train"]["cat"]
    assert [path.relative_to(cats).as_posix() for path in listed] == [
        "2.png",
        "a-b/0.png",
        "a/deep/9.png",
        "linked/x.png",
    ]
    np.testing.assert_array_equal(load(root).train.images[1, ..., 0], pixels)


def test_what_is_left_out_is_counted_and_what_is_hidden_is_not(root):
    for name in ("a.heic", "b.heic", "notes.txt", "Thumbs.db", ".hidden.png"):
        (root / "train" / "cat" / name).write_bytes(b"x")
    paint(root / "train" / "stray.png", 3)
    (root / "val" / "eel.tar").write_bytes(b"x")
    with pytest.warns(UserWarning, match=r"5 files of .* \(2 .heic, 1 .png, 1 .txt, 1 .tar\)") as said:
        assert load(root).train.counts.tolist() == [3, 2]
    assert len(said) == 1 and "\n" not in str(said[0].message)


def broken_class(root):
    (root / "train" / "eel").symlink_to("/nowhere")


def broken_picture(root):
    (root / "train" / "cat" / "5.png").symlink_to("/nowhere.png")


def pipe(root):
    os.mkfifo(root / "train" / "cat" / "5.png")


def loop(root):
    (root / "train" / "cat" / "more").symlink_to(root / "train")


def film(root):
    frames = [PIL.Image.fromarray(np.full((4, 5), value, np.uint8)) for value in (0, 99)]
    frames[0].save(root / "train" / "cat" / "5.gif", save_all=True, append_images=frames[1:])


def sixteen_bits_as_tiff(root):
    PIL.Image.fromarray(np.full((4, 5), 1000, np.int32)).save(root / "train" / "cat" / "5.tif")


def huge(root):
    """The head of a PNG of 60,000 x 60,000 pixels."""
    head = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 1, 0, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    (root / "train" / "cat" / "5.png").write_bytes(content + struct.pack(">I", 0) + b"IDAT" + bytes(4))


def two_lines(root):
    for split in ("train", "val"):
        paint(root / split / "eel\npie" / "0.png", 1)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (broken_class, "train/eel is a link to nothing; mend"),
        (broken_picture, r"5\.png is a link to nothing; mend"),
        (pipe, r"5\.png is no file but a pipe"),
        (loop, "more is a link back to a folder around it"),
        (film, r"5\.gif holds 2 pictures in one file"),
        (sixteen_bits_as_tiff, r"5\.tif has pixels of kind I; save it as 8-bit"),
        (huge, r"5\.png is larger than can be opened \(.*3600000000 pixels"),
        (two_lines, r"class 2 has 7 characters and reads 'eel\\npie'"),
    ],
)
def test_what_would_hang_wrap_or_vanish_is_refused_in_one_line(root, spoil, message):
    spoil(root)
    with pytest.raises(ValueError, match=message) as caught:
        load(root)
    assert "\n" not in str(caught.value)


def test_pictures_stand_as_their_exif_says_and_imagenets_as_they_are_stored(root):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # a phone held upright: to be turned by 90 degrees clockwise
    stored = np.random.default_rng(5).integers(0, 256, (5, 4), dtype=np.uint8)  # 4 wide, 5 high; upright 5 wide, 4 high
    PIL.Image.fromarray(stored).save(root / "train" / "cat" / "5.png", exif=exif)
    np.testing.assert_array_equal(load(root).train.images[3, ..., 0], np.rot90(stored, -1))
    with pytest.raises(ValueError, match=r"5\.png is 4 x 5 pixels but .* is 5 x 4"):
        folders.read_pictures(folders.list_pictures(root), upright=False, progress=False)


def test_the_cache_follows_content_whatever_size_and_time_say(root):
    first, picture = load(root), root / "train" / "cat" / "0.png"
    status, whole = picture.stat(), picture.read_bytes()
    os.utime(picture, ns=(1, 1))
    facts = folders.picture_facts(root, folders.list_pictures(root))
    picture.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))  # the checksum of the end, which Pillow does not read
    os.utime(picture, ns=(status.st_atime_ns, 1))
    assert folders.picture_facts(root, folders.list_pictures(root)) != facts
    picture.write_bytes(whole)
    assert (
        folders.picture_facts(root, folders.list_pictures(root)) == facts
        and load(root).fingerprint == first.fingerprint
    )


def test_decoded_pictures_that_no_memory_holds_are_refused(root, monkeypatch):
    monkeypatch.setattr(decoding, "memory", lambda: 59)
    with pytest.raises(ValueError, match=r"5 images of \(4, 5, 1\) take .* GB, but .* image_size"):
        load(root)
