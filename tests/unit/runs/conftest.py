"""The tiny models, data and run that these tests share."""

from pathlib import Path

import pytest

from rankfold.runs.request import RunRequest
from tests.support.tiny_models import questions, reviews, tiny_bert, tiny_llama

__all__ = ["questions", "reviews", "tiny_bert", "tiny_llama"]


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
