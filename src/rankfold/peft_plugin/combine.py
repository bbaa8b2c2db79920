"""Adapters of one model together: a weighted sum as an adapter of its own, and their strength for a while."""

import threading
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from rankfold.adapter.geometry import Matrices
from rankfold.adapter.module import Adapter, adapters_in
from rankfold.errors import NotExactError, SpecError, unknown_name
from rankfold.factors import Dense, DenseSpec
from rankfold.peft_plugin.config import RankfoldConfig
from rankfold.peft_plugin.layer import RankfoldLayer
from rankfold.peft_plugin.passes import ForwardPasses

Combination = Literal["cat", "svd"]
"""How adapters are added: `cat` exactly, with the sum of their ranks; `svd` to the nearest one of a rank."""

_Factors = tuple[Tensor, Tensor]
"""The down factor [rank, in_features] and the up factor [out_features, rank], which has the scaling."""

_LINALG: Any = torch.linalg  # torch leaves its functions untyped


@contextmanager
def rescale_adapter_scale(model: nn.Module, multiplier: float) -> Generator[None]:
    """Multiply the strength of every adapter of a model for a while, as PEFT's function does for LoRA.

    Args:
        model: A model with adapters.
        multiplier: The factor; between 0 and 1 it is WiSE-FT (Wortsman et al., 2022).

    Raises:
        SpecError: If the model has no adapter, or one is merged.
        ThreadError: If another thread runs the model, or changes its adapters.
    """
    layers = [module for module in model.modules() if isinstance(module, RankfoldLayer)]
    merged = sorted({name for layer in layers for name in layer.merged_adapters})
    if merged:
        raise SpecError(f"'{merged[0]}' is merged into the base weights; unmerge it first.")
    passes = {layer.passes for layer in layers if layer.passes is not None}
    strengths = {adapter: adapter.strength for _, _, adapter in adapters_in(model)}
    if not strengths:
        raise SpecError("the model has no adapter of rankfold to rescale; use peft.helpers for PEFT's own.")
    before = {model_passes: model_passes.rescaled_by for model_passes in passes}
    with changing(passes):
        for model_passes in passes:
            model_passes.rescaled_by = threading.get_ident()
        for adapter, strength in strengths.items():
            adapter.strength = strength * multiplier
    try:
        yield
    finally:
        for model_passes in passes:
            model_passes.note_values()
        for adapter, strength in strengths.items():
            adapter.strength = strength
        for model_passes in passes:
            model_passes.note_values()
            model_passes.rescaled_by = before[model_passes]


@contextmanager
def changing(passes: Collection[ForwardPasses]) -> Generator[None]:
    """Change adapters while no other thread runs the model.

    Raises:
        ThreadError: If one does, or changes or rescales adapters itself.
    """
    with ExitStack() as stack:
        for model_passes in passes:
            stack.enter_context(model_passes.changing())
        yield


@torch.no_grad()
def weighted_factors(
    layers: Mapping[str, RankfoldLayer], weights: Mapping[str, float], combination: str, rank: int | None
) -> dict[str, _Factors]:
    """Return the factors of a weighted sum of adapters, by the name of the layer.

    Args:
        layers: The layers of a model, by name.
        weights: By the name of an adapter, its weight in the sum.
        combination: `cat` or `svd`.
        rank: The rank for `svd`; that of the largest adapter if None.

    Raises:
        SpecError: If the combination is unknown, the rank does not go with it, or an adapter is on a
            parameter instead of a layer.
        NotExactError: If the gates of an adapter depend on the input.
    """
    if combination not in get_args(Combination):
        raise NotExactError(
            f"combination_type='{combination}' adds factors, not the changes that they make, so the result "
            "would not be the sum; give 'cat', which is exact, or 'svd'."
        )
    if combination == "cat" and rank is not None:
        raise SpecError("svd_rank has no effect with combination_type='cat'; leave it out, or give 'svd'.")
    factors: dict[str, _Factors] = {}
    for path, layer in layers.items():
        parts = [
            (name, layer.rankfold_adapters[name], weight)
            for name, weight in weights.items()
            if name in layer.rankfold_adapters
        ]
        if parts:
            joined = _join(path, parts)
            largest = max(len(adapter.matrices()[0]) for _, adapter, _ in parts)
            factors[path] = joined if combination == "cat" else _truncate(joined, rank or largest)
    return factors


def sum_config(factors: Mapping[str, _Factors], usual: RankfoldConfig) -> RankfoldConfig:
    """Return the configuration of an adapter that holds some factors, for the task of another one."""
    ranks = {name: len(down) for name, (down, _) in factors.items()}
    most = max(ranks.values())
    return RankfoldConfig(
        r=most,
        scaling="none",
        down=DenseSpec(),
        up=DenseSpec("zeros"),
        target_modules=set(ranks),
        rank_pattern={f"^{name}": rank for name, rank in ranks.items() if rank != most},
        base_model_name_or_path=usual.base_model_name_or_path,
        inference_mode=usual.inference_mode,
    )


@torch.no_grad()
def fill_factors(
    layers: Mapping[str, RankfoldLayer], adapter_name: str, factors: Mapping[str, _Factors]
) -> None:
    """Give the adapters of one name the factors that they hold."""
    for path, (down, up) in factors.items():
        adapter = layers[path].rankfold_adapters[adapter_name]
        for factor, matrix in ((adapter.down, down), (adapter.up, up)):
            cast(Dense, factor).weight.copy_(matrix)


def check_sum(
    configs: Mapping[str, RankfoldConfig], weights: Sequence[float], adapters: Sequence[str]
) -> None:
    """Check that adapters can be added.

    Args:
        configs: The configurations of a model's adapters, by name.
        weights: As many as adapters.
        adapters: The names of those to add.

    Raises:
        SpecError: If a name is unknown or there twice, there are not as many weights, or one has a head.
    """
    for name in adapters:
        if name not in configs:
            raise unknown_name("adapter", name, configs)
        if heads := configs[name].modules_to_save:
            raise SpecError(
                f"adapter '{name}' has a '{min(heads)}' of its own, which cannot be added; "
                "add adapters without modules_to_save."
            )
    if not adapters or len(set(adapters)) < len(adapters) or len(weights) != len(adapters):
        raise SpecError(
            f"adapters={list(adapters)} with weights={list(weights)} is no sum; give each adapter once and "
            "one weight for each."
        )


def _join(path: str, parts: Sequence[tuple[str, Adapter, float]]) -> _Factors:
    downs: list[Tensor] = []
    ups: list[Tensor] = []
    for name, adapter, weight in parts:
        adapter.check_is_a_weight(name)
        if isinstance(adapter.geometry, Matrices):
            raise SpecError(f"'{path}' is a parameter, and adapters on parameters cannot be added.")
        down, up = adapter.matrices()
        downs.append(down)
        ups.append(up * weight)
    return torch.cat(downs), torch.cat(ups, dim=1)


def _truncate(factors: _Factors, rank: int) -> _Factors:
    """Return the nearest product of a rank (Eckart and Young, 1936), without writing the product down."""
    down, up = (factor.double() for factor in factors)
    outer, inner = _LINALG.qr(up), _LINALG.qr(down.T)
    left, values, right = _LINALG.svd(outer.R @ inner.R.T, full_matrices=False)
    rank = min(rank, len(values))
    roots = values[:rank].sqrt()
    return (
        (roots[:, None] * (right[:rank] @ inner.Q.T)).to(factors[0].dtype),
        (outer.Q @ left[:, :rank] * roots).to(factors[1].dtype),
    )
