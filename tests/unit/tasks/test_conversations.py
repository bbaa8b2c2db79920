"""Conversations in every layout: the same turns, the loss on the assistant's turns alone, nothing unsaid."""

import json
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from rankfold.errors import DataError, SpecError
from rankfold.models.base import resolve_model
from rankfold.tasks import TaskRequest, load_task
from rankfold.tasks.data.columns import Columns, find_columns
from rankfold.tasks.kinds import Examples, LabelHints, Learner
from rankfold.tasks.kinds.answers import Instruction, candidate_scores, encode_answers
from rankfold.tasks.kinds.chat_template import CHAT_TEMPLATES, ChatTemplate, Message, read_template
from rankfold.tasks.kinds.conversations import InstructionReader, conversation_of
from rankfold.tasks.kinds.instruction import KIND
from rankfold.tasks.kinds.packing import IGNORED_LABEL

TURNS = (
    Message("system", "was film"),
    Message("user", "the film ?"),
    Message("assistant", "good"),
    Message("user", "the music ?"),
    Message("assistant", "bad"),
)
ROLES = {"system": "system", "user": "human", "assistant": "gpt"}
MESSAGES = [turn.to_dict() for turn in TURNS]
SHARE_GPT = [{"from": ROLES[turn.role], "value": turn.content} for turn in TURNS]
PARTS = [{"role": turn.role, "content": [{"type": "text", "text": turn.content}]} for turn in TURNS]


@pytest.fixture(scope="module")
def llama(tiny_llama):
    return KIND.load(resolve_model(str(tiny_llama)))


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"messages": MESSAGES}, Columns()),
        ({"messages": PARTS}, Columns()),
        ({"messages": json.dumps(MESSAGES)}, Columns()),
        ({"messages": [*MESSAGES[1:]], "system": "was film"}, Columns()),
        ({"conversations": SHARE_GPT}, Columns()),
        ({"conversations": SHARE_GPT[1:], "system": "was film"}, Columns()),
        ({"conversation": MESSAGES}, Columns()),
        ({"dialogue": MESSAGES}, Columns("dialogue")),
        ({"prompt": MESSAGES[:-1], "completion": MESSAGES[-1:]}, Columns()),
        ({"prompt": MESSAGES[:-1], "completion": "bad"}, Columns()),
        (
            {
                "instruction": "the music ?",
                "input": "",
                "output": "bad",
                "system": "was film",
                "history": [["the film ?", "good"]],
            },
            Columns(),
        ),
    ],
)
def test_every_layout_gives_the_same_turns(row, columns):
    found = find_columns([row], columns)
    conversation = conversation_of(row, found)
    assert conversation.turns == TURNS
    assert conversation.is_chat
    assert "not read" not in found.summary(row)
    assert found.summary({**row, "source": "web"}).endswith("not read: 'source'")


@pytest.mark.parametrize(
    ("row", "columns", "prompt"),
    [
        ({"prompt": "the film ?", "completion": "good"}, Columns(), "the film ?"),
        ({"instruction": "the film ?", "input": "a", "output": "good"}, Columns(), "the film ?\n\na"),
        (
            {"instruction": "the film ?", "output": "good", "system": "", "history": []},
            Columns(),
            "the film ?",
        ),
        ({"question": "the film ?", "reply": "good"}, Columns("question", None, "reply"), "the film ?"),
    ],
)
def test_bare_texts_are_no_conversation(row, columns, prompt):
    conversation = conversation_of(row, find_columns([row], columns))
    assert conversation.turns == (Message("user", prompt), Message("assistant", "good"))
    assert not conversation.is_chat


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        (
            [{"role": "user", "content": "a"}, {"role": "critic", "content": "b"}],
            "message 2 is of the role 'critic'",
        ),
        ([{"role": "assistant", "content": "", "tool_calls": [{"id": 1}]}], "message 1 has the call"),
        ([{"role": "assistant", "content": "", "function_call": "f"}], "message 1 calls a tool by 'f'"),
        ([{"from": "function_call", "value": '{"look": 1}'}], 'message 1 calls a tool by .{"look": 1}'),
        ([{"from": "function_call", "value": ""}], "message 1 calls a tool by ''"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}],
            "message 1 has the content",
        ),
        ([{"role": "user", "content": None}], "message 1 has the content 'None'"),
        ([{"content": "a"}], "message 1 is of the role 'None'"),
        ([], "has no messages"),
        (["hello"], "list of messages"),
    ],
)
def test_messages_that_cannot_be_read_are_refused_with_their_place(tmp_path, messages, words):
    path = tmp_path / "chat.jsonl"
    rows = [{"messages": MESSAGES}, {"messages": MESSAGES}, {"messages": messages}]
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match=rf"line 3 of .*{words}"):
        load_task(TaskRequest(data=str(path), kind="instruction"), is_causal=True)


