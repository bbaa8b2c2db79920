"""A packed adapter that lies is refused with a clear error by every use, and nothing is written."""

import copy
import json
import pickle
import random

import pytest
import torch

import rankfold
from rankfold.errors import AdapterFileError
from rankfold.store.certificate import RoundingCertificate
from rankfold.store.container import Container, encode
from rankfold.store.packed import to_container
from rankfold.store.rounding import GRIDS, METADATA, round_adapter
from rankfold.store.size import explain
from tests.support.stored import adapter_of, make_adapter

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
TWO = torch.tensor([1.0, 2.0])
TWICE = adapter_of({"a": TWO, "b": TWO.flip(0), "c": TWO, "d": torch.zeros(3)})
EXACT = adapter_of({"lora_A": torch.arange(70.0), "b": torch.arange(3), "lora_C": torch.ones(90)})
SMALL = round_adapter(EXACT, "int4")
STEPS, SCALES = 35, 6  # bytes of the first tensor
CERTIFICATE = RoundingCertificate("int4", "numbers", 0.5, 0.25, 2, "0" * 64).to_json().decode()


def copies(*entries):
    return lambda header, _tensors: header.update(copies=list(entries))


def types(text):
    return lambda header, _tensors: header["metadata"].update({METADATA: text})


def certificate(text):
    return lambda header, _tensors: header.update(certificate=text)


def scale(low, high, *, at=STEPS):
    def change(_header, tensors):
        tensors["lora_A"] = tensors["lora_A"].clone()
        tensors["lora_A"][at : at + 2] = torch.tensor([low, high], dtype=torch.uint8)

    return change


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
    "no type": (SMALL, types("")),
    "unknown type of the adapter": (SMALL, types("int5 int4:F32:70 - 1+int4:F32:90")),
    "one entry too few": (SMALL, types("int4 int4:F32:70 -")),
    "one entry too many": (SMALL, types("int4 int4:F32:70 - 1+int4:F32:90 -")),
    "unknown type of numbers": (SMALL, types("int4 int4:F99:70 - 1+int4:F32:90")),
    "integers of integers": (SMALL, types("int4 int4:I64:70 - 1+int4:F32:90")),
    "unknown type of steps": (SMALL, types("int4 int5:F32:70 - 1+int4:F32:90")),
    "other origin": (SMALL, types("int4 int4:F32:70 - 2+int4:F32:90")),
    "origin twice": (SMALL, types("int4 int4:F32:70 - 1+1+int4:F32:90")),
    "steps of other bits": (SMALL, types("int4 int3:F32:70 - 1+int4:F32:90")),
    "entry of a tensor that is not rounded": (SMALL, types("int4 int4:F32:70 int4:F32:3 1+int4:F32:90")),
    "no shape": (SMALL, types("int4 int4:F32 - 1+int4:F32:90")),
    "shape of more numbers": (SMALL, types("int4 int4:F32:72 - 1+int4:F32:90")),
    "shape of fewer blocks": (SMALL, types("int4 int4:F32:64 - 1+int4:F32:90")),
    "negative side": (SMALL, types("int4 int4:F32:-70x-1 - 1+int4:F32:90")),
    "side without end": (SMALL, types(f"int4 int4:F32:{'9' * 5000} - 1+int4:F32:90")),
    "sides without end": (SMALL, types(f"int4 int4:F32:{'x'.join(['99999'] * 999)} - 1+int4:F32:90")),
    "side that is no digit": (SMALL, types("int4 int4:F32:\uff170 - 1+int4:F32:90")),
    "scale that is infinite": (SMALL, scale(0x80, 0x7F)),
    "scale that is no number": (SMALL, scale(0xC0, 0x7F)),
    "scale that is negative": (SMALL, scale(0x80, 0xBF)),
    "scale that is minus zero": (SMALL, scale(0x00, 0x80)),
    "scale that some machines take for zero": (SMALL, scale(0x01, 0x00)),
    "scale of numbers that are too large": (SMALL, scale(0x7F, 0x7F, at=STEPS + 2)),
    "certificate of an exact adapter": (EXACT, certificate(CERTIFICATE)),
    "certificate that is no text": (SMALL, certificate({})),
    "certificate that is no JSON": (SMALL, certificate("{")),
    "certificate of nothing": (SMALL, certificate("{}")),
    "certificate with an unknown field": (SMALL, certificate(CERTIFICATE[:-1] + ', "x": 1}')),
    "certificate with a field twice": (SMALL, certificate(CERTIFICATE[:-1] + ', "mean": 1.0}')),
    "certificate of an endless change": (SMALL, certificate(CERTIFICATE.replace("0.5", "Infinity"))),
    "certificate of a negative change": (SMALL, certificate(CERTIFICATE.replace("0.5", "-0.5"))),
    "certificate of another measure": (SMALL, certificate(CERTIFICATE.replace("numbers", "logits"))),
    "certificate of the future": (SMALL, certificate(CERTIFICATE.replace('"format": 1', '"format": 9'))),
    "too few scales": (SMALL, tensor("lora_A", SMALL.tensors["lora_A"][:-2])),
    "too many scales": (SMALL, tensor("lora_A", torch.zeros(STEPS + SCALES + 2, dtype=torch.uint8))),
    "signed bytes": (SMALL, tensor("lora_A", SMALL.tensors["lora_A"].view(torch.int8))),
    "bytes in a square": (SMALL, tensor("lora_A", SMALL.tensors["lora_A"].view(1, -1))),
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


@pytest.mark.parametrize("dtype", GRIDS)
def test_any_flipped_byte_is_refused_or_gives_finite_numbers(dtype, tmp_path):
    """Flips with a new checksum, which only the checks of the content see."""
    generator = random.Random(0)
    container = to_container(round_adapter(EXACT, dtype))
    for _ in range(150):
        tensors = {name: tensor.clone() for name, tensor in container.tensors.items()}
        flat = tensors[generator.choice(["lora_A", "lora_C"])]
        flat[generator.randrange(len(flat))] ^= 1 << generator.randrange(8)
        (tmp_path / "flipped").write_bytes(encode(Container("adapter", container.header, tensors)))
        try:
            opened = rankfold.open_adapter(tmp_path / "flipped")
        except AdapterFileError:
            continue
        opened.check_finite()
        assert opened.layout.entries == EXACT.layout.entries


def test_rounded_file_that_is_cut_anywhere_is_refused(tmp_path):
    data = encode(to_container(SMALL))
    for length in range(0, len(data), 7):
        (tmp_path / "cut").write_bytes(data[:length])
        with pytest.raises(AdapterFileError):
            rankfold.open_adapter(tmp_path / "cut")


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
