"""Hostile containers, packed adapters, exports, weights; lengths and checksums are right where possible."""

import json
import struct
import zlib

from rankfold.store import transfer
from rankfold.store.container import MAGIC, VERSION, Container, checksum, encode
from rankfold.store.packed import to_container
from rankfold.store.record import NO_DIGEST, Record
from tests.support.stored import make_adapter

PREFIX = struct.Struct("<8sIIIQ")
GOOD = {"kind": "adapter", "header": {}, "tensors": [["x", "F32", [2]]], "blobs": []}
PAYLOAD = bytes(8)


def container(header=None, *, payload=PAYLOAD, magic=MAGIC, version=VERSION, plain=None, sizes=(None, None)):
    """Return a file with a right checksum; `header` is JSON values, JSON text, or bytes as they will lie."""
    if not isinstance(header, bytes):
        text = header if isinstance(header, str) else json.dumps(header or GOOD)
        header = text.encode("utf-8", "surrogatepass")
        plain = len(header) if plain is None else plain
        header = zlib.compress(header, 9)
    header_bytes, payload_bytes = (
        len(part) if size is None else size for part, size in zip((header, payload), sizes, strict=True)
    )
    content = PREFIX.pack(magic, version, header_bytes, plain or 0, payload_bytes) + header + payload
    return content + checksum(content)


def changed(**values):
    """Return a container whose header is the good one with other values."""
    return container(GOOD | values)


def tensors(*entries):
    """Return a container with these tensor entries."""
    return changed(tensors=list(entries))


def packed(**values):
    """Return a packed adapter whose header has other values; None takes one away."""
    good = to_container(make_adapter())
    header = {key: value for key, value in {**good.header, **values}.items() if value is not None}
    return encode(Container("adapter", header, good.tensors))


def frames(*contents, count=None, end=b""):
    """Return an export of these containers."""
    length = struct.Struct("<Q")
    body = b"".join(length.pack(len(content)) + content for content in contents)
    return (
        transfer.MAGIC + body + length.pack(0) + length.pack(len(contents) if count is None else count) + end
    )


def record(**values):
    """Return a record's container with other values in the record."""
    good = Record("a", "tiny", "tlora", 96, "2026-11-01T12:00:00Z", NO_DIGEST).to_dict()
    adapter = to_container(make_adapter())
    return encode(
        Container("record", {"record": good | values, "adapter": dict(adapter.header)}, adapter.tensors)
    )


BOMB = zlib.compress(bytes(32 << 20), 9)
WHOLE = container()