def _load(tmp_path, rows):
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "validation.jsonl").write_text(json.dumps({"messages": MESSAGES}))
    return load_task(TaskRequest(data=str(tmp_path)), is_causal=True)


def test_what_is_not_learned_is_said(tmp_path):
    rows = [
        {"messages": [{**message, "name": "Ann"} for message in MESSAGES]},
        {"messages": [*MESSAGES, {"role": "user", "content": "thanks"}]},
        {"messages": [*MESSAGES[:-1], {"role": "assistant", "content": "  "}]},
        {"messages": MESSAGES[:2]},
        {"messages": [MESSAGES[2]]},
        {"messages": MESSAGES},
    ]
    data = _load(tmp_path, rows)
    found = {finding.name: finding.message for finding in data.all_findings}
    assert len(data.examples.splits["train"]) == 3
    assert "3 of 6 rows of the split 'train' have no or an empty answer" in found["empty_answers"]
    assert "line 3 of" in found["empty_answers"]
    assert "'name' (1)" in found["unread_fields"]
    assert "the first of row '1', end with turns that nobody answers" in found["unanswered_turns"]


@pytest.mark.parametrize("answer", ["", " \n"])
def test_a_split_of_nothing_but_empty_answers_is_refused(tmp_path, answer):
    rows = [{"instruction": "a", "output": answer}] * 3
    with pytest.raises(DataError, match="3 of 3 rows of the split 'train' have no or an empty answer"):
        _load(tmp_path, rows)


# Templates

CHATML = CHAT_TEMPLATES["chatml"]
TRIMS = CHATML.replace("message['content']", "message['content'] | trim")
LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ ' ' + m['content'] + ' [SEP]' }}"
    "{% else %}{{ '[CLS] question : ' + m['content'] }}{% endif %}{% endfor %}"
)
NO_PROMPT = "{% for m in messages %}{{ m['role'] + ' : ' + m['content'] + '\n' }}{% endfor %}"
FORGETS = (
    "{% for m in messages %}{% if m['role'] == 'assistant' and loop.last %}{{ 'true ' + m['content'] }}"
    "{% else %}{{ m['content'] + ' ' }}{% endif %}{% endfor %}"
)
ALTERNATES = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}" + CHATML
)


def _learner(llama, template=None, max_length=60):
    settings = {} if template is None else {"chat_template": template}
    return Learner(llama.model, llama.processor, max_length, settings=settings)


@pytest.mark.parametrize("template", [*CHAT_TEMPLATES.values(), TRIMS, LLAMA2, NO_PROMPT])
def test_all_answers_have_labels_and_nothing_else_whatever_the_template(llama, template):
    chat = ChatTemplate(llama.processor, template)
    segments = chat.segments(TURNS)
    whole = llama.processor.apply_chat_template(MESSAGES, chat_template=template, tokenize=False)
    text = "".join(segment.text for segment in segments)
    assert whole.startswith(text)
    assert not whole.removeprefix(text).strip()
    learned = [segment.text for segment in segments if segment.is_learned]
    others = " ".join(segment.text for segment in segments if not segment.is_learned)
    assert len(learned) == 2
    for answer, turn in zip(learned, TURNS[2::2], strict=True):
        assert turn.content in answer
    assert not any(turn.content in "".join(learned) for turn in TURNS[1::2])
    assert all(turn.content in others for turn in TURNS[1::2])
    # The prompt of an answer is what the model is given when it is used.
    assert segments[0].text == chat.prompt(TURNS[:2])
    assert "".join(segment.text for segment in segments[:3]).startswith(chat.prompt(TURNS[:4]).rstrip())


