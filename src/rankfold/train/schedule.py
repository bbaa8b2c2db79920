"""How a model is trained: how long, at which rate, in which precision."""

from dataclasses import dataclass

SCHEDULERS = (
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
)
"""Those of transformers that need no more numbers than a `Schedule` has."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """How a model is trained.

    Args:
        steps: Number of updates.
        batch_size: Rows of an update.
        learning_rate: The highest.
        scheduler: The shape after the warm-up, one of `SCHEDULERS`.
        warmup: Share of the steps in which the rate rises from zero.
        weight_decay: AdamW's.
        max_grad_norm: Gradients are scaled down to this norm.
        precision: `fp32` or `bf16`.
        seed: Of data order and dropout.
    """

    steps: int
    batch_size: int
    learning_rate: float
    scheduler: str = "linear"
    warmup: float = 0.06
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    precision: str = "fp32"
    seed: int = 0
