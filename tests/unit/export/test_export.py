"""An export is what its certificate says, or there is none."""

import json
import warnings

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import rankfold
from rankfold.errors import AdapterFileError, DataError, NotExactError, OutputExistsError, SpecError
from rankfold.store.loading import load_adapter
from rankfold.store.manifest import MANIFEST_NAME, Manifest, TaskManifest
from tests.support.adapters import edit_json, save_adapter
from tests.support.tolerance import relative_rms

IDS = torch.tensor([[4, 5, 6, 7, 8, 9], [10, 11, 12, 13, 4, 5]])
# Models as narrow as these with adapters as strong amplify single precision's rounding of 6e-8.
ROUNDING = 5e-6
KEPT = ("adapter_config.json", "adapter_model.safetensors", "certificate.json")


@pytest.fixture
def adapter(tiny_bert, tmp_path):
    return save_adapter(tmp_path / "adapter", tiny_bert)


def classifier(folder):
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2).eval()


@torch.no_grad()
def scores(model):
    return model(input_ids=IDS).logits


def test_exported_classifier_says_the_same_in_plain_peft_with_its_head(adapter, tiny_bert, reviews, tmp_path):
    certificate = rankfold.export_lora(adapter, tmp_path / "out", data=str(reviews))
    loaded = peft.PeftModel.from_pretrained(classifier(tiny_bert), tmp_path / "out").eval()
    expected = scores(load_adapter(classifier(tiny_bert), adapter))
    assert relative_rms(scores(loaded), expected) < ROUNDING
    assert loaded.peft_config["default"].base_model_name_or_path == str(tiny_bert)
    assert certificate.logits.largest < ROUNDING
    assert certificate.logits.texts == 16
    assert certificate.base.sha256 is not None
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(KEPT)


@pytest.mark.parametrize(("dtype", "bound"), [("fp32", 1e-7), ("fp16", 1e-3), ("bf16", 1e-2)])
def test_certificate_states_the_error_of_what_the_files_hold(adapter, reviews, tmp_path, dtype, bound):
    certificate = rankfold.export_lora(adapter, tmp_path / "out", dtype=dtype, data=str(reviews))
    assert certificate.worst_fp32.fp32 < 1e-7
    assert certificate.worst_written.written < bound
    assert certificate.worst_written.written > bound / 1000 or dtype == "fp32"
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {str(t.dtype) for key, t in tensors.items() if ".lora_" in key} == {
        {"fp32": "torch.float32", "fp16": "torch.float16", "bf16": "torch.bfloat16"}[dtype]
    }
    assert json.loads((tmp_path / "out" / "certificate.json").read_text()) == certificate.to_dict()
    assert certificate.is_exact


def test_export_of_standardised_numbers_warns_how_to_read_them(adapter, reviews, tmp_path):
    task = TaskManifest("houses", "regression", settings={"scale": {"mean": 500.0, "std": 20.0}})
    (adapter / MANIFEST_NAME).write_bytes(Manifest(task).to_json())
    with pytest.warns(rankfold.RankfoldWarning, match="20 times an output, plus 500"):
        rankfold.export_lora(adapter, tmp_path / "out", data=str(reviews))


@pytest.mark.parametrize("is_some_folder", [False, True])
def test_lora_is_written_without_the_base_and_says_that_logits_were_not_compared(
    adapter, reviews, tmp_path, monkeypatch, is_some_folder
):
    monkeypatch.chdir(tmp_path)
    if is_some_folder:
        (tmp_path / "some" / "model-of-a-hub").mkdir(parents=True)
    edit_json(adapter / "adapter_config.json", base_model_name_or_path="some/model-of-a-hub")
    certificate = rankfold.export_lora(adapter, tmp_path / "out", data=str(reviews))
    assert certificate.logits is None
    assert "base model is not at hand" in certificate.logits_skipped
    assert certificate.base.name == "some/model-of-a-hub"
    assert certificate.base.sha256 is None


@pytest.mark.parametrize("to", ["lora", "gguf", "merged"])
def test_adapter_with_a_router_is_refused_and_nothing_is_written(tiny_bert, tmp_path, to):
    adapter = save_adapter(tmp_path / "adapter", tiny_bert, "hydra_lora")
    with pytest.raises(NotExactError, match="its router weighs 2 heads by its input"):
        rankfold.export_lora(adapter, tmp_path / "out", to=to)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_adapter_with_a_router_is_compressed_with_the_error_of_its_mean_gates(tiny_bert, reviews, tmp_path):
    adapter = save_adapter(tmp_path / "adapter", tiny_bert, "hydra_lora")
    certificate = rankfold.compress_lora(adapter, tmp_path / "out", rank=6, data=str(reviews))
    assert certificate.method == "compressed"
    assert not certificate.is_exact
    assert 1e-4 < certificate.logits.mean < 1
    assert certificate.rank == 6
    assert certificate.worst_written.written < 1e-6  # two heads of rank 3 with fixed gates have rank 6


