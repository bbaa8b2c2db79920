"""Adapters on the experts of transformers' models: every form of a saved adapter, and every way out of it."""

import json
import warnings

import peft
import pytest
import torch
import transformers
from click.testing import CliRunner
from torch import Tensor, nn

import rankfold
from rankfold import AdapterStore, NotExactError, RankfoldWarning, SpecError
from rankfold.cli.main import cli
from rankfold.export.compress import Compression
from rankfold.export.export import ExportRequest, export
from rankfold.peft_plugin.targets import plan_adapters
from rankfold.store.loading import load_adapter
from rankfold.store.saved import write_packed
from rankfold.store.size import explain
from tests.support.moe_models import EXPERTS, MAKERS, moe, words
from tests.support.tolerance import assert_close, relative_rms
from tests.support.toys import toy_sizes_allowed

ROUNDING = 5e-6


def experts_config(method: str = "lora", **options) -> rankfold.RankfoldConfig:
    fields = {
        "r": 3,
        "dropout": 0.0,
        "target_modules": ["q_proj"],
        "target_parameters": list(EXPERTS),
        "task_type": "CAUSAL_LM",
        "init_weights": False,
    }
    own = rankfold.presets.discover()[method].options
    small = {"k": 1} if "k" in own else {}
    return rankfold.config(method, **{**fields, **small, **options})


def adapted(name: str, config: rankfold.RankfoldConfig, dtype: torch.dtype = torch.float64) -> nn.Module:
    with toy_sizes_allowed():
        return peft.get_peft_model(moe(name, dtype=dtype), config).eval()


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model(words()).logits


@pytest.fixture(params=MAKERS)
def saved(request, tmp_path):
    """Return a model's folder, that of an adapter of it, and the logits of both together."""
    name = request.param
    model = moe(name, dtype=torch.float32)
    model.save_pretrained(tmp_path / "base")
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    assert_close(logits(base), logits(model))
    with toy_sizes_allowed():
        whole = peft.get_peft_model(base, experts_config("relayed_lora")).eval()
    whole.save_pretrained(tmp_path / "adapter")
    return tmp_path / "base", tmp_path / "adapter", logits(whole)


