"""The embedded text-to-image model and its pictures: put together once, drawn from, and counted."""

import io
import json
from hashlib import sha256

import pytest
import torch
from PIL import Image

from rankfold.bench.estimates import Estimator
from rankfold.bench.suites.protocol import all_requests
from rankfold.errors import DataError
from rankfold.export.export import export_lora
from rankfold.models import emoji
from rankfold.models.base import resolve_model
from rankfold.models.pipelines import load_pipeline
from rankfold.runs.request import RunRequest
from rankfold.runs.run import run
from rankfold.tasks.embedded import read_emoji_noto
from tests.support.packaged import packaged

diffusers = pytest.importorskip("diffusers")


@pytest.fixture
def denoiser(tmp_path):
    """A tiny random denoiser, and its file."""
    unet = diffusers.UNet2DConditionModel(
        sample_size=16,
        in_channels=3,
        out_channels=3,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=384,
        attention_head_dim=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    scheduler = diffusers.DDIMScheduler(prediction_type="v_prediction")
    configs = {"unet": dict(unet.config), "scheduler": dict(scheduler.config)}
    for name, part in (("unet", unet), ("scheduler", scheduler)):
        configs[name] = json.loads(part.to_json_string())
    path = tmp_path / "denoiser.safetensors"
    path.write_bytes(emoji.pack_denoiser(unet.state_dict(), configs, {"command": "none"}))
    return unet, path


def test_a_packed_denoiser_is_put_together_once_with_its_halved_weights(denoiser, tmp_path, monkeypatch):
    monkeypatch.setenv("RANKFOLD_CACHE", str(tmp_path / "cache"))
    unet, path = denoiser
    encoder = resolve_model("minilm").origin
    folder = emoji.compose_model(encoder, path)
    assert emoji.compose_model(encoder, path) == folder
    pipeline = load_pipeline("tiny", str(folder), folder, torch.float32)
    for name, value in unet.state_dict().items():
        assert torch.equal(pipeline.model.state_dict()[name], value.half().float())
    assert pipeline.noise.target == "v_prediction"
    (picture,) = pipeline.draw(["a fox"], [0], steps=2, guidance=2.0, side=16)
    assert picture.size == (16, 16)


def test_a_damaged_packaged_file_is_refused(monkeypatch):
    monkeypatch.setattr(emoji, "_DENOISER_SHA256", sha256(b"other").hexdigest())
    with pytest.raises(DataError, match="is damaged; install rankfold again"):
        resolve_model("emoji_diffusion")


def test_captions_of_the_emoji_are_in_one_split_each():
    tables = read_emoji_noto()
    captions = {split: {row["text"] for row in table.rows} for split, table in tables.items()}
    assert {split: len(table.rows) for split, table in tables.items()} == {"train": 1413, "validation": 147}
    assert not captions["train"] & captions["validation"]
    assert Image.open(io.BytesIO(tables["train"].rows[0]["image"])).size == (32, 32)


def test_a_run_is_measured_beside_the_base_model_and_exported_with_a_certificate(tmp_path):
    budget = {"train_rows": 8, "steps": 1, "batch_size": 4, "eval_rows": 4, "max_length": 16}
    kind = {"samples": 1, "sample_steps": 1}
    request = RunRequest(
        model="emoji_diffusion",
        task="emoji_noto",
        method="lora",
        out=tmp_path / "run",
        kind_options=kind,
        **budget,
    )
    record = run(request)
    certificate = export_lora(tmp_path / "run", tmp_path / "lora", to="diffusers")
    assert certificate.logits is not None
    assert certificate.logits.largest < 1e-5
    assert record.baselines["base"] < 0.5  # a random denoiser has about 1
    assert record.metrics["denoising_loss"] != record.baselines["base"]


def test_the_counts_of_the_paper_come_out_of_its_profile(tmp_path):
    estimator = Estimator()
    requests = {
        request.method: request for request in all_requests(packaged("effilora-image", "paper"), tmp_path)
    }
    counts = {
        method: estimator.estimate(request).parameters.trainable for method, request in requests.items()
    }
    assert counts == {"lora": 797_184, "hydra_lora": 1_894_272, "effilora": 1_211_648}
