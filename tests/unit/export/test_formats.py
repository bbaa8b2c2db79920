"""A format is one file: ours are found in their package, those of other packages by an entry point."""

import sys

import pytest
from click.testing import CliRunner

import rankfold
from rankfold.cli.main import cli
from rankfold.errors import NotExactError, SpecError
from rankfold.export.formats import discover_formats, find_format
from rankfold.export.verify import verify
from tests.support.adapters import save_adapter

TOY = '''
"""A format of another package: one safetensors file, and the base model with the updates added."""

from safetensors.torch import load_file, save_file
from torch import no_grad

from rankfold.export.fold import check_update
from rankfold.export.formats import LayerFormat


class Toy(LayerFormat):
    name = "toy"

    def write_adapter(self, adapter, base, folder, dtype):
        updates = {name: update.to_finite(name, dtype) for name, update in adapter.updates.items()}
        downs = {f"{name} down": update.down.contiguous() for name, update in updates.items()}
        ups = {f"{name} up": update.up.contiguous() for name, update in updates.items()}
        save_file(downs | ups, folder / "toy.safetensors")

    def read_updates(self, geometries, base, folder):
        tensors = load_file(folder / "toy.safetensors")
        return {
            name: check_update(name, tensors[f"{name} down"], tensors[f"{name} up"], geometry)
            for name, geometry in geometries.items()
        }

    @no_grad()
    def load(self, base, folder):
        model, tensors = base.load(), load_file(folder / "toy.safetensors")
        for key in tensors:
            name, side = key.split()
            if side == "up":
                update = tensors[key].float() @ tensors[f"{name} down"].float()
                model.get_submodule(name).weight += update
        return model


FORMAT = Toy()
'''


def install(folder, monkeypatch, source, name="toy"):
    """Install a package with one export format into a folder of the import path."""
    package = f"rankfold_{name}"
    (folder / f"{package}.py").write_text(source)
    metadata = folder / f"{package}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[rankfold.export_formats]\n{name} = {package}:FORMAT\n")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, package, raising=False)
    discover_formats.cache_clear()


@pytest.fixture(autouse=True)
def formats_anew():
    yield
    discover_formats.cache_clear()


@pytest.fixture
def site(tmp_path):
    (tmp_path / "site").mkdir()
    return tmp_path / "site"


@pytest.fixture
def adapter(tiny_llama, tmp_path):
    return save_adapter(tmp_path / "adapter", tiny_llama)


def test_every_file_of_the_package_is_a_format():
    assert {name: value.has_rank for name, value in discover_formats().items()} == {
        "diffusers": True,
        "gguf": True,
        "kohya": True,
        "lora": True,
        "merged": False,
    }


def test_format_of_another_package_is_written_certified_and_verified(
    site, monkeypatch, adapter, reviews, tmp_path
):
    install(site, monkeypatch, TOY)
    result = CliRunner().invoke(
        cli, ["export", str(adapter), str(tmp_path / "out"), "--to", "toy", "--data", str(reviews)]
    )
    assert result.exit_code == 0, result.stderr
    assert "toy, folded, exact up to rounding" in result.stdout
    checks = {check.part: check.state for check in verify(tmp_path / "out", data=str(reviews))}
    assert set(checks.values()) == {"ok"}, checks
    assert len(checks) == 5


def test_format_of_another_package_is_compressed_and_rounded(site, monkeypatch, adapter, reviews, tmp_path):
    install(site, monkeypatch, TOY)
    small = rankfold.compress_lora(adapter, tmp_path / "small", rank=1, to="toy", data=str(reviews))
    exact = rankfold.export_lora(adapter, tmp_path / "exact", to="toy", dtype="bf16", data=str(reviews))
    assert small.rank == 1
    assert not small.is_exact
    assert 1e-4 < exact.worst_written.written < 1e-2 < small.worst_written.written


def test_format_that_writes_something_else_is_refused(site, monkeypatch, adapter, reviews, tmp_path):
    install(site, monkeypatch, TOY.replace("weight += update", "weight -= update"))
    with pytest.raises(NotExactError, match="gives other logits"):
        rankfold.export_lora(adapter, tmp_path / "out", to="toy", data=str(reviews))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("source", ["FORMAT = 'toy'", "raise RuntimeError('broken')"])
def test_broken_format_of_another_package_is_left_out(site, monkeypatch, source):
    install(site, monkeypatch, source)
    with pytest.warns(rankfold.RankfoldWarning, match="the export format 'toy' of rankfold_toy:FORMAT"):
        assert find_format("lora").name == "lora"


def test_second_format_of_a_name_is_refused(site, monkeypatch):
    install(site, monkeypatch, TOY.replace('"toy"', '"lora"'))
    with pytest.raises(SpecError, match="two export formats are named 'lora'; rename one"):
        discover_formats()


@pytest.mark.parametrize("form", ["packed", "record"])
def test_adapter_is_exported_from_every_form_to_the_same_files(form, adapter, reviews, tmp_path):
    if form == "packed":
        location = tmp_path / "adapter.rf"
        rankfold.pack_adapter(adapter, location)
    else:
        with rankfold.AdapterStore(tmp_path / "store.db") as store:
            store.put("a", adapter)
        location = f"{tmp_path / 'store.db'}#a"
    expected = rankfold.export_lora(adapter, tmp_path / "expected", data=str(reviews))
    certificate = rankfold.export_lora(location, tmp_path / "out", data=str(reviews))
    assert certificate.result == expected.result
    assert certificate.adapter.sha256 == expected.adapter.sha256
    assert certificate.logits == expected.logits
    checks = verify(tmp_path / "out", data=str(reviews))
    assert {check.state for check in checks} == {"ok"}
    (tmp_path / ("adapter.rf" if form == "packed" else "store.db")).unlink()
    assert [check.state for check in verify(tmp_path / "out")] == ["ok", *["skipped"] * 4]
