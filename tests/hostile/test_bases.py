"""A basis file that is damaged, hostile or another one is refused by name, before it costs anything."""

import json
import random
import struct

import peft
import pytest
import torch

import rankfold
from rankfold.errors import AdapterFileError, SpecError
from rankfold.factors import BasisLayer, BasisSpec, basis
from rankfold.store import basis as files
from rankfold.store.basis import BasisInfo, find_basis, read_basis, write_basis
from rankfold.store.container import Container, checksum, encode
from tests.support.bases import random_basis
from tests.support.toys import adapted, ids, toy

INFO = BasisInfo("toy", None, (), 0.0, 0, ())
HEADER = {
    "name": "x",
    "base": None,
    "sources": [],
    "seeded_share": 0.0,
    "seed": 0,
    "update_shares": [],
    "format": 1,
}


@pytest.fixture
def file(tmp_path):
    random_basis(tmp_path / "toy.basis", toy(), ["query", "value"])
    return tmp_path / "toy.basis"


@pytest.fixture
def forgotten(monkeypatch, tmp_path):
    """Return a function that makes this process forget every basis, as another process would not know it."""
    monkeypatch.setenv("RANKFOLD_HOME", str(tmp_path / "home"))

    def forget():
        monkeypatch.setattr(basis, "_BASES", {})
        monkeypatch.setattr(files, "_CONTENTS", {})

    forget()
    return forget


def test_every_changed_byte_and_every_cut_is_noticed(file):
    content = file.read_bytes()
    draw = random.Random(0)
    for position in draw.sample(range(len(content)), 100):
        changed = bytearray(content)
        changed[position] ^= 1 << draw.randrange(8)
        file.write_bytes(changed)
        with pytest.raises(AdapterFileError, match=r"toy\.basis"):
            read_basis(file)
    for length in draw.sample(range(len(content)), 30):
        file.write_bytes(content[:length])
        with pytest.raises(AdapterFileError):
            read_basis(file)


def sides(down=(2, 3), up=(4, 2)):
    return {"a.down": torch.ones(down), "a.up": torch.ones(up)}


@pytest.mark.parametrize(
    ("header", "tensors", "message"),
    [
        ({}, {}, "0 tensors for 0 layers"),
        ({}, {"a.down": torch.ones(2, 3)}, "1 tensors for 1 layers"),
        ({}, {"a.down": torch.ones(2, 3), "a.left": torch.ones(3, 2)}, "'a' lacks a side"),
        ({}, sides(up=(4, 3)), r"'a' is \(4, 3\) by \(2, 3\)"),
        ({}, sides(down=(0, 3), up=(4, 0)), r"'a' is \(4, 0\) by \(0, 3\)"),
        ({}, sides(down=(2,)), r"'a' is \(4, 2\) by \(2,\)"),
        ({}, sides(down=(2, 3, 1)), "'a' is"),
        ({}, sides() | {"a.up": torch.full((4, 2), torch.nan)}, "'a' holds numbers that are not finite"),
        ({}, sides() | {"a.up": torch.full((4, 2), torch.inf)}, "'a' holds numbers that are not finite"),
        ({}, sides() | {"a.up": torch.ones(4, 2, dtype=torch.int8)}, "'a' holds no floating-point numbers"),
        ({"name": "../x"}, sides(), "its header has name"),
        ({"name": 3}, sides(), "its header has name"),
        ({"format": 2}, sides(), "its header has format"),
        ({"seeded_share": 2.0}, sides(), "its header has seeded_share"),
        ({"sources": [{"name": "x"}]}, sides(), "its header has sources"),
        ({"more": 1}, sides(), "its header has more"),
    ],
    ids=str,
)
def test_whole_file_with_wrong_content_is_refused(header, tensors, message, tmp_path):
    file = tmp_path / "x.basis"
    file.write_bytes(encode(Container("basis", HEADER | header, tensors)))
    with pytest.raises(AdapterFileError, match=message):
        read_basis(file)


def test_file_of_another_kind_is_no_basis(tmp_path):
    file = tmp_path / "x.basis"
    file.write_bytes(encode(Container("adapter", {}, {})))
    with pytest.raises(AdapterFileError, match="holds 'adapter', not a basis"):
        read_basis(file)
    with pytest.raises(AdapterFileError, match="there is no folder or file"):
        read_basis(tmp_path / "absent")


def test_huge_claims_cost_nothing(file):
    """A header that promises more payload than there is, under a right checksum."""
    content = bytearray(file.read_bytes()[:-16])
    struct.pack_into("<Q", content, 20, 1 << 62)
    file.write_bytes(bytes(content) + checksum(bytes(content)))
    with pytest.raises(AdapterFileError, match="it should have"):
        read_basis(file)