CONTAINERS = {
    "empty": b"",
    "magic-alone": MAGIC,
    "text": b"this is a letter\n" * 9,
    "zeros": bytes(200),
    "pickle": b"\x80\x04cos\nsystem\n(S'true'\ntR.",
    "other-magic": container(magic=b"\x93RKFOLE\n"),
    "version-0": container(version=0),
    "version-2": container(version=2),
    "version-largest": container(version=2**32 - 1),
    "cut-in-prefix": WHOLE[:20],
    "cut-in-header": WHOLE[:40],
    "cut-in-payload": WHOLE[:-18],
    "cut-in-checksum": WHOLE[:-1],
    "longer": WHOLE + b"\0",
    "wrong-checksum": WHOLE[:-16] + bytes(16),
    "flipped-payload": WHOLE[:-17] + bytes([WHOLE[-17] ^ 1]) + WHOLE[-16:],
    "header-length-largest": container(sizes=(2**32 - 1, None)),
    "header-length-0": container(sizes=(0, None)),
    "payload-length-largest": container(sizes=(None, 2**64 - 1)),
    "payload-length-0": container(sizes=(None, 0)),
    "plain-length-0": container(plain=0),
    "plain-length-1": container(plain=1),
    "plain-length-long": container(plain=5_000_000),
    "plain-length-largest": container(plain=2**32 - 1),
    "bomb-that-says-so": container(BOMB, plain=32 << 20),
    "bomb-that-says-little": container(BOMB, plain=100),
    "bomb-of-zlib-in-zlib": container(zlib.compress(BOMB), plain=len(BOMB)),
    "header-not-compressed": container(json.dumps(GOOD).encode(), plain=len(json.dumps(GOOD))),
    "header-with-more-behind": container(
        zlib.compress(json.dumps(GOOD).encode()) + b"x", plain=len(json.dumps(GOOD))
    ),
    "header-cut": container(zlib.compress(json.dumps(GOOD).encode())[:-5], plain=len(json.dumps(GOOD))),
    "json-none": container(" "),
    "json-broken": container('{"kind":'),
    "json-two-values": container("{} {}"),
    "json-list": container("[]"),
    "json-null": container("null"),
    "json-not-utf8": container(zlib.compress(b'{"kind":"\xff"}'), plain=12),
    "json-key-twice": container(
        '{"kind":"adapter","kind":"adapter","header":{},"tensors":[],"blobs":[]}', payload=b""
    ),
    "json-inner-key-twice": container(
        '{"kind":"adapter","header":{"a":1,"a":2},"tensors":[],"blobs":[]}', payload=b""
    ),
    "json-nan": container('{"kind":"adapter","header":{"a":NaN},"tensors":[],"blobs":[]}', payload=b""),
    "json-infinity": container(
        '{"kind":"adapter","header":{"a":-Infinity},"tensors":[],"blobs":[]}', payload=b""
    ),
    "json-float-too-large": container(
        '{"kind":"adapter","header":{"a":1e999},"tensors":[],"blobs":[]}', payload=b""
    ),
    "json-endless-number": container(
        '{"kind":"adapter","header":{"a":' + "9" * 9000 + '},"tensors":[],"blobs":[]}', payload=b""
    ),
    "json-lists-in-lists": container("[" * 250_000),
    "json-objects-in-objects": container('{"a":' * 250_000),
    "json-many-lists": container("[" + "[]," * 2_000_000 + "[]]"),
    "json-many-objects": container("[" + "{}," * 2_000_000 + "{}]"),
    "json-many-numbers": container("[" + "0," * 3_000_000 + "0]"),
    "json-lone-surrogate": container(
        '{"kind":"adapter","header":{"a":"\\ud800"},"tensors":[],"blobs":[]}', payload=b""
    ),
    "key-unknown": changed(more=1),
    "key-missing": container({key: value for key, value in GOOD.items() if key != "blobs"}),
    "kind-number": changed(kind=1),
    "kind-path": changed(kind="../adapter"),
    "kind-empty": changed(kind=""),
    "name-above": tensors(["../x", "F32", [2]]),
    "name-above-in-the-middle": tensors(["a/../../x", "F32", [2]]),
    "name-absolute": tensors(["/etc/passwd", "F32", [2]]),
    "name-drive": tensors(["C:x", "F32", [2]]),
    "name-backslash": tensors(["..\\x", "F32", [2]]),
    "name-nul": tensors(["x\0y", "F32", [2]]),
    "name-line-break": tensors(["x\ny", "F32", [2]]),
    "name-empty": tensors(["", "F32", [2]]),
    "name-endless": tensors(["x" * 5000, "F32", [2]]),
    "name-number": tensors([1, "F32", [2]]),
    "name-twice": tensors(["x", "F32", [1]], ["x", "F32", [1]]),
    "name-of-a-blob-too": changed(tensors=[["x", "F32", [1]]], blobs=[["x", 4]]),
    "type-unknown": tensors(["x", "F31", [2]]),
    "type-object": tensors(["x", "OBJECT", [1]]),
    "type-number": tensors(["x", 32, [2]]),
    "shape-negative": tensors(["x", "F32", [-2]]),
    "shape-two-negatives": tensors(["x", "F32", [-1, -2]]),
    "shape-huge": tensors(["x", "F32", [2**62]]),
    "shape-beyond-64-bits": tensors(["x", "F32", [2**70]]),
    "shape-product-overflows": tensors(["x", "U8", [2**33, 2**33]]),
    "shape-nothing-times-huge": changed(tensors=[["x", "F32", [2]], ["y", "F32", [0, 2**62, 2**62]]]),
    "shape-boolean": tensors(["x", "F32", [2, True]]),
    "shape-fraction": tensors(["x", "F32", [2.0]]),
    "shape-text": tensors(["x", "F32", ["2"]]),
    "shape-many-sides": tensors(["x", "F32", [2] + [1] * 99]),
    "shape-none": tensors(["x", "F32", None]),
    "entry-short": tensors(["x", "F32"]),
    "entry-long": tensors(["x", "F32", [2], [0, 8]]),
    "entry-object": tensors({"name": "x", "dtype": "F32", "shape": [2]}),
    "payload-less-than-the-table": tensors(["x", "F32", [3]]),
    "payload-more-than-the-table": tensors(["x", "F32", [1]]),
    "payload-without-a-table": tensors(),
    "blob-negative": changed(tensors=[["x", "F32", [4]]], blobs=[["b", -8]]),
    "blob-huge": changed(blobs=[["b", 2**63]]),
    "blob-boolean": changed(tensors=[], blobs=[["b", True]]),
    "blob-path": changed(tensors=[], blobs=[["../b", 8]]),
    "blob-twice": changed(tensors=[], blobs=[["b", 4], ["b", 4]]),
    "packed-other-kind": encode(Container("shrunk", {}, {})),
    "packed-with-a-blob": changed(
        header=dict(to_container(make_adapter()).header), tensors=[], blobs=[["b", len(PAYLOAD)]]
    ),
    "packed-format-9": packed(format=9),
    "packed-without-configuration": packed(config=None),
    "packed-with-two-configurations": packed(config_text='{"peft_type": "LORA"}'),
    "packed-configuration-without-method": packed(config={"r": 1}),
    "packed-configuration-list": packed(config=None, config_text="[]"),
    "packed-configuration-key-twice": packed(
        config=None, config_text='{"peft_type": "LORA", "peft_type": "LORA"}'
    ),
    "packed-key-unknown": packed(more=1),
    "packed-metadata-number": packed(metadata={"format": 1}),
    "packed-header-of-other-tensors": packed(
        weights_header='{"y":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    ),
    "packed-header-that-lies": packed(
        weights_header='{"x":{"dtype":"F32","shape":[1],"data_offsets":[-4,0]}}'
    ),
}

STREAMS = {
    "empty": b"",
    "other-magic": b"\x93RKFOLD\n" + bytes(16),
    "cut-before-the-end": frames(record())[:-20],
    "cut-in-a-record": frames(record())[:200],
    "length-largest": transfer.MAGIC + b"\xff" * 8 + bytes(32),
    "wrong-count": frames(record(), count=2),
    "longer": frames(record(), end=b"x"),
    "adapter-instead-of-a-record": frames(packed()),
    "record-field-unknown": frames(record(more=1)),
    "record-number-as-text": frames(record(bytes="96")),
    "record-metric-text": frames(record(metrics={"accuracy": "high"})),
    "record-name-with-a-line-break": frames(record(name="a\nb")),
    "record-time": frames(record(created="yesterday")),
    "record-format-9": frames(record(format=9)),
}


def weights(header, payload=bytes(8), length=None):
    """Return a safetensors file."""
    text = header if isinstance(header, bytes) else header.encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + payload


def entry(begin=0, end=8, *, name="x", dtype="F32", shape="[2]"):
    """Return the JSON of one tensor."""
    return f'"{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}'


WEIGHTS = {
    "empty": b"",
    "header-length-largest": weights("{}", length=2**64 - 1),
    "header-cut": weights("{" + entry() + "}")[:30],
    "key-twice": weights("{" + entry() + "," + entry() + "}"),
    "overlap": weights("{" + entry() + "," + entry(4, 12, name="y") + "}", bytes(12)),
    "gap": weights("{" + entry(4, 12) + "}", bytes(12)),
    "negative": weights("{" + entry(-8, 0) + "}"),
    "backwards": weights("{" + entry(8, 0) + "}"),
    "huge-shape": weights("{" + entry(0, 2**62, shape=f"[{2**60}]") + "}"),
    "longer": weights("{" + entry() + "}", bytes(9)),
    "name-above": weights("{" + entry(name="../x") + "}"),
    "metadata-number": weights('{"__metadata__":{"a":1},' + entry() + "}"),
    "type-unknown": weights("{" + entry(dtype="F99") + "}"),
}