@pytest.mark.parametrize("method", ["mix_lora", "mole", "mola", "effilora", "lora_moe"])
def test_every_kind_of_router_is_compressed_to_something_nearer_than_the_base(
    tiny_llama, reviews, tmp_path, method
):
    targets = ["q_proj", "gate_proj", "up_proj", "down_proj"]
    adapter = save_adapter(tmp_path / "adapter", tiny_llama, method, target_modules=targets, alpha=0.5)
    certificate = rankfold.compress_lora(adapter, tmp_path / "out", rank=12, data=str(reviews))
    assert len(certificate.layers) == 8
    base, plain, routed = (AutoModelForCausalLM.from_pretrained(tiny_llama).eval() for _ in range(3))
    expected, untouched = scores(load_adapter(routed, adapter)), scores(base)
    compressed = scores(peft.PeftModel.from_pretrained(plain, tmp_path / "out").eval())
    assert relative_rms(compressed, expected) < 0.9 * relative_rms(untouched, expected)


def test_compressing_further_loses_more(adapter, reviews, tmp_path):
    errors = [
        rankfold.compress_lora(
            adapter, tmp_path / str(rank), rank=rank, data=str(reviews)
        ).worst_written.written
        for rank in (3, 2, 1)
    ]
    assert errors[0] < 1e-6 < errors[1] < errors[2] < 1
    bounded = rankfold.compress_lora(adapter, tmp_path / "bounded", error=0.5, data=str(reviews))
    assert bounded.worst_written.written <= 0.5


def test_merged_model_says_the_same_without_peft(adapter, reviews, tmp_path):
    certificate = rankfold.export_lora(
        adapter, tmp_path / "out", to="merged", data=str(reviews), label_names=["bad", "good"]
    )
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    base = classifier(peft.PeftConfig.from_pretrained(adapter).base_model_name_or_path)
    assert relative_rms(scores(model), scores(load_adapter(base, adapter))) < ROUNDING
    assert model.config.id2label == {0: "bad", 1: "good"}
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    assert certificate.method == "merged"
    assert certificate.dtype == "fp32"


def test_merging_in_bfloat16_warns_of_what_rounding_takes(adapter, reviews, tmp_path):
    with pytest.warns(rankfold.RankfoldWarning, match="rounding the merged weights to bf16 takes"):
        certificate = rankfold.export_lora(
            adapter, tmp_path / "out", to="merged", dtype="bf16", data=str(reviews)
        )
    worst = certificate.worst_written
    base = classifier(peft.PeftConfig.from_pretrained(adapter).base_model_name_or_path)
    weight = base.get_submodule(worst.name).weight.detach()
    written = load_file(tmp_path / "out" / "model.safetensors")[f"{worst.name}.weight"]
    adapted = load_adapter(base, adapter).base_model.model.get_submodule(worst.name)
    change = adapted.get_delta_weight("default")
    assert relative_rms(written.float() - weight, change) == pytest.approx(worst.written, rel=1e-3)
    assert worst.fp32 < 1e-3 < worst.written


def test_llama_is_written_for_llama_cpp(tiny_llama, reviews, tmp_path):
    pytest.importorskip("gguf", reason="needs the extra 'gguf'")
    adapter = save_adapter(tmp_path / "adapter", tiny_llama)
    certificate = rankfold.export_lora(adapter, tmp_path / "out", to="gguf", data=str(reviews))
    assert list(certificate.result) == ["adapter.gguf"]
    assert certificate.worst_written.written < 1e-7
    assert "llama.cpp" in certificate.logits_skipped


def test_classifier_is_not_written_for_llama_cpp(tiny_bert, reviews, tmp_path):
    adapter = save_adapter(tmp_path / "adapter", tiny_bert)
    with pytest.raises(NotExactError, match=r"cannot hold 'classifier.bias', which was trained in full"):
        rankfold.export_lora(adapter, tmp_path / "out", to="gguf", data=str(reviews))


def test_factors_of_the_base_weights_take_the_base(tiny_llama, reviews, tmp_path):
    adapter = save_adapter(tmp_path / "adapter", tiny_llama, "nora")
    edit_json(adapter / "adapter_config.json", base_model_name_or_path="some/model")
    with pytest.raises(AdapterFileError, match=r"are taken from the base weights.*--model"):
        rankfold.export_lora(adapter, tmp_path / "out")
    certificate = rankfold.export_lora(adapter, tmp_path / "out", model=str(tiny_llama), data=str(reviews))
    assert certificate.rank == 2
    assert certificate.logits.largest < ROUNDING