def test_the_loss_is_that_of_the_assistant_s_tokens(llama):
    item = Instruction(0, "", "bad", turns=TURNS[:-1])
    learner = _learner(llama, LLAMA2)
    ids = llama.processor(
        "[CLS] question : was film [CLS] question : the film ? good [SEP] "
        "[CLS] question : the music ? bad [SEP]",
        add_special_tokens=False,
    )["input_ids"]
    row = KIND.encode(learner, [item], training=True)[0]
    assert row["input_ids"] == ids
    places = [len(ids) - 10, len(ids) - 9, len(ids) - 2, len(ids) - 1]
    assert [index for index, label in enumerate(row["labels"]) if label != IGNORED_LABEL] == places
    logits = llama.model(torch.tensor([ids])).logits[0]
    expected = functional.cross_entropy(
        logits[[place - 1 for place in places]], torch.tensor(ids)[places]
    ).item()
    assert KIND.evaluate(learner, [item], ()).loss == pytest.approx(expected, rel=1e-5)


def test_candidates_of_a_conversation_are_compared_by_themselves(llama):
    candidates = ("good", "bad")
    item = Instruction(0, "", "bad", candidates, TURNS[:-1])
    learner = _learner(llama, LLAMA2)
    totals = []
    prompt = learner.chat_template.prompt(TURNS[:-1])
    for candidate in candidates:
        ids = llama.processor(f"{prompt} {candidate} [SEP]", add_special_tokens=False)["input_ids"]
        logits = llama.model(torch.tensor([ids])).logits[0, -3:-1]
        totals.append(-functional.cross_entropy(logits, torch.tensor(ids[-2:])).item())
    assert candidate_scores(learner, [item])[0] == pytest.approx(totals, rel=1e-5)


def test_a_template_that_rewrites_the_beginning_is_refused_with_the_remedy(llama):
    item = Instruction("r7", "", "bad", turns=TURNS[:-1])
    with pytest.raises(SpecError, match=r"row 'r7' in another way once .*--chat-template"):
        KIND.encode(_learner(llama, FORGETS), [item], training=True)


def test_a_template_s_own_refusal_names_row_and_reason(llama):
    item = Instruction("r7", "", "bad", turns=TURNS[:-1])
    with pytest.raises(DataError, match=r"refuses the conversation of row 'r7' \(no system here\)"):
        KIND.encode(_learner(llama, ALTERNATES), [item], training=True)


def test_conversations_need_a_template_and_bare_instructions_do_not(llama):
    chat, bare = Instruction(0, "", "bad", turns=TURNS[:-1]), Instruction(0, "the film ?", "bad")
    assert KIND.encode(_learner(llama), [bare], training=True)
    with pytest.raises(SpecError, match=r"no chat template; name one with --chat-template: chatml, "):
        KIND.encode(_learner(llama), [chat], training=True)


def test_a_named_template_and_the_model_s_own_are_in_the_settings(tmp_path, tiny_llama):
    rows = [{"messages": MESSAGES}] * 3
    data = _load(tmp_path, rows)
    assert data.examples.settings == {}
    named = load_task(TaskRequest(data=str(tmp_path), chat_template="alpaca"), is_causal=True)
    assert named.examples.settings["chat_template"] == CHAT_TEMPLATES["alpaca"]
    base = KIND.load(resolve_model(str(tiny_llama)))
    base.processor.chat_template = LLAMA2
    assert KIND.model_settings(base, data.examples)["chat_template"] == LLAMA2
    assert KIND.model_settings(base, named.examples) == named.examples.settings
    bare = Examples(None, {"train": [Instruction(0, "a", "b")]})
    assert KIND.model_settings(base, bare) == {}
    # At evaluation the learned one counts, whatever the tokenizer has.
    request = TaskRequest(data=str(tmp_path), learned_settings={"chat_template": NO_PROMPT})
    assert load_task(request, is_causal=True).examples.settings["chat_template"] == NO_PROMPT


