"""PEFT knows our method whoever is imported first, and even if nobody imports us."""

import os
import subprocess
import sys
from importlib.metadata import entry_points, version

import peft
import pytest
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

from rankfold import RankfoldConfig
from rankfold._bootstrap import register_with_peft_when_imported
from rankfold.peft_plugin.model import register
from tests.conftest import ROOT
from tests.integration.models import adapted, bert, config_of

TABLES = (PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING)
OLDEST_PEFT = "0.21.0"


def run(*arguments: str, path: str = "", **environment: str) -> str:
    """Run Python on its own and return its output."""
    folders = os.pathsep.join(filter(None, [path, os.environ.get("PYTHONPATH", ""), str(ROOT)]))
    finished = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": folders, **environment},
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_registering_again_changes_nothing():
    before = [dict(table) for table in TABLES]
    register()
    register_with_peft_when_imported()
    assert [dict(table) for table in TABLES] == before


def test_no_method_of_peft_is_replaced():
    for table in TABLES:
        ours = [key for key in table if key.value == "RANKFOLD"]
        assert len(ours) == 1
        assert all(key is ours[0] or isinstance(key, peft.PeftType) for key in table)


KNOWN = "from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as known; print('RANKFOLD' in known)"


@pytest.mark.parametrize(
    "imports",
    ["import rankfold, peft", "import peft, rankfold", "import rankfold.peft_plugin.model"],
)
def test_method_is_known_whoever_is_imported_first(imports):
    assert run("-c", f"{imports}; {KNOWN}", TORCH_DEVICE_BACKEND_AUTOLOAD="0").strip() == "True"


@pytest.fixture(scope="module")
def saved_dir(tmp_path_factory):
    """A folder with a base model and a folder with its adapter."""
    folder = tmp_path_factory.mktemp("saved")
    base = bert()
    base.save_pretrained(folder / "base")
    base.name_or_path = base.config._name_or_path = str(folder / "base")
    adapted(config_of("relayed_lora"), base).save_pretrained(folder / "adapter")
    return folder


LOADERS = {
    "peft": (
        "from peft import AutoPeftModelForSequenceClassification as auto;"
        "model = auto.from_pretrained(adapter)"
    ),
    "transformers": (
        "from transformers import AutoModelForSequenceClassification as auto;"
        "model = auto.from_pretrained(base);"
        "model.load_adapter(adapter)"
    ),
}


@pytest.mark.parametrize("loader", LOADERS)
def test_adapter_is_loaded_by_programs_that_never_mention_us(saved_dir, loader):
    if not any(entry.name == "rankfold" for entry in entry_points(group="torch.backends")):
        pytest.skip("needs the package to be installed, for its entry point")
    program = (
        f"adapter, base = {str(saved_dir / 'adapter')!r}, {str(saved_dir / 'base')!r}; {LOADERS[loader]};"
        "print(type(model.peft_config['default']).__name__)"
    )
    assert run("-W", "ignore", "-c", program).strip().endswith(RankfoldConfig.__name__)


def test_entry_point_loads_neither_peft_nor_transformers():
    program = (
        "import torch, rankfold._bootstrap as b; b.register_with_peft_when_imported(); import sys;"
        "print(sorted({'peft', 'transformers'} & set(sys.modules)))"
    )
    assert run("-c", program).strip() == "[]"


def test_canary_lives_with_the_installed_peft():
    assert run("-m", "tests.integration.canary").endswith(version("peft"))


def test_canary_lives_with_the_oldest_peft():
    oldest = os.environ.get("RANKFOLD_OLDEST_PEFT")
    if not oldest:
        pytest.skip(f"needs RANKFOLD_OLDEST_PEFT, a folder with peft {OLDEST_PEFT}")
    assert run("-m", "tests.integration.canary", path=oldest).endswith(OLDEST_PEFT)
