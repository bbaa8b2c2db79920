"""Exports of adapters on pipelines: what diffusers reads back draws as the adapter does."""

import json

import peft
import pytest
import torch
from click.testing import CliRunner

import rankfold
from rankfold.cli.main import cli
from rankfold.errors import NotExactError, RankfoldWarning, SpecError
from rankfold.export.denoising import NoiseInputs, load_exported_lora
from rankfold.export.export import export_lora
from rankfold.presets import discover
from tests.support.picture_models import DENOISERS, text_encoder
from tests.support.tiny_models import write_bert

PIPELINES = {
    "sd15": "StableDiffusionPipeline",
    "sdxl": "StableDiffusionXLPipeline",
    "sd3": "StableDiffusion3Pipeline",
    "flux": "FluxPipeline",
}
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "net.2"]
FOLDING = [name for name, preset in discover().items() if preset.targets is None]


def save_adapter(folder, model, method="lora", **options):
    config = rankfold.config(method, init_weights=False, target_modules=TARGETS, **{"r": 4, **options})
    adapted = peft.get_peft_model(model, config)
    adapted.save_pretrained(folder)
    return adapted


def draw(model):
    with torch.no_grad():
        return model(**NoiseInputs(model).draw(3), return_dict=False)[0]


def pipeline_of(family, component, model):
    """Return a pipeline that has nothing but its denoiser, as `load_lora_weights` asks for no more."""
    import diffusers

    cls = getattr(diffusers, PIPELINES[family])
    pipeline = cls.__new__(cls)
    diffusers.DiffusionPipeline.__init__(pipeline)
    names, _ = cls._get_signature_keys(cls)
    pipeline.register_modules(**{**dict.fromkeys(names), component: model})
    return pipeline


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """A folder of the denoiser of each family."""
    folder = tmp_path_factory.mktemp("bases")
    for family, make in DENOISERS.items():
        make().save_pretrained(folder / family)
    return folder


@pytest.mark.parametrize("family", PIPELINES)
def test_pipelines_draw_with_an_export_as_with_the_adapter(family, bases, tmp_path):
    adapted = save_adapter(tmp_path / "adapter", DENOISERS[family](), rank_pattern={"to_v": 2})
    certificate = export_lora(
        tmp_path / "adapter", tmp_path / "out", to="diffusers", model=str(bases / family)
    )
    assert certificate.logits is not None
    assert certificate.logits.largest < 1e-5
    component = "unet" if family in ("sd15", "sdxl") else "transformer"
    plain = DENOISERS[family]()
    base = draw(plain)
    pipeline = pipeline_of(family, component, plain)
    pipeline.load_lora_weights(tmp_path / "out")
    expected = draw(adapted.get_base_model())
    assert (
        (draw(plain) - expected).abs().max()
        < 1e-5 * max(1, expected.abs().max())
        < (base - expected).abs().max()
    )


@pytest.mark.parametrize("method", FOLDING)
def test_every_method_that_folds_is_drawn_by_diffusers_and_others_are_refused(method, bases, tmp_path):
    options = {"k": 2} if "k" in discover()[method].options else {}
    save_adapter(tmp_path / "adapter", DENOISERS["sd15"](), method, **options)
    router = rankfold.config(method).router
    for to in ("diffusers", "kohya"):
        words = [
            str(tmp_path / "adapter"),
            str(tmp_path / to),
            "--to",
            to,
            "--model",
            str(bases / "sd15"),
            "--json",
        ]
        result = CliRunner().invoke(cli, ["export", *words])
        if router is not None:
            assert result.exit_code == 1
            assert "its router weighs" in result.stderr
            continue
        assert result.exit_code == 0, result.stderr
        assert json.loads(result.stdout)["logits"]["largest"] < 1e-5
        plain = DENOISERS["sd15"]()
        pipeline_of("sd15", "unet", plain).load_lora_weights(tmp_path / to)
        verified = CliRunner().invoke(
            cli, ["export", "--verify", str(tmp_path / to), "--model", str(bases / "sd15")]
        )
        assert verified.exit_code == 0, verified.stdout
        assert "largest difference" in verified.stdout


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
def test_two_exports_are_combined_by_set_adapters(tmp_path):
    alone, plain = {}, DENOISERS["sd15"]()
    pipeline = pipeline_of("sd15", "unet", plain)
    for name, method, to in (("a", "lora", "diffusers"), ("b", "share_lora", "kohya")):
        adapted = save_adapter(tmp_path / name, DENOISERS["sd15"](), method)
        alone[name] = {
            path: layer.rankfold_adapters["default"].delta_weight()
            for path, layer in adapted.get_base_model().named_modules()
            if hasattr(layer, "rankfold_adapters")
        }
        export_lora(tmp_path / name, tmp_path / f"{name}-out", to=to)
        pipeline.load_lora_weights(tmp_path / f"{name}-out", adapter_name=name)
    pipeline.set_adapters(["a", "b"], adapter_weights=[0.5, 2.0])
    summed = DENOISERS["sd15"]()
    with torch.no_grad():
        for path, weight in ((path, summed.get_submodule(path).weight) for path in alone["a"]):
            weight += 0.5 * alone["a"][path] + 2.0 * alone["b"][path]
    assert (draw(plain) - draw(summed)).abs().max() < 1e-4