def test_adapter_of_an_earlier_rankfold_takes_the_base_for_its_layers(tiny_llama, reviews, tmp_path):
    adapter = save_adapter(tmp_path / "adapter", tiny_llama)
    edit_json(adapter / "adapter_config.json", layers=None, base_model_name_or_path="some/model")
    with pytest.raises(AdapterFileError, match=r"has no list of layers.*--model"):
        rankfold.export_lora(adapter, tmp_path / "out")
    certificate = rankfold.export_lora(adapter, tmp_path / "out", model=str(tiny_llama), data=str(reviews))
    assert certificate.logits.largest < ROUNDING
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    loaded = peft.PeftModel.from_pretrained(model, tmp_path / "out").eval()
    expected = load_adapter(AutoModelForCausalLM.from_pretrained(tiny_llama), adapter)
    assert relative_rms(scores(loaded), scores(expected)) < ROUNDING


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (peft.LoraConfig(target_modules=["query"]), "plain LoRA already, so use it as it is"),
        (peft.LoHaConfig(target_modules=["query"]), "of PEFT's method LOHA, not of rankfold; convert it"),
    ],
    ids=["lora", "loha"],
)
def test_adapter_of_another_method_is_refused_with_what_to_do(config, words, tiny_bert, tmp_path):
    peft.get_peft_model(classifier(tiny_bert), config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(AdapterFileError, match=words):
        rankfold.export_lora(tmp_path / "adapter", tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"to": "loar"}, SpecError, "unknown export format 'loar'. Did you mean 'lora'"),
        ({"dtype": "fp64"}, SpecError, "unknown dtype 'fp64'"),
        ({"model": "no/such/model"}, SpecError, "there is no model at 'no/such/model'"),
        ({"data": "no-such-data"}, DataError, "no-such-data"),
    ],
    ids=str,
)
def test_word_that_means_nothing_is_refused_and_nothing_is_written(adapter, tmp_path, options, error, words):
    with pytest.raises(error, match=words):
        rankfold.export_lora(adapter, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_target_that_needs_the_base_says_so(adapter, reviews, tmp_path):
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=None)
    with pytest.raises(SpecError, match="needs its base model, which is not at hand; name it with --model"):
        rankfold.export_lora(adapter, tmp_path / "out", to="merged", data=str(reviews))


def test_only_an_earlier_export_is_replaced(adapter, reviews, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious").write_text("mine")
    for overwrite, words in ((False, "exists; choose another folder"), (True, "holds no export")):
        with pytest.raises(OutputExistsError, match=words):
            rankfold.export_lora(adapter, out, overwrite=overwrite)
    (out / "precious").unlink()
    rankfold.export_lora(adapter, out, data=str(reviews))
    with pytest.raises(OutputExistsError, match="--overwrite"):
        rankfold.export_lora(adapter, out)
    again = rankfold.export_lora(adapter, out, dtype="fp16", data=str(reviews), overwrite=True)
    assert json.loads((out / "certificate.json").read_text())["dtype"] == again.dtype == "fp16"


def test_failure_half_way_leaves_the_earlier_export(adapter, reviews, tmp_path, monkeypatch):
    rankfold.export_lora(adapter, tmp_path / "out", data=str(reviews))
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    monkeypatch.setattr("rankfold.export.export.file_hashes", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        rankfold.export_lora(adapter, tmp_path / "out", data=str(reviews), overwrite=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "out"]


def spoilt_config(folder):
    edit_json(folder / "adapter_config.json", layers={"linear 16 -> 16": ["bert.encoder.layer.{0-1}.query"]})


def another_size(folder):
    layers = json.loads((folder / "adapter_config.json").read_text())["layers"]
    edit_json(
        folder / "adapter_config.json",
        layers={kind.replace("16", "17"): each for kind, each in layers.items()},
    )


@pytest.mark.parametrize("spoil", [spoilt_config, another_size])
def test_list_of_layers_that_does_not_fit_the_tensors_is_refused(adapter, tmp_path, spoil):
    spoil(adapter)
    with pytest.raises(AdapterFileError, match=r"restore|damaged"):
        rankfold.export_lora(adapter, tmp_path / "out")


def test_export_of_a_preset_warns_of_nothing(adapter, reviews, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`")
        rankfold.export_lora(adapter, tmp_path / "out", data=str(reviews))


@pytest.mark.parametrize("to", ["lora", "merged"])
def test_number_that_a_dtype_cannot_hold_is_refused(adapter, reviews, tmp_path, to):
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    key = next(key for key in tensors if ".rankfold_up." in key and key.endswith("left"))
    save_file({**tensors, key: tensors[key] * 1e9}, path, metadata={"format": "pt"})
    with pytest.raises(NotExactError, match=r"not finite in float16"):
        rankfold.export_lora(adapter, tmp_path / "out", to=to, dtype="fp16", data=str(reviews))


def test_transformers_loads_the_exported_adapter_itself(tiny_llama, reviews, tmp_path):
    adapter = save_adapter(tmp_path / "adapter", tiny_llama)
    rankfold.export_lora(adapter, tmp_path / "out", data=str(reviews))
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    expected = scores(load_adapter(AutoModelForCausalLM.from_pretrained(tiny_llama), adapter))
    model.load_adapter(tmp_path / "out")
    assert relative_rms(scores(model), expected) < ROUNDING
