"""A method is one file in presets/ and one in tests/specs/; nothing else knows its name."""

import ast

from rankfold.plugins import file_names
from rankfold.presets import discover
from tests.architecture.sources import LIBRARY_FILES, PACKAGE, ROOT, docstrings_in, name_of, parse

# Who may know a name, and why.
ALLOWED = {
    "src/rankfold/runs/methods.py": {
        "lora"
    },  # a method of PEFT has no rate of its own and begins with LoRA's
    "src/rankfold/cli/serve.py": {"tlora"},  # the adapter that the demonstration trains
    "src/rankfold/export/formats/__init__.py": {"lora"},  # the format that is written by default
    "src/rankfold/export/formats/plain_lora.py": {"lora"},  # the name of the format
    "src/rankfold/export/formats/gguf.py": {"lora"},  # llama.cpp's word for it
}
OUTSIDE_PRESETS = [path for path in LIBRARY_FILES if not path.is_relative_to(PACKAGE / "presets")]


def strings_in(path) -> set[str]:
    tree = parse(path)
    documentation = docstrings_in(tree)
    return {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in documentation
    }


def test_names_of_files_are_those_of_presets_which_the_command_line_relies_on():
    assert set(file_names("rankfold.presets")) == set(discover())


def test_every_preset_has_its_spec_test_and_no_more():
    tested = {path.stem.removeprefix("test_") for path in (ROOT / "tests" / "specs").glob("test_*.py")}
    assert tested == set(discover())


def test_preset_names_stay_in_presets():
    known = {name_of(path): strings_in(path) & set(discover()) for path in OUTSIDE_PRESETS}
    known = {name: names for name, names in known.items() if names}
    assert known == ALLOWED, "ask the spec what the method is, not its name."


def test_preset_is_named_after_its_file():
    files = {path.stem for path in (PACKAGE / "presets").glob("*.py") if not path.stem.startswith("_")}
    assert set(discover()) == files