def test_a_template_is_a_name_or_a_file(tmp_path):
    (tmp_path / "own.jinja").write_text(LLAMA2)
    assert read_template(str(tmp_path / "own.jinja")) == LLAMA2
    with pytest.raises(SpecError, match="Did you mean 'chatml'"):
        read_template("chatm")
    with pytest.raises(SpecError, match=r"no chat template './none\.jinja'; name a Jinja file"):
        read_template("./none.jinja")


def test_a_template_is_refused_where_nothing_uses_it(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        "\n".join(json.dumps({"text": f"film {i}", "label": i % 2}) for i in range(20))
    )
    with pytest.raises(SpecError, match="no use to the kind classification"):
        load_task(TaskRequest(data=str(tmp_path / "a.jsonl"), chat_template="chatml"), is_causal=True)


def test_long_conversations_lose_their_beginning_and_say_so(llama, caplog):
    item = Instruction(0, "", "bad", turns=TURNS[:-1])
    whole = KIND.encode(_learner(llama, LLAMA2), [item], training=True)[0]
    with caplog.at_level("INFO", logger="rankfold"):
        rows = KIND.encode(_learner(llama, LLAMA2, 7), [item, replace(item, turns=TURNS[3:4])], training=True)
    assert rows[0]["input_ids"] == whole["input_ids"][-7:]
    assert rows[0]["labels"] == whole["labels"][-7:]
    assert "2 of 2 prompts have more than 7 tokens" in caplog.text


def test_answers_without_room_are_counted(llama):
    long = Instruction("r1", "film", "good " * 30)
    items = [(long, long.answer), (Instruction(2, "film", "bad"), "bad"), (long, "bad " * 40)]
    with pytest.raises(DataError, match=r"2 of 3 answers, the first of 'r1', have up to 41 tokens"):
        encode_answers(_learner(llama, max_length=20), items)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": MESSAGES[:-1]},
        {"messages": MESSAGES},
        {"conversations": SHARE_GPT[:-1]},
        {"prompt": MESSAGES[:-1]},
        {"instruction": "the music ?", "system": "was film", "history": [["the film ?", "good"]]},
    ],
)
def test_rows_without_answers_are_prompts(llama, row):
    hints = LabelHints(learned_settings={"chat_template": LLAMA2})
    (item,) = KIND.inputs([row], KIND.input_columns([row], Columns()), hints)
    assert item.turns == TURNS[:-1]
    assert isinstance(KIND.predict(_learner(llama, LLAMA2), [item])[0], str)


def test_generation_ends_with_a_turn_where_the_template_ends_it_by_another_token(llama):
    template = LLAMA2.replace("[SEP]", "[CLS]")
    assert ChatTemplate(llama.processor, template).end_of_turn() == llama.processor.bos_token_id
    assert ChatTemplate(llama.processor, LLAMA2).end_of_turn() is None
    assert ChatTemplate(llama.processor).end_of_turn() is None


