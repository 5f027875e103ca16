"""Fuzz of the readers of pictures: folders of classes, real data in folders, tar archives, pictures themselves."""

import io
import json
import os
import shutil
import struct
import tarfile
import warnings
import zlib

import hostile
import numpy as np
import PIL.Image
import pytest
from fuzz_sets import FACTS, NAMES, RNG, fit, judged, made
from hypothesis import example, given
from hypothesis import strategies as st

from metadd_jax import data, exchange
from metadd_jax.data import folders

PIXELS = RNG.integers(0, 256, (3, 2, 4, 6, 3), np.uint8)


@pytest.fixture
def place(tmp_path):
    return tmp_path


def encoded(pixels, kind="png"):
    stream = io.BytesIO()
    PIL.Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_of(width, height, packed, *more):
    """A PNG whose head claims a size, whatever its content."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


SMALL = zlib.compress(bytes(4 * (1 + 18)))
BOMB = zlib.compress(bytes(60_000_000), 9)
HARMFUL = [
    b"",
    b"\x89PNG",
    b"\xff\xd8\xff",
    b"GIF89a",
    b"P6 4000000 4000000 255\n",
    b"P5 6 4 65535\n" + bytes(48),
    b"BM" + bytes(60),
    b"II*\0\x08\0\0\0",
    b"RIFF\xff\xff\xff\xffWEBPVP8 ",
    png_of(2**31 - 1, 2**31 - 1, SMALL),
    png_of(100_000, 100_000, SMALL),
    png_of(12_000, 12_000, SMALL),
    png_of(6, 4, BOMB),
    png_of(6, 4, b""),
    png_of(0, 0, b""),
    png_of(6, 4, SMALL),
    png_of(6, 4, SMALL, chunk(b"iTXt", b"a\0\1\0\0\0" + BOMB)),
    png_of(6, 4, SMALL, chunk(b"iCCP", b"a\0\0" + BOMB)),
    png_of(6, 4, SMALL, chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0))),
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 4\n%%EndComments\n%%BeginProlog\nshowpage\n",
    encoded(PIXELS[0, 0], "gif"),
    encoded(PIXELS[0, 0], "tiff"),
    encoded(PIXELS[0, 0], "bmp"),
    encoded(PIXELS[0, 0], "jpeg2000"),
    encoded(PIXELS[0, 0, :, :, 0]),
    encoded(PIXELS[0, 0], "webp"),
    encoded(np.zeros((4, 6), np.uint16)),
    encoded(PIXELS[0, 0])[:40],
]


@pytest.mark.parametrize("kind", ["png", "jpeg", "bmp", "gif", "tiff", "webp", "ppm"])
def test_a_picture_is_read_or_refused(place, kind):
    whole = encoded(PIXELS[0, 0], kind)
    for name in NAMES:
        (place / "set" / name).mkdir(parents=True)
        (place / "set" / name / f"a.{kind}").write_bytes(whole)
    file = place / "set" / NAMES[1] / f"a.{kind}"

    @given(st.one_of(hostile.DAMAGE, st.integers(0, len(HARMFUL) - 1)))
    @hostile.cases(15)
    def fuzz(change):
        file.write_bytes(HARMFUL[change] if isinstance(change, int) else hostile.damaged(whole, change))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own, of damaged metadata
            found = hostile.read(f"picture: {kind}", exchange.load_peer, place / "set", root=place)
        if not isinstance(found, Exception):
            assert found[0].images.shape[:1] == (3,) and 0 <= found[0].images.min() <= found[0].images.max() <= 1

    if kind == "png":  # each at every run of the tests, whatever is drawn
        for number in range(len(HARMFUL)):
            fuzz = example(number)(fuzz)
    fuzz()


def write_tar(file, members):
    with tarfile.open(file, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, content, kind in members:
            info = tarfile.TarInfo(name)
            info.type = kind
            if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
                info.linkname = "../../../../etc/passwd"
                archive.addfile(info)
                continue
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


KINDS = st.sampled_from(
    [tarfile.REGTYPE] * 5 + [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]
)
TAR = st.lists(
    st.tuples(
        st.integers(0, 11),
        st.one_of(hostile.NAMES, KINDS, hostile.DAMAGE, st.integers(0, len(HARMFUL) - 1), hostile.JSON),
    ),
    min_size=1,
    max_size=3,
)


def test_a_tar_is_fit_or_refused(place, real):
    members = []
    for number, image in enumerate(PIXELS.reshape(6, 4, 6, 3)):
        members += [
            (f"{number}.png", encoded(image), tarfile.REGTYPE),
            (f"{number}.cls", str(number // 2).encode(), tarfile.REGTYPE),
        ]
    write_tar(place / "whole.tar", members)
    whole, file = (place / "whole.tar").read_bytes(), place / "set.tar"

    @given(st.one_of(hostile.DAMAGE, TAR.map(lambda changes: ("members", changes))))
    @hostile.cases(40)
    def fuzz(change):
        if change[0] == "members":
            wrong = list(members)
            for number, new in change[1]:
                name, content, kind = wrong[number]
                if isinstance(new, bytes):  # a kind of member
                    wrong[number] = (name, content, new)
                elif isinstance(new, str):
                    wrong[number] = (new[:200].replace("\0", "") or "x", content, kind)
                elif isinstance(new, int) and not isinstance(new, bool) and name.endswith("png"):
                    wrong[number] = (name, HARMFUL[new % len(HARMFUL)], kind)
                elif isinstance(new, list) and new and isinstance(new[0], tuple):
                    wrong[number] = (name, hostile.damaged(content, new), kind)
                else:
                    wrong[number] = (name, json.dumps(new).encode(), kind)
            write_tar(file, wrong)
        else:
            file.write_bytes(hostile.damaged(whole, change))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = hostile.read("WebDataset tar", judged(real), file, root=place, says=("the set",))
        fit(found)

    fuzz()
    for at in (124, 124 + 512):  # the first member's size, with a right checksum: terabytes, and less than nothing
        content = bytearray(whole)
        content[at : at + 12] = b"77777777777\0" if at == 124 else b"\xff" * 12
        content[148:156] = b" " * 8
        content[148:156] = f"{sum(content[:512]):06o}\0 ".encode()
        file.write_bytes(content)
        hostile.read("WebDataset tar", judged(real), file, root=place)
    file.write_bytes(whole)
    assert len(judged(real)(file)) == 1


# What may stand in a folder of class folders, or in a class folder: (where, what).
THINGS = st.lists(
    st.tuples(
        st.sampled_from(["", "ant", "bee", "new", "train", "val/ant"]),
        st.sampled_from(
            ["file", "link to nothing", "link out", "link around", "pipe", "folder", "text", "json", "harmful"]
        ),
        hostile.NAMES.map(lambda name: name.replace("/", "_")[:80].encode()),
        hostile.JSON,
    ),
    min_size=1,
    max_size=3,
)


def put(folder, things, whole):
    """Makes things in a folder: links that lead out or around, pipes, odd names, damaged pictures."""
    for where, what, called, value in things:
        inside = os.fsencode(folder / where)
        name = {b"": b"a.png", b".": b"b.png", b"..": b"c.png"}.get(called, called)
        suffix = b"" if what in ("folder", "json") else b".png"
        path = inside + b"/" + (b"classes.json" if what == "json" else name + suffix)
        if os.path.lexists(path):
            continue
        os.makedirs(inside, exist_ok=True)
        if what == "pipe":
            os.mkfifo(path)
        elif what.startswith("link"):
            os.symlink(
                {"link to nothing": b"/nowhere", "link out": b"/etc/passwd", "link around": os.fsencode(folder)}[what],
                path,
            )
        elif what == "folder":
            os.makedirs(path)
        else:
            content = {
                "file": whole,
                "text": b"text",
                "json": json.dumps(value).encode(),
                "harmful": HARMFUL[len(name) % len(HARMFUL)],
            }
            with open(path, "wb") as stream:
                stream.write(content[what])


@pytest.mark.parametrize("kind", ["peer", "real data"])
def test_a_folder_of_pictures_is_fit_or_refused(place, real, kind):
    def of_data(folder):
        listed = folders.list_pictures(folder)
        folders.picture_facts(folder, listed)
        raw = folders.read_pictures(listed, progress=False)
        return data.from_arrays("mine", *raw[:4], class_names=raw.class_names.tolist())

    read = judged(real) if kind == "peer" else of_data

    def whole():
        shutil.rmtree(place / "set", ignore_errors=True)
        for part in ("",) if kind == "peer" else ("train", "val"):
            for name, own in zip(NAMES, PIXELS, strict=True):
                (place / "set" / part / name).mkdir(parents=True)
                for number, image in enumerate(own):
                    (place / "set" / part / name / f"{number}.png").write_bytes(encoded(image))

    @given(THINGS)
    @hostile.cases(20)
    def fuzz(things):
        whole()
        put(place / "set" / ("" if kind == "peer" else "train"), things, encoded(PIXELS[0, 0]))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            says = ("the set", "class names")
            found = hostile.read(f"folder of pictures: {kind}", read, place / "set", root=place, says=says)
        if kind == "peer":
            fit(found)

    fuzz()
    whole()
    taken = read(place / "set")
    assert len(taken) == 1 if kind == "peer" else list(taken.class_names) == NAMES


@pytest.mark.parametrize("style", ["png", "huggingface", "webdataset", "npz", "regression"])
def test_hostile_class_names_lead_nowhere(place, real, style):
    """A peer's file names its classes: what is exported of it stays in its folder, and reads back or is refused."""
    write = {
        "png": exchange.export_png_folder,
        "webdataset": exchange.export_webdataset,
        "regression": exchange.export_regression,
        "npz": lambda folder, *rest, **options: exchange.export_npz(folder / "set.npz", *rest, **options),
        "huggingface": lambda *rest, **options: exchange.export_pictures(*rest, style="huggingface", **options),
    }[style]

    @given(st.lists(st.one_of(hostile.NAMES, hostile.JSON), min_size=3, max_size=3))
    @hostile.cases(12)
    def fuzz(names):
        shutil.rmtree(place / "out", ignore_errors=True)
        before = hostile.listing(place)
        try:
            write(place / "out", made(), FACTS | {"class_names": names})
        except Exception as error:
            hostile.require_line(error, names=("class_names", "the set", str(place)))
        hostile.COUNTS[f"export of class names: {style}", "taken"] += 1
        after = {
            name: facts for name, facts in hostile.listing(place).items() if not name.startswith(str(place / "out"))
        }
        assert after == before
        if style == "png" and (place / "out").is_dir():
            (peer,) = exchange.load_peer(place / "out")
            assert peer.said["class_names"] == names

    fuzz()
