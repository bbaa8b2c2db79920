"""Initial values by name, as standard deviations and matrices."""

import math
from typing import Literal, get_args

from jaxtyping import Float
from torch import Tensor

from rankfold.errors import unknown_name
from rankfold.seeding import random_matrix

Initial = Literal["kaiming", "lecun", "islam", "zeros"]
"""How a factor starts.

`kaiming`: variance 1/(3 cols), PEFT's start of LoRA. `lecun`: variance 1/cols (TLoRA+, section 3.2). `islam`:
variance 1/(3 rows), which is what the code of TLoRA draws, since it stores its factors transposed. `zeros`:
all zero.
"""

INITIALS: tuple[Initial, ...] = get_args(Initial)


def standard_deviation(initial: Initial, rows: int, cols: int) -> float:
    """Return the standard deviation of an entry of a `rows` x `cols` factor.

    Raises:
        SpecError: If `initial` is none of `INITIALS`.
    """
    match initial:
        case "kaiming":
            return 1 / math.sqrt(3 * cols)
        case "lecun":
            return 1 / math.sqrt(cols)
        case "islam":
            return 1 / math.sqrt(3 * rows)
        case "zeros":
            return 0.0
        case _:
            raise unknown_name("initial value", initial, INITIALS)


def initial_matrix(
    initial: Initial, rows: int, cols: int, *, seed: int, name: str
) -> Float[Tensor, "{rows} {cols}"]:
    """Return a float32 matrix on the CPU; `kaiming` is uniform as in PEFT, the others are normal."""
    return random_matrix(
        rows,
        cols,
        seed=seed,
        name=name,
        std=standard_deviation(initial, rows, cols),
        distribution="uniform" if initial == "kaiming" else "normal",
    )
