"""Ray Serve on this machine: two replicas, of which one is killed under load."""

import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import psutil
import pytest
import torch

import rankfold
from rankfold.serve.engine import load_base
from rankfold.serve.http.app import ServerSpec
from rankfold.serve.http.keys import Keys
from rankfold.serve.http.service import ServerOptions
from tests.support.adapters import save_adapter
from tests.support.live_server import ask
from tests.support.tiny_models import review_rows, tiny_bert

serve = pytest.importorskip("ray.serve", reason="Ray Serve is not installed")

__all__ = ["tiny_bert"]

COUNT = 13
TEXTS = [row["sentence"] for row in review_rows(4)]


@pytest.fixture(params=["rankfold", "default"])
def cluster(request, tiny_bert, tmp_path, monkeypatch):
    """Two replicas under our name or that of `serve run`, and what each adapter answers alone."""
    import ray

    from rankfold.serve import ray_app
    from rankfold.serve.http.run import listen

    # Its workers are polite to others of the machine, which a test need not be.
    monkeypatch.setenv("RAY_worker_niceness", "0")
    monkeypatch.setenv("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")
    with rankfold.AdapterStore(tmp_path / "adapters.db") as store:
        for index in range(COUNT):
            store.put(f"a{index}", save_adapter(tmp_path / f"{index}", tiny_bert, "tlora", seed=index))
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
    loaded = load_base(str(tiny_bert))
    with rankfold.Bank(loaded.model, tmp_path / "adapters.db") as bank:
        session = rankfold.Session(bank, loaded.processor)
        alone = {f"a{i}": session.embed(TEXTS, [f"a{i}"] * len(TEXTS)) for i in range(COUNT)}
    variables = {"env_vars": {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env=variables)
    try:
        limits = ServerOptions(body_bytes=20_000)
        spec = ServerSpec(str(tiny_bert), tmp_path / "adapters.db", options=limits)
        monkeypatch.setattr(ray_app, "_APP", request.param)
        ray_app.start(ray_app.deploy(spec, Keys(), replicas=2), "127.0.0.1", port)
        yield SimpleNamespace(port=port, alone=alone, ray=ray)
    finally:
        serve.shutdown()
        ray.shutdown()


def embed(server, name):
    """Ask for the embeddings of an adapter; returns the status and how far they are from its own."""
    status, _, answer = ask(server, "POST", "/v1/embeddings", {"model": name, "input": TEXTS})
    if status != 200:
        return status, 0.0
    vectors = torch.tensor([item["embedding"] for item in answer["data"]])
    return status, float((vectors - server.alone[name]).abs().max())


def replicas():
    """The processes of the replicas."""
    return [
        process
        for process in psutil.Process().children(recursive=True)
        if ":Replicas" in " ".join(process.cmdline())
    ]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_adapters_are_answered_by_replicas_of_which_a_killed_one_is_replaced(cluster):
    for _ in range(3):
        for name in cluster.alone:
            status, gap = embed(cluster, name)
            assert (status, gap < 1e-5) == (200, True)
    assert ask(cluster, "POST", "/v1/embeddings", {"model": "never", "input": "a"})[0] == 404
    assert ask(cluster, "POST", "/v1/embeddings", b"{")[0] == 400
    assert ask(cluster, "POST", "/v1/embeddings", b" " * 20_001)[0] == 413

    stop, results = threading.Event(), []

    def client(index):
        names = list(cluster.alone)
        while not stop.is_set():
            results.append(embed(cluster, names[index % COUNT]))
            index += 1

    with ThreadPoolExecutor(4) as pool:
        clients = [pool.submit(client, index) for index in range(4)]
        try:
            wait_for(lambda: len(results) > 20)
            victim, _ = replicas()
            victim.kill()
            answered = len(results)
            wait_for(lambda: len(results) > answered + 100)
            wait_for(lambda: len(replicas()) == 2 and victim not in replicas())
        finally:
            stop.set()
    for one in clients:
        one.result()
    statuses = [status for status, _ in results]
    assert set(statuses) <= {200, 503}
    assert statuses.count(503) <= 20  # those that were under way
    assert max(gap for _, gap in results) < 1e-5


def wait_for(condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
