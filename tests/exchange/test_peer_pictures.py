"""Pictures as SRe2L, RDED, Hugging Face and WebDataset have them, written by Pillow and tarfile alone."""

import dataclasses
import io
import json
import tarfile

import numpy as np
import pytest
from peer_data import MEAN, NAMES, RNG, STD, real
from PIL import Image

from metadd_jax import exchange

PIXELS = RNG.integers(0, 256, (3, 2, 4, 6, 3), np.uint8)  # of each class two


def write(folder, place, *, pixels=PIXELS, **options):
    for label, own in enumerate(pixels):
        for number, image in enumerate(own):
            file = folder / place(label, number)
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(file, **options)
    return folder


def check(synthetic, pixels=PIXELS, tolerance=0.0):
    wanted = (pixels.reshape(-1, 4, 6, 3) / 255 - np.array(MEAN)) / np.array(STD)
    np.testing.assert_allclose(synthetic.images, wanted, rtol=1e-5, atol=1e-5 + tolerance)
    assert synthetic.labels.tolist() == [0, 0, 1, 1, 2, 2]


def settle(place, **options):
    (peer,) = exchange.load_peer(place)
    return exchange.settle(peer, real(**options))[0]


@pytest.mark.parametrize(
    "place",
    [
        lambda c, i: f"{c:05d}/class{c:05d}_id{i:05d}.png",
        lambda c, i: f"new{c:03d}/class{c:03d}_id{i:03d}.png",
        lambda c, i: f"train/{NAMES[c]}/{i}.png",
        lambda c, i: f"{c}/{i}.png",
    ],
)
def test_folders_of_pictures_are_pixels_of_the_classes_in_order(tmp_path, place):
    check(settle(write(tmp_path / "set", place)))


def test_the_jpegs_of_sre2l_are_read(tmp_path):
    # Colours of its own, whichever tests ran before: JPEG keeps one colour better than another.
    colours = np.random.default_rng(0).integers(60, 200, (3, 2, 1, 1, 3), np.uint8)
    smooth = np.repeat(np.repeat(colours, 4, axis=2), 6, axis=3)
    folder = write(tmp_path / "set", lambda c, i: f"new{c:03d}/class{c:03d}_id{i:03d}.jpg", pixels=smooth)
    # A flat picture survives JPEG within two levels, whatever is done to its colours.
    check(settle(folder), smooth, tolerance=2.5 / 255 / min(STD))


def test_numbers_without_zeros_in_front_would_permute_the_labels(tmp_path):
    many = np.zeros((11, 1, 4, 6, 3), np.uint8)
    folder = write(tmp_path / "set", lambda c, i: f"{c}/{i}.png", pixels=many)
    with pytest.raises(
        ValueError, match=r"numbered without zeros in front \(10 sorts before 2\).*rename them, '2' to 000"
    ):
        exchange.load_peer(folder)


def test_folders_with_the_names_of_the_data_go_by_name(tmp_path):
    """ImageFolder would number these cow, dog, ant by their names as text: ant, cow, dog."""
    names = ["cow", "dog", "ant"]
    folder = write(tmp_path / "set", lambda c, i: f"{names[c]}/{i}.png")
    check(settle(folder, names=names))


def test_stored_labels_beside_the_pictures_are_not_passed_over_in_silence(tmp_path):
    folder = write(tmp_path / "set", lambda c, i: f"new{c:03d}/{i}.png")
    (tmp_path / "FKD_cutmix_fp16" / "epoch_0").mkdir(parents=True)
    (peer,) = exchange.load_peer(folder)
    assert "FKD_cutmix_fp16 are not replayed" in peer.notes[0] and "--labels teacher:NET" in peer.notes[0]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "00000" / "x.png").write_bytes(b"no picture"), r"x\.png is no readable picture"),
        (lambda folder: Image.new("RGB", (7, 4)).save(folder / "00001" / "x.png"), "is 7 x 4 pixels but"),
        (lambda folder: Image.new("I;16", (6, 4)).save(folder / "00001" / "x.png"), "pixels of kind I;16"),
        (lambda folder: (folder / "00001" / "x.png").symlink_to("nowhere"), "has a picture's name and is no file"),
    ],
)
def test_a_picture_that_does_not_fit_is_named(tmp_path, spoil, words):
    folder = write(tmp_path / "set", lambda c, i: f"{c:05d}/{i}.png")
    spoil(folder)
    with pytest.raises(ValueError, match=words) as told:
        exchange.load_peer(folder)
    assert "\n" not in str(told.value)


