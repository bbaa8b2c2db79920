"""What kind of layer a base layer is, and its sizes."""

import warnings

from peft.tuners.tuners_utils import _get_in_out_features
from peft.utils.quantization_utils import QuantizationBackend
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers.pytorch_utils import Conv1D

from rankfold.adapter.geometry import Conv2d, Embedding, Geometry, Linear
from rankfold.errors import SpecError


def geometry_of(name: str, layer: nn.Module, backend: QuantizationBackend | None) -> Geometry:
    """Return the kind and the sizes of a base layer.

    Raises:
        SpecError: If it is of a kind that cannot be adapted.
    """
    if isinstance(layer, NonDynamicallyQuantizableLinear):
        raise SpecError(
            f"'{name}' is read by torch's MultiheadAttention without being called, so an adapter on it would "
            "do nothing; exclude it by exclude_modules."
        )
    if isinstance(layer, nn.Embedding):
        return Embedding(layer.num_embeddings, layer.embedding_dim, layer.padding_idx)
    if isinstance(layer, nn.Conv2d):
        return Conv2d(
            layer.in_channels,
            layer.out_channels,
            _pair(layer.kernel_size),
            _pair(layer.stride),
            layer.padding if isinstance(layer.padding, str) else _pair(layer.padding),
            _pair(layer.dilation),
            layer.groups,
            layer.padding_mode,
            tuple(layer._reversed_padding_repeated_twice),
        )
    if isinstance(layer, nn.Linear | Conv1D) or (backend is not None and backend.layer_type == "linear"):
        in_features, out_features = sizes_of(layer)
        if in_features is not None and out_features is not None:
            return Linear(in_features, out_features, transposed=isinstance(layer, Conv1D))
    raise SpecError(
        f"Target module '{name}' is not supported: it is a {type(layer).__name__}; "
        "name Linear, Conv1D, Conv2d or Embedding layers in target_modules, or exclude it by exclude_modules."
    )


def sizes_of(layer: nn.Module) -> tuple[int | None, int | None]:
    """Return what PEFT calls a layer's `in_features` and `out_features`; a convolution's are its channels."""
    with warnings.catch_warnings():
        # PEFT warns of kinds it does not know; those that we take are checked by us.
        warnings.simplefilter("ignore", UserWarning)
        return _get_in_out_features(layer)


def _pair(value: tuple[int, ...]) -> tuple[int, int]:
    return value[0], value[1]
