"""A session answers texts as each adapter alone would, and refuses by name what it cannot serve."""

import copy
import dataclasses
import json

import peft
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import rankfold
from rankfold.store.adapter import spell_config
from rankfold.store.manifest import Manifest, TaskManifest
from rankfold.store.saved import open_adapter
from tests.integration.models import bert, config_of, gpt2, ids, t5
from tests.support.adapters import save_adapter
from tests.support.tiny_models import question_rows, review_rows, tiny_bert, tiny_llama

__all__ = ["tiny_bert", "tiny_llama"]

TEXTS = [row["sentence"] for row in review_rows(6)]


def with_task(folder, kind, names=None, **fields):
    """An adapter with a manifest, as a training writes one."""
    manifest = Manifest(TaskManifest("reviews", kind, names, **fields), max_length=32)
    return open_adapter(folder).with_manifest(manifest)


def served(base, processor, adapters, **options):
    bank = rankfold.Bank(base, **options)
    for name, adapter in adapters.items():
        bank.add(name, adapter)
    return rankfold.Session(bank, processor)


def packed(adapters, folder):
    for name, adapter in adapters.items():
        rankfold.pack_adapter(adapter, folder / f"{name}.rankfold")
    return {name: str(folder / f"{name}.rankfold") for name in adapters}


def test_classes_are_those_of_each_adapter_alone(tiny_bert, tmp_path):
    methods = ("lora", "tlora", "effilora", "relayed_lora")
    classes = {name: (f"no-{name}", f"yes-{name}") for name in methods}
    classes["tlora"] = classes["lora"]  # two adapters of one task, which run in one batch
    adapters = {
        name: with_task(save_adapter(tmp_path / name, tiny_bert, name), "classification", classes[name])
        for name in methods
    }
    base = AutoModelForSequenceClassification.from_pretrained(tiny_bert, num_labels=2)
    session = served(base, AutoTokenizer.from_pretrained(tiny_bert), adapters)
    names = [*methods, "lora", "tlora"]
    files = packed(adapters, tmp_path)
    alone = {name: rankfold.load(files[name], tiny_bert).predict(TEXTS) for name in methods}
    answers = session.predict(TEXTS, names)
    shares = session.classify(TEXTS, names)
    for index, name in enumerate(names):
        wanted = alone[name][index]
        assert answers[index]["label"] == wanted["label"]
        assert answers[index]["probabilities"] == pytest.approx(wanted["probabilities"], abs=1e-5)
        assert shares[index] == pytest.approx(wanted["probabilities"], abs=1e-5)


@pytest.mark.parametrize(("kind", "scoring"), [("instruction", None), ("multiple_choice", "likelihood")])
def test_texts_and_choices_are_those_of_each_adapter_alone(tiny_llama, tmp_path, kind, scoring):
    adapters = {
        name: with_task(save_adapter(tmp_path / name, tiny_llama, name), kind, scoring=scoring)
        for name in ("lora", "tlora")
    }
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.pad_token = tokenizer.eos_token
    session = served(AutoModelForCausalLM.from_pretrained(tiny_llama), tokenizer, adapters)
    rows = [{"instruction": row["instruction"], "choices": ["true", "false"]} for row in question_rows(4)]
    names = ["lora", "tlora", "tlora", "lora"]
    files = packed(adapters, tmp_path)
    alone = {
        name: rankfold.load(files[name], tiny_llama).predict(rows, max_new_tokens=4) for name in adapters
    }
    answers = session.predict(rows, names, max_new_tokens=4)
    assert [answer["text"] for answer in answers] == [alone[n][i]["text"] for i, n in enumerate(names)]


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize(
    ("make", "targets", "task"), [(gpt2, ["c_attn", "c_fc"], "CAUSAL_LM"), (t5, ["q", "wo"], "SEQ_2_SEQ_LM")]
)
def test_generated_tokens_are_those_of_each_adapter_alone(make, targets, task, beams, tmp_path):
    base, adapters = make(), {}
    for method in ("lora", "tlora", "effilora"):
        config = config_of(method, target_modules=targets, task_type=task)
        peft.get_peft_model(copy.deepcopy(base), config).save_pretrained(tmp_path / method)
        adapters[method] = tmp_path / method
    session = served(base, None, adapters)
    names = ["lora", None, "tlora", "effilora", "lora", "tlora"]
    inputs = {"input_ids": ids(length=5), "attention_mask": torch.ones(6, 5, dtype=torch.long)}
    options = {"max_new_tokens": 5, "do_sample": False, "num_beams": beams}
    tokens = session.generate(inputs, names, **options)
    for row, name in enumerate(names):
        model = copy.deepcopy(base)
        if name is not None:
            model = peft.PeftModel.from_pretrained(model, adapters[name])
        alone = model.generate(**{key: value[row : row + 1] for key, value in inputs.items()}, **options)
        assert torch.equal(tokens[row, : alone.shape[1]], alone[0])


