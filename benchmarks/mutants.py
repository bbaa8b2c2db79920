"""Mutation test: change one expression of the library at a time and see whether the tests notice.

A seeded sample of mutants of `factors`, `adapter`, `export` and the Reducer, each against the tests of its
room and the laws. Results are kept, so a run that was stopped goes on where it was:

    make mutants
    python benchmarks/mutants.py --seed 0 --count 100 --out benchmarks/records/mutants.json

Each mutant is a fork of one process that has imported torch, so that it costs its tests and little else. It
is killed by a failing test, or by needing four times the processor time of the unchanged library. A survivor
is printed with its change: it wants a test, or a line in EQUIVALENT with the reason why no test can tell.
"""

import argparse
import ast
import copy
import difflib
import hashlib
import json
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "rankfold"

LAWS = ("tests/laws/test_arithmetic.py", "tests/laws/test_state.py")
ROOMS = {
    "factors": ("tests/unit/factors", *LAWS),
    "adapter": ("tests/unit/adapter", "tests/unit/train/test_auxiliary.py", *LAWS),
    "export": ("tests/unit/export", "tests/laws/test_export.py"),
    "train/reducer": (
        "tests/unit/train/reducer",
        "tests/specs/facts/test_reducer.py",
        "tests/integration/test_reducer_refusals.py",
        "tests/integration/test_reducer_rest.py",
        "tests/integration/test_reducer_trainer.py",
        "tests/integration/test_reducer.py",
    ),
}
"""The tests of each room, in the order in which they are tried."""

EQUIVALENT: dict[str, str] = {
    "src/rankfold/export/logits.py:4646e2165b": "with so many articles the step is never below 2",
    "src/rankfold/factors/relay.py:939275547e": "a tensor of any size tells in which mode it was made",
}
"""By a mutant's id, why no test can tell it from the library."""

_COMPARISONS = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_ARITHMETIC = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
}
_LOGIC = {ast.And: ast.Or, ast.Or: ast.And}

CPU_FACTOR, CPU_LEAST = 4, 60
WALL_SECONDS = 1800


@dataclass(frozen=True)
class Mutant:
    """One changed expression or statement.

    Args:
        path: The file, relative to the repository.
        line: Where the change is.
        change: The lines of a diff.
        source: The whole changed file.
    """

    path: str
    line: int
    change: str
    source: str

    @property
    def id(self) -> str:
        """A name that stays the same while the changed lines do."""
        return f"{self.path}:{hashlib.sha256(self.change.encode()).hexdigest()[:10]}"

    @property
    def room(self) -> str:
        """The room whose tests are asked."""
        return next(room for room in ROOMS if f"rankfold/{room}/" in self.path)


def replacements(node: ast.AST) -> Iterator[ast.AST]:  # noqa: C901 (a table of cases)
    """Yield the nodes that may stand in the place of a node."""
    match node:
        case ast.Compare(ops=[operator]) if type(operator) in _COMPARISONS:
            yield ast.Compare(node.left, [_COMPARISONS[type(operator)]()], node.comparators)
        case ast.BinOp(op=operator) if type(operator) in _ARITHMETIC:
            yield ast.BinOp(node.left, _ARITHMETIC[type(operator)](), node.right)
        case ast.AugAssign(op=operator) if type(operator) in _ARITHMETIC:
            yield ast.AugAssign(node.target, _ARITHMETIC[type(operator)](), node.value)
        case ast.BoolOp(op=operator):
            yield ast.BoolOp(_LOGIC[type(operator)](), node.values)
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            yield node.operand
        case ast.Constant(value=bool()):
            yield ast.Constant(not node.value)
        case ast.Constant(value=int() | float()):
            yield ast.Constant(node.value + 1)
        case ast.IfExp():
            yield ast.IfExp(node.test, node.orelse, node.body)
        case ast.Expr(value=ast.Call()) | ast.Raise():
            yield ast.Pass()
        case _:
            return


def mutants_of(path: Path) -> Iterator[Mutant]:
    """Yield every mutant of a file.

    Annotations, decorators and texts stay as they are, and `strict` of `zip`, which is a check by itself.
    """
    source = path.read_text()
    name = str(path.relative_to(ROOT))
    for node in _runtime_nodes(ast.parse(source)):
        for new in replacements(node):
            changed = _replaced(source, node, new)
            lines = difflib.unified_diff(source.splitlines(), changed.splitlines(), n=0, lineterm="")
            change = "\n".join(line for line in lines if not line.startswith(("---", "+++", "@@")))
            yield Mutant(name, node.lineno, change, changed)


