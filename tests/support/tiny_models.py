"""A BERT and a Llama of a few thousand weights, and reviews that they can learn, written at test time."""

import gzip
import json
import random
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rankfold.runs.request import RunRequest

GOOD = ("good", "great", "fine")
BAD = ("bad", "awful", "poor")
_FILLERS = ("the", "film", "was", "a", "story", "and", "music")
_ANSWERS = ("answer", "is", "true", "false", "question", ":", "?", "correct", "1", "2", "3")
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
# Wide enough that two layers of random weights tell words apart.
_SPREAD = 0.2
VOCABULARY = {word: index for index, word in enumerate((*_SPECIAL, *GOOD, *BAD, *_FILLERS, *_ANSWERS))}


def write_bert(folder, *, hidden_size=16, layers=2, seed=0):
    """Write a BERT without a task head, as an encoder is published."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=_SPREAD,
    )
    BertModel(config).save_pretrained(folder)
    _tokenizer(pair_template="[CLS] $A [SEP] $B:1 [SEP]:1").save_pretrained(folder)
    return folder


def write_llama(folder, *, chat_template=None, seed=0):
    """Write a Llama that continues text."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=_SPREAD,
        bos_token_id=VOCABULARY["[CLS]"],
        eos_token_id=VOCABULARY["[SEP]"],
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer = _tokenizer()
    tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(folder)
    return folder


def _tokenizer(pair_template=None):
    tokenizer = Tokenizer(WordLevel(VOCABULARY, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    if pair_template is None:
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, unk_token="[UNK]", bos_token="[CLS]", eos_token="[SEP]"
        )
    special = [(token, VOCABULARY[token]) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = TemplateProcessing("[CLS] $A [SEP]", pair_template, special)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def review_rows(count, *, seed=0):
    """Return reviews whose label is 1 if their one judging word is a good one."""
    generator = random.Random(seed)
    rows = []
    for index in range(count):
        label = index % 2
        words = [*generator.sample(_FILLERS, 4), generator.choice(GOOD if label else BAD)]
        generator.shuffle(words)
        rows.append({"sentence": " ".join(words), "label": label})
    return rows


def question_rows(count, *, seed=0):
    """Return the same reviews as questions that are answered with true or false."""
    return [
        {
            "instruction": f"question : {row['sentence']} ?",
            "output": f"answer is {('false', 'true')[row['label']]}",
        }
        for row in review_rows(count, seed=seed)
    ]


def write_splits(folder, **splits):
    """Write rows as `<split>.jsonl.gz` and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        with gzip.open(folder / f"{split}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    return folder


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory):
    """A folder with a BERT."""
    return write_bert(tmp_path_factory.mktemp("tiny") / "bert")


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory):
    """A folder with a Llama."""
    return write_llama(tmp_path_factory.mktemp("tiny") / "llama")


@pytest.fixture(scope="session")
def reviews(tmp_path_factory):
    """A folder with a classification of three splits."""
    folder = tmp_path_factory.mktemp("data") / "reviews"
    return write_splits(
        folder, train=review_rows(48), validation=review_rows(16, seed=1), test=review_rows(12, seed=2)
    )


@pytest.fixture(scope="session")
def questions(tmp_path_factory):
    """A folder with an instruction task of two splits."""
    folder = tmp_path_factory.mktemp("data") / "questions"
    return write_splits(folder, train=question_rows(32), validation=question_rows(12, seed=1))


@pytest.fixture
def request_(tiny_bert: Path, reviews: Path, tmp_path: Path) -> RunRequest:
    """A run of a second."""
    return RunRequest(
        model=str(tiny_bert),
        method="lora",
        data=str(reviews),
        out=tmp_path / "run",
        options={"r": 2},
        steps=4,
        batch_size=8,
        learning_rate=1e-2,
        max_length=32,
    )
