"""Making rankfold known to PEFT, whichever is imported first, and even if rankfold is not imported at all.

Here alone a package is imported by one below it, by name, when it is needed.

PEFT has no plugin hook: it finds methods in tables that are filled while it is imported. So registration
waits for that import. The package also declares `register_with_peft_when_imported` as an entry point that
torch calls when it is imported (group `torch.backends`), so that `PeftModel.from_pretrained` finds a saved
adapter's method in a program that never mentions rankfold. `TORCH_DEVICE_BACKEND_AUTOLOAD=0` turns that off.
"""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from types import ModuleType
from typing import Any

import wrapt


def register_with_peft_when_imported() -> None:
    """Register rankfold's methods now if peft is imported, or as soon as it is."""
    # All that the plugin needs of PEFT is there once its tuners are. Waiting for `peft` itself would not do:
    # where PEFT's import is what loads torch, and torch calls us, `peft` is imported already, but empty.
    wrapt.register_post_import_hook(_register, "peft.tuners")


def lazy_names(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Return the `__getattr__` of a package that imports its public names when they are first used.

    Args:
        package: The package's name.
        homes: The names, with spaces between them, by the module that has them.
    """
    home_of = {name: home for home, names in homes.items() for name in names.split()}

    def get_name(name: str) -> Any:
        if name not in home_of:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        value = getattr(import_module(home_of[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    return get_name


def basis_files() -> Any:
    """Return the module that reads the files of learned bases, for factors that refer to one."""
    return import_module("rankfold.store.basis")


def _register(_tuners: ModuleType) -> None:
    import_module("rankfold.peft_plugin.model").register()
