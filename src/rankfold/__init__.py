"""rankfold: low-rank adaptation, factored further.

One composable adapter on top of Hugging Face PEFT. Importing this package is free: it loads neither torch nor
peft nor transformers, and as soon as peft is there, imported before or after, rankfold's methods are among
its own.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rankfold._bootstrap import register_with_peft_when_imported

if TYPE_CHECKING:
    from rankfold.adapter.count import ParameterCount as ParameterCount
    from rankfold.adapter.count import count_parameters as count_parameters
    from rankfold.adapter.spec import AdapterSpec as AdapterSpec
    from rankfold.errors import AdapterFileError as AdapterFileError
    from rankfold.errors import DataError as DataError
    from rankfold.errors import RankfoldError as RankfoldError
    from rankfold.errors import RankfoldWarning as RankfoldWarning
    from rankfold.errors import SpecError as SpecError
    from rankfold.errors import TrainingError as TrainingError
    from rankfold.factors import DenseSpec as DenseSpec
    from rankfold.factors import DiagonalSpec as DiagonalSpec
    from rankfold.factors import RelaySpec as RelaySpec
    from rankfold.factors import SeededSpec as SeededSpec
    from rankfold.peft_plugin.config import RankfoldConfig as RankfoldConfig
    from rankfold.peft_plugin.config import config as config
    from rankfold.train.reducer import Reducer as Reducer
    from rankfold.train.reducer_spec import ReducerSpec as ReducerSpec

__version__ = "0.1.0"

_HOMES = {
    "AdapterFileError": "rankfold.errors",
    "AdapterSpec": "rankfold.adapter.spec",
    "DataError": "rankfold.errors",
    "DenseSpec": "rankfold.factors",
    "DiagonalSpec": "rankfold.factors",
    "ParameterCount": "rankfold.adapter.count",
    "RankfoldConfig": "rankfold.peft_plugin.config",
    "RankfoldError": "rankfold.errors",
    "RankfoldWarning": "rankfold.errors",
    "Reducer": "rankfold.train.reducer",
    "ReducerSpec": "rankfold.train.reducer_spec",
    "RelaySpec": "rankfold.factors",
    "SeededSpec": "rankfold.factors",
    "SpecError": "rankfold.errors",
    "TrainingError": "rankfold.errors",
    "config": "rankfold.peft_plugin.config",
    "count_parameters": "rankfold.adapter.count",
}

__all__ = [
    "AdapterFileError",
    "AdapterSpec",
    "DataError",
    "DenseSpec",
    "DiagonalSpec",
    "ParameterCount",
    "RankfoldConfig",
    "RankfoldError",
    "RankfoldWarning",
    "Reducer",
    "ReducerSpec",
    "RelaySpec",
    "SeededSpec",
    "SpecError",
    "TrainingError",
    "__version__",
    "config",
    "count_parameters",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'rankfold' has no attribute '{name}'")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names."""
    return sorted(__all__)


register_with_peft_when_imported()
