"""Names and docstrings use plain standard terms; see the glossary in `docs/concepts/glossary.md`."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.architecture.sources import LIBRARY_FILES, name_of

MOST_WITH_WHAT = 0.02
"""The largest share of docstring summaries with the word "what": the noun itself says more."""

BARE = re.compile(
    r"""(?x)all|anything|asked|asks|both|broken|brought|built|chosen|drawn|each|else|everything|few|found|given|
    gone|held|it|kept|known|left|less|lost|made|many|meant|more|nothing|other|others|own|put|read|rest|
    said|seen|sent|shown|some|something|such|taken|tell|tells|that|them|these|this|those|thrown|told|
    what|which|who|whose|written"""
)
"""Participles and pronouns that name nothing when they stand alone."""

VERBS = {"put", "read"}  # as an imperative, these name what a function does
NO_PARTICIPLES = {"embed", "exceed", "feed", "need", "proceed", "seed", "speed"}


def is_bare(name: str) -> bool:
    """Return whether a name is a lone participle or pronoun."""
    word = name.strip("_").lower()
    if word in VERBS | NO_PARTICIPLES:
        return False
    return (BARE.fullmatch(word) or re.fullmatch(r"[a-z]{3,}ed", word)) is not None


def definitions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            is_property = any(
                "property" in ast.unparse(mark) or "setter" in ast.unparse(mark)
                for mark in node.decorator_list
            )
            if not is_property:
                yield node


def bare_names(source: str) -> list[str]:
    """Return the functions of a module that are named by a lone participle or pronoun."""
    return [node.name for node in definitions(ast.parse(source)) if is_bare(node.name)]


def summaries(source: str) -> list[str]:
    """Return the first paragraph of every docstring of a module."""
    nodes = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    return [text.partition("\n\n")[0] for node in nodes if (text := ast.get_docstring(node))]


def has_what(summary: str) -> bool:
    return re.search(r"\bwhat\b", summary, re.IGNORECASE) is not None


@pytest.mark.parametrize("path", LIBRARY_FILES, ids=name_of)
def test_no_function_is_named_by_a_lone_participle_or_pronoun(path: Path):
    assert bare_names(path.read_text("utf-8")) == []


def test_docstring_summaries_name_the_thing():
    found = [summary for path in LIBRARY_FILES for summary in summaries(path.read_text("utf-8"))]
    vague = [summary for summary in found if has_what(summary)]
    assert len(vague) <= MOST_WITH_WHAT * len(found), vague


def test_both_checks_can_fail():
    source = 'def _told():\n    """Return what was said."""\n'
    assert bare_names(source) == ["_told"]
    assert [has_what(summary) for summary in summaries(source)] == [True]
