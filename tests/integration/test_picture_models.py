"""Adapters on models for pictures: usual layers, sharing within towers, the papers' counts, and saving."""

import copy
import pickle

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

import rankfold
from rankfold.bench.suites.suite_file import read_suite
from rankfold.errors import NotExactError, SpecError
from rankfold.export.formats.plain_lora import write_plain_lora
from rankfold.models.architectures import read_architecture
from rankfold.peft_plugin.targets import plan_adapters
from tests.support.picture_models import (
    DENOISERS,
    ENCODERS,
    VISION_LANGUAGE,
    image_encoder,
    text_encoder,
    unet,
    vision_language_model,
)


def adapt(model, method="lora", **options):
    return peft.get_peft_model(model, rankfold.config(method, r=4, **options))


def adapted_layers(model):
    return set(rankfold.count_parameters(model).by_module)


@pytest.mark.parametrize("model_type", VISION_LANGUAGE)
def test_usual_layers_of_a_vision_language_model_are_in_the_attention_of_its_language_model(model_type):
    layers = adapted_layers(adapt(vision_language_model(model_type)))
    assert layers
    for name in layers:
        assert any(tower in name for tower in ("language_model.", "text_model.", "text_decoder."))
        assert name.endswith(("q_proj", "v_proj", "query", "value"))


@pytest.mark.parametrize("model_type", ENCODERS)
def test_usual_layers_of_an_image_encoder_are_queries_and_values(model_type):
    layers = adapted_layers(adapt(image_encoder(model_type)))
    assert len(layers) == (8 if model_type in ("clip", "siglip") else 4)
    assert all(name.endswith(("q_proj", "v_proj", "query", "value")) for name in layers)


@pytest.mark.parametrize("family", DENOISERS)
def test_usual_layers_of_a_denoiser_are_all_of_its_attention(family):
    model = DENOISERS[family]()
    attention = {
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and ".attn" in name and "to_out.2" not in name
    }
    layers = {name.removeprefix("base_model.model.") for name in adapted_layers(adapt(model))}
    assert layers == attention != set()


def test_unknown_models_without_target_modules_are_refused_by_name():
    from diffusers import UNet2DModel

    blocks = {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]}
    without_attention = UNet2DModel(block_out_channels=(8,), norm_num_groups=2, add_attention=False, **blocks)
    for model in (without_attention, torch.nn.Sequential(torch.nn.Linear(2, 2))):
        with pytest.raises(SpecError, match="specify `target_modules`"):
            adapt(model)


@pytest.mark.parametrize("method", ["mole", "mix_lora"])
@pytest.mark.parametrize("family", ["sd15", "sdxl", "pixart", "sd3", "flux"])
def test_methods_for_mlps_find_those_of_denoisers(method, family):
    layers = adapted_layers(adapt(DENOISERS[family](), method, target_modules="mlp"))
    assert layers
    assert all(name.endswith(("net.0.proj", "net.2")) for name in layers)


@pytest.mark.parametrize("share", ["in_features", "module_type", "slice"])
def test_layers_share_factors_within_a_tower(share, tmp_path):
    model = vision_language_model("llava")
    config = rankfold.RankfoldConfig(
        r=4, share_down=share, init_weights=False, target_modules=["q_proj", "fc1"]
    )
    planned = plan_adapters(model, config).parameter_count()
    adapted = peft.get_peft_model(model, config)
    count = rankfold.count_parameters(adapted)
    assert planned == count.stored
    for tower, other in (("language_model", "vision_tower"), ("vision_tower", "language_model")):
        alone = vision_language_model("llava")
        pattern = rf".*{tower}.*\.(q_proj|fc1)"
        alone_config = rankfold.RankfoldConfig(r=4, share_down=share, target_modules=pattern)
        stored = rankfold.count_parameters(peft.get_peft_model(alone, alone_config)).stored
        assert stored == sum(part.stored for name, part in count.by_module.items() if tower in name), other
    inputs = {
        "input_ids": torch.tensor([[1, *[60] * 4, 5, 9]]),
        "pixel_values": torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)),
    }
    expected = adapted(**inputs).logits
    adapted.save_pretrained(tmp_path / "own")
    reloaded = peft.PeftModel.from_pretrained(vision_language_model("llava"), tmp_path / "own")
    torch.testing.assert_close(reloaded(**inputs).logits, expected)
    saved = rankfold.RankfoldConfig.from_pretrained(str(tmp_path / "own"))
    write_plain_lora(saved, load_file(tmp_path / "own" / "adapter_model.safetensors"), tmp_path)
    plain = peft.PeftModel.from_pretrained(vision_language_model("llava"), tmp_path)
    torch.testing.assert_close(plain(**inputs).logits, expected)


