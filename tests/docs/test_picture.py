"""The picture of the README says what the committed records say, and loads nothing."""

import re

from docs.picture import METHODS, PICTURE, picture_rows


def test_picture_has_every_point_with_its_size_score_and_interval():
    drawn = re.findall(r'aria-label="([^"]*)"', PICTURE.read_text("utf-8"))
    texts = [row["text"] for row in picture_rows()]
    assert len(texts) == 2 * (2 * (len(METHODS) - 1) + 1)
    assert set(texts) <= set(drawn), "run `make docs` and look at the change."


def test_picture_loads_nothing():
    text = PICTURE.read_text("utf-8")
    assert not re.search(r"<(script|image|foreignObject)|href=|url\(https?:", text)
