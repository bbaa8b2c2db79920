"""A manifest that is damaged, huge, nested, or of wrong types is refused by its name in every form."""

import json
import random

import pytest

import rankfold
from rankfold.errors import AdapterFileError
from rankfold.store.container import Container, encode
from rankfold.store.manifest import MANIFEST_NAME
from rankfold.store.packed import to_container
from tests.support.stored import make_adapter
from tests.unit.store.test_manifest import trained

GOOD = trained().manifest_text
VALUES = json.loads(GOOD)


def changed(*path, value):
    """Return the text of the manifest with one value changed."""
    values = json.loads(GOOD)
    target = values
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    return json.dumps(values).encode()


LIES = {
    "empty": b"",
    "no JSON": b"{",
    "not UTF-8": b'{"format": 1, "columns": {"text": "\xff"}}',
    "a list": b"[]",
    "null": b"null",
    "a key twice": GOOD.replace(b'"format": 1,', b'"format": 1, "format": 1,'),
    "of the future": changed("format", value=9),
    "format as text": changed("format", value="1"),
    "format as truth": changed("format", value=True),
    "unknown field": changed("run", value="os.system"),
    "unknown field inside": changed("task", "code", value="import os"),
    "task as text": changed("task", value="news"),
    "kind as number": changed("task", "kind", value=3),
    "class names as text": changed("task", "label_names", value="abc"),
    "class names as numbers": changed("task", "label_names", value=[1, 2]),
    "class names as object": changed("task", "label_names", value={"0": "a"}),
    "a class name twice": changed("task", "label_names", value=["sport", "a", "sport"]),
    "empty class names": changed("task", "label_names", value=["", ""]),
    "settings as list": changed("task", "settings", value=[]),
    "settings in settings without end": changed("task", "settings", value={}).replace(
        b'"settings": {}', b'"settings": ' + b'{"a":' * 5000 + b"1" + b"}" * 5000
    ),
    "lists without end": b"[" * 100_000,
    "digest as number": changed("weights_sha256", value=7),
    "digest too short": changed("weights_sha256", value="ab"),
    "digest in capitals": changed("weights_sha256", value="AB" * 32),
    "digest of others": changed("weights_sha256", value="cd" * 32),
    "negative length": changed("max_length", value=-8),
    "length as text": changed("max_length", value="128"),
    "length as fraction": changed("max_length", value=1.5),
    "endless number": b'{"format": 1, "max_length": ' + b"9" * 10_000 + b"}",
    "infinity": b'{"format": 1, "max_length": Infinity}',
    "columns as list": changed("columns", value=["text"]),
    "column as number": changed("columns", "text", value=1),
    "base as text": changed("base", value="minilm"),
    "huge": changed("task", "label_names", value=[f"{index:01000d}" for index in range(10_000)]),
    "many": b'{"columns": {' + b",".join(b'"%d": ""' % index for index in range(600_000)) + b"}}",
}


def uses(folder, text, tmp_path, store):
    """Return every use of an adapter with this manifest, in every form that holds one."""
    make_adapter().write(folder)
    (folder / MANIFEST_NAME).write_bytes(text)
    yield lambda: rankfold.open_adapter(folder)
    yield lambda: rankfold.pack_adapter(folder, tmp_path / "new")
    yield lambda: store.put("a", folder)
    packed = to_container(make_adapter())
    try:
        header = {**packed.header, "format": 3, "manifest": text.decode()}
        (tmp_path / "packed").write_bytes(encode(Container("adapter", header, packed.tensors)))
    except (UnicodeDecodeError, AdapterFileError):
        return
    yield lambda: rankfold.open_adapter(tmp_path / "packed")
    yield lambda: rankfold.unpack_adapter(tmp_path / "packed", tmp_path / "again")


@pytest.mark.parametrize("lie", LIES)
def test_manifest_that_lies_is_refused_by_name(lie, tmp_path):
    with rankfold.AdapterStore(tmp_path / "store.db") as store:
        for use in uses(tmp_path / "folder", LIES[lie], tmp_path, store):
            with pytest.raises(AdapterFileError, match=MANIFEST_NAME) as caught:
                use()
            assert ";" in str(caught.value)
            assert len(str(caught.value)) < 1000
        assert not len(store)
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "again").exists()


def test_flipped_bits_are_refused_or_of_no_consequence_for_the_weights(tmp_path):
    """Whatever a flip does to a text, the error is ours, and the digest does not change unseen."""
    folder = tmp_path / "folder"
    trained().write(folder)
    draw = random.Random(0)
    refusals = []
    for _ in range(400):
        text = bytearray(GOOD)
        text[draw.randrange(len(text))] ^= 1 << draw.randrange(8)
        (folder / MANIFEST_NAME).write_bytes(text)
        try:
            adapter = rankfold.open_adapter(folder)
        except AdapterFileError as error:
            refusals.append(str(error))
        else:
            assert adapter.manifest.weights_sha256 in (None, VALUES["weights_sha256"])
    assert len(refusals) > 100
    assert all(MANIFEST_NAME in refusal for refusal in refusals)


@pytest.mark.parametrize("form", ["folder", "link to nothing"])
def test_something_else_in_its_place_is_refused(form, tmp_path):
    make_adapter().write(tmp_path / "folder")
    place = tmp_path / "folder" / MANIFEST_NAME
    place.mkdir() if form == "folder" else place.symlink_to("nowhere")
    with pytest.raises(AdapterFileError, match=MANIFEST_NAME):
        rankfold.open_adapter(tmp_path / "folder")
