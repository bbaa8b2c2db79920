"""IST. Yao et al., 2024, as its code has it: s is how dispensable a layer is; torch draws the layers."""

import torch
from torch import Tensor


def sigma(s: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-s))


def update(s: Tensor, suppressed: list[list[int]], losses: list[float], eta: float) -> Tensor:
    """s_i += eta rho_j p_i (1 - p_i), rho_j = exp(-loss_j) - mean, for each i that probe j suppressed."""
    p = sigma(s)
    rewards = torch.exp(-torch.tensor(losses, dtype=s.dtype))
    rho = rewards - rewards.mean()
    s = s.clone()
    for j, layers in enumerate(suppressed):
        for i in layers:
            s[i] += eta * rho[j] * p[i] * (1 - p[i])
    return s


def suppressed_layers(s: Tensor, count: int) -> list[int]:
    """Drawn without replacement, with weights sigma(s)."""
    return torch.multinomial(sigma(s), count, replacement=False).tolist()


def active_layers(s: Tensor, count: int) -> list[int]:
    """Drawn without replacement, with weights sigma(-s)."""
    return torch.multinomial(sigma(-s), count, replacement=False).tolist()
