"""A kind of task is one file in tasks/kinds/; no other module decides anything by a kind."""

import ast

import pytest

from rankfold.tasks.kinds import KINDS
from tests.architecture.sources import LIBRARY_FILES, PACKAGE, name_of, parse

OUTSIDE_KINDS = [path for path in LIBRARY_FILES if not path.is_relative_to(PACKAGE / "tasks" / "kinds")]
_NAMES = set(KINDS)
_OBJECTS = {name.upper() for name in KINDS}


def _names_a_kind(node: ast.AST) -> bool:
    match node:
        case ast.Constant(value=str(value)):
            return value in _NAMES
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name in _OBJECTS
        case _:
            return False


def branches_on_kinds(tree: ast.Module) -> list[int]:
    """Return the lines that compare something with a kind, or look one up in a table by its name."""
    lines: list[int] = []
    for node in ast.walk(tree):
        match node:
            case ast.Compare() | ast.match_case():
                inside = ast.walk(node.pattern if isinstance(node, ast.match_case) else node)
            case ast.Dict(keys=keys):
                inside = iter(key for key in keys if key is not None)
            case _:
                continue
        lines += [found.lineno for found in inside if isinstance(found, ast.expr) and _names_a_kind(found)]
    return sorted(lines)


def test_no_module_outside_the_kinds_decides_by_a_kind():
    branches = {name_of(path): lines for path in OUTSIDE_KINDS if (lines := branches_on_kinds(parse(path)))}
    assert not branches, "give TaskKind a method for it."


@pytest.mark.parametrize(
    "code",
    [
        "if data.kind.name == 'regression': pass",
        "if kind is REGRESSION: pass",
        "if kinds.INSTRUCTION in found: pass",
        "x = 1 if record.task.kind in ('classification', 'regression') else 2",
        "match kind:\n    case 'multiple_choice': pass",
        "lengths = {'instruction': 256}",
        "lengths = {CLASSIFICATION: 128}",
    ],
)
def test_branch_on_a_kind_is_noticed(code):
    assert branches_on_kinds(ast.parse(code))


def test_kind_is_in_the_file_of_its_name():
    files = {type(kind).__module__.rpartition(".")[2] for kind in KINDS.values()}
    assert files == set(KINDS)
