"""A step on the meta device takes what a real step takes."""

from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    LlamaConfig,
    T5Config,
)

from rankfold.bench.estimates import memory_of
from rankfold.errors import SpecError
from rankfold.models.meta import MetaBase
from rankfold.presets import discover
from rankfold.runs.methods import find_method
from rankfold.runs.request import RunRequest
from rankfold.runs.workload import measure_workload, trace_step
from rankfold.tasks.kinds.classification import KIND as CLASSIFICATION
from rankfold.tasks.kinds.image_text import KIND as IMAGE_TEXT
from rankfold.tasks.kinds.instruction import KIND as INSTRUCTION
from tests.support.picture_models import vision_language_model

ROWS, LENGTH, WORDS = 8, 32, 500
SIZES = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": WORDS}
BASES = {
    "bert": MetaBase(BertConfig(**SIZES, intermediate_size=512), CLASSIFICATION.head(), "here"),
    "llama": MetaBase(LlamaConfig(**SIZES, intermediate_size=384), INSTRUCTION.head(), "here"),
}
TARGETS = ["query", "value", "intermediate.dense", "output.dense"]
METHODS = ("lora", "relayed_lora", "tlora_plus", "effilora", "peft:lora")
CASES = pytest.mark.parametrize(("name", "method"), [(name, each) for name in BASES for each in METHODS])


def config_of(name, method, **options):
    usual = {"target_modules": None}  # PEFT's layers for the model
    options = usual | ({"dropout": 0.0} if method == "effilora" else {}) | options
    return find_method(method).config(options, BASES[name].head.task_type, seed=0)


def work_of(name, method, **options):
    return workload(BASES[name], config_of(name, method, **options), method)


def workload(base, config, method="lora"):
    request = RunRequest(model="here", method=method, out=Path())
    return measure_workload(base, config, request, rows=ROWS, length=LENGTH)


def traced(name, method):
    return trace_step(BASES[name].with_adapter(config_of(name, method))[1], ROWS, LENGTH)


class RealStep:
    """A step of the same model with weights, on the CPU."""

    def __init__(self, name, method):
        base = BASES[name]
        is_causal = base.head.kind == INSTRUCTION.name
        auto = AutoModelForCausalLM if is_causal else AutoModelForSequenceClassification
        self.model = peft.get_peft_model(auto.from_config(base.config), config_of(name, method)).train()
        tokens = torch.randint(1, WORDS, (ROWS, LENGTH))
        labels = tokens if is_causal else torch.zeros(ROWS, dtype=torch.long)
        self.batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": labels}

    def forward(self, precision="fp32"):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            return self.model(**self.batch).loss

    def flops(self):
        # The counter does not know the product that is added in place.
        in_place = {torch.ops.aten.addmm_: lambda _, left, right, **__: 2 * left[0] * left[1] * right[1]}
        counter = FlopCounterMode(display=False, custom_mapping=in_place)
        # Nor does it know the products of attention that is fused for the CPU.
        with counter, sdpa_kernel(SDPBackend.MATH):
            self.forward().backward()
        return counter.get_total_flops()

    def kept_bytes(self):
        kept = {}

        def keep(tensor):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = self.forward()
        for weight in (*self.model.parameters(), *self.model.buffers()):
            kept.pop(weight.untyped_storage().data_ptr(), None)
        del loss
        return sum(kept.values())

    def peak_bytes(self, precision):
        """Return the most that is taken at once in an update, beyond the model itself."""
        optimizer = torch.optim.AdamW(each for each in self.model.parameters() if each.requires_grad)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            self.forward(precision).backward()
            optimizer.step()
        taken = most = 0
        for event in profiled.profiler.kineto_results.events():
            if event.name() == "[memory]":
                taken += event.nbytes()
                most = max(most, taken)
        return most


@CASES
def test_operations_are_those_that_torch_counts_in_a_real_step(name, method):
    assert traced(name, method).flops == RealStep(name, method).flops()


@CASES
def test_kept_bytes_are_those_of_a_real_step(name, method):
    assert traced(name, method).kept_bytes == pytest.approx(RealStep(name, method).kept_bytes(), rel=0.03)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@CASES
def test_memory_is_within_a_fifth_of_the_peak_of_a_real_update(name, method, precision):
    work = work_of(name, method)
    memory = memory_of(work, precision)
    # What the model takes was taken before: its weights, and the trained numbers themselves.
    predicted = memory.total - memory.weights - 4 * work.trained
    assert predicted == pytest.approx(RealStep(name, method).peak_bytes(precision), rel=0.2)


@pytest.mark.parametrize("method", discover())
def test_every_preset_is_followed_whole_but_the_one_that_is_cut_from_the_base(method):
    work = work_of("bert", method, target_modules=TARGETS)
    assert work.left_out == ("what the adapter keeps" if method == "nora" else None)
    assert work.step.flops > work.step.forward_flops


def test_classes_of_a_model_without_a_word_for_padding_can_be_followed():
    base = replace(BASES["llama"], head=CLASSIFICATION.head())
    assert workload(base, find_method("lora").config({}, base.head.task_type, seed=0)).left_out is None


def test_the_image_encoder_of_a_vision_language_model_is_named_as_not_counted():
    base = MetaBase(vision_language_model("llava").config, IMAGE_TEXT.head(), "here")
    config = find_method("lora").config({}, base.head.task_type, seed=0)
    assert workload(base, config).left_out == "the image encoder"


def test_model_that_cannot_be_followed_is_refused_with_the_reason():
    sizes = {"d_model": 32, "d_ff": 64, "num_layers": 1, "num_heads": 2, "d_kv": 16, "vocab_size": WORDS}
    base = MetaBase(T5Config(**sizes), CLASSIFICATION.head(), "here")
    with pytest.raises(SpecError, match=r"without weights \(Passing input embeddings .*measure a short run"):
        workload(base, find_method("lora").config({}, base.head.task_type, seed=0))


def test_trace_leaves_no_gradient_behind():
    _, model = BASES["bert"].with_adapter(config_of("bert", "lora"))
    trace_step(model, ROWS, LENGTH)
    assert all(parameter.grad is None for parameter in model.parameters())
