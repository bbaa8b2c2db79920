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
from tests.integration import canary
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


FORKS = """
import os, sys, torch, transformers.modeling_utils, transformers.models.auto
assert not {"peft", "rankfold.peft_plugin"} & set(sys.modules)
for program in sys.argv[1:]:
    child = os.fork()
    if not child:
        exec(program, {})
        sys.stdout.flush()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, program
"""


def run_forked(*programs: str, **environment: str) -> list[str]:
    """Run programs, each in a fork of one Python that has imported torch but not us; return their lines."""
    return run("-W", "ignore", "-c", FORKS, *programs, **environment).split()


def test_method_is_known_whoever_is_imported_first():
    known = "from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as known; print('RANKFOLD' in known)"
    imports = ["import rankfold, peft", "import peft, rankfold", "import rankfold.peft_plugin.model"]
    programs = [f"{each}; {known}" for each in imports]
    assert run_forked(*programs, TORCH_DEVICE_BACKEND_AUTOLOAD="0") == ["True"] * 3


@pytest.fixture(scope="module")
def saved_dir(tmp_path_factory):
    """A folder with a base model and a folder with its adapter."""
    folder = tmp_path_factory.mktemp("saved")
    base = bert()
    base.save_pretrained(folder / "base")
    base.name_or_path = base.config._name_or_path = str(folder / "base")
    adapted(config_of("relayed_lora"), base).save_pretrained(folder / "adapter")
    return folder


LOADERS = (
    "from peft import AutoPeftModelForSequenceClassification as auto; model = auto.from_pretrained(adapter)",
    "from transformers import AutoModelForSequenceClassification as auto; "
    "model = auto.from_pretrained(base); model.load_adapter(adapter)",
)


def test_adapter_is_loaded_by_programs_that_never_mention_us(saved_dir):
    if not any(entry.name == "rankfold" for entry in entry_points(group="torch.backends")):
        pytest.skip("needs the package to be installed, for its entry point")
    folders = f"adapter, base = {str(saved_dir / 'adapter')!r}, {str(saved_dir / 'base')!r}"
    name = "print(type(model.peft_config['default']).__name__)"
    programs = [f"{folders}; {loader}; {name}" for loader in LOADERS]
    assert run_forked(*programs) == [RankfoldConfig.__name__] * 2


def test_entry_point_loads_neither_peft_nor_transformers():
    program = (
        "import torch, rankfold._bootstrap as b; b.register_with_peft_when_imported(); import sys;"
        "print(sorted({'peft', 'transformers'} & set(sys.modules)))"
    )
    assert run("-c", program).strip() == "[]"


def test_canary_lives_with_the_installed_peft(capsys):
    canary.main()
    assert capsys.readouterr().out.endswith(version("peft"))


def test_canary_lives_with_the_oldest_peft():
    oldest = os.environ.get("RANKFOLD_OLDEST_PEFT")
    if not oldest:
        pytest.skip(f"needs RANKFOLD_OLDEST_PEFT, a folder with peft {OLDEST_PEFT}")
    assert run("-m", "tests.integration.canary", path=oldest).endswith(OLDEST_PEFT)
