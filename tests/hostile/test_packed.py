"""A packed adapter that lies is refused with a clear error by every use, and nothing is written."""

import copy
import json
import pickle

import pytest
import torch

import rankfold
from rankfold.errors import AdapterFileError
from rankfold.store.container import Container, encode
from rankfold.store.packed import to_container
from rankfold.store.rounding import GRIDS, round_adapter
from rankfold.store.size import explain
from tests.support.stored import adapter_of, make_adapter

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
TWO = torch.tensor([1.0, 2.0])
TWICE = adapter_of({"a": TWO, "b": TWO.flip(0), "c": TWO, "d": torch.zeros(3)})
EXACT = adapter_of({"a": torch.arange(70.0), "b": torch.arange(3), "c": torch.ones(90)})
SMALL, FOUR = round_adapter(EXACT, "int8"), round_adapter(EXACT, "int4")
SCALES = GRIDS["int8"].scales


def copies(*entries):
    return lambda header, _tensors: header.update(copies=list(entries))


def types(text, dtype="int8"):
    return lambda header, _tensors: header["metadata"].update({GRIDS[dtype].types: text})


def tensor(name, value):
    return lambda _header, tensors: tensors.update({name: value})


LIES = {
    "copies that are text": (TWICE, copies("all")),
    "copies that are an object": (TWICE, lambda header, _: header.update(copies={})),
    "copy of itself": (TWICE, copies([2, "c", 2])),
    "copy of a later tensor": (TWICE, copies([0, "c", 1])),
    "copy of nothing": (TWICE, copies([2, "c", -1])),
    "copy to nowhere": (TWICE, copies([9, "c", 0])),
    "copy to a negative position": (TWICE, copies([-1, "c", -2])),
    "copy of a name that is taken": (TWICE, copies([2, "a", 0])),
    "copy with the name of a path": (TWICE, copies([2, "../c", 0])),
    "copy at a boolean": (TWICE, copies([True, "c", False])),
    "copy at a fraction": (TWICE, copies([2.0, "c", 0])),
    "copy twice": (TWICE, copies([2, "c", 0], [2, "c", 0])),
    "copies out of order": (TWICE, copies([3, "x", 0], [2, "c", 0])),
    "copies without end": (
        adapter_of({"a": torch.arange(1 << 20)}),
        copies(*([1 + index, f"c{index}", 0] for index in range(300))),
    ),
    "format 4": (TWICE, lambda header, _: header.update(format=4)),
    "manifest that is no text": (TWICE, lambda header, _: header.update(manifest={})),
    "one type too few": (SMALL, types("F32 -")),
    "one type too many": (SMALL, types("F32 - F32 F32")),
    "unknown type": (SMALL, types("F32 - F99")),
    "integer type": (SMALL, types("F32 - I64")),
    "type of a tensor that is not int8": (SMALL, types("F32 F32 F32")),
    "tensor without its type": (SMALL, types("F32 - -")),
    "no scales": (SMALL, lambda _, tensors: tensors.pop("a" + SCALES)),
    "too few scales": (SMALL, tensor("a" + SCALES, torch.ones(1))),
    "too many scales": (SMALL, tensor("a" + SCALES, torch.ones(3))),
    "scales of another type": (SMALL, tensor("a" + SCALES, torch.ones(2, dtype=torch.float64))),
    "scales of nothing": (SMALL, tensor("b" + SCALES, torch.ones(1))),
    "scales in a square": (SMALL, tensor("a" + SCALES, torch.ones(1, 2))),
    "int4 without a shape": (FOUR, types("F32 - F32:90", "int4")),
    "int4 with a shape of more numbers": (FOUR, types("F32:72 - F32:90", "int4")),
    "int4 with a negative side": (FOUR, types("F32:-70x-1 - F32:90", "int4")),
    "int4 with a side without end": (FOUR, types(f"F32:{'9' * 5000} - F32:90", "int4")),
    "int4 with sides without end": (FOUR, types(f"F32:{'x'.join(['99999'] * 999)} - F32:90", "int4")),
    "int4 with a side that is no digit": (FOUR, types("F32:\uff170 - F32:90", "int4")),
    "int4 with scales of int8": (FOUR, tensor("a.int4_scales", torch.ones(3))),
    "int4 with steps of a byte": (FOUR, tensor("a", torch.ones(35, dtype=torch.int8))),
    "int8 and int4 at once": (FOUR, types("F32 - F32", "int8")),
}


@pytest.mark.parametrize("lie", LIES)
def test_packed_adapter_that_lies_is_refused(lie, tmp_path):
    adapter, change = LIES[lie]
    packed = to_container(adapter)
    header, tensors = copy.deepcopy(dict(packed.header)), dict(packed.tensors)
    change(header, tensors)
    file = tmp_path / "lie"
    file.write_bytes(encode(Container("adapter", header, tensors)))
    with rankfold.AdapterStore(tmp_path / "store.db") as store:
        for use in (
            lambda: rankfold.open_adapter(file),
            lambda: rankfold.unpack_adapter(file, tmp_path / "again"),
            lambda: rankfold.pack_adapter(file, tmp_path / "new"),
            lambda: explain(file),
            lambda: store.put("a", file),
        ):
            with pytest.raises(AdapterFileError, match="; "):
                use()
        assert not len(store)
    assert not (tmp_path / "again").exists()
    assert not (tmp_path / "new").exists()


def test_file_that_only_an_earlier_version_expands_is_refused_with_the_way_out(tmp_path):
    (tmp_path / "shrunk").write_bytes(encode(Container("shrunk", {}, {})))
    with pytest.raises(AdapterFileError, match=r"rankfold 0\.1.*expand it with that version"):
        rankfold.open_adapter(tmp_path / "shrunk")


@pytest.mark.parametrize("config", [b"", b"{", b"[]", b"\xff", b'{"peft_type": 3}', b'{"peft_type": "VERA",'])
def test_damaged_configuration_of_a_folder_is_refused(config, tmp_path):
    make_adapter().write(tmp_path / "folder")
    (tmp_path / "folder" / CONFIG).write_bytes(config)
    with pytest.raises(AdapterFileError, match=CONFIG):
        rankfold.open_adapter(tmp_path / "folder")


@pytest.mark.parametrize("field", ["modules_to_save", "base_model_name_or_path", "preset", "r"])
@pytest.mark.parametrize("value", ["x", -1.5, {"a": []}, [[1]], None], ids=str)
def test_field_of_another_type_is_of_no_consequence_for_storing(field, value, tmp_path):
    folder = tmp_path / "folder"
    make_adapter().write(folder)
    values = json.loads((folder / CONFIG).read_bytes())
    (folder / CONFIG).write_text(json.dumps(values | {field: value}))
    explain(folder)
    with rankfold.AdapterStore(tmp_path / "store.db") as store:
        store.put("a", folder)
        store.get("a").write(tmp_path / "again")
    assert (tmp_path / "again" / CONFIG).read_bytes() == (folder / CONFIG).read_bytes()


class Bomb:
    """An object that must never be unpickled."""

    def __reduce__(self):
        return pytest.fail, ("a pickle was opened",)


def test_pickle_is_refused_unopened(tmp_path):
    (tmp_path / CONFIG).write_text('{"peft_type": "LORA"}')
    for name in ("adapter_model.bin", "weights.pt"):
        (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
        for location in (tmp_path, tmp_path / name):
            with pytest.raises(AdapterFileError, match="pickle"):
                rankfold.open_adapter(location)
        (tmp_path / name).unlink()
    (tmp_path / WEIGHTS).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(AdapterFileError, match="damaged"):
        rankfold.open_adapter(tmp_path)
