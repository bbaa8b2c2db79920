"""Learning rates of TLoRA+ (Cao and Liu, 2026, eq. 7 and 8) and of LoRA+ (Hayou et al., 2024, section 4).

The adapters are dW = C B A (TLoRA+) and dW = B A (LoRA+), with A at the input.
"""

from math import sqrt

TLORA_PLUS_MULTIPLES = {
    2: (2.83, 1.41),
    4: (8.0, 2.0),
    5: (11.2, 2.24),
    8: (22.6, 2.83),
    10: (31.6, 3.16),
}
"""By the ratio rho, eta_B / eta_A = rho^(3/2) and eta_C / eta_A = rho^(1/2), rounded as one reads them."""


def tlora_plus_rates(m: int, n: int, r1: int, r2: int) -> dict[str, float]:
    """eta_A / eta_B = r1 sqrt(r2) / (n sqrt(n)) and eta_B / eta_C = m sqrt(r1) / (r2 sqrt(r2)).

    A is r2 x n, B is r1 x r2, C is m x r1; rates are in units of eta_B.
    """
    return {"A": r1 * sqrt(r2) / (n * sqrt(n)), "B": 1.0, "C": r2 * sqrt(r2) / (m * sqrt(r1))}


def lora_plus_rate(
    is_B: bool, dimensions: int, is_of_embedding: bool, eta: float, ratio: float, eta_embedding: float
) -> float:
    """Adapters of embeddings have a rate of their own; B and vectors have ratio eta, everything else eta."""
    if is_of_embedding:
        return eta_embedding
    return ratio * eta if is_B or dimensions == 1 else eta
