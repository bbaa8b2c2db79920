"""Wherever runs are done, the same comes of them, and one that crashes takes nothing with it."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rankfold.bench.executors.base import Inline
from rankfold.bench.suites.runner import run_all, seconds_left
from rankfold.errors import RankfoldWarning, SpecError, TrainingError
from rankfold.runs.record import RunRecord
from tests.support.ray_here import RayHere
from tests.support.records import make_record
from tests.support.workers import Quiet, begin_endless, ending, processes, requests, work

PATIENCE_SECONDS = 240

# Ray's own settings: a lost machine is noticed within seconds, and runs do not wait for the other tests.
RAY_SETTINGS = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_failure_threshold": "3",
    "RAY_worker_niceness": "0",
}


@pytest.fixture(scope="module")
def machines():
    """A cluster of two machines that take runs, and one that does not."""
    pytest.importorskip("ray", reason="the package ray is not installed")
    from ray.cluster_utils import Cluster as Machines

    with pytest.MonkeyPatch.context() as patch:
        for name, value in RAY_SETTINGS.items():
            patch.setenv(name, value)
        machines = Machines(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        for _ in range(2):
            machines.add_node(num_cpus=1)
        yield machines
        machines.shutdown()


@pytest.fixture(scope="module")
def cluster(machines):
    import ray

    from rankfold.bench.executors.cluster import Cluster

    ray.init(address=machines.address, log_to_driver=False)
    yield Cluster(run_one=work)
    ray.shutdown()


@pytest.fixture(params=["inline", "processes", "cluster"])
def executor(request):
    if request.param == "cluster":
        return request.getfixturevalue("cluster")
    return Inline(work) if request.param == "inline" else processes(2)


def test_outcomes_are_the_same_everywhere(executor, tmp_path):
    asked = ending(tmp_path, None, "refused", "odd")
    done, refused, odd = run_all(asked, executor=executor)
    assert done.record.method.name == "lora"
    assert RunRecord.read(done.request.out) == done.record
    assert isinstance(refused.error, SpecError)
    assert str(refused.error) == "r is 0; give a number above 0."
    assert "1 and 2" in str(odd.error)


def test_process_of_a_run_has_the_environment_of_its_beginning(tmp_path, monkeypatch):
    for value in ("one", "two"):
        monkeypatch.setenv("RANKFOLD_OF_A_TEST", value)
        (outcome,) = run_all(ending(tmp_path / value, "environment"), executor=processes(1))
        assert str(outcome.error) == value


def test_threads_of_runs_beside_each_other_sleep_while_they_wait(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    for jobs, chosen, expected in ((2, None, "PASSIVE"), (2, "ACTIVE", "ACTIVE"), (1, None, "unset")):
        if chosen is not None:
            monkeypatch.setenv("OMP_WAIT_POLICY", chosen)
        run_here = ending(tmp_path, "waiting")
        assert [str(run.error) for run in run_all(run_here, executor=processes(jobs))] == [expected]
        assert os.environ.get("OMP_WAIT_POLICY") == chosen
        monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)


def test_warning_of_many_runs_is_shown_once(tmp_path):
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("default")
        run_all(ending(tmp_path, "warning", "warning", None), executor=processes(2))
    assert [(each.category, str(each.message)) for each in shown] == [
        (RankfoldWarning, "k=8 saves nothing"),
        (UserWarning, "of a library"),
    ]


@pytest.mark.parametrize("place", ["processes", "cluster"])
def test_run_whose_process_dies_is_a_failure_and_the_others_go_on(request, tmp_path, place):
    executor = request.getfixturevalue("cluster") if place == "cluster" else processes(2)
    killed, other = run_all(ending(tmp_path, "killed", None), executor=executor)
    assert isinstance(killed.error, TrainingError)
    assert "killed" in str(killed.error) or "lost" in str(killed.error)
    assert other.error is None


def test_run_on_a_machine_that_is_lost_is_a_failure_and_the_others_go_on(machines, cluster, tmp_path):
    def lose_machine():
        file = tmp_path / "run0.pid"
        pid = until(lambda: file.is_file() and file.read_text())
        parent = int(stat_of(pid)[1])
        (machine,) = [
            each for each in machines.worker_nodes if each.all_processes["raylet"][0].process.pid == parent
        ]
        machines.remove_node(machine, allow_graceful=False)

    with ThreadPoolExecutor(1) as pool:
        losing = pool.submit(lose_machine)
        lost, other, next_one = run_all(ending(tmp_path, "endless", None, None), executor=cluster)
        losing.result()
    machines.add_node(num_cpus=1)
    assert isinstance(lost.error, TrainingError)
    assert "was lost (Task failed because the node it was running on is dead" in str(lost.error)
    assert str(lost.error).endswith("); run the suite again to go on.")
    assert other.error is None
    assert next_one.error is None


def test_run_on_a_cluster_may_have_a_folder_whose_parents_are_not_made(monkeypatch, tmp_path):
    from rankfold.bench.executors.cluster import Cluster

    monkeypatch.setitem(sys.modules, "ray", RayHere())
    monkeypatch.setattr("torch.set_num_threads", lambda _number: None)
    executor = Cluster(threads=2, run_one=work)
    assert executor.jobs == 3
    (outcome,) = run_all(ending(tmp_path / "rung-1", None), executor=executor)
    assert outcome.error is None


def test_cluster_takes_as_many_runs_at_once_as_it_has_processors(cluster):
    assert cluster.jobs == 2


def test_processes_end_when_the_caller_stops(tmp_path):
    class StopError(Exception):
        pass

    def new_progress():
        return Stopping()

    class Stopping:
        def start(self, total, description):
            pass

        def advance(self, done, **fields):
            raise StopError

        def finish(self):
            pass

    asked = ending(tmp_path, "endless", "endless")
    with pytest.raises(StopError):
        list(processes(2).execute(asked, new_progress))
    assert multiprocessing.active_children() == []


def test_processes_end_when_the_one_that_began_them_is_killed(tmp_path):
    parent = multiprocessing.get_context("spawn").Process(target=begin_endless, args=(tmp_path,))
    parent.start()
    file = tmp_path / "run0.pid"
    child = int(until(lambda: file.is_file() and file.read_text()))
    os.kill(parent.pid, signal.SIGKILL)
    parent.join()
    assert until(lambda: not alive(child))


INTERRUPTED = """
import signal
import sys
import threading
from pathlib import Path
from tests.support.workers import begin_endless

