"""A table fits the terminal, and no word of it is broken as long as there is room for whole words."""

import io
import os
import re
from collections import Counter
from contextlib import redirect_stdout
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st

from rankfold.cli.console import print_table

PLAIN = re.compile(r"\x1b\[[\d;]*m")
CELLS = st.lists(st.text("abc", min_size=1, max_size=9), min_size=1, max_size=4).map(" ".join)


def shown(monkeypatch, capsys, columns, rows, width):
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("FORCE_COLOR", "1")
    print_table(columns, rows)
    return PLAIN.sub("", capsys.readouterr().out).splitlines()


def test_words_of_a_comparison_are_whole_in_eighty_columns(monkeypatch, capsys):
    columns = [
        "method",
        "accuracy (95 %)",
        "difference to lora",
        "verdict",
        "trainable",
        "on disk",
        "time",
        "seeds",
    ]
    row = [
        "relayed_lora",
        "0.962 [0.940, 0.976]",
        "+0.002 [−0.011, +0.016]",
        "≈ not separated",
        "21,504",
        "100.6 kB",
    ]
    lines = shown(monkeypatch, capsys, columns, [[*row, "17 s", "1"]], 80)
    assert max(map(len, lines)) <= 80
    words = " ".join(lines).split()
    assert {"relayed_lora", "separated", "trainable", "difference", "seeds", "[0.940,"} <= set(words)


@given(
    table=st.integers(1, 6).flatmap(
        lambda count: st.lists(st.lists(CELLS, min_size=count, max_size=count), min_size=2, max_size=4)
    ),
    spare=st.integers(0, 60),
)
def test_every_word_is_whole_where_there_is_room_for_whole_words(table, spare):
    longest = [
        max(len(word) for row in table for word in row[index].split()) for index in range(len(table[0]))
    ]
    width = sum(longest) + 2 * (len(longest) - 1) + spare
    out = io.StringIO()
    with mock.patch.dict(os.environ, COLUMNS=str(width), FORCE_COLOR="1"), redirect_stdout(out):
        print_table(table[0], table[1:])
    lines = PLAIN.sub("", out.getvalue()).splitlines()
    assert max(map(len, lines)) <= max(width, 1)
    told = Counter(" ".join(lines).replace("─", "").split())
    assert told == Counter(word for row in table for cell in row for word in cell.split())
