"""`rankfold serve`: a model with all adapters of a store over HTTP."""

import socket
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rankfold.cli.console import note, progress_screen, shown_notes
from rankfold.cli.options import SectionedCommand, section
from rankfold.errors import SpecError

if TYPE_CHECKING:
    from rankfold.serve.engine import Engine
    from rankfold.serve.http.app import ServerSpec
    from rankfold.serve.http.keys import Keys

_DEMO_FOLDER = "rankfold-demo"
_DEMO_STEPS = 40
_NEEDED = ("fastapi", "uvicorn", "prometheus_client")
_model, _network, _size = section("Model"), section("Network"), section("Size")

_EPILOG = """\b
Examples:
  rankfold serve --demo
  rankfold serve --model minilm --store adapters.db
  rankfold serve --model minilm --adapter tickets=runs/tickets
  rankfold serve --model smollm2 --store adapters.db --host 0.0.0.0 --keys keys.json

\b
The file of keys is JSON:
  [{"name": "shop", "key": "...", "adapters": ["shop/*"], "rows": 64}]
"""


@click.command(cls=SectionedCommand, epilog=_EPILOG)
@_model("--model", help="minilm, smollm2, a folder, a GGUF file or a hub id.")
@_model("--store", type=click.Path(dir_okay=False, path_type=Path), help="The store of the adapters.")
@_model(
    "--adapter",
    "adapters",
    metavar="NAME=PATH",
    multiple=True,
    help="An adapter that is in no store, a folder or a packed file; may be repeated.",
)
@_model(
    "--demo",
    is_flag=True,
    help=f"Train an adapter of minilm on the embedded news articles, into {_DEMO_FOLDER}/, and serve it as "
    "'news'.",
)
@_model("--name", help="Name of the model without an adapter; as --model, of a path the last part.")
@_model("--kind", help="The kind of task that the model's head is for; by its architecture if left out.")
@_model("--trust-remote-code", is_flag=True, help="Run Python code that comes with the model's files.")
@_network("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@_network(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="Port; 0 takes a free one."
)
@_network(
    "--keys",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File of API keys; RANKFOLD_API_KEY and RANKFOLD_ADMIN_KEY add one each.",
)
@_network("--no-keys", is_flag=True, help="Serve anyone who reaches --host.")
@_network(
    "--connections", type=click.IntRange(1), default=512, show_default=True, help="The most connections."
)
@_network(
    "--timeout", type=click.FloatRange(0.1), default=30.0, show_default=True, help="Seconds for an answer."
)
@_network(
    "--generation-timeout",
    type=click.FloatRange(0.1),
    default=300.0,
    show_default=True,
    help="Seconds for a generated text.",
)
@_network(
    "--grace",
    type=click.FloatRange(0),
    default=30.0,
    show_default=True,
    help="Seconds in which requests that run are answered when the server is stopped.",
)
@_network("--metrics-by-adapter", is_flag=True, help="Count requests at /metrics for each adapter.")
@_network("--ray", "by_ray", is_flag=True, help="Serve by Ray Serve: replicas, each adapter on one of them.")
@_network("--replicas", type=click.IntRange(1), help="Replicas of --ray; 2 if left out.")
@_size(
    "--slots", type=click.IntRange(2), default=256, show_default=True, help="Adapters ready at the same time."
)
@_size(
    "--host-mb",
    type=click.IntRange(0),
    default=1024,
    show_default=True,
    help="Megabytes of adapters in memory beside the slots.",
)
@_size(
    "--batch-rows", type=click.IntRange(1), default=32, show_default=True, help="The most texts of a batch."
)
@_size(
    "--queue-rows",
    type=click.IntRange(1),
    default=1024,
    show_default=True,
    help="The most texts that wait or run.",
)
def command(
    *,
    model: str | None,
    demo: bool,
    store: Path | None,
    adapters: Sequence[str],
    name: str | None,
    kind: str | None,
    trust_remote_code: bool,
    host: str,
    port: int,
    keys: Path | None,
    no_keys: bool,
    by_ray: bool,
    replicas: int | None,
    **limits: Any,
) -> None:
    """Serve a model with many adapters over HTTP, by OpenAI's API.

    The name of a model in a request is that of an adapter; a batch answers requests to many of them at once.
    The page at / shows adapters and load.
    """
    if missing := [package for package in _NEEDED if find_spec(package) is None]:
        raise SpecError(
            f"this takes the package '{missing[0]}', which is not installed; install it with "
            "`pip install 'rankfold[serve]'`."
        )
    pairs = _parse([*adapters, *([f"news={_DEMO_FOLDER}"] if demo else [])])
    model = _choose_model(model, demo=demo)
    if replicas is not None and not by_ray:
        raise SpecError(f"--replicas {replicas} is for --ray, which is not given; add it, or leave both out.")
    note("loading the libraries ...")
    from rankfold.serve.engine import EngineOptions
    from rankfold.serve.http.app import ServerSpec, make_app
    from rankfold.serve.http.keys import read_keys
    from rankfold.serve.http.run import listen, run
    from rankfold.serve.http.service import ServerOptions
    from rankfold.serve.scheduler import Limits
    from rankfold.store.record import check_labels

    for label in (*pairs, *(() if name is None else (name,))):
        check_labels(label, {}, {})
    known_keys = read_keys(keys)
    if known_keys.is_open and not no_keys and not _is_local(host):
        raise SpecError(
            f"--host {host} may be reached by others, and there are no keys; give --keys, or --no-keys to "
            "serve anyone."
        )
    spec = ServerSpec(
        model,
        None if store is None else store.resolve(),
        {adapter: str(Path(path).resolve()) for adapter, path in pairs.items()},
        name,
        kind,
        trust_remote_code,
        EngineOptions(
            limits["slots"],
            limits["host_mb"] << 20,
            limits=Limits(
                limits["batch_rows"], queue_rows=limits["queue_rows"], key_rows=limits["queue_rows"] // 2
            ),
        ),
        ServerOptions(
            timeout=limits["timeout"],
            generation_timeout=limits["generation_timeout"],
            metrics_by_adapter=limits["metrics_by_adapter"],
        ),
    )
    listener = listen(host, port)
    if demo:
        # What is found in the demo's data is no news to who only wants to see the server.
        _train_demo()
    with shown_notes():
        if by_ray:
            _run_by_ray(spec, known_keys, listener, replicas or 2, limits)
        else:
            note(f"loading '{model}' ...")
            engine = spec.load()
            _describe(engine, listener)
            app = make_app(engine, known_keys, spec.options)
            run(app, listener, connections=limits["connections"], grace=limits["grace"])
    note("the server has ended.")


