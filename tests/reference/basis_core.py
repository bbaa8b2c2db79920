"""A core on a learned basis: frozen directions U and V, which all adapters of a base model share.

Brüel-Gabrielsson et al., Compress then Serve, arXiv:2407.00066, eq. 1: the update of an adapter i is U S_i V.
"""

from torch import Tensor

from tests.reference.products import product


def delta(U: Tensor, S: Tensor, V: Tensor, alpha: float) -> Tensor:
    """dW = alpha / r U S V in the order out x r, r x r, r x in; the scaling is ours."""
    return alpha / S.shape[0] * product(product(U.detach(), S), V.detach())


def parameters(layers: int, r: int) -> int:
    """r r a layer."""
    return layers * r * r
