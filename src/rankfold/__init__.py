"""rankfold: low-rank adaptation, factored further.

One composable adapter on top of Hugging Face PEFT. Importing this package is free: it loads neither torch nor
peft nor transformers, and as soon as peft is there, imported before or after, rankfold's methods are among
its own.
"""

from typing import TYPE_CHECKING

from rankfold._bootstrap import lazy_names, register_with_peft_when_imported

if TYPE_CHECKING:
    from rankfold.adapter.balance import BalanceSpec
    from rankfold.adapter.router import RouterSpec
    from rankfold.adapter.spec import AdapterSpec
    from rankfold.errors import (
        AdapterFileError,
        DataError,
        NotExactError,
        RankfoldError,
        RankfoldWarning,
        SpecError,
        StoreError,
        ThreadError,
        TrainingError,
    )
    from rankfold.export.certificate import Certificate
    from rankfold.export.export import compress_lora, export_lora
    from rankfold.factors import (
        BasisSpec,
        DenseSpec,
        DiagonalSpec,
        LowRankSpec,
        RelaySpec,
        SeededSpec,
        SvdSpec,
    )
    from rankfold.peft_plugin.combine import rescale_adapter_scale
    from rankfold.peft_plugin.config import RankfoldConfig, config
    from rankfold.peft_plugin.count import ParameterCount, count_parameters
    from rankfold.runs.adapted import AdaptedModel, load
    from rankfold.runs.push import push_adapter
    from rankfold.runs.rounding import pack_adapter, save
    from rankfold.serve.bank import Bank
    from rankfold.serve.session import Session
    from rankfold.store.adapter import SavedAdapter
    from rankfold.store.loading import hotswap_adapter
    from rankfold.store.record import Record
    from rankfold.store.saved import Packed, open_adapter, unpack_adapter
    from rankfold.store.store import AdapterStore
    from rankfold.train.auxiliary import AuxiliaryLossMixin, auxiliary_loss
    from rankfold.train.optimizer import lora_fa_correction, optimizer, parameter_groups
    from rankfold.train.reducer.reducer import Reducer
    from rankfold.train.reducer.spec import ReducerSpec
    from rankfold.train.schedule import RateGroup, RateTable

__version__ = "0.1.0"

_HOMES = {
    "rankfold.adapter.balance": "BalanceSpec",
    "rankfold.adapter.router": "RouterSpec",
    "rankfold.adapter.spec": "AdapterSpec",
    "rankfold.errors": (
        "AdapterFileError DataError NotExactError RankfoldError RankfoldWarning SpecError StoreError "
        "ThreadError TrainingError"
    ),
    "rankfold.export.certificate": "Certificate",
    "rankfold.export.export": "compress_lora export_lora",
    "rankfold.factors": "BasisSpec DenseSpec DiagonalSpec LowRankSpec RelaySpec SeededSpec SvdSpec",
    "rankfold.peft_plugin.combine": "rescale_adapter_scale",
    "rankfold.peft_plugin.config": "RankfoldConfig config",
    "rankfold.peft_plugin.count": "ParameterCount count_parameters",
    "rankfold.runs.adapted": "AdaptedModel load",
    "rankfold.runs.push": "push_adapter",
    "rankfold.runs.rounding": "pack_adapter save",
    "rankfold.serve.bank": "Bank",
    "rankfold.serve.session": "Session",
    "rankfold.store.adapter": "SavedAdapter",
    "rankfold.store.loading": "hotswap_adapter",
    "rankfold.store.record": "Record",
    "rankfold.store.saved": "Packed open_adapter unpack_adapter",
    "rankfold.store.store": "AdapterStore",
    "rankfold.train.auxiliary": "AuxiliaryLossMixin auxiliary_loss",
    "rankfold.train.optimizer": "lora_fa_correction optimizer parameter_groups",
    "rankfold.train.reducer.reducer": "Reducer",
    "rankfold.train.reducer.spec": "ReducerSpec",
    "rankfold.train.schedule": "RateGroup RateTable",
}
"""The public names by the module that each is imported from when it is first used."""

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

__getattr__ = lazy_names(__name__, _HOMES)


def __dir__() -> list[str]:
    """List the public names."""
    return sorted(__all__)


register_with_peft_when_imported()
