"""The pictures say what the committed records say, and load nothing."""

import re

import pytest

from docs.picture import METHODS, PICTURE, picture_rows
from docs.scale_picture import SCALE_PICTURE, read_scale, scale_picture


def test_picture_has_every_point_with_its_size_score_and_interval():
    drawn = re.findall(r'aria-label="([^"]*)"', PICTURE.read_text("utf-8"))
    texts = [row["text"] for row in picture_rows()]
    assert len(texts) == 2 * (2 * (len(METHODS) - 1) + 1)
    assert set(texts) <= set(drawn), "run `make docs` and look at the change."


def test_picture_of_scale_is_that_of_its_record_and_formula_simulation_and_bank_agree():
    assert SCALE_PICTURE.read_text("utf-8") == scale_picture(), "run `make docs` and look at the change."
    record = read_scale()
    assert record["check"]["bank"] == record["check"]["simulation"]
    assert all(abs(row["predicted"] - row["simulated"]) < 0.01 for row in record["curves"])


@pytest.mark.parametrize("picture", [PICTURE, SCALE_PICTURE], ids=["bytes", "scale"])
def test_picture_loads_nothing(picture):
    text = picture.read_text("utf-8")
    assert not re.search(r"<(script|image|foreignObject)|href=|url\(https?:", text)
