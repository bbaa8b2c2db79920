"""Runs on a Ray cluster whose machines share the folders of the runs and of the data."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, final

from rankfold.bench.executors.base import OPENMP_WAITING, FinishedRun, Run, picklable_error, run_request
from rankfold.errors import SpecError, TrainingError
from rankfold.progress import Progress
from rankfold.runs.record import RunRecord
from rankfold.runs.request import RunRequest
from rankfold.tasks.registry import DATA_ROOT


@final
class Cluster:
    """A Ray cluster: that of `RAY_ADDRESS`, or a new one of this machine.

    Args:
        jobs: How many runs at once; as many as the cluster has processors for if None.
        threads: Processors of a run.
        run_one: Does one run; can be pickled.

    Raises:
        SpecError: If Ray is not installed or its cluster cannot be reached.
    """

    def __init__(self, jobs: int | None = None, *, threads: int = 1, run_one: Run = run_request) -> None:
        try:
            import ray
        except ImportError as error:
            raise SpecError(
                "ray is not installed; install rankfold[ray], or use --executor local."
            ) from error
        self._ray: Any = ray
        self._threads, self._run_one = threads, run_one
        inherited = {name: os.environ[name] for name in (DATA_ROOT, *OPENMP_WAITING) if name in os.environ}
        variables = {**OPENMP_WAITING, **inherited}
        if not ray.is_initialized():
            try:
                self._ray.init(
                    log_to_driver=False, include_dashboard=False, runtime_env={"env_vars": variables}
                )
            except (ConnectionError, RuntimeError) as error:
                raise SpecError(f"the Ray cluster cannot be reached ({error}); check RAY_ADDRESS.") from error
        self.jobs: int = jobs or max(1, int(self._ray.cluster_resources().get("CPU", 1)) // threads)

    def execute(
        self, requests: Sequence[RunRequest], new_progress: Callable[[], Progress]
    ) -> Iterator[FinishedRun]:
        """Execute runs; those under way are stopped with the caller, and can be resumed."""
        # A process for each run: what one leaves behind reaches no other.
        task = self._ray.remote(num_cpus=self._threads, max_calls=1, max_retries=0)(_work)
        pending = list(reversed(requests))
        running: dict[Any, RunRequest] = {}
        try:
            while pending or running:
                while pending and len(running) < self.jobs:
                    request = pending.pop()
                    # Of a rung, say; a machine that does not see it shares no storage with this one.
                    request.out.parent.mkdir(parents=True, exist_ok=True)
                    task_ref = task.remote(self._run_one, request, self._threads, str(Path.cwd()))
                    running[task_ref] = request
                (finished_ref, *_), _ = self._ray.wait(list(running), num_returns=1)
                yield self._collect(finished_ref, running.pop(finished_ref))
        finally:
            for task_ref in running:
                self._ray.cancel(task_ref, force=True)

    def _collect(self, task_ref: Any, request: RunRequest) -> FinishedRun:
        try:
            return FinishedRun(request, *self._ray.get(task_ref))
        except self._ray.exceptions.RayError as error:
            # Ray's first sentence says what happened, and the next ones what to look at.
            reason = (
                (str(error).strip() or type(error).__name__).splitlines()[0].partition(". ")[0].rstrip(".")
            )
            message = f"the run's process on the cluster was lost ({reason}); run the suite again to go on."
            return FinishedRun(request, None, TrainingError(message))


def _work(
    run_one: Run, request: RunRequest, threads: int, folder: str
) -> tuple[RunRecord | None, Exception | None]:
    """Do one run on a machine of the cluster."""
    import torch

    torch.set_num_threads(threads)
    try:
        _check_shared(Path(folder) / request.out.parent)
        os.chdir(folder)
        return run_one(request), None
    except Exception as error:  # told to the caller, who makes a row of it
        return None, picklable_error(error)


def _check_shared(folder: Path) -> None:
    if not folder.is_dir():
        raise SpecError(
            f"a machine of the cluster does not see '{folder}'; give an --out on storage that all share."
        )
