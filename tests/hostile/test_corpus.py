"""Every kept file is refused, by an error that says why, within a second of work and 200 MB."""

import json
import resource
import shutil
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankfold.errors import AdapterFileError, RankfoldError
from rankfold.store.container import decode, encode
from rankfold.store.packed import from_container
from rankfold.store.saved import open_adapter
from rankfold.store.store import AdapterStore
from rankfold.store.transfer import read_stream
from rankfold.store.weights import split
from tests.hostile.make_containers import GOOD, container
from tests.hostile.make_corpus import FILES
from tests.support.killing import PROCESSES

CORPUS = sorted(path.name for path in FILES.iterdir())
SECONDS, MEMORY_BYTES = 1.0, 200 << 20


def open_file(path, folder):
    """Open a file as what its ending says, and use all of it."""
    match path.suffix:
        case ".rankfold":
            open_adapter(path)
        case ".stream":
            list(read_stream(str(path)))
        case ".safetensors":
            (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
            shutil.copy(path, folder / "adapter_model.safetensors")
            open_adapter(folder)
        case ".db":
            copy = shutil.copy(path, folder / path.name)
            with AdapterStore(copy, "read") as store:
                list(store.list())
            open_adapter(f"{copy}#a")


def test_corpus_is_there():
    assert len(CORPUS) >= 60
    assert {Path(name).suffix for name in CORPUS} == {".rankfold", ".stream", ".safetensors", ".db"}


@pytest.mark.parametrize("name", CORPUS)
def test_file_is_refused(name, tmp_path):
    with pytest.raises(RankfoldError) as caught:
        open_file(FILES / name, tmp_path)
    assert ";" in str(caught.value), "an error says what to do."


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads how much memory a process has")
def test_refusing_costs_little(tmp_path):
    receive, send = PROCESSES.Pipe(duplex=False)
    child = PROCESSES.Process(target=refuse_all, args=(send, tmp_path))
    child.start()
    send.close()
    assert receive.recv() == []
    child.join()


def refuse_all(send, folder):
    """Refuse every file with little memory and little time; tell the ones that wanted more."""
    open_once(folder)  # so that everything is imported
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    costly = []
    for name in CORPUS:
        try:
            with at_most(SECONDS):
                open_file(FILES / name, folder)
        except RankfoldError:
            continue
        except (MemoryError, TimeoutError, RuntimeError) as error:
            costly.append(f"{name}: {error!r}")
    send.send(costly)


def open_once(folder):
    for suffix in (".rankfold", ".stream", ".db"):
        try:
            open_file(FILES / f"empty{suffix}" if suffix != ".db" else FILES / "format-9.db", folder)
        except RankfoldError:
            continue


@contextmanager
def at_most(seconds):
    """Stop what takes the processor for longer."""

    def stop(_number, _frame):
        raise TimeoutError

    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from([*GOOD, "more"]), JSON), st.binary(max_size=20))
def test_any_header_is_read_or_refused(values, payload):
    only_refused(container(json.dumps(GOOD | values), payload=payload))


@given(st.lists(st.lists(JSON | st.sampled_from(["x", "F32", "F16", [2], [0], [4]]), max_size=4), max_size=3))
def test_any_table_is_read_or_refused(entries):
    only_refused(container(json.dumps(GOOD | {"tensors": entries})))


@given(st.binary(max_size=300))
def test_any_bytes_are_refused(data):
    with pytest.raises(AdapterFileError):
        decode(data)
    with pytest.raises(AdapterFileError):
        split(b"\x10" + data)


@given(st.data())
def test_weights_with_any_change_are_read_or_refused(data):
    content = bytearray((FILES / "longer.safetensors").read_bytes()[:-1])
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        split(bytes(content))
    except AdapterFileError:
        return


def only_refused(content):
    """Read a container; what is not refused comes back as it was."""
    try:
        read = decode(content)
    except AdapterFileError:
        return
    assert decode(encode(read)).header == read.header
    with pytest.raises(AdapterFileError):
        from_container(read)
