"""A suite is read strictly and expands into runs that differ only in method and seed."""

from dataclasses import fields, replace
from pathlib import Path

import pytest

from rankfold.bench.suites.suite import Suite, Variant
from rankfold.bench.suites.suite_file import packaged_suites, parse_method, read_suite
from rankfold.cli.options import parse_settings
from rankfold.errors import SpecError
from rankfold.presets import discover
from rankfold.runs.methods import HEAD_ONLY, peft_methods
from rankfold.runs.records import labels_of
from rankfold.runs.request import RunRequest

SUITE = Suite("some", {"model": "minilm", "steps": 5}, (Variant("lora"), Variant("tlora")), (0, 3))


def written(folder, text):
    path = folder / "suite.toml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("name", packaged_suites())
def test_packaged_suite_expands_into_runs_of_methods_that_exist(name):
    requests = read_suite(name).requests(Path("out"))
    assert {request.method for request in requests} <= {*discover(), *peft_methods(), HEAD_ONLY.name}


def test_quick_suite_has_the_reference_first_and_the_baseline_last():
    assert [method.name for method in read_suite("quick").methods] == [
        "lora",
        "relayed_lora",
        "tlora_plus",
        "effilora",
        HEAD_ONLY.name,
    ]


def test_runs_differ_only_in_method_options_seed_and_folder():
    requests = SUITE.requests(Path("out"))
    may_differ = {"method", "options", "seed", "out"}
    for each in fields(RunRequest):
        if each.name not in may_differ:
            assert len({repr(getattr(request, each.name)) for request in requests}) == 1, each.name


def test_runs_go_seed_by_seed_with_a_folder_each():
    places = [(request.seed, request.out.name) for request in SUITE.requests(Path("out"))]
    assert places == [(0, "lora-seed0"), (0, "tlora-seed0"), (3, "lora-seed3"), (3, "tlora-seed3")]


def test_learning_rate_of_a_method_wins_over_that_of_the_suite():
    methods = (Variant("lora"), Variant("tlora", settings={"learning_rate": 0.5}))
    suite = replace(SUITE, base={**SUITE.base, "learning_rate": 0.1}, methods=methods, seeds=(0,))
    assert [request.learning_rate for request in suite.requests(Path("out"))] == [0.1, 0.5]


def test_reducer_of_a_method_wins_over_that_of_the_suite_and_names_the_run(tmp_path):
    text = """
    name = "some"
    seeds = [0]
    base = { model = "minilm", steps = 5, reducer = {} }
    [[methods]]
    name = "lora"
    [[methods]]
    name = "lora"
    reducer = { active_fraction = 0.5 }
    """
    requests = read_suite(written(tmp_path, text)).requests(Path("out"))
    assert [request.reducer for request in requests] == [{}, {"active_fraction": 0.5}]
    assert [request.out.name for request in requests] == [
        "lora-seed0",
        "lora_reducer=on_reducer.active_fraction=0.5-seed0",
    ]


def test_folder_names_stay_inside_the_output_folder():
    suite = replace(SUITE, methods=(Variant("peft:lora", {"r": 8}), Variant("peft:lora", {"r": "../x"})))
    names = [str(request.out.relative_to("out")) for request in suite.requests(Path("out"))]
    assert len(set(names)) == 4
    assert not any(character in name for name in names for character in "/\\: ")


@pytest.mark.parametrize(
    "change",
    [
        {"models": ("step1/model", "step2/model")},
        {"tasks": {"a b": {}, "a_b": {}}},
        {"methods": tuple(Variant("lora", {"target_modules": words}) for words in (".*query", ".?query"))},
        {"models": ("folder/Bert", "folder/bert")},
        {"models": ("m-a", "m"), "tasks": {"b": {}, "a-b": {}}},
    ],
    ids=["models", "tasks", "options", "case", "dashes"],
)
def test_different_runs_never_share_a_folder(change):
    with pytest.raises(SpecError, match="would share folders"):
        replace(SUITE, **change).requests(Path("out"))


