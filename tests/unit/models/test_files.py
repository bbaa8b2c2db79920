"""Model folders that are incomplete or do not belong together, and how many tokens a model takes."""

import json

import pytest
import torch
import transformers
from transformers import PreTrainedTokenizerFast

from rankfold.errors import SpecError
from rankfold.models.base import position_limit, resolve_model, row_length
from rankfold.models.tokenizer import unknown_share
from rankfold.tasks.kinds import Learner
from rankfold.tasks.kinds.classification import KIND as CLASSIFICATION
from rankfold.tasks.kinds.instruction import KIND as INSTRUCTION
from rankfold.tasks.kinds.labelled import Example
from tests.support.tiny_models import write_bert, write_llama


def _load(folder, kind=CLASSIFICATION):
    return kind.load(resolve_model(str(folder)), ("a", "b"))


@pytest.mark.parametrize("write", [write_bert, write_llama])
def test_a_folder_without_its_tokenizer_is_refused_by_the_missing_file(tmp_path, write):
    folder = write(tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(SpecError, match=r"lacks its tokenizer's file tokenizer\.json"):
        _load(folder)
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(SpecError, match=r"lacks its tokenizer's file tokenizer\.json"):
        _load(folder)


def test_half_a_vocabulary_is_refused_by_the_other_half(tmp_path):
    config = transformers.GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=1)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps({chr(97 + index): index for index in range(20)}))
    with pytest.raises(SpecError, match=r"lacks its tokenizer's file merges\.txt"):
        _load(tmp_path)


@pytest.mark.parametrize(
    ("words", "is_refused"), [(100, True), (29, True), (13, True), (14, False), (28, False)]
)
def test_a_tokenizer_of_another_model_is_refused(tmp_path, words, is_refused):
    folder = write_llama(tmp_path / "model")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{index}" for index in range(words - 4)))
    tokenizer["model"]["vocab"] = {word: index for index, word in enumerate(vocabulary)}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    if is_refused:
        with pytest.raises(SpecError, match=rf"has {words} tokens, but the model has 28"):
            _load(folder)
    else:
        assert len(_load(folder).processor) == words


def test_missing_weights_are_refused(tmp_path):
    folder = write_bert(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    with pytest.raises(SpecError, match=r"cannot load the model .*model\.safetensors.*check its files"):
        _load(folder)


def test_a_tokenizer_without_special_tokens_is_refused_and_with_one_pads_with_it(tmp_path):
    folder = write_llama(tmp_path / "model")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    backend = tokenizer.backend_tokenizer
    for tokens in ({}, {"unk_token": "[UNK]"}, {"unk_token": "[UNK]", "bos_token": "[CLS]"}):
        PreTrainedTokenizerFast(tokenizer_object=backend, **tokens).save_pretrained(folder)
        if not tokens:
            with pytest.raises(SpecError, match="no padding token"):
                _load(folder)
        else:
            assert _load(folder).processor.pad_token == "[UNK]"


@pytest.mark.parametrize(("write", "is_causal"), [(write_bert, False), (write_llama, True)])
def test_a_configuration_without_architectures_is_of_the_usual_kind(tmp_path, write, is_causal):
    folder = write(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    del config["architectures"]
    (folder / "config.json").write_text(json.dumps(config))
    assert resolve_model(str(folder)).is_causal is is_causal


def test_an_encoder_decoder_model_is_refused_for_instructions(tmp_path):
    write_bert(tmp_path)
    for path in tmp_path.glob("model*"):
        path.unlink()
    config = transformers.T5Config(vocab_size=32, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    with pytest.raises(SpecError, match="encoder-decoder"):
        _load(tmp_path, INSTRUCTION)


def test_a_model_of_a_type_that_the_task_has_no_head_for_is_refused_by_its_type(tmp_path):
    write_bert(tmp_path)
    transformers.VisionTextDualEncoderConfig(
        vision_config={"model_type": "clip_vision_model"}, text_config={"model_type": "bert"}
    ).save_pretrained(tmp_path)
    message = r"of the type 'vision-text-dual-encoder', which .* another --kind"
    with pytest.raises(SpecError, match=message) as error:
        _load(tmp_path)
    assert len(str(error.value)) < 300


_SIZES = {"vocab_size": 30, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.mark.parametrize(
    ("name", "options", "limit"),
    [
        ("XLNet", {}, None),
        ("T5", {}, None),
        ("T5", {"n_positions": 512}, None),
        ("Bloom", {}, None),
        ("Mamba", {}, None),
        ("GPT2", {"n_positions": 77}, 77),
        ("GPTJ", {"n_positions": 78}, 78),
        ("Mpt", {"max_seq_len": 79}, 79),
        ("CTRL", {"n_positions": 80}, 80),
        ("Bert", {"max_position_embeddings": 81}, 81),
        ("MPNet", {"max_position_embeddings": 82}, 82),
        ("Llama", {"max_position_embeddings": 10**30}, None),
        ("Llama", {"max_position_embeddings": 0}, None),
        ("Gemma3", {"text_config": {"max_position_embeddings": 83}}, 83),
    ],
)
def test_the_most_tokens_of_a_model(name, options, limit):
    config = getattr(transformers, f"{name}Config")(**options)
    assert position_limit(config) == limit
    assert row_length(config, 10**6, None) == (limit or 10**6)
    assert row_length(config, 10, None) == 10
    assert row_length(config, 10, 60) == 60
    if limit is None:
        assert row_length(config, 10, 10**6) == 10**6
    else:
        with pytest.raises(SpecError, match=rf"max_length is {limit + 1}, but the model takes {limit} "):
            row_length(config, 10, limit + 1)


@pytest.mark.parametrize(
    "name", ["Bert", "Roberta", "XLMRoberta", "Camembert", "MPNet", "Electra", "OPT", "GPT2"]
)
def test_a_row_of_the_most_tokens_fits_and_a_longer_one_does_not(name):
    config_class, model_class = getattr(transformers, f"{name}Config"), getattr(transformers, f"{name}Model")
    config = config_class(
        **_SIZES, max_position_embeddings=20, word_embed_proj_dim=8, ffn_dim=8, pad_token_id=1
    )
    model = model_class(config).eval()
    limit = position_limit(config, model)
    with torch.no_grad():
        model(torch.full((1, limit), 5))
        with pytest.raises((IndexError, RuntimeError)):
            model(torch.full((1, limit + 1), 5))


def test_the_lowered_default_is_said(caplog):
    with caplog.at_level("INFO", logger="rankfold"):
        assert row_length(transformers.BertConfig(max_position_embeddings=64), 128, None) == 64
    assert "at most 64 tokens, not the usual 128" in caplog.text


def test_the_share_of_unknown_tokens_leaves_special_ones_out(tiny_bert, tiny_llama):
    for folder, kind in ((tiny_bert, CLASSIFICATION), (tiny_llama, INSTRUCTION)):
        tokenizer = _load(folder, kind).processor
        ids = tokenizer(["good film xyz", "bad xyz"])["input_ids"]
        assert unknown_share(tokenizer, ids) == 2 / 5
        assert unknown_share(tokenizer, []) == 0.0


@pytest.mark.parametrize(("text", "is_told"), [("zzz yyy film", True), ("good film was the bad zzz", False)])
def test_many_unknown_tokens_are_a_finding(tiny_bert, text, is_told):
    learner = Learner(None, _load(tiny_bert).processor, 32)
    rows = CLASSIFICATION.encode(learner, [Example(0, text, None, 0)], training=True)
    assert [finding.name for finding in learner.token_findings(rows)] == ["unknown_tokens"] * is_told