def test_convolutions_and_the_rest_of_a_unet_have_names_that_the_converter_knows(bases, tmp_path):
    targets = [
        "conv1",
        "conv2",
        "conv_shortcut",
        "proj_in",
        "proj_out",
        "time_emb_proj",
        "to_q",
        "net.0.proj",
    ]
    model = DENOISERS["sd15"]()
    adapted = peft.get_peft_model(
        model, rankfold.config("lora", r=2, init_weights=False, target_modules=targets)
    )
    adapted.save_pretrained(tmp_path / "adapter")
    for to in ("diffusers", "kohya"):
        certificate = export_lora(tmp_path / "adapter", tmp_path / to, to=to, model=str(bases / "sd15"))
        assert certificate.logits is not None
        assert certificate.logits.largest < 1e-5


def test_text_encoders_of_a_pipeline_have_their_names(tmp_path):
    from safetensors import safe_open

    (tmp_path / "pipe").mkdir()
    index = {"text_encoder": [], "text_encoder_2": [], "unet": []}
    (tmp_path / "pipe" / "model_index.json").write_text(json.dumps(index))
    model = text_encoder()
    model.save_pretrained(tmp_path / "pipe" / "text_encoder")
    config = rankfold.config("lora", r=2, init_weights=False, target_modules=["q_proj", "out_proj", "fc1"])
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    starts = {"diffusers": "text_encoder.", "kohya": "lora_te1_"}
    for to, start in starts.items():
        export_lora(tmp_path / "adapter", tmp_path / to, to=to, model=str(tmp_path / "pipe"))
        file = next((tmp_path / to).glob("*.safetensors"))
        with safe_open(file, "pt") as tensors:
            assert all(key.startswith(start) for key in tensors.keys())  # noqa: SIM118
        plain = text_encoder()
        ids = torch.tensor([[1, 5, 2]])
        load_exported_lora(plain, "text_encoder", file)
        difference = plain(ids)[0] - model(ids)[0]
        assert difference.abs().max() < 1e-5


def test_exports_that_no_program_would_read_are_refused(tmp_path):
    from tests.support.adapters import save_adapter as save_text_adapter

    save_adapter(tmp_path / "flux", DENOISERS["flux"]())
    with pytest.raises(SpecError, match="--to diffusers, which ComfyUI reads too"):
        export_lora(tmp_path / "flux", tmp_path / "out", to="kohya")
    with pytest.warns(RankfoldWarning, match="--to diffusers for load_lora_weights"):
        export_lora(tmp_path / "flux", tmp_path / "plain")
    # Diffusers has no way to load LoRA onto PixArt; PEFT does.
    save_adapter(tmp_path / "pixart", DENOISERS["pixart"]())
    DENOISERS["pixart"]().save_pretrained(tmp_path / "base")
    with pytest.raises(SpecError, match="--to lora"):
        export_lora(tmp_path / "pixart", tmp_path / "out", to="diffusers")
    certificate = export_lora(tmp_path / "pixart", tmp_path / "peft", model=str(tmp_path / "base"))
    assert certificate.logits is not None
    assert certificate.logits.largest < 1e-5
    text = save_text_adapter(tmp_path / "text", write_bert(tmp_path / "bert"))
    with pytest.raises((SpecError, NotExactError), match="--to lora"):
        export_lora(text, tmp_path / "out", to="diffusers")
    assert not (tmp_path / "out").exists()
