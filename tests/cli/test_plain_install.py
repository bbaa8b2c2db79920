"""What a plain install can do: everything but training, comparing and reporting works without the extras."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions

from packaging.requirements import Requirement

from tests.architecture.sources import ROOT
from tests.support.adapters import save_adapter

# As if they were not installed: an import of None is a ModuleNotFoundError.
HIDE = "import sys; sys.modules.update(dict.fromkeys({hidden!r}, None)); "
EVERYTHING_PUBLIC = "import rankfold; [getattr(rankfold, name) for name in rankfold.__all__]; "
SERVING = "import rankfold.serve.vllm"
COMMANDS = """
from rankfold.cli.main import cli
for words in {lines!r}:
    try:
        cli(words)
    except SystemExit as ended:
        if ended.code:
            raise
"""
REFUSED_COMMANDS = """
import sys
from rankfold.cli.main import cli
for words in {lines!r}:
    try:
        cli(words)
    except SystemExit as ended:
        print("ended with", ended.code, file=sys.stderr)
"""


def only_in_extras():
    """Return the packages, by the names they are imported by, that only extras ask for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def names(requirements):
        return {re.sub(r"[-_.]+", "-", Requirement(each).name).lower() for each in requirements}

    users = {name: needs for name, needs in project["optional-dependencies"].items() if name != "dev"}
    optional = names(need for needs in users.values() for need in needs) - names(project["dependencies"])
    return {
        package
        for package, distributions in packages_distributions().items()
        if optional & {re.sub(r"[-_.]+", "-", each).lower() for each in distributions}
    }


HIDDEN = only_in_extras()


def plainly_installed(statement):
    """Run a statement in a new interpreter that has no extras."""
    program = HIDE.format(hidden=sorted(HIDDEN)) + statement
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)


def commands(*lines):
    """Run command lines, until one fails, in a new interpreter that has no extras."""
    return plainly_installed(COMMANDS.format(lines=[[str(word) for word in words] for words in lines]))


def test_packages_of_extras_are_hidden():
    assert {"datasets", "scipy", "sklearn", "jinja2", "ray"} <= HIDDEN
    assert not HIDDEN & {"torch", "peft", "click", "numpy"}
    assert "ModuleNotFoundError" in plainly_installed("import scipy").stderr


def test_plain_install_imports_public_names_and_the_plugin_of_vllm():
    done = plainly_installed(EVERYTHING_PUBLIC + SERVING)
    assert done.returncode == 0, done.stderr


def test_plain_install_counts_packs_stores_and_exports(tiny_bert, tmp_path):
    adapter, packed = save_adapter(tmp_path / "adapter", tiny_bert, "tlora"), tmp_path / "packed.rk"
    done = commands(
        ["methods", "tlora"],
        *(["params", "--model", tiny_bert, "--method", name] for name in ("lora", "peft:lora", "head_only")),
        ["lr", "--model", tiny_bert, "--method", "tlora_plus"],
        ["size", adapter],
        ["pack", adapter, packed],
        ["unpack", packed, tmp_path / "unpacked"],
        ["store", "put", tmp_path / "store.db", "name", adapter],
        ["export", adapter, tmp_path / "lora"],
        ["export", adapter, tmp_path / "merged", "--to", "merged"],
        ["export", "--verify", tmp_path / "lora"],
    )
    assert done.returncode == 0, done.stderr


def test_what_takes_an_extra_says_so():
    lines = [
        ["train", "--model", "minilm", "--method", "lora", "--task", "bbc_news", "--out", "nowhere"],
        ["report", "nowhere"],
        ["evaluate", "nowhere"],
    ]
    done = plainly_installed(REFUSED_COMMANDS.format(lines=lines))
    assert done.returncode == 0, done.stderr
    *refusals, rest = re.split(r"ended with [12]\n", done.stderr)
    assert (len(refusals), rest) == (len(lines), "")
    assert all("pip install 'rankfold[bench,report]'" in refusal for refusal in refusals)
    assert refusals[0].startswith("error: training takes the package 'pyarrow', which is not installed")
    assert "Traceback" not in done.stderr
