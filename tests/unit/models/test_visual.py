"""The embedded vision-language model: its image encoder, and the three parts put together."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from rankfold.errors import DataError
from rankfold.models import visual
from rankfold.models.base import resolve_model
from rankfold.runs.request import RunRequest
from rankfold.runs.run import run


def test_a_folded_convolution_is_the_convolution_with_its_norm():
    weights = torch.load(visual._encoder_file(), weights_only=True)
    layer, norm = weights["_conv_stem.weight"], {key: weights[f"_bn0.{key}"] for key in ("weight", "bias")}
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    # TensorFlow pads an even side at a stride of two on the right and below only.
    plain = functional.conv2d(functional.pad(pixels, (0, 1, 0, 1)), layer, stride=2)
    statistics = weights["_bn0.running_mean"], weights["_bn0.running_var"]
    expected = functional.batch_norm(plain, *statistics, **norm, eps=1e-3)
    encoder = visual.load_encoder()
    with torch.no_grad():
        torch.testing.assert_close(encoder.stem(pixels), expected, rtol=1e-4, atol=1e-4)
        assert encoder(torch.zeros(1, 3, 192, 192)).last_hidden_state.shape == (1, 9, 496)


def test_another_file_of_the_encoder_is_refused(monkeypatch):
    monkeypatch.setattr(visual, "_ENCODER_SHA256", "0" * 64)
    with pytest.raises(DataError, match="has not the weights that are known; install version"):
        visual.load_encoder()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "shapes"
    budget = {"train_rows": 8, "steps": 1, "batch_size": 4, "eval_rows": 8, "precision": "bf16"}
    request = RunRequest(
        model="smollm2_vision", task="easy_vqa", method="lora", seed=0, out=out, threads=1, **budget
    )
    return run(request)


def test_a_run_scores_each_type_of_question_with_and_without_the_picture(trained):
    types = {"accuracy_shape", "accuracy_colour", "accuracy_yes_or_no"} & trained.metrics.keys()
    assert len(types) > 1
    scores = {"accuracy", *types}
    assert {"answer_loss", *scores, *(f"{name}_blind" for name in scores)} == trained.metrics.keys()
    assert "projector of rankfold" in trained.model.source


@pytest.mark.usefixtures("trained")
def test_the_parts_are_put_together_once_and_tokens_of_pictures_are_known():
    base = resolve_model("smollm2_vision")
    assert base.location == resolve_model("smollm2_vision").location
    tokenizer = json.loads((Path(base.location) / "tokenizer.json").read_text())
    assert visual.IMAGE_TOKEN in {token["content"] for token in tokenizer["added_tokens"]}
