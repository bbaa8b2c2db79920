"""PEFT's own tests of layers on small models, with our configuration where they have PEFT's LoRA.

    pip download --no-deps --no-binary peft peft==$(python -c 'import peft; print(peft.__version__)')
    tar xzf peft-*.tar.gz
    python benchmarks/peft_tests.py peft-*/tests build/peft-tests -n 2

The tables of test cases are rewritten in a copy: cases of LoRA become cases of each preset below, those with
options that only LoRA has (DoRA, biases, trainable tokens) are left out, and so are all other methods. What
follows the two folders goes to pytest.
"""

import ast
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import peft

import rankfold

PRESETS: dict[str, dict[str, Any]] = {
    **{name: {} for name in ("lora", "relayed_lora", "tlora", "tlora_plus")},
    "effilora": {"heads": 1, "dropout": 0.0},
}
_TABLES = {"test_custom_models.py": ("TEST_CASES", "MULTIPLE_ACTIVE_ADAPTERS_TEST_CASES")}
_SHARED = {
    *("target_modules", "target_parameters", "modules_to_save", "r", "exclude_modules"),
    *("rank_pattern", "layers_to_transform", "layers_pattern"),
}
_OTHER_LAYERS = ("conv1d", "conv3d", "mha")
"""Layers that we refuse by name; Conv1D of transformers stands as `EmbConv1D` in the tables."""

_RENAMED = {"lora_alpha": "alpha", "init_lora_weights": "init_weights", "lora_dropout": "dropout"}


def convert_cases(table: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Return the cases of LoRA that our configuration can express, once for each preset."""
    cases: list[tuple[Any, ...]] = []
    for case in table:
        options = [part for part in case if isinstance(part, dict)]
        is_ours = peft.LoraConfig in case and all(is_shared(part) for part in options)
        if not is_ours or any(str(part).lower() in _OTHER_LAYERS for part in case):
            continue
        for preset in PRESETS:
            name, *others = case
            cases.append((f"{name} as {preset}", *(_convert(part, preset) for part in others)))
    return cases


def is_shared(options: dict[str, Any]) -> bool:
    """Whether our configuration has all of these options."""
    return options.keys() <= _SHARED | _RENAMED.keys() and isinstance(
        options.get("init_lora_weights", True), bool
    )


def _convert(part: Any, preset: str) -> Any:
    if part is peft.LoraConfig:
        return rankfold.RankfoldConfig
    if not isinstance(part, dict):
        return part
    options = {_RENAMED.get(name, name): value for name, value in part.items()}
    return {**preset_fields(preset), **options}


def preset_fields(preset: str) -> dict[str, Any]:
    """Return the fields of a configuration in which a preset differs from the defaults."""
    config, default = (
        rankfold.config(preset, **PRESETS[preset]).to_dict(),
        rankfold.RankfoldConfig().to_dict(),
    )
    return {
        name: value
        for name, value in config.items()
        if value != default[name] and name not in ("target_modules", "preset")
    }


def rewrite(source: str, names: tuple[str, ...]) -> str:
    """Return a test file that converts its tables behind their assignments."""
    lines = source.splitlines()
    ends = [
        (node.end_lineno, node.targets[0].id)
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id in names
    ]
    for end, name in sorted(ends, reverse=True):
        lines.insert(end or 0, f"from peft_tests import convert_cases\n{name} = convert_cases({name})")
    return "\n".join(lines)


def main(tests: Path, out: Path, *options: str) -> int:
    """Copy PEFT's tests with our cases, and run them."""
    shutil.copytree(tests, out, dirs_exist_ok=True)
    for file, names in _TABLES.items():
        (out / file).write_text(rewrite((tests / file).read_text("utf-8"), names), "utf-8")
    path = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    (out / "conftest.py").write_text(path, "utf-8")
    (out / "__init__.py").touch()
    files = [str(out / file) for file in _TABLES]
    return subprocess.call([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files, *options])


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:]))
