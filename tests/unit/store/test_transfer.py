"""Adapters move from store to store, whole or not at all, wherever fsspec reaches."""

import fsspec
import pytest

from rankfold import AdapterFileError, AdapterStore, StoreError
from rankfold.errors import OutputExistsError
from tests.support.stored import make_adapter, same


@pytest.fixture
def source(tmp_path):
    with AdapterStore(tmp_path / "source.db") as store:
        for seed in range(5):
            store.put(
                f"a/{seed}", make_adapter(seed, head=0), tags={"nth": str(seed)}, metrics={"f1": seed / 7}
            )
        yield store


@pytest.fixture
def target(tmp_path):
    with AdapterStore(tmp_path / "target.db") as store:
        yield store


@pytest.fixture(params=["path", "memory"])
def url(request, tmp_path):
    yield str(tmp_path / "export") if request.param == "path" else "memory://exports/all"
    fsspec.filesystem("memory").store.clear()


def test_everything_arrives_and_is_as_it_was(source, target, url):
    assert source.export(url) == 5
    assert target.import_(url) == 5
    assert list(target.list()) == list(source.list())
    assert all(same(target.get(f"a/{seed}"), make_adapter(seed, head=0)) for seed in range(5))
    assert not list(target.verify())
    assert target.stats().parts == source.stats().parts


def test_only_chosen_adapters_are_exported(source, target, url):
    assert source.export(url, source.list(where=["f1>0.4"])) == 2
    target.import_(url)
    assert [record.name for record in target.list()] == ["a/3", "a/4"]


def test_what_is_there_is_not_replaced_unasked(source, target, url):
    source.export(url)
    with pytest.raises(OutputExistsError):
        source.export(url)
    source.export(url, [], overwrite=True)
    assert target.import_(url) == 0


def test_names_that_are_taken_are_refused_skipped_or_replaced(source, target, url):
    target.put("a/3", make_adapter(9))
    source.export(url)
    with pytest.raises(OutputExistsError, match="'a/3'"):
        target.import_(url)
    assert len(target) == 1
    assert target.import_(url, existing="skip") == 4
    assert same(target.get("a/3"), make_adapter(9))
    assert target.import_(url, existing="replace") == 5
    assert same(target.get("a/3"), make_adapter(3, head=0))


def test_export_that_fails_leaves_nothing(source, tmp_path):
    with source._database.plain() as connection:
        connection.execute("UPDATE pieces SET data = x'00'")
    with pytest.raises(AdapterFileError):
        source.export(str(tmp_path / "export"))
    assert not list(tmp_path.glob("export*"))


def test_stream_that_is_cut_anywhere_is_refused_and_nothing_is_imported(source, target, tmp_path):
    path = tmp_path / "export"
    source.export(str(path), [source.record("a/1"), source.record("a/2")])
    content = path.read_bytes()
    for length in range(0, len(content), 41):
        path.write_bytes(content[:length])
        with pytest.raises(AdapterFileError):
            target.import_(str(path))
        assert len(target) == 0


@pytest.mark.parametrize("url", ["absent", "nowhere://x", "folder/absent"])
def test_place_that_cannot_be_reached_is_said(source, target, url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreError, match="cannot reach"):
        target.import_(url)
    if url != "absent":
        with pytest.raises(StoreError, match="cannot reach"):
            source.export(url)


def test_export_touches_no_file_beside_it(source, tmp_path):
    (tmp_path / "all.draft").write_text("precious")
    source.export(str(tmp_path / "all"))
    with pytest.raises(OutputExistsError):
        source.export(str(tmp_path / "all"))
    assert (tmp_path / "all.draft").read_text() == "precious"
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("overwrite", [False, True])
def test_folder_is_no_place_for_an_export(source, tmp_path, monkeypatch, overwrite):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    for url in ("out", ".", str(tmp_path / "out")):
        with pytest.raises(OutputExistsError, match="is a folder; name a file in it"):
            source.export(url, overwrite=overwrite)
    assert not list((tmp_path / "out").iterdir())


def test_file_that_appears_during_an_export_is_not_replaced(source, url):
    def records():
        yield from source.list()
        with fsspec.open(url, "wb") as file:
            file.write(b"precious")

    with pytest.raises(OutputExistsError):
        source.export(url, records())
    with fsspec.open(url, "rb") as file:
        assert file.read() == b"precious"


def test_export_is_on_the_disk_before_it_appears(source, tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr("rankfold.files.flush", lambda path: flushed.append((path.name, path.exists())))
    source.export(str(tmp_path / "all"))
    draft, folder = flushed
    assert draft[0].startswith(".all.")
    assert folder == (tmp_path.name, True)