def _runtime_nodes(node: ast.AST) -> Iterator[ast.AST]:
    for field, value in ast.iter_fields(node):
        if field in {"annotation", "returns", "decorator_list"}:
            continue
        for child in value if isinstance(value, list) else [value]:
            is_typing = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
            is_check = isinstance(child, ast.keyword) and child.arg == "strict"
            is_text = isinstance(child, ast.JoinedStr)
            if isinstance(child, ast.AST) and not (is_typing or is_check or is_text):
                if hasattr(child, "lineno"):
                    yield child
                yield from _runtime_nodes(child)


def _replaced(source: str, node: ast.AST, new: ast.AST) -> str:
    lines = source.encode().splitlines(keepends=True)
    begin = sum(map(len, lines[: node.lineno - 1])) + node.col_offset
    end = sum(map(len, lines[: node.end_lineno - 1])) + node.end_col_offset
    text = ast.unparse(ast.fix_missing_locations(copy.deepcopy(new)))
    if isinstance(node, ast.expr):
        text = f"({text})"
    return (b"".join(lines)[:begin] + text.encode() + b"".join(lines)[end:]).decode()


def sample(seed: int, count: int) -> list[Mutant]:
    """Return a sample of the mutants of all rooms; a change of the source moves only its own mutants."""
    files = [file for room in ROOMS for file in sorted((PACKAGE / room).glob("*.py"))]
    mutants = {mutant.id: mutant for file in files for mutant in mutants_of(file)}
    order = sorted(mutants, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest())
    return [mutants[name] for name in order[:count]]


