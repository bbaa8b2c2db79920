"""The manifest of an adapter: it survives every form byte for byte, and the weights beside it are checked."""

import dataclasses
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import rankfold
from rankfold.errors import AdapterFileError
from rankfold.files import WEIGHTS_NAME
from rankfold.store.manifest import MANIFEST_NAME, BaseManifest, Manifest, TaskManifest
from rankfold.store.size import explain
from tests.support.stored import make_adapter

DIGEST = "ab" * 32
TASK = TaskManifest(
    "news", "classification", ("sport", "Überschrift", "a;b"), {"scale": [1.5, None]}, ("accuracy", "f1")
)
MANIFEST = Manifest(TASK, BaseManifest("minilm", "package", DIGEST), {"text": "body"}, 128, DIGEST)


def trained(seed=0, **options):
    """Return an adapter with a manifest that is true of its weights."""
    adapter = make_adapter(seed, **options)
    return adapter.with_manifest(MANIFEST.with_weights(adapter.sha256()[WEIGHTS_NAME]))


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@given(
    label_names=st.none() | st.lists(st.text(max_size=9), max_size=5, unique=True).map(tuple),
    settings=st.dictionaries(st.text(), st.integers() | st.text() | st.none() | st.lists(st.booleans())),
    columns=st.dictionaries(st.text(), st.text()),
    max_length=st.none() | st.integers(1, 10**7),
)
def test_manifest_survives_its_text(label_names, settings, columns, max_length):
    task = dataclasses.replace(TASK, label_names=label_names, settings=settings)
    try:
        manifest = dataclasses.replace(MANIFEST, task=task, columns=columns, max_length=max_length)
        text = manifest.to_json()
    except UnicodeEncodeError:  # a lone surrogate, which no file holds
        return
    assert Manifest.from_json(text) == manifest
    assert Manifest.from_json(text).to_json() == text


@pytest.mark.parametrize("spelling", ["own", "other"])
def test_every_form_gives_the_folder_back_byte_for_byte(spelling, tmp_path):
    adapter = trained()
    if spelling == "other":
        compact = json.dumps(json.loads(adapter.manifest_text)).encode()
        adapter = dataclasses.replace(adapter, manifest_text=compact)
    adapter.write(tmp_path / "folder")
    assert MANIFEST_NAME in files_of(tmp_path / "folder")
    rankfold.pack_adapter(tmp_path / "folder", tmp_path / "packed")
    rankfold.unpack_adapter(tmp_path / "packed", tmp_path / "unpacked")
    with rankfold.AdapterStore(tmp_path / "a.db") as one, rankfold.AdapterStore(tmp_path / "b.db") as two:
        one.put("first", make_adapter(7))  # the template of its family has no manifest
        one.put("a", tmp_path / "packed")
        one.get("a").write(tmp_path / "got")
        one.export(str(tmp_path / "stream"))
        two.import_(str(tmp_path / "stream"))
        two.get("a").write(tmp_path / "imported")
        assert two.get("first").manifest is None
        assert not list(two.verify())
    for form in ("unpacked", "got", "imported"):
        assert files_of(tmp_path / form) == files_of(tmp_path / "folder")


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "int8"])
def test_rounded_adapter_has_the_digest_of_what_comes_back(dtype, tmp_path):
    adapter = trained(size=200)
    rankfold.pack_adapter(adapter, tmp_path / "packed", dtype=dtype)
    rankfold.unpack_adapter(tmp_path / "packed", tmp_path / "folder")
    with rankfold.AdapterStore(tmp_path / "store.db") as store:
        store.put("a", adapter, dtype=dtype)
    for location in (tmp_path / "packed", tmp_path / "folder", f"{tmp_path / 'store.db'}#a"):
        again = rankfold.open_adapter(location)
        assert again.manifest.weights_sha256 == again.sha256()[WEIGHTS_NAME] != DIGEST
        assert again.manifest.task == TASK


@pytest.mark.parametrize("bit", range(0, 1200, 37))
def test_flipped_bit_of_the_weights_is_refused_by_every_reader(bit, tmp_path):
    folder = tmp_path / "folder"
    trained().write(folder)
    weights = bytearray((folder / WEIGHTS_NAME).read_bytes())
    weights[-1 - bit // 8 % len(weights)] ^= 1 << bit % 8
    (folder / WEIGHTS_NAME).write_bytes(weights)
    with rankfold.AdapterStore(tmp_path / "store.db") as store:
        for use in (
            lambda: rankfold.open_adapter(folder),
            lambda: rankfold.pack_adapter(folder, tmp_path / "packed"),
            lambda: explain(folder),
            lambda: store.put("a", folder),
        ):
            with pytest.raises(AdapterFileError, match="; "):
                use()
        assert not len(store)
    assert not (tmp_path / "packed").exists()


def test_weights_changed_in_memory_are_refused_with_the_remedy(tmp_path):
    adapter = trained()
    name = next(iter(adapter.tensors))
    changed = dataclasses.replace(adapter, tensors={**adapter.tensors, name: torch.zeros(6)})
    with pytest.raises(AdapterFileError, match=f"have changed.*remove {MANIFEST_NAME}"):
        rankfold.pack_adapter(changed, tmp_path / "packed")
    rankfold.pack_adapter(changed.with_manifest(None), tmp_path / "packed")


def test_manifests_of_a_family_cost_little_room_in_a_store(tmp_path):
    sizes = []
    for name, make in (("without", make_adapter), ("with", trained)):
        with rankfold.AdapterStore(tmp_path / name) as store:
            with store.batch():
                for seed in range(300):
                    store.put(str(seed), make(seed))
            sizes.append(store.stats().file_bytes)
    assert sizes[1] - sizes[0] < 300 * len(MANIFEST.to_json()) / 2


def test_size_counts_the_manifest(tmp_path):
    trained().write(tmp_path / "folder")
    assert explain(tmp_path / "folder").other_files == {
        name: len(content) for name, content in files_of(tmp_path / "folder").items() if name != WEIGHTS_NAME
    }


def test_store_without_the_name_of_a_record_is_explained(tmp_path):
    rankfold.AdapterStore(tmp_path / "s.db").close()
    with pytest.raises(AdapterFileError, match=r"s\.db#' names no record; write it as .*s\.db#NAME"):
        rankfold.open_adapter(f"{tmp_path / 's.db'}#")
