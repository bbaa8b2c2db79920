"""Cost of training a method on a model, from structure alone: parameters, operations and memory of a step."""

import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from peft import PeftConfig, PeftModel
from pydantic import JsonValue
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from rankfold.adapter.cost import adapter_work
from rankfold.errors import RankfoldWarning, SpecError
from rankfold.models.meta import MetaBase
from rankfold.peft_plugin.config import RankfoldConfig
from rankfold.peft_plugin.targets import plan_adapters
from rankfold.progress import quiet_libraries
from rankfold.runs.methods import find_method, freeze_rest, parameters_of_run
from rankfold.runs.record import ParametersInfo
from rankfold.runs.request import RunRequest
from rankfold.train.reducer.reducer import Reducer
from rankfold.train.reducer.spec import ReducerSpec


@dataclass(frozen=True, slots=True)
class Trace:
    """Operations and memory of one training step, in float32.

    Args:
        forward_flops: Multiplications and additions of the matrix products of the forward pass.
        flops: Those of the whole step.
        kept_bytes: What is kept for the backward pass, weights not counted.
        kept_weight_bytes: The weights that the backward pass reads.
        largest_bytes: The largest tensor that is kept.
    """

    forward_flops: int
    flops: int
    kept_bytes: int
    kept_weight_bytes: int
    largest_bytes: int


def trace_step(model: nn.Module, rows: int, length: int) -> Trace:
    """Return the operations and memory of a training step.

    Args:
        model: Of transformers or PEFT, on the meta device; it is in training mode afterwards.
        rows: Of the batch.
        length: Tokens of each row, none of them padding.

    Raises:
        RuntimeError: If something in the model looks at a value, of which the meta device has none.
    """
    weights = {_storage(tensor) for tensor in (*model.parameters(), *model.buffers())}
    sizes: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        sizes[_storage(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: _addmm})
    with quiet_libraries(), warnings.catch_warnings():
        # The batch has tokens alone, so layers of a vision model take no part in it.
        warnings.simplefilter("ignore", RankfoldWarning)
        # Apart from the counter, for whose hooks layers leave the fast path, which keeps less.
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            _loss(model.train(), rows, length)
        with counter:
            loss = _loss(model, rows, length)
            forward_flops = counter.get_total_flops()
            cast(Any, loss).backward()
    model.zero_grad()
    activations = [size for storage, size in sizes.items() if storage not in weights]
    return Trace(
        forward_flops,
        counter.get_total_flops(),
        kept_bytes=sum(activations),
        kept_weight_bytes=sum(sizes.values()) - sum(activations),
        largest_bytes=max(activations),
    )


def _loss(model: nn.Module, rows: int, length: int) -> Tensor:
    """Return the loss of a batch of tokens, of a denoiser that of pictures with captions."""
    config = cast(Any, model).config
    if hasattr(config, "cross_attention_dim") and hasattr(config, "sample_size"):
        return _denoising_loss(model, config, rows, length)
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = 0  # a row's class is read off its last token, which takes a word for padding
    tokens = torch.zeros(rows, length, dtype=torch.long, device="meta")
    # Were they given the tokens themselves, some models would look among them for padding.
    embeddings: Tensor = cast(Any, model).get_input_embeddings()(tokens)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        embeddings.requires_grad_()  # so that there is a backward pass, as behind any adapter
    logits: Tensor = cast(Any, model)(inputs_embeds=embeddings).logits
    logits = logits.reshape(-1, logits.shape[-1])
    return functional.cross_entropy(logits, torch.zeros_like(logits[:, 0], dtype=torch.long))


def _denoising_loss(model: nn.Module, config: Any, rows: int, length: int) -> Tensor:
    """Return the loss of a U-Net of diffusers on pictures of its own size."""
    side = config.sample_size
    noisy = torch.zeros(rows, config.in_channels, side, side, device="meta", requires_grad=True)
    captions = torch.zeros(rows, length, config.cross_attention_dim, device="meta")
    times = torch.zeros(rows, dtype=torch.long, device="meta")
    output: Tensor = model(noisy, times, encoder_hidden_states=captions).sample
    return output.square().mean()


def _storage(tensor: Tensor) -> int:
    """Return an identifier of a tensor's memory; on the meta device none has an address."""
    return cast(Any, tensor.untyped_storage())._cdata


def _addmm(_: object, left_shape: torch.Size, right_shape: torch.Size, **__: Any) -> int:
    """Return the operations of a product that is added in place, which the counter does not know."""
    return 2 * left_shape[0] * left_shape[1] * right_shape[1]


