"""The tiny models and data that these tests share."""

from tests.support.tiny_models import questions, reviews, tiny_bert, tiny_llama

__all__ = ["questions", "reviews", "tiny_bert", "tiny_llama"]
