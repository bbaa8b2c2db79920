"""The tiny models, data and run that these tests share."""

from tests.support.tiny_models import questions, request_, reviews, tiny_bert, tiny_llama

__all__ = ["questions", "request_", "reviews", "tiny_bert", "tiny_llama"]
