"""Stand-ins for training that other processes can be given, and the runs that ask for them."""

import os
import signal
import time
import warnings
from dataclasses import replace

from rankfold.bench.executors.processes import Processes
from rankfold.errors import RankfoldWarning, SpecError
from rankfold.runs.request import RunRequest
from tests.support.records import Trainer


def work(request, *, progress=None):
    """Do what the option `end` says, in the process this is called in, and then the run."""
    if progress is not None:
        progress.start(2, "training")
        progress.advance(1, loss=0.5)
    if end := request.options.get("end"):
        _ENDS[end](request)
    return Trainer()(request, progress=progress)


def _killed(_request):
    os.kill(os.getpid(), signal.SIGKILL)


def _refused(_request):
    raise SpecError("r is 0; give a number above 0.")


def _odd(_request):
    raise _OddError(1, 2)


def _environment(_request):
    raise SpecError(os.environ.get("RANKFOLD_OF_A_TEST", "unset"))


def _waiting(_request):
    raise SpecError(os.environ.get("OMP_WAIT_POLICY", "unset"))


def _endless(request):
    (request.out.parent / f"{request.out.name}.pid").write_text(str(os.getpid()))
    while True:
        time.sleep(0.01)


def _warning(_request):
    warnings.warn("k=8 saves nothing", RankfoldWarning, stacklevel=1)
    warnings.warn(_OddWarning("of a library"), stacklevel=1)


_ENDS = {
    "killed": _killed,
    "refused": _refused,
    "odd": _odd,
    "environment": _environment,
    "waiting": _waiting,
    "endless": _endless,
    "warning": _warning,
}


class _OddError(Exception):
    """Cannot be sent to another process as it is."""

    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")


class _OddWarning(UserWarning):
    """Of a library that another process may not have."""


def requests(folder, *methods):
    return [
        RunRequest(model="minilm", method=method, steps=2, seed=seed, out=folder / f"run{seed}")
        for seed, method in enumerate(methods)
    ]


def ending(folder, *ends):
    """Runs that end as `work` is told; None is a run that is done."""
    asked = requests(folder, *("lora" for _ in ends))
    return [replace(each, options={"end": end} if end else {}) for each, end in zip(asked, ends, strict=True)]


def processes(jobs, preload=work.__module__):
    """Processes that import no more than `work` needs, unless it is the importing that matters."""
    return Processes(jobs, work, preload)


def begin_endless(folder, *preload):
    list(processes(1, *preload).execute(ending(folder, "endless"), Quiet))


class Quiet:
    """Hears nothing."""

    def start(self, total, description):
        """Do nothing."""

    def advance(self, done, **fields):
        """Do nothing."""

    def finish(self):
        """Do nothing."""
