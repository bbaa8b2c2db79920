"""A server that listens on a free port of this machine, in a thread of the tests."""

import asyncio
import http.client
import json
import threading
from contextlib import contextmanager
from types import SimpleNamespace

from rankfold.serve.engine import Engine, EngineOptions, load_base
from rankfold.serve.http.app import make_app
from rankfold.serve.http.keys import ApiKey, Keys
from rankfold.serve.http.run import listen, make_server

ADMIN, TEAM = "admin-key-of-the-tests", "team-key-of-the-tests"
OPEN_KEYS = (ApiKey(key=ADMIN, name="admin", is_admin=True),)
CLOSED_KEYS = (*OPEN_KEYS, ApiKey(key=TEAM, name="team", adapters=("team/*", "shared"), rows=40))


def engine_of(base, store=None, **options):
    return Engine(base.name, load_base(str(base)), store, EngineOptions(**options))


@contextmanager
def served(engine, keys=OPEN_KEYS, options=None):
    """Serve an engine while the block runs; yields its port and its application."""
    app = make_app(engine, Keys(keys), options)
    listener = listen("127.0.0.1", 0)
    server = make_server(app, grace=5)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
    thread.start()
    try:
        yield SimpleNamespace(port=listener.getsockname()[1], app=app, engine=engine)
    finally:
        server.should_exit = True
        thread.join(60)
        listener.close()


def ask(server, method, path, body=None, *, key=None, headers=()):
    """Return the status, the headers and the JSON of an answer; bytes are sent as they are."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    own = {"Content-Type": "application/json", **dict(headers)}
    own |= {} if key is None else {"Authorization": f"Bearer {key}"}
    sent = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    try:
        connection.request(method, path, sent, own)
        answer = connection.getresponse()
        text = answer.read()
    finally:
        connection.close()
    is_json = text and answer.headers.get_content_type() == "application/json"
    return answer.status, answer.headers, json.loads(text) if is_json else text
