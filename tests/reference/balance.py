"""The auxiliary losses of routers, counted out.

A group of routers is (p, c, real): p[i, b, t, e] the probability that router i gives head e for token t of
sample b, c[i, b, t, e] 1 if the head is chosen, real[b, t] 0 if the token is padding.
"""

from collections.abc import Sequence

from torch import Tensor

Group = tuple[Tensor, Tensor, Tensor]


def counted(values: Tensor, real: Tensor, samples: Sequence[int] | None = None) -> list[Tensor]:
    """Each router's values for the tokens that count, of these samples or of all."""
    batch, places = real.shape
    return [
        values[i, b, t]
        for i in range(len(values))
        for b in (range(batch) if samples is None else samples)
        for t in range(places)
        if real[b, t] > 0
    ]


def mean(vectors: Sequence[Tensor]) -> Tensor:
    """The sum, divided by how many they are."""
    return sum(vectors) / len(vectors)


def switch(blocks: Sequence[Group]) -> Tensor:
    """sum over blocks of N sum_e f_e P_e: f the share of all choices that fall on e, P the mean probability.

    Fedus et al., 2022, arXiv:2101.03961, eq. 4-6; for the routers of a block: Gao et al., 2024.
    """
    loss = 0
    for p, c, real in blocks:
        choices, P = sum(counted(c, real)), mean(counted(p, real))
        N = len(P)
        loss += N * sum(choices[e] / sum(choices) * P[e] for e in range(N))
    return loss


def mixtral(p: Tensor, c: Tensor, real: Tensor) -> Tensor:
    """N sum_e f_e P_e over all routers together: f the mean choices of e for a token, so that they sum to k.

    Li et al., 2024, arXiv:2404.15159, eq. 7-9, as in the code of Mixtral.
    """
    f, P = mean(counted(c, real)), mean(counted(p, real))
    N = len(P)
    return N * sum(f[e] * P[e] for e in range(N))


def llava_mole(p: Tensor, c: Tensor, real: Tensor) -> Tensor:
    """Mean over samples of sum_e mean(p_e) mean(c_e), the means over the sample's tokens in all routers.

    Chen et al., 2024, arXiv:2401.16160, section 3.4, in the released form, without a factor N.
    """
    losses = []
    for b in range(len(real)):
        P, f = mean(counted(p, real, [b])), mean(counted(c, real, [b]))
        losses.append(sum(P[e] * f[e] for e in range(len(P))))
    return mean(losses)


def localized(p: Tensor, real: Tensor, task_type: Sequence[int], delta: float) -> Tensor:
    """sum over routers of Var(q) / Mean(q)^2, q_be = sum_t p_bte times 1 + delta or 1 - delta.

    1 + delta for a head of the half that belongs to the sample's type: the first half to type 1. Dou et al.,
    2024, arXiv:2312.09979, section 3.3; the square of the mean is the released code's.
    """
    loss = 0
    for i in range(len(p)):
        q = []
        for b in range(len(real)):
            amounts = sum(counted(p[i : i + 1], real, [b]))
            for e in range(len(amounts)):
                belongs = (e < len(amounts) // 2) == (task_type[b] == 1)
                q.append(amounts[e] * (1 + delta if belongs else 1 - delta))
        variance = sum((each - mean(q)) ** 2 for each in q) / (len(q) - 1)
        loss += variance / (mean(q) ** 2 + 1e-10)
    return loss