def test_another_number_of_classes_is_refused(tmp_path):
    folder = write(tmp_path / "set", lambda c, i: f"{c:05d}/{i}.png", pixels=PIXELS[:2])
    with pytest.raises(ValueError, match="has 2 class folders, such as 00000, but pets has 3 classes"):
        settle(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="of no format that is read here"):
        exchange.load_peer(tmp_path / "empty")
    (tmp_path / "empty" / "inner").mkdir()
    with pytest.raises(ValueError, match="holds no folders of pictures"):
        exchange.load_peer(tmp_path / "empty")


def tar(path, members):
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def png(image):
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "png")
    return stream.getvalue()


def test_a_webdataset_is_read_from_all_its_shards(tmp_path):
    flat, labels = PIXELS.reshape(-1, 4, 6, 3), [0, 0, 1, 1, 2, 2]
    order = [3, 0, 5, 1, 4, 2]  # shuffled, as shards are
    for shard, part in enumerate((order[:4], order[4:])):
        # In either order within a sample, and with members that nobody reads.
        members = [
            member
            for i in part
            for member in (
                [(f"a/{i}.png", png(flat[i])), (f"a/{i}.json", b"{}"), (f"a/{i}.cls", str(labels[i]).encode())]
                if i % 2
                else [(f"a/{i}.cls", str(labels[i]).encode()), (f"a/{i}.png", png(flat[i]))]
            )
        ]
        tar(tmp_path / f"set-{shard:06d}.tar", members)
    synthetic = settle(tmp_path)
    assert synthetic.labels.tolist() == labels
    wanted = (flat[[0, 1, 3, 2, 5, 4]] / 255 - np.array(MEAN)) / np.array(STD)  # within a class as they came
    np.testing.assert_allclose(synthetic.images, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([("a.png", png(PIXELS[0, 0])), ("a.cls", b"one")], r"a\.cls in .* is no class number"),
        ([("a.png", png(PIXELS[0, 0])), ("a.cls", b"9" * 5000)], r"a\.cls in .* is no class number"),
        ([("a.png", png(PIXELS[0, 0]))], "no pair of a picture and a .cls"),
        ([("a.png", b"no"), ("a.cls", b"1")], "no readable picture"),
    ],
)
def test_an_archive_of_something_else_is_told(tmp_path, members, words):
    with pytest.raises(ValueError, match=words):
        exchange.load_peer(tar(tmp_path / "set.tar", members))


def test_a_class_number_beyond_64_bits_is_told(tmp_path):
    tar(tmp_path / "set.tar", [("a.png", png(PIXELS[0, 0])), ("a.cls", b"9" * 30)])
    with pytest.raises(ValueError, match="labels that are no whole numbers in int32"):
        settle(tmp_path / "set.tar")


def test_a_damaged_archive_is_told(tmp_path):
    file = tar(tmp_path / "set.tar", [("a.png", png(PIXELS[0, 0])), ("a.cls", b"1"), ("b.png", bytes(5000))])
    whole = file.read_bytes()
    for length in (2500, 2700, 1024, 700):
        file.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="no whole tar archive"):
            exchange.load_peer(file)
    file.write_bytes(whole[:148] + b"77777" + whole[153:])  # a checksum
    with pytest.raises(ValueError, match="no readable tar archive"):
        exchange.load_peer(file)


def make():
    """A set whose pixels are whole levels, so that eight bits hold it."""
    data = real()
    unit = PIXELS.reshape(-1, 4, 6, 3) / np.float32(255)
    peer = exchange.Peer(
        source="x", format="npz", images=unit, labels=np.repeat([0, 1, 2], 2), label_kind="classes", space="pixels"
    )
    return exchange.settle(peer, data)


@pytest.mark.parametrize("style", ["sre2l", "rded", "huggingface"])
def test_our_folders_lie_as_the_peers_have_them(tmp_path, style):
    synthetic, facts = make()
    assert exchange.export_pictures(tmp_path / "set", synthetic, facts, style=style) == 0
    wanted = {
        "sre2l": "new002/class002_id001.jpg",
        "rded": "00002/class00002_id00001.jpg",
        "huggingface": "train/00002_cow/00001.png",
    }[style]
    assert (tmp_path / "set" / wanted).is_file()
    with Image.open(tmp_path / "set" / wanted) as picture:
        error = np.abs(np.asarray(picture, int) - PIXELS[2, 1]).max()
    assert error == 0 if style == "huggingface" else error < 60  # noise is the worst that JPEG can meet
    (peer,) = exchange.load_peer(tmp_path / "set")
    assert peer.labels.tolist() == [0, 0, 1, 1, 2, 2]
    if style == "huggingface":
        check(exchange.settle(peer, real())[0])
    with pytest.raises(ValueError, match="exists already"):
        exchange.export_pictures(tmp_path / "set", synthetic, facts, style=style)
    exchange.export_pictures(tmp_path / "set", synthetic, facts, style=style, overwrite=True)


