"""The tiny models and data that these tests share."""

from tests.support.tiny_models import reviews, tiny_bert, tiny_llama

__all__ = ["reviews", "tiny_bert", "tiny_llama"]
