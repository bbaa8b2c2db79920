"""What is trained of a model with an adapter, and how many numbers that is; no weight is looked at."""

from typing import Any, cast

import peft
from peft import PeftModel
from torch import Tensor
from torch.nn import Parameter

from rankfold.bench.methods.method import Method
from rankfold.bench.records.record import ParametersPart
from rankfold.errors import SpecError


def head_parameters(model: PeftModel) -> list[Parameter]:
    """Return the parameters of modules that are saved whole beside the adapter."""
    return [parameter for name, parameter in model.named_parameters() if ".modules_to_save." in name]


def freeze_rest(model: PeftModel, method: Method, *, freeze_head: bool = False) -> None:
    """Leave as they are the parts that are not trained.

    Args:
        model: It has the method's adapter.
        method: Says whether the adapter is trained.
        freeze_head: Leave the head as the seed drew it.

    Raises:
        SpecError: If that leaves nothing to train.
    """
    head = head_parameters(model)
    if not method.trains_adapter:
        if not head:
            raise SpecError(
                f"the model has no new head, which is all that '{method.name}' trains; leave it out."
            )
        if freeze_head:
            raise SpecError(f"'{method.name}' trains the head, and freeze_head leaves it; give one of them.")
        model.requires_grad_(requires_grad=False)
    for parameter in head:
        parameter.requires_grad = not freeze_head


def count_numbers(model: PeftModel) -> ParametersPart:
    """Count the numbers of the adapter and of the head; what rests now is not among the trained ones."""
    head = head_parameters(model)
    # What PEFT saves of a resized or targeted embedding is the base's, and it would ask the hub about it.
    state: dict[str, Tensor] = cast(Any, peft).get_peft_model_state_dict(model, save_embedding_layers=False)
    in_head = sum(parameter.numel() for parameter in head)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    trained -= sum(parameter.numel() for parameter in head if parameter.requires_grad)
    return ParametersPart(sum(each.numel() for each in state.values()) - in_head, trained, trained, in_head)
