"""Axis vocabulary of the shape annotations, and the annotated types used in more than one place.

Axes: `*batch` any leading axes, `tokens`, `in_features`, `out_features`, `rank`, `rank_up`, `rows`, `cols`,
`side`, `k`. A factor is a matrix of `rows` x `cols`; a down factor is `rank` x `in_features`, an up factor
`out_features` x `rank_up`.
"""

from jaxtyping import Float, Int
from torch import Tensor

Matrix = Float[Tensor, "rows cols"]
"""Any real matrix."""

Activations = Float[Tensor, "*batch features"]
"""What flows between layers, features last."""

FlatIndex = Int[Tensor, " entries"]
"""Positions in a flattened matrix."""