@pytest.mark.parametrize("digest", ["", "xyz", "A" * 32, "0" * 31, "../" * 11])
def test_digest_in_a_configuration_is_one(digest):
    with pytest.raises(SpecError, match="of a basis is none; give the 32 digits"):
        BasisSpec(digest, "x", 4)
    with pytest.raises(SpecError, match="describes no factor"):
        rankfold.RankfoldConfig(down={"kind": "basis", "digest": digest, "name": "x", "rank": 4})


def test_rank_beyond_the_basis_is_refused_and_so_are_layers_that_do_not_fit(file, tmp_path):
    with pytest.raises(
        SpecError, match="rank 9 is more than the 8 directions of basis 'toy'; give r at most 8"
    ):
        rankfold.config("basis_core", basis=str(file), r=9)
    config = rankfold.config("basis_core", basis=str(file), r=2, target_modules=["query", "c_fc"])
    with pytest.raises(SpecError, match=r"basis 'toy' .* has none of the layer 'blocks.0.c_fc'"):
        adapted(config)
    wrong = {"blocks.0.query": BasisLayer(torch.ones(3, 4), torch.ones(5, 3))}
    other = write_basis(tmp_path / "wrong.basis", INFO, wrong)
    config = rankfold.config("basis_core", basis=other.digest, r=2, target_modules=["blocks.0.query"])
    with pytest.raises(SpecError, match="and the layer has 5 in, 5 out; take a basis of this base model"):
        adapted(config)
    few = {
        name: BasisLayer(torch.ones(2, 5), torch.ones(5, 2)) for name in ("blocks.0.query", "blocks.1.query")
    }
    few |= {"blocks.0.value": BasisLayer(torch.ones(4, 5), torch.ones(5, 4))}
    other = write_basis(tmp_path / "few.basis", INFO, few)
    with pytest.raises(SpecError, match="a factor of 3 x 5 is taken from a basis"):
        adapted(rankfold.config("basis_core", basis=other.digest, r=3, target_modules=["query"]))


def test_adapter_finds_its_basis_beside_it_in_the_users_folder_and_in_a_store(file, tmp_path, forgotten):
    config = rankfold.config("basis_core", basis=str(file), r=2, target_modules=["query"], init_weights=False)
    model = adapted(config)
    expected = model(ids())
    model.save_pretrained(tmp_path / "run" / "adapter")
    stored = tmp_path / "stored.db"
    with rankfold.AdapterStore(stored) as store:
        store.put("a", tmp_path / "run" / "adapter", dtype="int8")
        store.put("b", tmp_path / "run" / "adapter")
        assert store.stats().stored_bytes < 2 * file.stat().st_size
        store.export(str(tmp_path / "stream"))
    content = file.read_bytes()
    kept = tmp_path / "home" / "bases"
    [name] = kept.iterdir()
    assert name.read_bytes() == content

    def load():
        forgotten()
        return peft.PeftModel.from_pretrained(toy(), tmp_path / "run" / "adapter").eval()(ids())

    file.unlink()
    assert torch.equal(load(), expected)
    name.unlink()
    with pytest.raises(SpecError, match="is not at hand; put its file beside the adapter, or add it once"):
        load()
    for place in (tmp_path / "run" / "any.basis", tmp_path / "run" / "adapter" / "other.basis"):
        place.write_bytes(content)
        assert torch.equal(load(), expected)
        place.unlink()
    with rankfold.AdapterStore(stored) as store:
        forgotten()
        assert torch.equal(store.load_into(toy(), ["b"]).eval()(ids()), expected)
        assert not list(store.verify())
        assert store.record("a").format == 4
    with rankfold.AdapterStore(tmp_path / "second.db") as store:
        forgotten()
        assert store.import_(str(tmp_path / "stream")) == 2
        assert torch.equal(store.load_into(toy(), ["b"]).eval()(ids()), expected)
        forgotten()
        store.delete("a")
        store.gc()
        assert torch.equal(store.load_into(toy(), ["b"]).eval()(ids()), expected)
    assert str(tmp_path) not in json.dumps(
        json.loads((tmp_path / "run/adapter/adapter_config.json").read_text())
    )


def test_names_that_are_no_basis_are_refused(file, tmp_path, forgotten):
    for reference in ("absent", "../..", "*", "", "0" * 32):
        with pytest.raises(SpecError, match=r"there is no basis|is not at hand"):
            find_basis(reference)
    first = find_basis(str(file))
    forgotten()
    assert find_basis("toy").digest == first.digest == find_basis(first.digest).digest
    random_basis(file, toy(), ["query", "value"], seed=1)
    find_basis(str(file))
    with pytest.raises(SpecError, match="several bases are named 'toy'; give the digest of one"):
        find_basis("toy")
