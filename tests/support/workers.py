"""Stand-ins for training that other processes can be given."""

import os
import signal
import time

from rankfold.errors import SpecError
from tests.support.records import Trainer


def work(request, *, progress=None):
    """Do what the option `end` says, in the process this is called in; without it the run is done."""
    if progress is not None:
        progress.start(2, "training")
        progress.advance(1, loss=0.5)
    match request.options.get("end"):
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "refused":
            raise SpecError("r is 0; give a number above 0.")
        case "odd":
            raise _OddError(1, 2)
        case "environment":
            raise SpecError(os.environ.get("RANKFOLD_OF_A_TEST", "unset"))
        case "endless":
            (request.out.parent / f"{request.out.name}.pid").write_text(str(os.getpid()))
            while True:
                time.sleep(0.01)
        case _:
            return Trainer()(request, progress=progress)


class _OddError(Exception):
    """Cannot be sent to another process as it is."""

    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")
