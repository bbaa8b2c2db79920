"""A disk that is full is an error with the name of the file and the remedy, and leaves nothing behind."""

import os
import sys

import pytest
from click.testing import CliRunner

from rankfold.cli.main import cli
from tests.support.adapters import save_adapter
from tests.support.tiny_models import write_llama

if sys.platform == "win32":
    pytest.skip("needs limits on the size of files", allow_module_level=True)

import resource

pytestmark = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("full")
    write_llama(folder / "llama")
    save_adapter(folder / "adapter", folder / "llama", "lora")
    return folder


@pytest.mark.parametrize("size", [400, 2500])
@pytest.mark.parametrize("to", ["pack", "lora", "merged", "gguf", "store"])
def test_full_disk_is_named_with_the_file(to, size, folder, tmp_path):
    out = tmp_path / "out"
    words = {
        "pack": ["pack", folder / "adapter", out],
        "store": ["store", "put", out, "a", folder / "adapter"],
    }.get(to, ["export", folder / "adapter", out, "--to", to])
    report, writer = os.pipe()
    child = os.fork()
    if not child:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        result = CliRunner().invoke(cli, [str(word) for word in words])
        os.write(writer, (result.stderr.splitlines() or ["nothing"])[-1].encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(report) as content:
        message = content.read()
    assert message.startswith("error: "), message
    assert f"'{out}'" in message
    assert "; " in message
    assert [path.name for path in tmp_path.iterdir()] == []
