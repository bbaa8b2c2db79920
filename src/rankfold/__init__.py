"""rankfold: low-rank adaptation, factored further.

One composable adapter on top of Hugging Face PEFT. Importing this package is free: it loads neither torch nor
peft nor transformers, and as soon as peft is there, imported before or after, rankfold's methods are among
its own.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rankfold._bootstrap import register_with_peft_when_imported

if TYPE_CHECKING:
    from rankfold.adapter.balance import BalanceSpec as BalanceSpec
    from rankfold.adapter.router import RouterSpec as RouterSpec
    from rankfold.adapter.spec import AdapterSpec as AdapterSpec
    from rankfold.errors import AdapterFileError as AdapterFileError
    from rankfold.errors import DataError as DataError
    from rankfold.errors import NotExactError as NotExactError
    from rankfold.errors import RankfoldError as RankfoldError
    from rankfold.errors import RankfoldWarning as RankfoldWarning
    from rankfold.errors import SpecError as SpecError
    from rankfold.errors import StoreError as StoreError
    from rankfold.errors import ThreadError as ThreadError
    from rankfold.errors import TrainingError as TrainingError
    from rankfold.export.certificate import Certificate as Certificate
    from rankfold.export.export import compress_lora as compress_lora
    from rankfold.export.export import export_lora as export_lora
    from rankfold.factors import BasisSpec as BasisSpec
    from rankfold.factors import DenseSpec as DenseSpec
    from rankfold.factors import DiagonalSpec as DiagonalSpec
    from rankfold.factors import LowRankSpec as LowRankSpec
    from rankfold.factors import RelaySpec as RelaySpec
    from rankfold.factors import SeededSpec as SeededSpec
    from rankfold.factors import SvdSpec as SvdSpec
    from rankfold.peft_plugin.combine import rescale_adapter_scale as rescale_adapter_scale
    from rankfold.peft_plugin.config import RankfoldConfig as RankfoldConfig
    from rankfold.peft_plugin.config import config as config
    from rankfold.peft_plugin.count import ParameterCount as ParameterCount
    from rankfold.peft_plugin.count import count_parameters as count_parameters
    from rankfold.runs.adapted import AdaptedModel as AdaptedModel
    from rankfold.runs.adapted import load as load
    from rankfold.runs.push import push_adapter as push_adapter
    from rankfold.runs.rounding import pack_adapter as pack_adapter
    from rankfold.runs.rounding import save as save
    from rankfold.serve.bank import Bank as Bank
    from rankfold.serve.session import Session as Session
    from rankfold.store.adapter import SavedAdapter as SavedAdapter
    from rankfold.store.loading import hotswap_adapter as hotswap_adapter
    from rankfold.store.record import Record as Record
    from rankfold.store.saved import Packed as Packed
    from rankfold.store.saved import open_adapter as open_adapter
    from rankfold.store.saved import unpack_adapter as unpack_adapter
    from rankfold.store.store import AdapterStore as AdapterStore
    from rankfold.train.auxiliary import AuxiliaryLossMixin as AuxiliaryLossMixin
    from rankfold.train.auxiliary import auxiliary_loss as auxiliary_loss
    from rankfold.train.optimizer import lora_fa_correction as lora_fa_correction
    from rankfold.train.optimizer import optimizer as optimizer
    from rankfold.train.optimizer import parameter_groups as parameter_groups
    from rankfold.train.reducer.reducer import Reducer as Reducer
    from rankfold.train.reducer.spec import ReducerSpec as ReducerSpec
    from rankfold.train.schedule import RateGroup as RateGroup
    from rankfold.train.schedule import RateTable as RateTable

__version__ = "0.1.0"

_HOMES = {
    "AdaptedModel": "rankfold.runs.adapted",
    "AdapterFileError": "rankfold.errors",
    "AdapterSpec": "rankfold.adapter.spec",
    "AdapterStore": "rankfold.store.store",
    "AuxiliaryLossMixin": "rankfold.train.auxiliary",
    "Bank": "rankfold.serve.bank",
    "BalanceSpec": "rankfold.adapter.balance",
    "BasisSpec": "rankfold.factors",
    "Certificate": "rankfold.export.certificate",
    "DataError": "rankfold.errors",
    "DenseSpec": "rankfold.factors",
    "DiagonalSpec": "rankfold.factors",
    "LowRankSpec": "rankfold.factors",
    "NotExactError": "rankfold.errors",
    "Packed": "rankfold.store.saved",
    "ParameterCount": "rankfold.peft_plugin.count",
    "RankfoldConfig": "rankfold.peft_plugin.config",
    "RankfoldError": "rankfold.errors",
    "RankfoldWarning": "rankfold.errors",
    "RateGroup": "rankfold.train.schedule",
    "RateTable": "rankfold.train.schedule",
    "Record": "rankfold.store.record",
    "Reducer": "rankfold.train.reducer.reducer",
    "ReducerSpec": "rankfold.train.reducer.spec",
    "RelaySpec": "rankfold.factors",
    "RouterSpec": "rankfold.adapter.router",
    "SavedAdapter": "rankfold.store.adapter",
    "SeededSpec": "rankfold.factors",
    "Session": "rankfold.serve.session",
    "SpecError": "rankfold.errors",
    "StoreError": "rankfold.errors",
    "SvdSpec": "rankfold.factors",
    "ThreadError": "rankfold.errors",
    "TrainingError": "rankfold.errors",
    "auxiliary_loss": "rankfold.train.auxiliary",
    "compress_lora": "rankfold.export.export",
    "config": "rankfold.peft_plugin.config",
    "count_parameters": "rankfold.peft_plugin.count",
    "export_lora": "rankfold.export.export",
    "hotswap_adapter": "rankfold.store.loading",
    "load": "rankfold.runs.adapted",
    "lora_fa_correction": "rankfold.train.optimizer",
    "open_adapter": "rankfold.store.saved",
    "optimizer": "rankfold.train.optimizer",
    "pack_adapter": "rankfold.runs.rounding",
    "parameter_groups": "rankfold.train.optimizer",
    "rescale_adapter_scale": "rankfold.peft_plugin.combine",
    "push_adapter": "rankfold.runs.push",
    "save": "rankfold.runs.rounding",
    "unpack_adapter": "rankfold.store.saved",
}

__all__ = [
    "AdaptedModel",
    "AdapterFileError",
    "AdapterSpec",
    "AdapterStore",
    "AuxiliaryLossMixin",
    "BalanceSpec",
    "Bank",
    "BasisSpec",
    "Certificate",
    "DataError",
    "DenseSpec",
    "DiagonalSpec",
    "LowRankSpec",
    "NotExactError",
    "Packed",
    "ParameterCount",
    "RankfoldConfig",
    "RankfoldError",
    "RankfoldWarning",
    "RateGroup",
    "RateTable",
    "Record",
    "Reducer",
    "ReducerSpec",
    "RelaySpec",
    "RouterSpec",
    "SavedAdapter",
    "SeededSpec",
    "Session",
    "SpecError",
    "StoreError",
    "SvdSpec",
    "ThreadError",
    "TrainingError",
    "__version__",
    "auxiliary_loss",
    "compress_lora",
    "config",
    "count_parameters",
    "export_lora",
    "hotswap_adapter",
    "load",
    "lora_fa_correction",
    "open_adapter",
    "optimizer",
    "pack_adapter",
    "parameter_groups",
    "push_adapter",
    "rescale_adapter_scale",
    "save",
    "unpack_adapter",
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