if __name__ == "__main__":
    # Tests that a shell began in the background ignore it, and so would this.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # A thread that takes signals, as libraries have: the kernel gives it what the main thread blocks.
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    print("begun", flush=True)
    try:
        begin_endless(Path(sys.argv[1]), *sys.argv[2:])
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""


@pytest.mark.parametrize("is_early", [True, False])
def test_interrupt_ends_all_processes_without_a_word_of_theirs(tmp_path, is_early):
    """Early is while the server imports what runs need; a terminal interrupts all processes at once."""
    script = tmp_path / "script.py"
    script.write_text(INTERRUPTED)
    began = subprocess.Popen(
        [sys.executable, script, tmp_path, *(["rankfold.runs.run"] if is_early else [])],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([os.getcwd(), *sys.path])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert began.stdout.readline() == "begun\n"
    if is_early:
        time.sleep(0.5)
    else:
        assert until((tmp_path / "run0.pid").is_file)
    os.killpg(began.pid, signal.SIGINT)
    said, complained = began.communicate(timeout=PATIENCE_SECONDS)
    assert (said, complained) == ("interrupted\n", "")
    if (tmp_path / "run0.pid").is_file():
        child = int(until((tmp_path / "run0.pid").read_text))
        assert until(lambda: not alive(child))


def until(found):
    """Wait for something that will be; that it never is, is a failure of the test."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (value := found()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return value


def alive(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return stat_of(process)[0] != "Z"


def stat_of(process):
    """What Linux says of a process after its name, which may have spaces: its state, its parent, ..."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2].split()


def test_what_every_run_imports_asks_no_gpu_for_anything():
    """The server that is forked for each run has imported it; one that has asked CUDA may not be forked."""
    code = (
        "import torch\n"
        "def asked(*_, **__): raise SystemExit('CUDA was asked')\n"
        "torch.cuda.is_available = torch.cuda.device_count = torch.cuda.current_device = asked\n"
        "import rankfold.runs.run"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_progress_of_a_run_in_another_process_is_heard(tmp_path):
    heard = []

    class Listener(Quiet):
        def advance(self, done, **fields):
            heard.append((done, fields))

    list(processes(1).execute(requests(tmp_path, "lora"), Listener))
    assert heard == [(1, {"loss": 0.5})]


def test_time_left_is_that_of_like_runs_shared_by_those_at_once(tmp_path):
    asked = requests(tmp_path, "lora", "tlora", "lora", "tlora")
    record = make_record()
    done = [(asked[0], record)]
    assert seconds_left(asked[1:], [], 1) is None
    assert seconds_left(asked[1:], done, 1) == pytest.approx(3 * record.seconds.total)
    assert seconds_left(asked[1:], done, 2) == pytest.approx(1.5 * record.seconds.total)
    assert seconds_left(asked[3:], done, 2) == pytest.approx(record.seconds.total)