def test_torchvisions_way_through_a_folder_finds_our_classes(tmp_path):
    """ImageFolder's rule, by itself: folders sorted as text give the labels, files at the top are passed over."""
    synthetic, facts = make()
    exchange.export_pictures(tmp_path / "set", synthetic, facts, style="sre2l")
    classes = sorted(entry.name for entry in (tmp_path / "set").iterdir() if entry.is_dir())
    assert classes == ["new000", "new001", "new002"]


def test_the_data_card_has_a_head_that_no_name_can_break(tmp_path):
    yaml = pytest.importorskip("yaml")
    synthetic, facts = make()
    odd = {"dataset": "a: b\n---\nlicense: mit", "method": 'dm "x"', "class_names": ["a|b", "c\nd", "---"]}
    exchange.export_pictures(tmp_path / "set", synthetic, facts | odd, style="huggingface")
    text = (tmp_path / "set" / "README.md").read_text()
    head = yaml.safe_load(text.split("\n---\n")[0].removeprefix("---\n"))
    assert head["license"] == "unknown" and head["size_categories"] == ["n<1K"]
    assert head["configs"][0]["data_files"] == [{"split": "train", "path": "train/**/*.png"}]
    assert head["pretty_name"] == 'a: b\n---\nlicense: mit distilled by dm "x"'
    assert "| classes | a/b, c d, --- |" in text


def test_a_class_without_an_image_would_renumber_the_others(tmp_path):
    synthetic, facts = make()
    with pytest.raises(ValueError, match="class dog has no image"):
        exchange.export_pictures(tmp_path / "s", synthetic, facts | {"class_names": [*NAMES, "dog"]}, style="rded")


def test_our_webdataset_comes_back_and_is_the_same_bytes_each_time(tmp_path):
    synthetic, facts = make()
    for name in ("a", "b"):
        assert exchange.export_webdataset(tmp_path / name, synthetic, facts) == 0
    assert (tmp_path / "a" / "set-000000.tar").read_bytes() == (tmp_path / "b" / "set-000000.tar").read_bytes()
    check(settle(tmp_path / "a"))
    with tarfile.open(tmp_path / "a" / "set-000000.tar") as archive:
        assert archive.getnames()[:2] == ["00000000.png", "00000000.cls"]
        assert archive.extractfile("00000005.cls").read() == b"2"
    assert json.loads((tmp_path / "a" / "facts.json").read_text())["class_names"] == NAMES


def test_torchvision_itself_numbers_our_folders_as_we_do(tmp_path):
    datasets = pytest.importorskip("torchvision.datasets")
    synthetic, facts = make()
    for style in ("sre2l", "rded"):
        exchange.export_pictures(tmp_path / style, synthetic, facts, style=style)
        read = datasets.ImageFolder(tmp_path / style)
        assert read.targets == [0, 0, 1, 1, 2, 2] and read[3][0].size == (6, 4)


def test_hugging_face_itself_loads_our_folder(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    synthetic, facts = make()
    exchange.export_pictures(tmp_path / "set", synthetic, facts, style="huggingface")
    read = datasets.load_dataset(str(tmp_path / "set"), split="train", cache_dir=str(tmp_path / "cache"))
    assert read.features["label"].names == ["00000_ant", "00001_bee", "00002_cow"]
    assert read["label"] == [0, 0, 1, 1, 2, 2]
    np.testing.assert_array_equal(np.asarray(read[3]["image"]), PIXELS[1, 1])


def test_webdataset_itself_reads_our_shards(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    synthetic, facts = make()
    soft = np.eye(3, dtype=np.float32)[synthetic.labels] * 0.7 + 0.1
    exchange.export_webdataset(tmp_path / "set", dataclasses.replace(synthetic, soft_labels=soft), facts)
    shards = webdataset.WebDataset(str(tmp_path / "set" / "set-000000.tar"), shardshuffle=False).decode("rgb8")
    samples = list(shards.to_tuple("png", "cls", "soft.npy"))
    assert [sample[1] for sample in samples] == [0, 0, 1, 1, 2, 2]
    np.testing.assert_array_equal(samples[3][0], PIXELS[1, 1])
    np.testing.assert_allclose(samples[3][2], soft[3])