def test_embeddings_of_texts_have_length_one_and_differ_by_adapter(tiny_bert, tmp_path):
    base = AutoModelForSequenceClassification.from_pretrained(tiny_bert, num_labels=2)
    adapter = save_adapter(tmp_path / "a", tiny_bert)
    session = served(base, AutoTokenizer.from_pretrained(tiny_bert), {"a": adapter})
    vectors = session.embed([TEXTS[0]] * 2 + [TEXTS[1]], ["a", None, None])
    assert torch.allclose(vectors.norm(dim=1), torch.ones(3))
    assert not torch.allclose(vectors[0], vectors[1])
    assert torch.allclose(vectors[1:], session.embed([TEXTS[0], TEXTS[1]], [None, None]), atol=1e-6)


def test_the_base_model_and_its_compiled_form_stay_as_they_are(tmp_path):
    base = bert()
    peft.get_peft_model(bert(), config_of("lora")).save_pretrained(tmp_path)
    names, before = [name for name, _ in base.named_modules()], base(ids()).logits
    session = served(torch.compile(base, backend="eager"), None, {"a": tmp_path})
    assert not torch.equal(session.run({"input_ids": ids()}, ["a"] * 6).logits, before)
    assert torch.equal(base(ids()).logits, before)
    assert [name for name, _ in base.named_modules()] == names
    assert all("forward" not in vars(module) for module in base.modules())
    with torch.no_grad():  # the weights are the same ones, so training goes on to be served
        base.classifier.bias.add_(1.0)
    assert torch.allclose(session.run({"input_ids": ids()}, [None] * 6).logits, before + 1)


def test_what_cannot_be_served_is_refused_by_name(tmp_path):
    base = bert()
    peft.get_peft_model(copy.deepcopy(base), config_of("lora")).save_pretrained(tmp_path / "a")
    saved = open_adapter(tmp_path / "a")
    session = served(base, None, {"a": saved}, slots=1)
    bank, inputs = session.bank, {"input_ids": ids()}
    key = next(iter(saved.tensors))

    def changed(**tensors):
        return dataclasses.replace(saved, tensors={**saved.tensors, **tensors})

    def methods(config):
        peft.get_peft_model(copy.deepcopy(base), config).save_pretrained(tmp_path / config.peft_type)
        return tmp_path / config.peft_type

    positions = config_of("lora", target_modules=["position_embeddings"])
    own = {"target_modules": ["query"], "task_type": "SEQ_CLS"}
    for adapter, error, message in [
        (changed(**{key: saved.tensors[key] * torch.nan}), rankfold.AdapterFileError, "not finite"),
        (changed(**{key: saved.tensors[key][:1]}), rankfold.AdapterFileError, "shape"),
        (changed(**{key: saved.tensors[key].long()}), rankfold.AdapterFileError, "floating-point"),
        (methods(peft.IA3Config(**own, feedforward_modules=[])), rankfold.SpecError, "IA3"),
        (methods(peft.LoraConfig(**own, use_dora=True)), rankfold.SpecError, "use_dora"),
        (methods(positions), rankfold.SpecError, "'bert.embeddings.position_embeddings'"),
    ]:
        with pytest.raises(error, match=message):
            bank.add("b", adapter)
    for names, message in [
        (["a"] * 5, "6 rows and 5 adapters"),
        (["b"] * 6, "there is no adapter 'b'"),
    ]:
        with pytest.raises(rankfold.SpecError, match=message):
            session.run(inputs, names)
    bank.add("b", saved)
    with pytest.raises(rankfold.SpecError, match="2 adapters and the bank has 1 slots"):
        session.run(inputs, ["a", "b"] * 3)
    with pytest.raises(rankfold.SpecError, match="'a' does not say which task"):
        session.predict(["text"], ["a"])
    with pytest.raises(rankfold.SpecError, match="no processor"):
        session.run(["text"], ["a"])
    with pytest.raises(rankfold.SpecError, match="carries adapters already"):
        rankfold.Bank(peft.get_peft_model(bert(), config_of("lora")))
    bank.remove("b")
    with pytest.raises(rankfold.SpecError, match="there is no adapter 'b'"):
        bank.remove("b")


def test_a_layer_that_gets_other_rows_than_the_batch_is_named(tmp_path):
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return self.layer(x.flatten(0, 1))

    base = Flat()
    config = rankfold.config("lora", target_modules=["layer"], r=2)
    peft.get_peft_model(copy.deepcopy(base), config).save_pretrained(tmp_path)
    session = served(base, None, {"a": tmp_path})
    with pytest.raises(rankfold.SpecError, match="'layer' gets 6 rows of a batch of 2"):
        session.run({"x": torch.zeros(2, 3, 4)}, ["a", "a"])


def test_adapters_with_other_seeds_share_a_frame_unless_the_seed_is_stored(tmp_path):
    frames = {}
    for method in ("lora", "tlora"):
        base = bert()
        bank = rankfold.Bank(base)
        peft.get_peft_model(copy.deepcopy(base), config_of(method)).save_pretrained(tmp_path / method)
        saved = open_adapter(tmp_path / method)
        for seed in range(2):
            config = json.loads(saved.config) | {"seed": seed}
            bank.add(str(seed), dataclasses.replace(saved, config=spell_config(config)))
        with bank.batch(["0", "1"]) as batch:
            layer = "bert.encoder.layer.0.attention.self.query"
            frames[method] = len(batch.of_layer(layer, torch.zeros(2, 1))[0])
    assert frames == {"lora": 1, "tlora": 2}