def _run_by_ray(
    spec: "ServerSpec", keys: "Keys", listener: socket.socket, replicas: int, limits: Mapping[str, Any]
) -> None:
    """Serve by Ray Serve, which listens by itself at the address of a socket."""
    try:
        from rankfold.serve.ray_app import deploy, run
    except ImportError as error:
        raise SpecError(
            f"this takes Ray Serve, which is not installed ({error.name}); install it with "
            "`pip install 'rankfold[ray,serve]'`."
        ) from error
    host, port = listener.getsockname()[:2]
    listener.close()
    application = deploy(
        spec, keys, replicas=replicas, connections=limits["connections"], grace=limits["grace"]
    )
    note(f"starting {replicas} replicas at http://{host}:{port} (Ctrl-C ends them)")
    run(application, host, port)


def _choose_model(model: str | None, *, demo: bool) -> str:
    if demo and model not in (None, "minilm"):
        raise SpecError(f"--demo serves minilm, and --model is {model}; leave one of them out.")
    if not demo and model is None:
        raise SpecError("no model is named; give --model, or --demo to try the server.")
    return model or "minilm"


def _train_demo() -> None:
    """Train a small adapter, unless it is there."""
    if (Path(_DEMO_FOLDER) / "adapter_config.json").is_file():
        return
    from rankfold.runs.request import RunRequest
    from rankfold.runs.run import run

    note(f"training an adapter on the embedded news articles, into {_DEMO_FOLDER}/; they are read first ...")
    values: dict[str, Any] = {
        **{"model": "minilm", "method": "tlora", "task": "bbc_news", "out": Path(_DEMO_FOLDER)},
        **{"steps": _DEMO_STEPS, "batch_size": 8, "max_length": 64, "learning_rate": 5e-3},
        **{"train_rows": 8 * _DEMO_STEPS, "eval_rows": 32},
    }
    with progress_screen() as new_bar:
        _ = run(RunRequest(**values), progress=new_bar())


def _is_local(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _parse(adapters: Sequence[str]) -> dict[str, str]:
    """Return the paths of adapters by name."""
    paths: dict[str, str] = {}
    for adapter in adapters:
        name, equals, path = adapter.partition("=")
        if not (name.strip() and equals and path.strip()):
            raise SpecError(f"--adapter '{adapter}' lacks a name or a file; write it as NAME=PATH.")
        if name in paths:
            raise SpecError(f"--adapter names '{name}' twice; give each adapter a name of its own.")
        paths[name] = path
    return paths


def _describe(engine: "Engine", listener: socket.socket) -> None:
    """Print the model, the adapters and the address of the server."""
    host, port = listener.getsockname()[:2]
    page = engine.bank.page(limit=1001)
    count = f"{len(page):,} adapters" if len(page) != 1 else "1 adapter"
    count = "more than 1,000 adapters" if len(page) > 1000 else count  # noqa: PLR2004
    address = f"[{host}]" if ":" in host else host
    note(f"serving '{engine.name}' and {count} at http://{address}:{port} (Ctrl-C ends it)")
    if page:
        note(f"  try it: open that page, or ask /v1/models; an adapter is '{page[0].name}'")
