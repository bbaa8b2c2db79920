"""Layers of a batch: the arithmetic of one layer with an adapter of its own for each row.

No product is done for one adapter alone: the matrices of all rows are multiplied in one batched product.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, cast, final

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap  # pyright: ignore[reportUnknownVariableType, reportPrivateImportUsage]
from torch.nn import functional

from rankfold.adapter.build import gating_of
from rankfold.adapter.gating import ExpertEntryGating, ExpertExitGating, Gating, MlpPass
from rankfold.adapter.geometry import Conv2d, Embedding
from rankfold.adapter.router import Router, RouterSpec
from rankfold.serve.forms import HeadForm, LayerForm, RouterForm
from rankfold.serve.frame import FrameRows


class RowRouter(Router):
    """The routers of one layer for rows of different adapters.

    Args:
        form: Their form.
        read: Returns their parameters now, [rows, ...], by name.
    """

    def __init__(self, form: RouterForm, read: Callable[[], Mapping[str, Tensor]]) -> None:
        # Without the parameters of a router of its own: those of the rows are read.
        nn.Module.__init__(self)
        self.heads, self.in_features, self.spec = form.heads, form.in_features, form.spec
        self.training, self.read = False, read

    def scores(self, features: Tensor) -> Tensor:
        """Return the score of every head [rows, tokens, heads] for features [rows, tokens, in_features]."""
        tensors = self.read()
        scores = torch.bmm(features, tensors["weight"].mT)
        return scores + tensors["bias"].unsqueeze(1) if "bias" in tensors else scores


@final
class RowByRowRouter(RowRouter):
    """The same for routers of another type: one row after another, as torch maps no recurrent cell."""

    def forward(self, features: Tensor) -> Tensor:
        """Return the weights of the heads [rows, tokens, heads] for features [rows, tokens, in_features]."""
        router, tensors = _bare_router(self.spec, self.heads, self.in_features), self.read()
        weights = [
            cast(Tensor, functional_call(router, {key: t[index] for key, t in tensors.items()}, (row,)))
            for index, row in enumerate(features)
        ]
        return torch.stack(weights)


@lru_cache(maxsize=1024)
def _bare_router(spec: RouterSpec, heads: int, in_features: int) -> Router:
    with torch.device("meta"):
        return spec.build(heads, in_features).eval()


@final
class LayerRows:
    """The adapters of one layer for the rows of a batch that are in one frame.

    Args:
        form: The layer's form.
        frame_rows: The rows.
    """

    def __init__(self, form: LayerForm, frame_rows: FrameRows) -> None:
        self.form, self.frame_rows = form, frame_rows
        self.gating = None if form.router is None else self._make_gating(form.router)

    def _make_gating(self, form: RouterForm) -> Gating:
        def read() -> dict[str, Tensor]:
            prefix = "router."
            tensors = self.frame_rows.tensors(self.form)
            return {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}

        def make() -> MlpPass:
            is_usual = type(_bare_router(form.spec, form.heads, form.in_features)) is Router
            return MlpPass((RowRouter if is_usual else RowByRowRouter)(form, read))

        return gating_of(self.frame_rows.mlp_pass(form, make), form.spec, form.role)

    @property
    def parted(self) -> int:
        """How many experts the layer parts each row into; 0 if none."""
        return self.gating.experts if isinstance(self.gating, ExpertEntryGating) else 0

    @property
    def joins(self) -> bool:
        """Whether the layer joins experts."""
        return isinstance(self.gating, ExpertExitGating)

    def select(self, x: Tensor) -> Tensor:
        """Return these rows of a tensor [batch, ...]."""
        rows = self.frame_rows.rows
        return x if rows is None else x.index_select(0, rows)

    def experts(self, x: Tensor) -> Tensor:
        """Return the experts of these rows from the input of a layer that joins, [experts, batch, ...]."""
        assert isinstance(self.gating, ExpertExitGating)
        x = x[: self.gating.experts]
        rows = self.frame_rows.rows
        return x if rows is None else x.index_select(1, rows)

    def join(self, x: Tensor) -> Tensor:
        """Return the input of the base layer [rows, ...] from these rows of `experts`."""
        assert isinstance(self.gating, ExpertExitGating)
        return self.gating.join(x.flatten(2, -2)).view(x.shape[1:])

    def add_to(self, result: Tensor, x: Tensor, *, is_parted: bool) -> None:
        """Add the changes of these rows to the base layer's output, in place.

        Args:
            result: The output of the base layer, [batch, ...].
            x: The layer's input in these rows.
            is_parted: Whether some row of the batch has experts, and so `result` an axis of them in front.
        """
        change, rows = self._change(x).to(result.dtype), self.frame_rows.rows
        target = result[: self.parted] if self.parted else result
        if is_parted and not self.parted:
            change = change.expand(len(result), *change.shape)
        if rows is None:
            target.add_(change)
        else:
            target.index_add_(int(is_parted), rows, change)

    def add_fused(self, result: Tensor, x: Tensor) -> bool:
        """Add the changes of all rows to the output of a linear layer in one step; False if it takes several.

        Args:
            result: The output of the base layer, [rows, *tokens, out_features], in the frame's dtype.
            x: The layer's input, [rows, *tokens, in_features], in that dtype.
        """
        is_simple = self.frame_rows.rows is None and not (self.parted or self.joins)
        if not is_simple or isinstance(self.form.geometry, Conv2d | Embedding):
            return False
        if not (result.dtype == x.dtype == self.frame_rows.frame.dtype and result.is_contiguous()):
            return False
        tensors = self.frame_rows.tensors(self.form)
        hidden, up = self._hidden(x, tensors), tensors["up"]
        if up.ndim == 2:  # noqa: PLR2004 (a frozen one is for all rows)
            result.view(-1, up.shape[1]).addmm_(hidden.reshape(-1, hidden.shape[-1]), up)
        else:
            result.view(*hidden.shape[:-1], up.shape[-1]).baddbmm_(hidden, up)
        return True

    def _change(self, x: Tensor) -> Tensor:
        geometry, tensors = self.form.geometry, self.frame_rows.tensors(self.form)
        dtype = self.frame_rows.frame.dtype
        if isinstance(geometry, Embedding):
            return self._embedding_change(x, tensors)
        if isinstance(geometry, Conv2d):
            return _convolution_change(geometry, x.to(dtype), tensors)
        change = torch.matmul(self._hidden(x.to(dtype), tensors), tensors["up"])
        return change.view(*change.shape[:-2], *x.shape[1 + self.joins : -1], change.shape[-1])

    def _hidden(self, x: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the input of the up factor [rows, tokens, n]; both may have experts on an axis in front."""
        lead = x.shape[: 1 + self.joins]
        x = x.reshape(*lead, x.shape[len(lead) : -1].numel(), x.shape[-1])
        code = torch.matmul(x, tensors["down"].mT)
        if self.gating is None or self.form.router is None:
            return torch.matmul(code, tensors["core"]) if "core" in tensors else code
        rank = code.shape[-1] // self.form.router.down_heads
        codes: Tensor = code.reshape(*code.shape[:-1], self.form.router.down_heads, rank)
        if "core" in tensors:
            codes = torch.matmul(codes.flatten(-3, -2), tensors["core"]).reshape(*codes.shape[:-1], -1)
        return self.gating(x, codes, lambda: code)

    def _embedding_change(self, tokens: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        flat = tokens.reshape(len(tokens), -1)
        fields = dict(self.form.fields)
        if "down" in fields:
            code = self.frame_rows.look_up(fields["down"], flat)
        else:
            code = functional.embedding(flat, tensors["down"])
        code = torch.matmul(code, tensors["core"]) if "core" in tensors else code
        return torch.matmul(code, tensors["up"]).view(*tokens.shape, -1)


def _convolution_change(geometry: Conv2d, x: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    keep = nn.Identity()

    def change(image: Tensor, matrices: Mapping[str, Tensor]) -> Tensor:
        code = geometry.project(image[None], matrices["down"], keep)
        code = geometry.mix(code, matrices["core"]) if "core" in matrices else code
        return geometry.expand(code, matrices["up"])[0]

    axes = {role: 0 if tensor.ndim == 3 else None for role, tensor in tensors.items()}  # noqa: PLR2004
    return cast(Any, vmap)(change, in_dims=(0, axes))(x, dict(tensors))


@final
class HeadRows:
    """The modules of one name that the rows of a batch, those in one frame, bring in place of the model's.

    Args:
        form: The module's form.
        frame_rows: The rows.
    """

    def __init__(self, form: HeadForm, frame_rows: FrameRows) -> None:
        self.form, self.frame_rows = form, frame_rows

    def __call__(self, module: nn.Module, x: Tensor) -> Tensor:
        """Return the output of each row's own module for x [batch, ...], in these rows."""
        rows = self.frame_rows.rows
        x = (x if rows is None else x.index_select(0, rows)).to(self.frame_rows.frame.dtype)
        tensors = self.frame_rows.tensors(self.form)
        if isinstance(module, nn.Linear):
            product = torch.bmm(x.reshape(len(x), -1, x.shape[-1]), tensors["weight"].mT)
            product = product + tensors["bias"][:, None] if "bias" in tensors else product
            return product.view(*x.shape[:-1], -1)

        def call(row_tensors: Mapping[str, Tensor], row: Tensor) -> Tensor:
            return cast(Any, functional_call)(module, row_tensors, (row[None],))[0]

        return cast(Any, vmap)(call)(tensors, x)


def layers_of(rows: Sequence[FrameRows], name: str) -> tuple[list[LayerRows], list[HeadRows]]:
    """Return the adapters, and the modules, that the rows of a batch bring for one layer."""
    forms = [(part.frame.forms[name], part) for part in rows if name in part.frame.forms]
    return (
        [LayerRows(form, part) for form, part in forms if isinstance(form, LayerForm)],
        [HeadRows(form, part) for form, part in forms if isinstance(form, HeadForm)],
    )


def with_changes(layers: Sequence[LayerRows], forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return the output of a base layer with the changes of the rows' adapters.

    Between the first and the last layer of an MLP, rows with experts have an axis in front, one entry for
    each expert of a token. All rows of the batch get it then; those without experts are in its first entry.

    Args:
        layers: Its adapters in a batch.
        forward: The base layer.
        x: Its input; the batch is the first axis, or the second within such an MLP.
    """
    exits = [layer for layer in layers if layer.joins]
    base_input = x
    if exits:
        base_input = x[0].clone()
        for layer in exits:
            joined, rows = layer.join(layer.experts(x)), layer.frame_rows.rows
            base_input = joined if rows is None else base_input.index_copy_(0, rows, joined)
    result = forward(base_input)
    if len(layers) == 1 and layers[0].add_fused(result, base_input):
        return result
    parted = max(layer.parted for layer in layers)
    result = result.expand(parted, *result.shape).clone() if parted else result.clone()
    for layer in layers:
        source = layer.experts(x) if layer.joins else layer.select(base_input)
        layer.add_to(result, source, is_parted=parted > 0)
    return result


def with_heads(
    heads: Sequence[HeadRows], module: nn.Module, forward: Callable[[Tensor], Tensor], x: Tensor
) -> Tensor:
    """Return the output of a module in whose place some rows have one of their own.

    Outputs of different sizes are filled up with minus infinity.

    Args:
        heads: The modules of these rows.
        module: The base model's.
        forward: Calls it.
        x: Its input, [batch, ...].
    """
    outputs = [(head.frame_rows.rows, head(module, x)) for head in heads]
    if len(outputs) == 1 and outputs[0][0] is None:
        return outputs[0][1].to(x.dtype)
    result = forward(x)
    width = max(result.shape[-1], *(output.shape[-1] for _, output in outputs))
    result = functional.pad(result, (0, width - result.shape[-1]), value=-torch.inf)
    for rows, output in outputs:
        padded = functional.pad(output, (0, width - output.shape[-1]), value=-torch.inf)
        result = padded if rows is None else result.index_copy(0, rows, padded.to(result.dtype))
    return result
