"""What torch may be doing around a factor, under which a tensor or a function is not the ordinary one."""

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad

# Torch has no public name for what is asked of these two.
_C, _FORWARD_AD = cast(Any, torch)._C, cast(Any, forward_ad)


def is_transformed() -> bool:
    """Return whether a transform of `torch.func` or forward-mode differentiation is under way.

    Neither can go through an `autograd.Function` that says no more than its values and its gradients.
    """
    return bool(_C._are_functorch_transforms_active() or _FORWARD_AD._current_level >= 0)


def is_lasting(tensor: Tensor) -> bool:
    """Return whether a tensor that was made just now may be kept for later.

    One that was made in a dry run (`FakeTensorMode`), an export or a transform has no values outside of it.
    """
    return type(tensor) is Tensor and not is_transformed()