def test_folder_name_that_is_too_long_is_shortened_and_still_its_own():
    modules = [f"encoder.layers.{number}.überlang.query" for number in range(12)]
    methods = tuple(
        Variant("lora", {"target_modules": [*modules, last], "r": 8}) for last in ("key", "value")
    )
    names = [request.out.name for request in replace(SUITE, methods=methods).requests(Path("out"))]
    assert len(set(names)) == 4
    assert all(len(f"{name}.unfinished".encode()) <= 255 for name in names)
    assert [name.rpartition("-")[2] for name in names] == ["seed0", "seed0", "seed3", "seed3"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base": {"model": "minilm", "stepz": 5}}, "'stepz' of the suite .* Did you mean 'steps'"),
        ({"base": {"model": "minilm", "seed": 5}}, "unknown setting 'seed' of the suite"),
        ({"base": {"model": "minilm", "steps": "5"}}, "steps is '5'"),
        ({"base": {"model": "minilm", "steps": 0}}, "steps is 0"),
        ({"base": {"steps": 5}}, "a run needs a model"),
        ({"methods": ()}, "no methods"),
        ({"seeds": ()}, "no seeds"),
        ({"seeds": (1, 1)}, "seed '1' .* twice"),
        ({"methods": (Variant("lora"), Variant("lora"))}, "method 'lora' .* twice"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_suite_that_cannot_be_run_is_refused_with_the_reason(change, message):
    with pytest.raises(SpecError, match=message):
        replace(SUITE, **change).requests(Path("out"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = ", "not TOML"),
        ("name = 'x'\n[base]\nmodel = 'm'", "methods"),
        ("name = 'x'\nnmae = 1\nmethods = []\n[base]", "nmae"),
        ("name = 'x'\n[base]\n[[methods]]\nname = 'lora'\noption = {}", "option"),
        ("name = 'x'\nseeds = ['0']\n[base]\n[[methods]]\nname = 'lora'", "seeds.0"),
    ],
    ids=["syntax", "missing", "unknown key", "unknown key of a method", "text for a number"],
)
def test_suite_file_that_is_wrong_is_refused_with_its_place(tmp_path, text, message):
    with pytest.raises(SpecError, match=message):
        read_suite(written(tmp_path, text))


def test_suite_file_of_the_user_is_read(tmp_path):
    text = "name = 'x'\nseeds = [1]\n[base]\nmodel = 'm'\n[[methods]]\nname = 'lora'\noptions = { r = 4 }"
    (request,) = read_suite(written(tmp_path, text)).requests(Path("out"))
    assert (request.model, request.method, request.options, request.seed) == ("m", "lora", {"r": 4}, 1)


def test_suite_name_with_a_typo_is_refused_with_a_suggestion():
    with pytest.raises(SpecError, match="Did you mean 'quick'"):
        read_suite("quik")
    with pytest.raises(SpecError, match="no suite file"):
        read_suite("absent.toml")


def test_method_of_the_command_line_is_read_with_its_settings():
    method = parse_method("lora r=16 learning_rate=1e-4 target_modules=query,value", parse_settings)
    assert method == Variant("lora", {"r": 16, "target_modules": ["query", "value"]}, {"learning_rate": 1e-4})
    with pytest.raises(SpecError, match="not a number"):
        parse_method("lora learning_rate=fast", parse_settings)
    with pytest.raises(SpecError, match="has no name"):
        parse_method(" ", parse_settings)


def test_labels_name_what_differs_and_nothing_else():
    entries = [("lora", {"r": 8, "alpha": 16}), ("lora", {"r": 16, "alpha": 16}), ("tlora", {"r": 8})]
    assert labels_of(entries) == ["lora r=8", "lora r=16", "tlora"]
    assert labels_of([("lora", {}), ("lora", {"r": 16})]) == ["lora", "lora r=16"]


def test_suite_that_names_no_seeds_has_five(tmp_path):
    text = "name = 'x'\n[base]\nmodel = 'm'\n[[methods]]\nname = 'lora'"
    assert read_suite(written(tmp_path, text)).seeds == (0, 1, 2, 3, 4)
