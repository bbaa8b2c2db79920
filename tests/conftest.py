"""What every test shares: no network, one thread, reproducible draws, and where outside data lies.

The environment is set before anything imports a Hugging Face library, because they read it on import.
"""

import gc
import os
from pathlib import Path

os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_DATASETS_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    NO_COLOR="1",
    COLUMNS="100",
)

import jaxtyping
import pytest
import torch
from hypothesis import HealthCheck, settings

from tests import shape_checker

ROOT = Path(__file__).resolve().parents[1]
SHARED_DATA = ROOT.parent / "shared" / "data"

# Shapes are checked wherever they are annotated; outside the tests this costs nothing.
jaxtyping.install_import_hook(
    ["rankfold.factors", "rankfold.adapter", "rankfold.export"], f"{shape_checker.__name__}.check"
)

torch.set_num_threads(1)

settings.register_profile("laptop", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", parent=settings.get_profile("laptop"), derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "laptop")


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's folder."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the project, which a source archive does not bring along."""
    if not SHARED_DATA.is_dir():
        pytest.skip("needs the folder '../shared/data' beside the project")
    return SHARED_DATA


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A cache folder for the whole run, one for all workers: converting a model is slow and done once."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "rankfold-cache"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session", autouse=True)
def use_shared_cache(shared_cache: Path):
    """Keep the tests out of the user's own cache, in this process and in the ones it starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RANKFOLD_CACHE", str(shared_cache))
        patch.setenv("RANKFOLD_HOME", str(shared_cache / "home"))
        yield


@pytest.fixture(scope="session", autouse=True)
def leave_disk_alone():
    """Let no file wait for the disk: no test cuts the power."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rankfold.files.flush", lambda _: None)
        yield


@pytest.fixture(scope="module", autouse=True)
def freeze_objects():
    """Spare the garbage collector, which every training and every verdict calls, all that is there."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def without_charts(monkeypatch: pytest.MonkeyPatch):
    """Write pages of results without their charts, which take most of the time of a comparison in a test."""
    monkeypatch.setattr("rankfold.report.sections.study_figures", lambda *_: [])


@pytest.fixture
def unchecked_shapes():
    """Leave shapes unchecked: torch.compile would trace the checks too."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
