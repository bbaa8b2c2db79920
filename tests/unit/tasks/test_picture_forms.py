"""Pictures of every form and mode are read as the same pixels, and those that cannot be read are named."""

import base64
import contextlib
import io
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from rankfold.errors import DataError
from rankfold.tasks import TaskRequest, load_task
from rankfold.tasks.data import image_decoding
from rankfold.tasks.data.picture_columns import check_pictures, is_picture, picture_columns
from rankfold.tasks.data.pictures import OWN_PATHS, Picture, PictureCell, PictureFolder
from rankfold.tasks.data.read import find_source, read_split

SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 9))
PIXELS = SHAPES.flatmap(lambda shape: arrays(np.uint8, (*shape, 3)))
FORMATS = st.sampled_from(["PNG", "TIFF", "BMP", "WEBP", "PPM"])


def encode(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def read(value, folder=OWN_PATHS):
    return np.asarray(PictureCell(value, folder).picture().read())


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(pixels=PIXELS, kind=FORMATS)
def test_every_form_of_a_picture_has_the_same_pixels(tmp_path, pixels, kind):
    image = Image.fromarray(pixels)
    content = encode(image, kind, **({"lossless": True} if kind == "WEBP" else {}))
    path = tmp_path / "one picture.png"  # whatever its ending
    path.write_bytes(content)
    text = base64.b64encode(content).decode()
    forms = [
        *(content, bytearray(content), {"bytes": content, "path": "gone.png"}, image, pixels),
        *(str(path), path, path.as_uri(), {"bytes": None, "path": str(path)}, [content]),
        *(f"data:image/png;base64,{text}", {"url": f"data:image/png;base64,{text}"}, pixels.tolist()),
        *(pixels.astype("float64") / 255, text.rstrip("=") if kind in ("PNG", "WEBP") else content),
        base64.urlsafe_b64encode(content).decode() if kind == "PNG" and len(content) > 60 else content,
    ]
    for form in forms:
        np.testing.assert_array_equal(read(form), pixels)
    np.testing.assert_array_equal(read(path.name, PictureFolder(tmp_path)), pixels)


@settings(max_examples=40, deadline=None)
@given(pixels=PIXELS, turn=st.sampled_from([2, 3, 4, 5, 6, 7, 8]))
def test_every_mode_of_a_picture_is_seen_as_a_viewer_shows_it(pixels, turn):
    image = Image.fromarray(pixels)
    gray = image.convert("L")
    wide = Image.fromarray(np.asarray(gray).astype(np.uint16) * 257)
    assert wide.mode == "I;16"
    for other in (wide, gray, gray.convert("LA"), Image.fromarray(np.asarray(gray).astype(np.int32) * 257)):
        np.testing.assert_array_equal(read(encode(other, "TIFF")), np.asarray(gray.convert("RGB")))
    np.testing.assert_array_equal(read(encode(image.convert("RGBA"))), pixels)
    white = image.convert("RGBA")
    white.putalpha(0)
    assert (read(encode(white)) == 255).all()
    palette = image.quantize(8)
    np.testing.assert_array_equal(read(encode(palette)), np.asarray(palette.convert("RGB")))
    exif = Image.Exif()
    exif[0x0112] = turn
    turned = read(encode(image, exif=exif))
    assert turned.shape[:2] == (pixels.shape[:2] if turn < 5 else pixels.shape[1::-1])
    assert sorted(turned.reshape(-1, 3).tolist()) == sorted(pixels.reshape(-1, 3).tolist())
    assert read(encode(image.convert("CMYK"), "JPEG")).shape == pixels.shape


def broken(path):
    """Write pictures that cannot be read, by the word that the message has for each."""
    good = encode(Image.effect_noise((40, 40), 60))
    path.mkdir(exist_ok=True)
    (path / "cut.png").write_bytes(good[: len(good) // 2])
    (path / "empty.png").write_bytes(b"")
    (path / "text.png").write_bytes(b"a text of some words, which is no picture at all")
    (path / "flipped.png").write_bytes(good[:60] + bytes([good[60] ^ 255]) + good[61:])
    (path / "fine.png").write_bytes(good)
    (path / "inner.png").mkdir()
    Image.new("L", (1, 201)).save(path / "thin.png")
    Image.new("L", (9, 9)).save(path / "script.eps")
    return {
        "cut.png": "is broken|is no picture", "empty.png": "is empty", "text.png": "is no picture",
        "flipped.png": "is broken", "gone.png": "is not there", "../fine.png": "leads out",
        None: "is missing", "https://a.b/c.png": "downloaded", "s3://a/b.png": "downloaded",
        "inner.png": "is a folder", "thin.png": "is too slender", "script.eps": "is no picture",
    }  # fmt: skip


def test_pictures_that_cannot_be_read_are_named(tmp_path, monkeypatch):
    folder = PictureFolder(tmp_path / "data")
    for name, words in broken(tmp_path / "data").items():
        with pytest.raises(DataError, match=words):
            PictureCell(name, folder, "line 3").picture().read()
    named = [
        PictureCell(name, folder, f"line {number}").picture()
        for number, name in enumerate(["cut.png", "gone.png"])
    ]
    with pytest.raises(DataError, match=r"2 of 3 pictures.*'cut.png' \(line 0\).*'gone.png' \(line 1\)"):
        check_pictures([*named, PictureCell("fine.png", folder).picture()])
    monkeypatch.setattr(image_decoding, "MOST_PIXELS", 99)
    with pytest.raises(DataError, match=r"'fine.png' \(line 3\) is enormous: it has 40 × 40 pixels"):
        PictureCell("fine.png", folder, "line 3").picture().read()


def test_bomb_is_refused_before_it_is_decoded():
    bomb = encode(Image.new("1", (1, 1)))
    size = (60_000).to_bytes(4, "big")
    header = b"IHDR" + size + size + bomb[24:29]
    bomb = bomb[:12] + header + __import__("zlib").crc32(header).to_bytes(4, "big") + bomb[33:]
    with pytest.raises(DataError, match="is enormous"):
        read(bomb)


@settings(max_examples=80, deadline=None)
@given(st.binary(max_size=200), st.sampled_from(image_decoding._SIGNATURES), st.integers(0, 300))
def test_hostile_bytes_are_refused_or_read(noise, start, cut):
    for content in (start + noise, encode(Image.new("P", (3, 3)), "GIF")[:cut] + noise):
        with contextlib.suppress(DataError):
            assert Picture(content, OWN_PATHS).read().mode == "RGB"


def test_first_frame_of_an_animation_is_read_and_it_is_said():
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    content = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (read(content) == [255, 0, 0]).all()
    (finding,) = check_pictures(
        [PictureCell(content, OWN_PATHS, "row 1").picture(), PictureCell(frames[0], OWN_PATHS).picture()]
    )
    assert finding.name == "animated_pictures"
    assert "1 pictures are animated" in finding.message


def write(path, color="red"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), color).save(path)


@pytest.mark.parametrize("levels", ["", "inner/", "train/", "inner/train/"])
def test_folders_of_classes_are_rows(tmp_path, levels):
    for name in ("cat/1.png", "cat/2.JPG", "dog/deep/3.webp"):
        write(tmp_path / levels / name)
    (tmp_path / levels / "cat" / "Thumbs.db").write_bytes(b"")
    if "train" in levels:
        write(tmp_path / levels / ".." / "val" / "cat" / "4.png")
    source = find_source(str(tmp_path))
    table = read_split(source, "train")
    assert [(row["image"], row["label"]) for row in table.rows] == [
        ("cat/1.png", "cat"), ("cat/2.JPG", "cat"), ("dog/deep/3.webp", "dog"),
    ]  # fmt: skip
    assert ("validation" in source.files) is ("train" in levels)
    assert not source.findings
    assert read(table.rows[2]["image"], PictureFolder.of(table, 2)).shape == (4, 4, 3)


def test_metadata_names_pictures_beside_it_or_in_an_archive(tmp_path):
    rows = [{"file_name": f"{number}.png", "label": "ab"[number % 2]} for number in range(4)]
    for split, color in (("train", "red"), ("test", "blue")):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        with zipfile.ZipFile(tmp_path / f"images_{split}.zip", "w") as archive:
            for row in rows:
                archive.writestr(row["file_name"], encode(Image.new("RGB", (2, 2), color)))
    source = find_source(str(tmp_path))
    assert not source.findings
    for split, color in (("train", [255, 0, 0]), ("test", [0, 0, 255])):
        table = read_split(source, split)
        assert picture_columns(table.rows) == ["file_name"]
        assert (read("1.png", PictureFolder.of(table, 1)) == color).all()
    folder = tmp_path / "imagefolder" / "train"
    write(folder / "0.png")
    (folder / "metadata.csv").write_text("file_name,label\n0.png,a\n")
    table = read_split(find_source(str(folder.parent)), "train")
    assert (read("0.png", PictureFolder.of(table, 0)) == [255, 0, 0]).all()


def test_forms_are_recognised_without_being_opened():
    content = encode(Image.new("RGB", (9, 9)))
    text = base64.b64encode(content).decode()
    for value in (
        content,
        text,
        f"data:image/png;base64,{text}",
        "my photo.HEIC.png",
        ["a.png"],
        Image.new("L", (1, 1)),
    ):
        assert is_picture(value)
    for value in (
        "a sentence on a.png files",
        "iVBORw0KG",
        b"PK",
        {"bytes": b""},
        Path,
        3,
        [],
        "/9j/ a text of words",
    ):
        assert not is_picture(value)


CELLS = {  # a fault, and the words that name it
    "gone.png": "is not there", "cut.png": "is broken|is no picture", "../out.png": "leads out",
    "cat": "is a folder",
    "http://a.b/c": "downloaded", "": "is missing", None: "is missing", 5: "is no picture",
    "long/" * 60 + ".png": "is",
}  # fmt: skip


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(place=st.integers(0, 11), fault=st.sampled_from([*CELLS]), data=st.data())
def test_odd_cell_of_a_column_is_named_with_its_row_whatever_the_forms_of_the_others(
    tmp_path, place, fault, data
):
    write(tmp_path / "cat" / "a.png")
    content = (tmp_path / "cat" / "a.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[:40])
    text = base64.b64encode(content).decode()
    path = tmp_path / "cat" / "a.png"
    forms = ["cat/a.png", str(path), path.as_uri(), text, f"data:image/png;base64,{text}"]
    forms += [["cat/a.png"], {"path": "cat/a.png", "bytes": None}]
    cells = [data.draw(st.sampled_from(forms)) for _ in range(12)]
    cells[place] = fault
    rows = [{"image": cell, "label": "ab"[number % 2]} for number, cell in enumerate(cells)]
    for split, first in (("train", 0), ("validation", 6)):
        lines = "\n".join(map(json.dumps, rows[first : first + 6]))
        (tmp_path / f"{split}.jsonl").write_text(lines)
    with pytest.raises(DataError, match=CELLS[fault]) as caught:
        load_task(TaskRequest(data=str(tmp_path)), is_causal=False)
    assert f"line {place % 6 + 1} of" in str(caught.value)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(changed=st.integers(0, 7), pixel=st.integers(0, 15))
def test_data_is_other_data_as_soon_as_one_pixel_of_a_picture_is_another(tmp_path, changed, pixel):
    names = [f"{'ab'[number % 2]}/{number}.png" for number in range(8)]
    for number, name in enumerate(names):
        write(tmp_path / name, (number, 0, 0))
    request = TaskRequest(data=str(tmp_path))
    before = load_task(request, is_causal=False).sha256
    assert load_task(request, is_causal=False).sha256 == before
    with Image.open(tmp_path / names[changed]) as image:
        image.load()
    image.putpixel((pixel % 4, pixel // 4), (255, 255, 255))
    image.save(tmp_path / names[changed])
    assert load_task(request, is_causal=False).sha256 != before


def test_links_to_folders_are_read_and_loops_end(tmp_path):
    write(tmp_path / "elsewhere" / "1.png")
    write(tmp_path / "photos" / "cat" / "2.png")
    (tmp_path / "photos" / "dog").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos" / "cat" / "again").symlink_to(tmp_path / "photos")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "photos" / "dog")
    table = read_split(find_source(str(tmp_path / "photos")), "train")
    assert [(row["image"], row["label"]) for row in table.rows] == [
        ("cat/2.png", "cat"),
        ("dog/1.png", "dog"),
    ]
    (tmp_path / "photos" / "dog" / os.fsdecode(b"\xff.png")).write_bytes(b"")
    with pytest.raises(DataError, match=r"1 of 3 pictures .* are no UTF-8: 'dog/\\xff.png'; rename"):
        read_split(find_source(str(tmp_path / "photos")), "train")
