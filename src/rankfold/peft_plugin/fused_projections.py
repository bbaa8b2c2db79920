"""Fused projections of diffusers: an attention that copies the weights of its layers into one layer.

From then on the layers are not called, so adapters on them do nothing, and the copy has none of them.
"""

from collections.abc import Mapping
from typing import Any, final

from torch import nn

from rankfold.errors import SpecError
from rankfold.peft_plugin.layer import RankfoldLayer, walk

_METHOD = "fuse_projections"
_QUERY, _ADDED_QUERY = "to_q", ("add_q_proj", "add_k_proj", "add_v_proj")


def check_not_fused(model: nn.Module, targets: Mapping[str, nn.Module]) -> None:
    """Check that no target is a layer that a fused attention does not call any more.

    Args:
        model: The model.
        targets: The layers that get an adapter, by name.

    Raises:
        SpecError: If one is.
    """
    for name in targets:
        path, _, leaf = name.rpartition(".")
        attention = model.get_submodule(path)
        if leaf in _replaced_layers(attention):
            raise SpecError(
                f"'{name}' is fused into another layer and not called any more; call "
                "unfuse_qkv_projections() on the model before you add an adapter."
            )


def refuse_fusing(model: nn.Module) -> None:
    """Let attentions refuse to fuse layers that have adapters."""
    for path, module in walk(model):
        if hasattr(type(module), _METHOD) and _adapted_names(module):
            vars(module)[_METHOD] = FusingRefusal(path, module)


def allow_fusing(model: nn.Module) -> None:
    """Give attentions their own way of fusing back."""
    for _, module in walk(model):
        if isinstance(vars(module).get(_METHOD), FusingRefusal):
            del vars(module)[_METHOD]


@final
class FusingRefusal:
    """The `fuse_projections` of an attention with adapters; an object, so copies and pickles have their own.

    Args:
        path: Name of the attention.
        attention: The attention.
    """

    def __init__(self, path: str, attention: nn.Module) -> None:
        self._path, self._attention = path, attention

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Fuse as before if the adapters are gone.

        Raises:
            SpecError: If layers have adapters, which the fused layer would lack.
        """
        if names := _adapted_names(self._attention):
            raise SpecError(
                f"the layers {', '.join(names)} of '{self._path}' have adapters, which fusing them would "
                "drop; call merge_and_unload() before you fuse, or leave the projections apart."
            )
        getattr(type(self._attention), _METHOD)(self._attention, *args, **kwargs)


def _adapted_names(attention: nn.Module) -> list[str]:
    return [
        name
        for name, child in attention.named_children()
        if isinstance(child, RankfoldLayer) and child.rankfold_adapters
    ]


def _replaced_layers(attention: nn.Module) -> set[str]:
    """Return the names of the layers that an attention of diffusers does not call because it is fused."""
    # An older attention stays marked when it is parted again; then its processor says so.
    processor = type(getattr(attention, "processor", None)).__name__
    can_part = hasattr(attention, "unfuse_projections")
    if not getattr(attention, "fused_projections", False) or not (can_part or "Fused" in processor):
        return set()
    replaced_names = {"to_k", "to_v"} | ({_QUERY} if hasattr(attention, "to_qkv") else set())
    return replaced_names | (set(_ADDED_QUERY) if hasattr(attention, "to_added_qkv") else set())
