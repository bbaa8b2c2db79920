"""The page on serving runs as it stands; the server is killed, started again, and ended."""

import json
import re
import shlex
import shutil
import subprocess
import threading
import time
from types import SimpleNamespace

import pytest

from rankfold.serve.http.run import listen
from tests.architecture.sources import ROOT
from tests.support.killing import call_in_folder, start
from tests.support.live_server import ask

PAGE = (ROOT / "docs" / "serving.md").read_text("utf-8")
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def serve(port, folder):
    """Start the server of the page's first command on another port, and wait until it answers."""
    command = next(text for kind, text in BLOCK.findall(PAGE) if kind == "sh")
    words = shlex.split(command.rpartition("&&")[2])
    assert words[0] == "rankfold"
    errors = folder / "errors"
    errors.write_text("")  # of a server before it
    process = start(call_in_folder, [*words[1:], "--port", str(port)], folder, errors)
    while process.is_alive() and "\nserving " not in f"\n{errors.read_text('utf-8')}":
        time.sleep(0.05)
    assert "serving 'minilm' and 1 adapter at" in errors.read_text("utf-8")
    server = SimpleNamespace(port=port)
    while ask(server, "GET", "/ready")[0] != 200:
        time.sleep(0.05)
    return process, server


def free_port():
    with listen("127.0.0.1", 0) as listener:
        return listener.getsockname()[1]


@pytest.mark.timeout(600)
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_page_runs_and_the_server_survives_a_kill(tmp_path, capsys):
    port = free_port()
    process, server = serve(port, tmp_path)
    try:
        curl = next(text for _, text in BLOCK.findall(PAGE) if text.startswith("curl"))
        words = shlex.split(curl.replace("8000", str(port)))
        answer = json.loads(subprocess.run(words, capture_output=True, check=True).stdout)
        assert answer["data"][0]["label"] == "business"
        example = next(text for kind, text in BLOCK.findall(PAGE) if "import openai" in text)
        exec(compile(example.replace("8000", str(port)), "serving.md", "exec"), {})
        assert capsys.readouterr().out == "['minilm', 'news']\n2 embeddings of 384 numbers\n"
        process.kill()
        process.join(60)
        process, server = serve(port, tmp_path)  # the adapter is there
        body = {"model": "news", "input": ["Rates rise. " * 4] * 64}
        statuses = []
        asking = threading.Thread(
            target=lambda: statuses.append(ask(server, "POST", "/v1/classify", body)[0])
        )
        asking.start()
        while asking.is_alive() and b"rankfold_waiting_rows 0.0" in ask(server, "GET", "/metrics")[2]:
            time.sleep(0.01)
        process.terminate()
        process.join(120)
        asking.join()
        assert statuses == [200]  # the request that ran was answered
        assert process.exitcode == 0
        assert (tmp_path / "errors").read_text("utf-8").endswith("the server has ended.\n")
    finally:
        process.kill()
        process.join()
