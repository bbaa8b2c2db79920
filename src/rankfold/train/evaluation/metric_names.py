"""Names of metrics that need more than labels and predictions."""

ANSWER_LOSS = "answer_loss"
"""The mean cross-entropy of an answer's token; better when smaller."""

UNPARSED = "unparsed"
"""The share of generated answers that name no choice; they count as wrong."""
