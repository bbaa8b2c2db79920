"""A folder of two kilobytes cannot make an export draw more numbers than a stated bound."""

import json
import time

import pytest

from rankfold.errors import AdapterFileError
from rankfold.export.export import ExportRequest, export
from rankfold.export.verify import verify
from rankfold.store.saved import open_adapter
from tests.support.adapters import edit_json, save_adapter
from tests.support.tiny_models import tiny_bert

__all__ = ["tiny_bert"]

QUERY = "bert.encoder.layer.{{0-{}}}.attention.self.query"
HOSTILE = {
    "one huge layer": {"linear 99999999 -> 99999999": [QUERY.format(0)]},
    "many large layers": {"linear 999999 -> 999999": [QUERY.format(399)]},
    "a huge table": {"embedding 99999999 -> 8": [QUERY.format(0)]},
    "a huge convolution": {"conv2d 99999 -> 9 kernel 999x999": [QUERY.format(0)]},
}


@pytest.mark.filterwarnings("ignore:r=:rankfold.RankfoldWarning")
@pytest.mark.parametrize("method", ["tlora", "lora_fa", "relayed_lora"])
@pytest.mark.parametrize("layers", HOSTILE.values(), ids=HOSTILE)
def test_sizes_that_the_file_does_not_hold_are_refused_at_once(tiny_bert, tmp_path, method, layers):
    adapter = save_adapter(tmp_path / "adapter", tiny_bert, method)
    edit_json(adapter / "adapter_config.json", layers=layers)
    began = time.process_time()
    with pytest.raises(AdapterFileError, match="numbers that its file does not hold"):
        export(ExportRequest(adapter=adapter, out=tmp_path / "out"))
    assert time.process_time() - began < 5
    assert not (tmp_path / "out").exists()


def test_check_of_an_export_is_bounded_too(tiny_bert, tmp_path):
    adapter = save_adapter(tmp_path / "adapter", tiny_bert)
    export(ExportRequest(adapter=adapter, out=tmp_path / "out"))
    edit_json(adapter / "adapter_config.json", layers=HOSTILE["one huge layer"])
    # Whoever makes such a folder gives it the hashes that go with it.
    certificate = json.loads((tmp_path / "out" / "certificate.json").read_text("utf-8"))
    adapter_part = certificate["adapter"] | {"sha256": open_adapter(adapter).sha256()}
    edit_json(tmp_path / "out" / "certificate.json", adapter=adapter_part)
    with pytest.raises(AdapterFileError, match="numbers that its file does not hold"):
        verify(tmp_path / "out", adapter=adapter)
