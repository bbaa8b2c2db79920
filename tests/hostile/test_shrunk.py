"""A shrunk file that lies is refused with a clear error, and nothing is written."""

import copy
import json
import pickle

import pytest

import rankfold
from rankfold.errors import AdapterFileError
from rankfold.store import container
from rankfold.store.container import Container
from rankfold.store.size import explain
from tests.support.peft_methods import CONFIG, METHODS, WEIGHTS, save_peft


@pytest.fixture(scope="module")
def shrunk(tmp_path_factory):
    """Shrunk adapters with copies, with draws, and with places."""
    folder = tmp_path_factory.mktemp("hostile")
    found = {}
    for method in ("randlora", "vera", "unilora", "shira", "frod", "tinylora"):
        file = folder / f"{method}.shrunk"
        rankfold.shrink_adapter(save_peft(folder / method, METHODS[method]()), file, regenerate=True)
        found[method] = container.read(file)
    return found


def put(*path, value):
    """Return a change that puts a value at a place in the header."""

    def change(header):
        *parents, last = path
        for key in parents:
            header = header[key]
        if value is None:
            del header[last]
        else:
            header[last] = value

    return change


def edit_weights_header(before, after):
    def change(header):
        assert before in header["weights_header"]
        header["weights_header"] = header["weights_header"].replace(before, after, 1)

    return change


RECIPE = ("proofs", 0, "recipe")
LIES = {
    "another format": ("vera", put("format", value=2)),
    "no format": ("vera", put("format", value=None)),
    "unknown field": ("vera", put("command", value="rm")),
    "no hash": ("vera", put("expanded_sha256", value=None)),
    "short hash": ("vera", put("expanded_sha256", value="00")),
    "other hash of the file": ("vera", put("expanded_sha256", value="0" * 64)),
    "other hash of what was shrunk": ("vera", put("weights_sha256", value="0" * 64)),
    "other hash of a proof": ("vera", put("proofs", 0, "sha256", value="0" * 64)),
    "unknown rounding": ("vera", put("rounding", value="int1")),
    "rounding that was not done": ("vera", put("rounding", value="bf16")),
    "error that is text": ("vera", put("errors", value={"x": "small"})),
    "versions that are numbers": ("vera", put("versions", value={"torch": 2})),
    "config that is no JSON": ("vera", put("config", value="{")),
    "config of nothing": ("vera", put("config", value="[]")),
    "weights header that is no JSON": ("vera", put("weights_header", value="{")),
    "weights header of another thing": ("vera", put("weights_header", value="[1]")),
    "weights header with a gap": ("vera", edit_weights_header("[0,", "[8,")),
    "weights header with a huge shape": ("vera", edit_weights_header('"shape":[8', '"shape":[99999999999')),
    "weights header with an unknown type": ("vera", edit_weights_header('"F32"', '"F99"')),
    "copy of itself": ("randlora", put("copies", 0, value=[5, 5])),
    "copy of a later tensor": ("randlora", put("copies", 0, value=[1, 2])),
    "copy of a copy": ("randlora", lambda header: header["copies"].append([9, header["copies"][0][0]])),
    "copy of nothing": ("randlora", put("copies", 0, value=[9, -1])),
    "copy to nowhere": ("randlora", put("copies", 0, value=[999_999, 0])),
    "copy of another shape": ("randlora", put("copies", 0, 1, value=1)),
    "copy twice": ("randlora", lambda header: header["copies"].append(header["copies"][0])),
    "copies that are text": ("randlora", put("copies", value="all")),
    "copy left out": ("randlora", lambda header: header["copies"].pop()),
    "proof twice": ("vera", lambda header: header["proofs"].append(header["proofs"][0])),
    "endless proofs": ("vera", lambda header: header["proofs"].extend(header["proofs"] * 99)),
    "proof left out": ("vera", lambda header: header["proofs"].pop()),
    "recipe of an unknown method": ("vera", put(*RECIPE, "kind", value="exec")),
    "recipe of another method": ("vera", put(*RECIPE, "kind", value="mask")),
    "recipe without a method": ("vera", put(*RECIPE, "kind", value=None)),
    "recipe for a tensor that is not there": ("vera", put(*RECIPE, "tensors", value=[999])),
    "recipe for a negative place": ("vera", put(*RECIPE, "tensors", value=[-1])),
    "recipe for no tensor": ("vera", put(*RECIPE, "tensors", value=[])),
    "recipe for a vector": ("vera", put(*RECIPE, "tensors", value=[0])),
    "recipe with more than it needs": ("vera", put(*RECIPE, "code", value="1")),
    "seed of text": ("vera", put(*RECIPE, "seed", value="0")),
    "seed that is too large": ("vera", put(*RECIPE, "seed", value=10**40)),
    "endless skip": ("vera", put(*RECIPE, "skip", value=10**14)),
    "negative skip": ("vera", put(*RECIPE, "skip", value=-1)),
    "fraction as a skip": ("vera", put(*RECIPE, "skip", value=0.5)),
    "unknown type in between": ("vera", put("proofs", 0, "through", value="int4")),
    "spread that is no number": ("randlora", put(*RECIPE, "spread", value="__import__('os')")),
    "spread of nothing": ("randlora", put(*RECIPE, "spread", value="nan")),
    "type of a draw that there is not": ("randlora", put(*RECIPE, "drawn", value="float64")),
    "endless vector": ("unilora", put(*RECIPE, "length", value=10**14)),
    "vector of nothing": ("unilora", put(*RECIPE, "length", value=0)),
    "negative vector": ("unilora", put(*RECIPE, "length", value=-5)),
    "odd number of tensors": ("unilora", lambda header: header["proofs"][0]["recipe"]["tensors"].pop()),
    "endless mask": ("shira", put(*RECIPE, "rows", value=10**14)),
    "mask without columns": ("shira", put(*RECIPE, "columns", value=0)),
    "negative mask": ("shira", put(*RECIPE, "rows", value=-4)),
    "square of nothing": ("frod", put(*RECIPE, "sides", value=[0, 1])),
    "endless square": ("frod", put(*RECIPE, "sides", value=[10**8, 10**8])),
    "too few squares": ("frod", put(*RECIPE, "sides", value=[16])),
    "too few seeds": ("tinylora", put(*RECIPE, "seeds", value=[42])),
}