def load_base(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.mark.parametrize("implementation", ["grouped_mm", "batched_mm", "eager"])
def test_every_implementation_of_experts_reads_the_changed_parameters(implementation):
    for name in MAKERS:
        model = adapted(name, experts_config(), torch.float32)
        model.base_model.model.set_experts_implementation(implementation)
        merged = adapted(name, experts_config(), torch.float32).merge_and_unload()
        assert relative_rms(logits(model), logits(merged)) < ROUNDING
        assert relative_rms(logits(model), logits(moe(name, dtype=torch.float32))) > 0.01


def test_every_form_of_a_saved_adapter_gives_the_same_logits(saved, tmp_path):
    base, adapter, expected = saved
    write_packed(adapter, tmp_path / "packed.rf")
    with AdapterStore(tmp_path / "store.db") as store:
        store.put("a", adapter)
    for form in (adapter, tmp_path / "packed.rf", f"{tmp_path / 'store.db'}#a"):
        assert torch.equal(logits(load_adapter(load_base(base), form)), expected)
    parts = explain(adapter).parts
    counted = rankfold.count_parameters(load_adapter(load_base(base), adapter)).stored
    assert sum(part.numbers for part in parts if part.type == "factor") == counted
    model = load_base(base)
    model.load_adapter(str(adapter))
    assert torch.equal(logits(model.eval()), expected)


def test_plain_lora_of_experts_says_the_same_in_peft(saved, tmp_path):
    base, adapter, expected = saved
    certificate = rankfold.export_lora(adapter, tmp_path / "out", model=str(base))
    assert certificate.worst_written.written < 1e-6
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert len(config["target_parameters"]) == 4
    loaded = peft.PeftModel.from_pretrained(load_base(base), tmp_path / "out").eval()
    assert relative_rms(logits(loaded), expected) < ROUNDING
    assert relative_rms(logits(loaded), logits(load_base(base))) > 0.01


def test_compressed_experts_have_one_rank_and_the_error_that_is_stated(saved, tmp_path):
    base, adapter, expected = saved
    certificate = export(
        ExportRequest(adapter=adapter, out=tmp_path / "out", model=str(base), compression=Compression(rank=2))
    )
    assert {layer.rank for layer in certificate.layers} == {2}
    assert 0 < certificate.worst_written.written < 1
    loaded = peft.PeftModel.from_pretrained(load_base(base), tmp_path / "out").eval()
    assert relative_rms(logits(loaded), expected) > ROUNDING


def test_merged_experts_say_the_same_without_peft(saved, tmp_path):
    base, adapter, expected = saved
    rankfold.export_lora(adapter, tmp_path / "out", to="merged", model=str(base))
    assert relative_rms(logits(load_base(tmp_path / "out")), expected) < ROUNDING


def test_llama_cpp_is_refused_by_name(saved, tmp_path):
    base, adapter, _ = saved
    with pytest.raises(NotExactError, match=r"experts\.(gate_up|down)_proj'.*--to merged"):
        rankfold.export_lora(adapter, tmp_path / "out", to="gguf", model=str(base))


def test_peft_reads_the_same_layouts(tmp_path):
    """Our LoRA on the experts is PEFT's: the same numbers in the same places give the same logits."""
    for name in MAKERS:
        ours = adapted(name, experts_config(r=2), torch.float32)
        theirs = peft.get_peft_model(
            moe(name, dtype=torch.float32),
            peft.LoraConfig(r=2, lora_alpha=16, target_modules=["q_proj"], target_parameters=list(EXPERTS)),
        )
        trained = [sum(p.numel() for p in m.parameters() if p.requires_grad) for m in (ours, theirs)]
        assert trained[0] == trained[1]


def test_planning_counts_what_is_built():
    for method in ("lora", "relayed_lora", "tlora", "share_lora"):
        config = experts_config(method)
        with toy_sizes_allowed():
            builder = plan_adapters(moe(), config)
        counted = rankfold.count_parameters(adapted("mixtral", config))
        assert builder.parameter_count() == counted.stored
        assert len(builder.tensor_sizes()) == sum(
            p.requires_grad for p in adapted("mixtral", config).parameters()
        )


def test_training_with_recomputed_activations_lowers_the_loss():
    for name in MAKERS:
        model = adapted(name, experts_config(init_weights=True), torch.float32).train()
        model.gradient_checkpointing_enable()
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(trained, lr=0.01)
        losses = []
        for _ in range(6):
            loss = model(words(), labels=words()).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        assert losses[-1] < losses[0] - 0.1


def test_the_command_line_takes_parameters(tmp_path):
    moe("mixtral", dtype=torch.float32).save_pretrained(tmp_path)
    arguments = ["params", "--model", str(tmp_path), "--method", "lora", "--set", "r=2", "--json"]
    answers = []
    for setting in ("target_parameters=experts.down_proj", f"target_parameters={json.dumps(list(EXPERTS))}"):
        result = CliRunner().invoke(cli, [*arguments, "--set", setting])
        assert result.exit_code == 0, result.output
        answers.append(result.output)
    assert answers[0] != answers[1]


BROAD = ["all-linear", ["q_proj"], None]


@pytest.mark.parametrize("targets", BROAD)
def test_experts_that_are_left_out_are_said_once_with_the_remedy(targets):
    config = rankfold.config("lora", r=2, target_modules=targets)
    share = sum(p.numel() for n, p in moe().named_parameters() if ".experts." in n) / moe().num_parameters()
    with pytest.warns(RankfoldWarning, match=f"{share:.0%} of the model's numbers") as caught:
        model = peft.get_peft_model(moe(), config)
    message = next(str(w.message) for w in caught if "numbers" in str(w.message))
    assert f"target_parameters={list(EXPERTS)}" in message
    silent = rankfold.config("lora", r=2, target_modules=targets, target_parameters=[])
    with warnings.catch_warnings():
        warnings.simplefilter("error", RankfoldWarning)
        peft.get_peft_model(moe(), silent)
        again = peft.PeftConfig.from_peft_type(**model.peft_config["default"].to_dict())
        peft.get_peft_model(moe(), again)  # as of a file: it was said when the adapter was made


@pytest.mark.parametrize("name", ["gate_up_proj", "down_proj"])
def test_the_name_of_a_parameter_among_layers_points_to_target_parameters(name):
    with pytest.raises(SpecError, match=rf"'{name}' is a parameter.*\['experts.{name}'\]"):
        peft.get_peft_model(moe(), rankfold.config("lora", target_modules=[name]))
    with pytest.raises(SpecError, match=r"unknown target module 'w1'.*experts.gate_up_proj"):
        peft.get_peft_model(moe(), rankfold.config("lora", target_modules=["w1"]))
    with pytest.raises(SpecError, match=r"MixtralTopKRouter.*target_parameters=\['gate.weight'\]"):
        peft.get_peft_model(moe(), rankfold.config("lora", target_modules=["gate"]))