# What comes of looking at values where there are none.
_UNTRACEABLE = (RuntimeError, ValueError, TypeError, AttributeError)


@dataclass(frozen=True, slots=True)
class Workload:
    """Cost of a training.

    Args:
        base: Numbers of the base model, its task head included.
        parameters: Numbers of the adapter and of the head beside it.
        trained: How many of them are trained: all, but for a frozen head.
        step: What one step takes, of a single batch.
        probe_flops: Operations of a Reducer's probes, on average over the steps.
        left_out: What `step` does not have of model and adapter, in words; None if it has all.
        batches: Batches of a step.
    """

    base: int
    parameters: ParametersInfo
    trained: int
    step: Trace
    probe_flops: float = 0.0
    left_out: str | None = None
    batches: int = 1

    def flops(self, steps: int) -> float:
        """Return the operations of so many steps."""
        return steps * (self.batches * self.step.flops + self.probe_flops)


def measure_workload(
    base: MetaBase, config: PeftConfig, request: RunRequest, *, rows: int, length: int
) -> Workload:
    """Return the cost of a training, without making a weight.

    Args:
        base: The model.
        config: What came of the method and its options.
        request: Says the method, and what rests: a frozen head, or what a Reducer does not choose.
        rows: Of a batch.
        length: Tokens of a row.

    Raises:
        SpecError: If the adapter cannot be built on this model, the model cannot work without weights, or the
            Reducer has nothing to choose.
    """
    numbers, model = base.with_adapter(config)
    freeze_rest(model, find_method(request.method), freeze_head=request.freeze_head)
    parameters = parameters_of_run(model)
    trainable = parameters.trainable + (0 if request.freeze_head else parameters.head)
    with _rest_inactive_layers(model, request.reducer):
        parameters = replace(parameters, active=parameters_of_run(model).active)
        step, left_out = _step(base, model, config, rows, length)
    if request.gradient_checkpointing:  # the forward pass is made twice
        step = replace(step, flops=step.flops + step.forward_flops)
    probe_flops = 0.0
    if request.reducer is not None:
        probe_flops = _probes_per_step(ReducerSpec.of(request.reducer)) * step.forward_flops
    return Workload(
        numbers, parameters, trainable, step, probe_flops, left_out, request.gradient_accumulation
    )


def _step(
    base: MetaBase, model: PeftModel, config: PeftConfig, rows: int, length: int
) -> tuple[Trace, str | None]:
    """Return the cost of a step, and the part of it that cannot be traced without weights."""
    try:
        return trace_step(model, rows, length), _untraced_encoder(base)
    except _UNTRACEABLE:
        bare = base.model().requires_grad_(requires_grad=False)
    try:
        step = trace_step(bare, rows, length)
    except _UNTRACEABLE as error:
        raise SpecError(
            f"the model cannot be followed without weights ({_reason(error)}); measure a short run instead."
        ) from error
    if not isinstance(config, RankfoldConfig):
        return step, "what the adapter computes and keeps"
    work = adapter_work(plan_adapters(bare, config), rows * length)
    return replace(step, flops=step.flops + round(work.flops)), "what the adapter keeps"


def _untraced_encoder(base: MetaBase) -> str | None:
    """Return the part of a model that a batch of tokens does not go through; None if there is none."""
    return "the image encoder" if base.head.inputs == "picture_and_text" else None


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()).partition(". ")[0].rstrip(".")


@contextmanager
def _rest_inactive_layers(model: PeftModel, reducer: Mapping[str, JsonValue] | None) -> Generator[None]:
    """Let as many layers rest as a Reducer lets rest in one step."""
    spec = None if reducer is None else ReducerSpec.of(reducer)
    if spec is None or spec.select == "all":
        yield
        return
    if spec.needs_probes:  # which need data; a uniform sample has as many layers
        spec = spec.with_uniform_sampling()
    active_reducer = Reducer(**spec.to_dict()).attach(model)
    active_reducer.before_step()
    yield
    active_reducer.detach()


def _probes_per_step(spec: ReducerSpec) -> float:
    """Return how many forward passes of probes there are for each step, on average."""
    if not spec.needs_probes:
        return 0.0
    sets = 1 if spec.suppress_select == "lowest" else spec.probes
    baseline = spec.score_rule == "loss_delta"
    return (sets + baseline) / spec.interval