def test_adapters_that_shared_between_towers_keep_doing_so(tmp_path):
    saved = adapt(vision_language_model("llava"), "effilora", target_modules=["q_proj"])
    assert saved.peft_config["default"].towers == ["language_model", "vision_tower"]
    config = rankfold.config("effilora", r=4, target_modules=["q_proj"])
    # As an earlier rankfold saved it: the layers are listed, and no tower.
    earlier = {**saved.peft_config["default"].to_dict(), "towers": None, "base_fingerprint": None}
    for name in ("peft_type", "auto_mapping", "peft_version"):
        earlier.pop(name, None)
    config = rankfold.RankfoldConfig(**earlier)
    count = rankfold.count_parameters(peft.get_peft_model(vision_language_model("llava"), config))
    assert count.by_factor["down"].stored == 4 * 16


PAPER_ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]


def test_counts_on_stable_diffusion_are_those_of_the_paper():
    """EffiLoRA's paper, Stable Diffusion 1.5 with r=4 and three heads on the attention."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        model = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
    expected = {"lora": 797_184, "hydra_lora": 1_894_272, "effilora": 1_211_648}
    for method, count in expected.items():
        heads = {} if method == "lora" else {"heads": 3}
        config = rankfold.config(method, r=4, target_modules=PAPER_ATTENTION, **heads)
        assert plan_adapters(model, config).parameter_count() == count


def test_counts_on_llava_are_those_of_the_paper():
    """LLaVA-1.5-7B with r=32 on the language model's linear layers, as `effilora-visual` has it."""
    suite = read_suite("effilora-visual", "paper")
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(read_architecture(suite.base["model"]))
    expected = {"lora": 79_953_920, "effilora": 131_052_544}
    methods = {method.name: method.options for method in suite.methods}
    for name, count in expected.items():
        assert plan_adapters(model, rankfold.config(name, **methods[name])).parameter_count() == count


def denoise(model):
    generator = torch.Generator().manual_seed(0)
    sample, text = torch.randn(1, 4, 8, 8, generator=generator), torch.randn(1, 3, 16, generator=generator)
    with torch.no_grad():
        return model(sample, torch.tensor([5]), text).sample


@pytest.mark.parametrize("method", ["lora", "share_lora", "relayed_lora", "nora"])
def test_save_lora_adapter_of_diffusers_writes_what_diffusers_reads(method, tmp_path):
    model = unet()
    base = denoise(model)
    ranks = {"rank_pattern": {"to_v": 2}} if method == "lora" else {}
    options = {"k": 2} if method == "relayed_lora" else ranks
    targets = ["to_q", "to_v", "conv1"] if method == "lora" else ["to_q", "to_v"]
    model.add_adapter(rankfold.config(method, r=4, init_weights=False, target_modules=targets, **options))
    expected = denoise(model)
    copied = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    for saver, folder in ((model, tmp_path / "own"), (copied, tmp_path / "copy")):
        saver.save_lora_adapter(folder)
        plain = unet()
        plain.load_lora_adapter(folder, prefix=None, use_safetensors=True)
        assert (denoise(plain) - expected).abs().max() < 1e-5 < (base - expected).abs().max()
    with pytest.raises(ValueError, match="save_lora_adapter"):
        model.save_attn_procs(tmp_path)
    with pytest.raises(SpecError, match="pickle"):
        model.save_lora_adapter(tmp_path, safe_serialization=False)
    model.unload_lora()
    with pytest.raises(ValueError, match="not found"):
        model.save_lora_adapter(tmp_path)


def test_save_lora_adapter_leaves_the_adapters_of_peft_to_diffusers(tmp_path):
    model = unet()
    model.add_adapter(rankfold.config("lora", r=4, target_modules=["to_q"]), "ours")
    with pytest.warns(UserWarning, match="multiple adapters"):
        model.add_adapter(peft.LoraConfig(r=2, init_lora_weights=False, target_modules=["to_v"]), "theirs")
    model.set_adapter("theirs")
    expected = denoise(model)
    model.save_lora_adapter(tmp_path, "theirs")
    plain = unet()
    plain.load_lora_adapter(tmp_path, prefix=None, use_safetensors=True)
    torch.testing.assert_close(denoise(plain), expected)


def test_save_lora_adapter_refuses_a_router_and_is_gone_after_unloading(tmp_path):
    adapted = adapt(unet(), "effilora")
    model = adapted.get_base_model()
    with pytest.raises(NotExactError, match="gates depend on the input"):
        model.save_lora_adapter(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert "save_lora_adapter" not in vars(adapted.unload())


def test_text_encoder_has_usual_layers_too():
    assert len(adapted_layers(adapt(text_encoder()))) == 4
