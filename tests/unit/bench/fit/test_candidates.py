"""What is considered: every method, counted exactly; what cannot be built is kept with its reason."""

from collections import Counter
from dataclasses import replace

import peft
import pytest
from transformers import BertConfig, LlamaConfig

import rankfold
from rankfold.bench.fit import candidates as candidates_module
from rankfold.bench.fit.budget import Budget, Size, SizeEstimator
from rankfold.bench.fit.candidates import (
    Candidate,
    Space,
    find_candidates,
    fitting,
    largest_lora,
    shortlist,
)
from rankfold.errors import SpecError
from rankfold.presets import discover
from rankfold.runs.methods import find_method
from rankfold.tasks.kinds import kind_base
from tests.support.bases import random_basis

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
MODELS = {
    "bert": BertConfig(**SIZES, vocab_size=50, architectures=["BertModel"]),
    "llama": LlamaConfig(**SIZES, vocab_size=50, architectures=["LlamaForCausalLM"]),
}


def ruler_of(name, folder):
    MODELS[name].save_pretrained(folder)
    return SizeEstimator(kind_base(str(folder), kind=None, num_labels=2), tokens=512)


@pytest.fixture(scope="module")
def ruler(tmp_path_factory):
    return ruler_of("bert", tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def candidates(ruler):
    """All but most of the ranks, which are counted alike."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(candidates_module, "RANKS", (1, 2, 4, 7, 8, 16, 256))
        return find_candidates(ruler, Space(dtypes=("int4", "fp32")))


@pytest.mark.parametrize("method", discover())
def test_count_is_that_of_the_built_adapter(ruler, candidates, method):
    of_method = [each for each in candidates if each.method == method]
    check_counts(ruler, of_method)


def test_count_on_another_architecture_is_that_of_the_built_adapter(tmp_path):
    ruler = ruler_of("llama", tmp_path)
    check_counts(ruler, find_candidates(ruler, Space(("lora",))))


def check_counts(ruler, candidates):
    """Compare the first of every number of options, usual and varied, with what is built."""
    sized = [each for each in candidates if each.size]
    for candidate in {len(each.options): each for each in reversed(sized)}.values():
        config = find_method(candidate.method).config(candidate.options, ruler.base.head.task_type, seed=0)
        _, model = ruler.base.with_adapter(config)
        assert candidate.size.numbers == rankfold.count_parameters(model).trainable


def test_every_method_is_considered_in_several_ranks_and_sets_of_layers(candidates):
    for method in discover():
        of_method = [each for each in candidates if each.method == method]
        assert len({each.options.get("r") for each in of_method}) > 3
        assert len({str(each.options["target_modules"]) for each in of_method}) > 1


def test_options_that_change_the_size_are_varied(candidates):
    varied = {
        (each.method, name)
        for each in candidates
        for name in each.options.keys() - {"r", "alpha", "target_modules"}
    }
    expected = {("relayed_lora", "k"), ("effilora", "heads"), ("nora", "inner"), ("tlora_plus", "train")}
    expected |= {("relayed_lora", name) for name in ("share_down", "down", "scaling")}
    assert expected <= varied
    assert not {name for _, name in varied} & {"seed", "top_k", "dropout", "split", "reading"}


def test_alpha_keeps_the_scaling_in_every_rank(candidates):
    ratios = {
        each.options["alpha"] / each.options["r"]
        for each in candidates
        if each.method == "lora" and "alpha" in each.options
    }
    assert ratios == {2.0}


def test_reference_of_step_times_is_plain_lora_of_rank_8(ruler):
    assert ruler.sizes("lora", {"r": 8, "target_modules": ruler.usual})["fp32"].step == 1.0


def test_model_that_is_smaller_than_the_reference_is_measured_all_the_same(tmp_path):
    config = LlamaConfig(
        **{**SIZES, "num_key_value_heads": 1, "head_dim": 6},
        vocab_size=50,
        architectures=["LlamaForCausalLM"],
    )
    config.save_pretrained(tmp_path)
    ruler = SizeEstimator(kind_base(str(tmp_path), kind=None, num_labels=2), tokens=512)
    assert ruler.sizes("lora", {"r": 2, "target_modules": ruler.usual})["fp32"].step < 1


def test_what_cannot_be_built_has_a_reason_and_the_rest_a_size(candidates):
    assert all((each.size is None) == (each.reason is not None) for each in candidates)
    too_large = [each for each in candidates if each.options.get("r") == 256 and each.method == "lora"]
    assert too_large
    assert all("r=256" in each.reason for each in too_large)


def test_fitting_ones_are_all_within_the_budget_and_the_largest_use_is_first(candidates):
    budget = Budget(params=3000, step=1.5)
    found = fitting(candidates, budget)
    uses = [budget.use(each.size) for each in found]
    assert uses == sorted(uses, reverse=True)
    assert uses[0] <= 1
    left_out = [each for each in candidates if each.size and each not in found]
    assert all(budget.use(each.size) > 1 for each in left_out)


def place_of(candidate):
    return candidate.family, str(candidate.options["target_modules"]), candidate.dtype


def test_short_list_has_of_each_composition_the_most_usual_one_of_those_that_use_most(candidates):
    budget = Budget(bytes=30_000)
    chosen = shortlist(candidates, budget)
    every = fitting(candidates, budget)
    assert len(set(map(place_of, chosen))) == len(chosen) == len(set(map(place_of, every)))
    for each in chosen:
        siblings = [other for other in every if place_of(other) == place_of(each)]
        most = max(budget.use(other.size) for other in siblings)
        assert budget.use(each.size) >= 0.8 * most
        alike = [other for other in siblings if budget.use(other.size) >= 0.8 * most]
        assert each.distance == min(other.distance for other in alike)


@pytest.mark.parametrize("most", [1, 5, 20, 40])
def test_a_limited_short_list_has_every_composition_before_a_second_of_any(candidates, most):
    chosen = shortlist(candidates, Budget(bytes=30_000), most)
    counts = Counter(each.family for each in chosen)
    families = {each.family for each in fitting(candidates, Budget(bytes=30_000))}
    assert len(chosen) == most
    assert len(counts) == min(most, len(families))


def test_a_basis_adds_cores_and_lora_on_it(ruler, tmp_path):
    digest = random_basis(tmp_path / "of_other_tasks.basis", ruler.base.model(), "all-linear").digest
    found = find_candidates(ruler, Space(("lora", "basis_core"), basis=digest))
    families = {each.family for each in found if each.size}
    assert {("lora", f"down=basis:{digest}"), ("basis_core", f"basis={digest}")} <= families


def test_distance_counts_doublings_of_the_rank_another_option_and_other_layers(ruler, candidates):
    # Rank 8 is the method's own.
    lora = {
        (each.options["r"], each.options["target_modules"] == ruler.usual): each.distance
        for each in candidates
        if each.method == "lora" and each.dtype == "fp32"
    }
    assert (lora[8, True], lora[16, True], lora[2, True], lora[16, False]) == (0, 1, 2, 2)


def test_equal_use_and_distance_prefers_the_shorter_step():
    plain = Candidate("lora", {"r": 1}, Size(10, 40, 1.0))
    others = [replace(plain, size=Size(10, 40, 1.2)), replace(plain, distance=1.0), plain]
    assert shortlist(others, Budget(params=10)) == [plain]


def test_budget_that_nothing_fits_names_the_nearest():
    candidates = [Candidate("lora", {"r": rank}, Size(100 * rank, 400 * rank, 1.0)) for rank in (4, 2, 8)] + [
        Candidate("tlora", {}, None, "no")
    ]
    with pytest.raises(
        SpecError, match=r"nothing fits a budget of 50 trained parameters; .*'lora r=2' with 200"
    ):
        fitting(candidates, Budget(params=50))


def test_budget_of_less_time_than_the_base_takes_names_the_fastest():
    candidates = [
        Candidate("lora", {"r": rank}, Size(rank, 4 * rank, 1 + rank / 10, 0.9)) for rank in (4, 2, 8)
    ]
    with pytest.raises(SpecError, match=r"the nearest is 'lora r=2' with .* 1\.200x"):
        fitting(candidates, Budget(step=0.5))


def test_model_on_which_nothing_can_be_built_is_refused_with_the_reason():
    with pytest.raises(SpecError, match=r"no composition can be built on this model \(it is round"):
        fitting([Candidate("lora", {}, None, "it is round.")], Budget(params=50))


def test_unknown_method_is_refused_by_name(ruler):
    with pytest.raises(SpecError, match="Did you mean 'lora'"):
        Space(("lroa",))


def test_lora_within_a_budget_is_peft_lora_of_that_size(ruler):
    found = largest_lora(ruler, Budget(params=3000))
    config = find_method(found.method).config(found.options, ruler.base.head.task_type, seed=0)
    assert isinstance(config, peft.LoraConfig)
    _, model = ruler.base.with_adapter(config)
    counted = sum(p.numel() for name, p in model.named_parameters() if p.requires_grad and ".lora_" in name)
    assert found.size.numbers == counted <= 3000
    assert largest_lora(ruler, Budget(params=1)) is None