def start_tests(room: str, mutant: Mutant | None, cpu_seconds: float | None) -> int:
    """Start the tests of a room on a mutant in a fork of this process, and return the fork's id."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = _in_child(room, mutant, cpu_seconds)
        finally:
            os._exit(code)
    return child


def wait_for_one(children: Mapping[int, float]) -> tuple[int, str, float]:
    """Wait for a fork to end.

    Args:
        children: By the fork's id, when it was started.

    Returns:
        The fork's id, whether its mutant was killed, and the processor time that it took.
    """
    while True:
        for child, begin in children.items():
            if time.monotonic() - begin > WALL_SECONDS:
                os.kill(child, signal.SIGKILL)
        child, status, usage = os.wait4(-1, os.WNOHANG)
        if child:
            break
        time.sleep(0.05)
    seconds = usage.ru_utime + usage.ru_stime
    if os.WIFSIGNALED(status):
        return child, "timeout", seconds
    return child, "survived" if os.WEXITSTATUS(status) == 0 else "killed", seconds


def _in_child(room: str, mutant: Mutant | None, cpu_seconds: float | None) -> int:
    log = os.open(_log_of(os.getpid()), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if cpu_seconds is not None:
        resource.setrlimit(resource.RLIMIT_CPU, (int(cpu_seconds), int(cpu_seconds) + 5))
    if mutant is not None:
        _serve_source(str(ROOT / mutant.path), mutant.source)
    import pytest

    options = ["-x", "-q", "-n", "0", "-p", "no:randomly", "-p", "no:cacheprovider"]
    # Plugins were imported by the process that forked.
    options += ["-W", "ignore:Module already imported:pytest.PytestAssertRewriteWarning"]
    tests = [name for name in ROOMS[room] if (ROOT / name).exists()]
    # The tests of the changed file alone kill most mutants, and need no others to be collected.
    own = [] if mutant is None else _tests_of(mutant)
    return int((own and pytest.main([*options, *own]) != 0) or pytest.main([*options, *tests]) != 0)


def _tests_of(mutant: Mutant) -> list[str]:
    stem = Path(mutant.path).stem
    return [str(path.relative_to(ROOT)) for path in (ROOT / "tests" / "unit").rglob(f"test_{stem}.py")]


def _log_of(child: int) -> str:
    return f"{tempfile.gettempdir()}/rankfold-mutant-{child}.log"


def _first_failure(child: int) -> str:
    """Return the test that failed first in a fork, and forget its output."""
    log = Path(_log_of(child))
    lines = log.read_text(errors="replace").splitlines()
    log.unlink()
    return next((line for line in lines if line.startswith(("FAILED", "ERROR"))), "")[:200]


def _serve_source(path: str, source: str) -> None:
    """Let imports of a file read this source, and no bytecode of it."""
    stem = Path(path).stem
    folder = str(Path(path).parent)
    get_data = SourceFileLoader.get_data

    def get_changed(self: SourceFileLoader, name: str) -> bytes:
        if name == path:
            return source.encode()
        if name.startswith(f"{folder}/__pycache__/{stem}."):
            raise OSError("the bytecode of a mutant is not kept")
        return get_data(self, name)

    SourceFileLoader.get_data = get_changed  # pyright: ignore[reportAttributeAccessIssue]


def preload() -> None:
    """Import everything that the tests of a mutant import, but not rankfold itself."""
    sys.dont_write_bytecode = True
    os.environ |= {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    import beartype  # noqa: F401
    import hypothesis  # noqa: F401
    import jaxtyping  # noqa: F401
    import peft  # noqa: F401
    import pytest  # noqa: F401
    import safetensors.torch  # noqa: F401
    import torch
    import transformers  # noqa: F401

    torch.set_num_threads(1)
    loaded = [name for name in sys.modules if name.split(".")[0] == "rankfold"]
    assert not loaded, f"{loaded} would not be mutated"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sample and print the score; the exit code is 1 if it is under 85 %."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--rooms", nargs="*", default=list(ROOMS), choices=list(ROOMS))
    parser.add_argument("--out", type=Path, default=ROOT / ".cache" / "mutants.json")
    options = parser.parse_args(arguments)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    record = json.loads(options.out.read_text()) if options.out.exists() else {"rooms": {}, "mutants": {}}
    results, seconds_of = record["mutants"], record["rooms"]
    chosen = [mutant for mutant in sample(options.seed, options.count) if mutant.room in options.rooms]
    pending = [mutant for mutant in chosen if mutant.id not in results]
    preload()
    for room in sorted({mutant.room for mutant in pending} - seconds_of.keys()):
        child = start_tests(room, None, None)
        _, status, seconds_of[room] = wait_for_one({child: time.monotonic()})
        failure = _first_failure(child)
        assert status == "survived", f"the tests of {room} fail without any mutant: {failure}"
        print(f"{room}: {seconds_of[room]:.0f} s without mutants", flush=True)
    limits = {room: max(CPU_LEAST, CPU_FACTOR * seconds) for room, seconds in seconds_of.items()}
    running: dict[int, tuple[Mutant, float]] = {}
    while pending or running:
        while pending and len(running) < options.jobs:
            mutant = pending.pop(0)
            running[start_tests(mutant.room, mutant, limits[mutant.room])] = mutant, time.monotonic()
        child, status, seconds = wait_for_one({child: begin for child, (_, begin) in running.items()})
        mutant, _ = running.pop(child)
        results[mutant.id] = {
            "status": status,
            "seconds": round(seconds, 1),
            "failure": _first_failure(child),
            "change": mutant.change,
        }
        options.out.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
        print(f"{status:9} {seconds:6.1f} s  {mutant.path}:{mutant.line}", flush=True)
    return report(chosen, results)


def report(chosen: Sequence[Mutant], results: dict[str, dict[str, object]]) -> int:
    """Print the survivors and the score by room."""
    for mutant in chosen:
        if results[mutant.id]["status"] == "survived":
            reason = EQUIVALENT.get(mutant.id, "no test notices")
            print(f"\n{mutant.id} (line {mutant.line}): {reason}\n{mutant.change}")
    killed = 0
    for room in ROOMS:
        of_room = [mutant for mutant in chosen if mutant.room == room]
        dead = sum(results[mutant.id]["status"] != "survived" for mutant in of_room)
        killed += dead
        print(f"{room}: {dead} of {len(of_room)} killed")
    equivalent = sum(mutant.id in EQUIVALENT for mutant in chosen)
    score = killed / (len(chosen) - equivalent)
    print(f"killed {killed} of {len(chosen)}, {equivalent} of them equivalent: {score:.0%}")
    return 0 if score >= 0.85 else 1


if __name__ == "__main__":
    sys.exit(main())