def test_columns_of_any_names_are_a_prompt_and_its_answer(tmp_path):
    rows = [{"ask": f"film {index}", "reply": f"good {index}", "id": index} for index in range(30)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    columns = Columns("ask", None, "reply")
    request = TaskRequest(data=str(tmp_path / "a.jsonl"), kind="instruction", columns=columns)
    data = load_task(request, is_causal=True)
    items = [item for split in data.examples.splits.values() for item in split]
    assert {(item.prompt, item.answer) for item in items} == {(row["ask"], row["reply"]) for row in rows}
    assert data.examples.counts == {"train": 27, "validation": 3}


_CALL = {"type": "function", "function": {"name": "look", "arguments": '{"at": "film"}'}}
_TOOL_ROW = {
    "tools": [{"type": "function", "function": {"name": "look"}}],
    "messages": [
        {"role": "user", "content": "the film ?"},
        {"role": "assistant", "content": "", "tool_calls": [_CALL]},
        {"role": "tool", "name": "look", "content": "was"},
        {"role": "assistant", "content": "good"},
    ],
}
_TOOL_TEMPLATE = (
    "{% for t in tools or [] %}film {{ t.function.name }} [SEP] {% endfor %}"
    "{% for m in messages %}{% if m.role == 'tool' %}music {{ m.content }} [SEP] {% elif m.role == 'user' %}"
    "question {{ m.content }} [SEP] {% else %}answer {{ m.content }}{% for c in m.tool_calls or [] %}"
    "{{ c.function.arguments.at }}{% endfor %} [SEP] {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}answer {% endif %}"
)


@pytest.mark.parametrize("turns", [2, 4])
def test_tools_are_written_by_the_template_and_calls_are_learned(llama, turns):
    row = {"tools": json.dumps(_TOOL_ROW["tools"]), "messages": _TOOL_ROW["messages"][:turns]}
    reader = InstructionReader(find_columns([row], Columns()))
    item = reader.read(row, "a")
    template = ChatTemplate(llama.processor, _TOOL_TEMPLATE, item.tools)
    segments = template.segments([*item.turns, item.reply or Message("assistant", item.answer)])
    assert [part.text.strip() for part in segments if part.is_learned] == ["film [SEP]", "good [SEP]"][
        : turns // 2
    ]
    assert "film look [SEP]" in segments[0].text
    assert reader.findings() == []
    assert item.answer.strip()


_BARE_CALL = {"name": "look", "arguments": '{"at": "film"}'}
_BARE_TOOLS = '[\n {"name": "look"}]'
_TOOL_LAYOUTS = {
    "ShareGPT": {
        "tools": _BARE_TOOLS,
        "conversations": [
            {"from": "human", "value": "the film ?"},
            {"from": "function_call", "value": '{"name": "look", "arguments": {"at": "film"}}'},
            {"from": "observation", "value": "was"},
            {"from": "gpt", "value": "good"},
        ],
    },
    "several calls": {
        "tools": _BARE_TOOLS,
        "conversations": [
            {"from": "user", "value": "the film ?"},
            {"from": "tool_call", "value": json.dumps([_BARE_CALL])},
            {"from": "tool", "value": "was"},
            {"from": "assistant", "value": "good"},
        ],
    },
    "OpenAI before tools": {
        "tools": json.loads(_BARE_TOOLS),
        "messages": [
            {"role": "user", "content": "the film ?"},
            {"role": "assistant", "content": None, "function_call": _BARE_CALL},
            {"role": "function", "name": "look", "content": "was"},
            {"role": "assistant", "content": "good"},
        ],
    },
}


@pytest.mark.parametrize("turns", [2, 4])
@pytest.mark.parametrize("row", _TOOL_LAYOUTS.values(), ids=_TOOL_LAYOUTS)
def test_other_layouts_of_calls_are_the_same_conversation(row, turns):
    def read(row):
        (name,) = row.keys() - {"tools"}
        reader = InstructionReader(find_columns([row], Columns()))
        item = reader.read({**row, name: row[name][:turns]}, "a")
        messages = [turn.to_dict() for turn in (*item.turns, item.reply) if turn is not None]
        return item.answer, item.tools, [{**turn, "name": None} for turn in messages], reader.findings()

    assert read(row) == read(_TOOL_ROW)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (_TOOL_ROW, "the descriptions of tools and calls of tools and answers of tools"),
        ({"messages": _TOOL_ROW["messages"][:2]}, "calls of tools"),
        ({**_TOOL_ROW, "messages": MESSAGES[1:3]}, "the descriptions of tools"),
    ],
    ids=["all", "calls", "descriptions"],
)
def test_tools_are_refused_where_the_template_does_not_write_them(llama, row, words):
    item = InstructionReader(Columns()).read(row, "a")
    learner = Learner(llama.model, llama.processor, 64, settings={"chat_template": CHAT_TEMPLATES["chatml"]})
    with pytest.raises(SpecError, match=f"does not write {words}, which"):
        encode_answers(learner, [(item, item.answer)])


def test_descriptions_of_tools_are_a_list_of_objects():
    with pytest.raises(DataError, match="'tools' holds 'look'"):
        InstructionReader(Columns()).read({**_TOOL_ROW, "tools": "look"}, "a")
