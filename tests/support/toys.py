"""A small model with every kind of layer that can be adapted, and the compositions to put on it."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, get_args

import peft
import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import rankfold
from rankfold.adapter.balance import BALANCE_KINDS
from rankfold.adapter.router import RouterScope
from rankfold.adapter.spec import SCALINGS
from rankfold.factors import INITIALS, RELAY_MAPS, SHARES, Basis, add_basis
from rankfold.presets import Preset, discover
from tests.support.bases import random_layers

TOKENS, WIDTH = 7, 5
LINEAR_TARGETS = ("query", "value", "c_fc", "c_proj")
ALL_TARGETS = (*LINEAR_TARGETS, "tokens", "picture")


class Block(nn.Module):
    """Layers of three shapes, two of them alike, the others an MLP as GPT-2 has it; a skip around them."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(WIDTH, WIDTH)
        self.value = nn.Linear(WIDTH, WIDTH, bias=False)
        self.c_fc = nn.Linear(WIDTH, 9)
        self.c_proj = Conv1D(WIDTH, 9)

    def forward(self, x: Tensor) -> Tensor:
        """Mix [batch, tokens, WIDTH]."""
        return x + torch.tanh(self.query(x)) * self.value(x) + self.c_proj(torch.tanh(self.c_fc(x)))


class Toy(nn.Module):
    """Embedding, convolution (grouped, strided, padded) and two blocks; no size divides another."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(TOKENS, WIDTH)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.picture = nn.Conv2d(4, 6, (2, 3), stride=(1, 2), padding=(1, 0), groups=2)
        self.head = nn.Linear(6, 3)

    def forward(self, ids: Tensor) -> Tensor:
        """Map ids [batch, tokens] to scores [batch, 3]."""
        x = self.tokens(ids)
        for block in self.blocks:
            x = block(x)
        pixels = x.flatten(1)[:, :24].reshape(-1, 4, 2, 3)
        return self.head(self.picture(pixels).mean(dim=(2, 3)))


def toy(seed: int = 0, dtype: torch.dtype = torch.float64) -> Toy:
    """Return the same toy for the same seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Toy().to(dtype)


def ids(rows: int = 3, seed: int = 1) -> Tensor:
    """Return token ids [rows, 5]."""
    return torch.randint(0, TOKENS, (rows, 5), generator=torch.Generator().manual_seed(seed))


