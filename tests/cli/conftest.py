"""What these tests share: the tiny models and data, and a comparison without training."""

import pytest
from click.testing import CliRunner

from rankfold.bench.executors.base import Inline
from rankfold.bench.suites import protocol
from rankfold.cli.main import cli
from tests.support.records import Trainer
from tests.support.tiny_models import questions, reviews, tiny_bert, tiny_llama

__all__ = ["questions", "reviews", "tiny_bert", "tiny_llama"]


@pytest.fixture
def compare(monkeypatch, tmp_path, without_charts):
    """Return a function that compares with a stand-in for training, and without charts."""
    original = protocol.run_suite

    def call(*words, trainer=None):
        def with_stand_in(*given, **options):
            return original(*given, **{**options, "executor": Inline(trainer or Trainer())})

        monkeypatch.setattr(protocol, "run_suite", with_stand_in)
        return CliRunner().invoke(cli, ["compare", "--out", str(tmp_path / "out"), *words])

    return call