def refuse(file, tmp_path):
    with pytest.raises(AdapterFileError, match=r"again|give one|machine|version"):
        rankfold.expand_adapter(file, tmp_path / "again")
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("lie", LIES)
def test_header_that_lies_is_refused(shrunk, lie, tmp_path):
    method, change = LIES[lie]
    content = shrunk[method]
    header = copy.deepcopy(content.header)
    change(header)
    assert header != content.header
    container.write(tmp_path / "lie", Container("shrunk", header, {}, content.blobs))
    refuse(tmp_path / "lie", tmp_path)


@pytest.mark.parametrize("size", [-4, -1, 1, 4096])
def test_numbers_that_do_not_fit_are_refused(shrunk, size, tmp_path):
    content = shrunk["vera"]
    numbers = content.blobs["numbers"]
    blobs = {"numbers": numbers[:size] if size < 0 else numbers + bytes(size)}
    container.write(tmp_path / "lie", Container("shrunk", content.header, {}, blobs))
    refuse(tmp_path / "lie", tmp_path)


@pytest.mark.parametrize("change", ["kind", "no blob", "another blob"])
def test_file_of_another_kind_is_refused(shrunk, change, tmp_path):
    content = shrunk["vera"]
    blobs = {"no blob": {}, "another blob": {**content.blobs, "more": b""}}.get(change, content.blobs)
    kind = "adapter" if change == "kind" else "shrunk"
    container.write(tmp_path / "lie", Container(kind, content.header, {}, blobs))
    refuse(tmp_path / "lie", tmp_path)


def test_every_cut_file_is_refused(shrunk, tmp_path):
    data = container.encode(shrunk["vera"])
    for length in range(0, len(data), 97):
        (tmp_path / "cut").write_bytes(data[:length])
        with pytest.raises(AdapterFileError):
            rankfold.expand_adapter(tmp_path / "cut", tmp_path / "again")


@pytest.mark.parametrize("config", [b"", b"{", b"[]", b"\xff", b'{"peft_type": 3}', b'{"peft_type": "VERA",'])
def test_damaged_configuration_is_refused(config, tmp_path):
    folder = save_peft(tmp_path / "vera", METHODS["vera"]())
    (folder / CONFIG).write_bytes(config)
    with pytest.raises(AdapterFileError):
        rankfold.shrink_adapter(folder, tmp_path / "shrunk")
    with pytest.raises(AdapterFileError, match=CONFIG):
        explain(folder)
    assert not (tmp_path / "shrunk").exists()


@pytest.mark.parametrize("field", ["projection_prng_key", "modules_to_save", "sparse", "r"])
@pytest.mark.parametrize("value", ["x", -1.5, {"a": []}, [[1]]], ids=str)
def test_field_of_another_type_is_refused_or_of_no_consequence(field, value, tmp_path):
    folder = save_peft(tmp_path / "vera", METHODS["vera"]())
    values = json.loads((folder / CONFIG).read_bytes())
    (folder / CONFIG).write_text(json.dumps(values | {field: value}))
    try:
        rankfold.shrink_adapter(folder, tmp_path / "shrunk")
    except AdapterFileError:
        return
    rankfold.expand_adapter(tmp_path / "shrunk", tmp_path / "again")
    assert (tmp_path / "again" / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()


class Bomb:
    """What must never be unpickled."""

    def __reduce__(self):
        return pytest.fail, ("a pickle was opened",)


def test_pickle_is_refused_unopened(tmp_path):
    (tmp_path / CONFIG).write_text('{"peft_type": "LORA"}')
    (tmp_path / "adapter_model.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(AdapterFileError, match="pickle"):
        rankfold.shrink_adapter(tmp_path, tmp_path / "shrunk")
    with pytest.raises(AdapterFileError, match="pickle"):
        explain(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(AdapterFileError, match="damaged"):
        rankfold.shrink_adapter(tmp_path, tmp_path / "shrunk")