@contextmanager
def toy_sizes_allowed() -> Iterator[None]:
    """Silence the warnings about ranks and relays that make sense on a real layer but not on a toy's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rankfold.RankfoldWarning)
        yield


def adapted(
    config: Any, *, base: Toy | None = None, adapter_name: str = "default", dtype: torch.dtype = torch.float64
) -> nn.Module:
    """Return a toy with an adapter, in evaluation mode."""
    with toy_sizes_allowed():
        model = peft.get_peft_model(base or toy(dtype=dtype), config, adapter_name=adapter_name)
    return model.eval()


def preset_configs(**options: Any) -> dict[str, Any]:
    """Return the configuration of every preset, of small rank, for all layers of the toy that it can take."""
    return {"learned_basis": _on_basis(**options)} | {
        name: _preset_config(preset, **options) for name, preset in discover().items()
    }


def _on_basis(**options: Any) -> Any:
    add_toy_basis()
    fields = {"r": 3, "target_modules": list(ALL_TARGETS), **options}
    return rankfold.config("basis_core", basis=TOY_BASIS["digest"], **fields)


def _preset_config(preset: Preset, **options: Any) -> Any:
    is_routed = preset.spec().router is not None
    targets = LINEAR_TARGETS if is_routed else ALL_TARGETS
    small = {"r": 2 if is_routed else 3, **({"inner": 2} if "inner" in preset.options else {})}
    return rankfold.config(preset.name, **{"target_modules": list(targets), **small, **options})


_RANDOM = tuple(initial for initial in INITIALS if initial != "zeros")


def _trained(*initials: str) -> st.SearchStrategy[dict[str, Any]]:
    initial = st.sampled_from(initials)
    dense = st.fixed_dictionaries({"kind": st.just("dense"), "initial": initial})
    relay = st.fixed_dictionaries(
        {
            "kind": st.just("relay"),
            "initial": initial,
            "k": st.integers(1, 4),
            "map": st.sampled_from(RELAY_MAPS),
        }
    )
    return dense | relay


TOY_BASIS = {"kind": "basis", "digest": "70" * 16, "name": "toy", "rank": 5}


def add_toy_basis() -> None:
    """Let adapters find the basis of the toy, whose directions are random."""
    layers = random_layers(toy(), list(ALL_TARGETS), rank=TOY_BASIS["rank"])
    add_basis(Basis(TOY_BASIS["digest"], TOY_BASIS["name"], layers))


_SEEDED = st.fixed_dictionaries({"kind": st.just("seeded"), "initial": st.sampled_from(_RANDOM)})
_FROZEN = _SEEDED | st.just(TOY_BASIS)


def _balances() -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({"kind": st.sampled_from(BALANCE_KINDS), "coefficient": st.just(0.1)})


@st.composite
def _heads(draw: st.DrawFn) -> dict[str, Any]:
    """Draw the fields of several heads and their router, each of whose parts can learn."""
    scope = draw(st.sampled_from(get_args(RouterScope)))
    heads = draw(st.sampled_from((2, 3, 4, (1, 2), (2, 3), (4, 2))))
    fewest = min(number for number in ((heads,) if isinstance(heads, int) else heads) if number > 1)
    top_k = draw(st.none() | st.integers(1, fewest))
    weights = ["renormalized"]
    if scope != "experts":
        weights += ["probability"] if top_k is None else ["probability", "straight_through"]
    weight = draw(st.sampled_from(weights))
    balance = draw(_balances() if (top_k, weight) == (1, "renormalized") else st.none() | _balances())
    return {
        "heads": heads,
        "heads_in": "mlp" if scope != "layer" else draw(st.sampled_from(("all", "mlp"))),
        "down_per_head": draw(st.booleans()),
        "router": {
            "scope": scope,
            "reads": "input" if scope != "layer" else draw(st.sampled_from(("input", "code"))),
            "top_k": top_k,
            "weights": weight,
            "balance": balance,
            "bias": draw(st.booleans()),
            "temperature": draw(st.sampled_from((0.5, 1.0, 2.0))),
            "jitter": draw(st.sampled_from((0.0, 0.1))),
            **draw(st.sampled_from(({"kind": "softmax"}, {"kind": "recurrent", "rounds": 2}))),
        },
        "target_modules": list(
            draw(st.sampled_from((LINEAR_TARGETS, ("c_fc", "c_proj"), ("query", "c_fc", "c_proj"))))
        ),
    }


def compositions() -> st.SearchStrategy[dict[str, Any]]:
    """Draw the fields of a configuration that starts at zero: exactly one of its factors does.

    Fields and not the configuration itself: the shape checker draws random numbers, which a strategy must
    not.
    """
    add_toy_basis()
    return _compositions()


@st.composite
def _compositions(draw: st.DrawFn) -> dict[str, Any]:
    zero = draw(st.sampled_from(("down", "core", "up")))
    rank_up: int | None = None
    core: dict[str, Any] | None = None
    if zero == "core":
        core = {"kind": draw(st.sampled_from(("dense", "diagonal"))), "initial": "zeros"}
        rank_up = draw(st.none() | st.integers(1, 5)) if core["kind"] == "dense" else None
    elif draw(st.booleans()):
        core = draw(
            st.sampled_from(({"kind": "dense", "initial": "lecun"}, {"kind": "diagonal", "initial": "ones"}))
        )
    sides = {
        side: draw(_trained("zeros") if side == zero else _trained(*_RANDOM) | _FROZEN)
        for side in ("down", "up")
    }
    has_basis = TOY_BASIS in sides.values()  # for one layer and one head
    return {
        **sides,
        "core": core,
        "r": draw(st.integers(1, 5)),
        "rank_up": rank_up,
        "alpha": draw(st.sampled_from((1.0, 3.0, 16.0))),
        "scaling": draw(st.sampled_from(SCALINGS)),
        "share_down": "none" if has_basis else draw(st.sampled_from(SHARES)),
        "share_up": "none" if has_basis else draw(st.sampled_from([s for s in SHARES if s != "in_features"])),
        "seed": draw(st.integers(0, 9)),
        "target_modules": list(
            draw(st.sampled_from((ALL_TARGETS, LINEAR_TARGETS, ("c_fc", "picture"), ("query",))))
        ),
        **({} if has_basis else draw(st.just({}) | _heads())),
    }
