"""Checks of a request that need neither torch nor the network: names, files, folders and threads.

Importing everything that trains takes seconds; a mistake that can be seen without is answered before.
"""

import ast
import os
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

from rankfold.errors import AdapterFileError, SpecError, unknown_name
from rankfold.files import check_writable
from rankfold.models.names import check_model_name
from rankfold.plugins import file_names
from rankfold.runs.output import check_output
from rankfold.runs.request import FULL_NAME, HEAD_ONLY_NAME, LOGGERS, PEFT_PREFIX, RunRequest
from rankfold.tasks.data.read import find_source
from rankfold.tasks.registry import check_named
from rankfold.train.schedule import QUANTISED_OPTIMIZERS

_THREADS_PER_CORE = 16
_DATA_PACKAGES = ("pyarrow", "sklearn")
"""The packages of the extra `bench` that read, split and score data."""


def check_request(request: RunRequest, *, writes: bool = True) -> None:
    """Check the names, files and folders of a run before anything that trains is imported.

    Args:
        request: The run.
        writes: Whether the run's folder will be written; if not, it may exist.

    Raises:
        SpecError: If the method, the model or the task is unknown, nothing can be written, or there are too
            many threads.
        DataError: If there is no data of that name.
        AdapterFileError: If there is no adapter to begin with.
        OutputExistsError: If the folder exists and may not be replaced.
    """
    check_method_name(request.method)
    check_threads(request.threads)
    check_packages(request)
    if not writes:
        check_writable(request.out)
    elif request.resume and not request.overwrite:
        return  # a finished run is returned, also where its data or its model is gone
    else:
        check_output(request.out, overwrite=request.overwrite)
    check_model_name(request.model)
    if request.init_from is not None:
        check_adapter_exists(request.init_from)
    if request.data is None:
        check_named(request.task_request)
    else:
        find_source(request.data)


def check_adapter_exists(location: str) -> None:
    """Refuse an adapter of which there is neither a folder, nor a file, nor a store.

    Raises:
        AdapterFileError: If there is nothing of that name.
    """
    file, sign, _ = location.rpartition("#")
    if not Path(location).exists() and not (sign and Path(file).is_file()):
        raise AdapterFileError(
            f"there is no adapter '{location}'; name a folder, a packed file, or a record as STORE#NAME."
        )


def check_threads(threads: int | None) -> None:
    """Refuse a number of threads that would bring the machine down.

    Raises:
        SpecError: If there are many more than the machine has cores.
    """
    most = _THREADS_PER_CORE * (os.cpu_count() or 1)
    if threads is not None and threads > most:
        raise SpecError(
            f"threads is {threads}, and this machine has {os.cpu_count()} cores; give at most {most}."
        )


def check_packages(request: RunRequest) -> None:
    """Refuse a training, or options of it, whose packages are not installed.

    Raises:
        SpecError: If one is missing, with the command that installs it.
    """
    check_data_packages("training")
    quantises = request.quantise is not None
    has_torchao = request.quantise == "8bit" and find_spec("torchao") is not None
    if find_spec("bitsandbytes") is None and (
        (quantises and not has_torchao) or request.optimizer in QUANTISED_OPTIMIZERS
    ):
        option = f"--quantise {request.quantise}" if quantises else f"--optimizer {request.optimizer}"
        raise SpecError(
            f"{option} takes the package 'bitsandbytes'; install it with `pip install 'rankfold[quantise]'`."
        )
    for logger in request.loggers:
        package = LOGGERS[logger]
        if find_spec(package) is None:
            raise SpecError(
                f"--report-to {logger} takes the package '{package}'; "
                f"install it with `pip install {package}`."
            )


def check_data_packages(work: str) -> None:
    """Check that the packages that read and score data are installed.

    Args:
        work: The work, for the message, such as "training".

    Raises:
        SpecError: If a package is missing, with the command that installs it.
    """
    for package in _DATA_PACKAGES:
        if find_spec(package) is None:
            raise SpecError(
                f"{work} takes the package '{package}', which is not installed; "
                "install it with `pip install 'rankfold[bench,report]'`."
            )


def check_method_name(name: str) -> None:
    """Refuse a name that no method has.

    Raises:
        SpecError: If there is no such method, with the nearest name.
    """
    if name.startswith(PEFT_PREFIX):
        peft_names = _peft_names()
        if peft_names and name not in peft_names:
            raise unknown_name("method", name, peft_names)
    elif name not in (HEAD_ONLY_NAME, FULL_NAME):
        check_preset_name(name)


def check_preset_name(name: str) -> None:
    """Refuse a name that no preset has; without loading those of other packages, if there are any.

    Raises:
        SpecError: If there is no such preset, with the nearest name.
    """
    presets = file_names("rankfold.presets")
    if name not in presets and not entry_points(group="rankfold.presets"):
        raise unknown_name("method", name, presets)


def _peft_names() -> set[str]:
    """Return the names of PEFT's methods as its source declares them; none if they are declared elsewhere.

    PEFT itself takes seconds to import.
    """
    spec = find_spec("peft")
    folders = [] if spec is None else spec.submodule_search_locations or []
    files = [path for folder in folders if (path := Path(folder) / "utils" / "peft_types.py").is_file()]
    classes = (node for file in files for node in ast.parse(file.read_text("utf-8")).body)
    return {
        f"{PEFT_PREFIX}{item.value.value.lower()}"
        for node in classes
        if isinstance(node, ast.ClassDef) and node.name == "PeftType"
        for item in node.body
        if isinstance(item, ast.Assign)
        and isinstance(item.value, ast.Constant)
        and isinstance(item.value.value, str)
    }
