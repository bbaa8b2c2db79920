"""Tags of tokens: ids and names are read alike, pieces get the tag of their word, and bad rows are named."""

import json

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import ByteLevel, Metaspace, Split, Whitespace
from transformers import PreTrainedTokenizerFast

from rankfold.errors import DataError
from rankfold.tasks import TaskRequest, load_task
from rankfold.tasks.data.columns import Columns
from rankfold.tasks.data.read import Table
from rankfold.tasks.kinds import LabelHints, Learner
from rankfold.tasks.kinds.token_labels import KIND, TokenExample

COLUMNS = Columns("tokens", None, "ner_tags")
NAMES = ("O", "B-PER", "I-PER", "B-LOC")


def _row(*tags, tokens=None):
    return {"tokens": tokens or [f"w{place}" for place in range(len(tags))], "ner_tags": list(tags)}


def _examples(*rows, hints=None, names=None):
    table = Table(list(rows), {} if names is None else {"ner_tags": names})
    return KIND.examples({"train": table}, COLUMNS, hints or LabelHints())


def test_ids_with_names_are_the_same_as_names():
    by_name = _examples(_row("O", "B-PER", "I-PER"), _row("B-LOC"), hints=LabelHints(NAMES))
    by_id = _examples(_row(0, 1, 2), _row(3), names=NAMES)
    assert by_id.splits == by_name.splits
    assert by_id.label_names == by_name.label_names == NAMES


def test_rows_of_a_file_are_recognised(tmp_path):
    rows = [_row("O", "B-PER" if n % 2 else "B-LOC", tokens=["in", f"w{n}"]) for n in range(20)]
    (tmp_path / "ner.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = load_task(TaskRequest(data=str(tmp_path / "ner.jsonl")), is_causal=False)
    assert data.kind is KIND
    assert data.task.metrics[0] == "entity_f1"


def test_names_of_ids_in_lists_come_with_the_data(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        tokens=datasets.List(datasets.Value("string")),
        ner_tags=datasets.List(datasets.ClassLabel(names=NAMES)),
    )
    table = [_row(*((0, 1) if n % 2 else (3, 0)), tokens=["in", f"w{n}"]) for n in range(20)]
    rows = datasets.Dataset.from_list(table, features=features)
    rows.to_parquet(tmp_path / "train.parquet")
    examples = load_task(TaskRequest(data=str(tmp_path)), is_causal=False).examples
    assert examples.label_names == NAMES
    assert {tuple(item.label) for item in examples.splits["train"]} == {("O", "B-PER"), ("B-LOC", "O")}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"tokens": ["a", "b"], "ner_tags": ["O"]}, "row 2 of the split 'train': 'tokens' has 2 tokens and "),
        ({"tokens": ["a"], "ner_tags": None}, "row 2 .*--drop-missing"),
        ({"tokens": ["a", 3], "ner_tags": ["O", "O"]}, "row 2 .*list of tokens"),
        ({"tokens": ["a"], "ner_tags": [None]}, "row 2 .*the tag 'None'"),
    ],
)
def test_bad_rows_are_named(row, words):
    with pytest.raises(DataError, match=words):
        _examples(_row("O", "B-PER"), row)


def test_tags_of_a_split_alone_and_tags_that_were_not_learned_are_named():
    tables = {"train": Table([_row("O", "B-PER")]), "validation": Table([_row("B-X")])}
    with pytest.raises(DataError, match=r"row 1 of the split 'validation' has the tag 'B-X', which no row"):
        KIND.examples(tables, COLUMNS, LabelHints())
    with pytest.raises(DataError, match=r"the tags 'B-X', but the learned classes are 'O', 'B-PER'"):
        _examples(_row("B-X"), hints=LabelHints(learned_names=("O", "B-PER")))


def test_tags_that_go_on_with_nothing_are_counted():
    messages = {
        item.name: item.message for item in _examples(_row("O", "I-PER"), _row("B-PER", "O")).findings
    }
    assert (
        "'I-PER' in 'ner_tags' goes on with an entity that has not begun, once (row 1)"
        in (messages["inconsistent_tags"])
    )
    assert messages["entities"] == "2 entities: 'PER' 2."


def _learner(pre_tokenizer, max_length=64):
    words = [
        "[UNK]",
        "[PAD]",
        *"abcdefg.",
        *(f"\u0120{c}" for c in "abcdefg."),
        *(f"\u2581{c}" for c in "abcdefg."),
    ]
    tokenizer = Tokenizer(WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizer
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]")
    return Learner(None, fast, max_length, label_names=NAMES)


@pytest.mark.parametrize(
    "pre_tokenizer",
    [Whitespace(), Split("", "isolated"), ByteLevel(add_prefix_space=False), Metaspace()],
    ids=["words", "letters", "byte level", "metaspace"],
)
def test_first_piece_of_each_word_has_its_tag_whatever_the_tokenizer(pre_tokenizer):
    example = TokenExample(0, ("abc", "d", ".", "efg"), ["B-PER", "I-PER", "O", "B-LOC"])
    (row,) = KIND.encode(_learner(pre_tokenizer), [example], training=True)
    assert [label for label in row["labels"] if label != -100] == [1, 2, 0, 3]
    assert len(row["labels"]) == len(row["input_ids"])


def test_words_that_are_cut_off_have_no_label():
    example = TokenExample(0, tuple("abcdefg"), ["O"] * 7)
    (row,) = KIND.encode(_learner(Whitespace(), max_length=3), [example], training=True)
    assert row["labels"] == [0, 0, 0]


def test_texts_are_split_into_words():
    (example,) = KIND.inputs([{"text": "Bob lives in Oslo."}], Columns("text"))
    assert example.tokens == ("Bob", "lives", "in", "Oslo", ".")
