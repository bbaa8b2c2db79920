"""Cost model of a training step, from sizes alone: its arithmetic, its memory traffic, and a time of both.

The arithmetic is exact: the multiplications and additions of every matrix product of an adapter, forwards and
backwards, as torch's own counter finds them. The traffic is a count of the large tensors that are read and
written once each. Both leave out what no adapter changes (attention's own products) and what is small.

Time is arithmetic plus traffic times `BALANCE`. That is crude, and good for ratios only; `docs/fit.md`
compares it with measurements.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self, final

from rankfold.adapter.build import Builder
from rankfold.adapter.geometry import Conv2d, Embedding, Geometry, Linear, Matrices
from rankfold.adapter.router import RouterSpec
from rankfold.adapter.site import Site
from rankfold.adapter.spec import FROZEN
from rankfold.factors import LowRankSpec, RelaySpec
from rankfold.factors.relay import square_side

BALANCE = 8.0
"""Operations in the time in which one byte is moved. Set by one figure, what LoRA adds to all linear layers
of MiniLM on one CPU core in float32; a processor with more arithmetic for its memory has more."""

_BYTES = 4
# How often a block reads or writes each output of its linear layers outside of matrix products (norms,
# activations, attention, dropout, residual sums), counted in BERT, forwards and backwards.
_ELEMENTWISE = 7
# AdamW reads a number, its gradient and two moments, and writes all but the gradient, which was written too.
_UPDATE = 8
# A relayed matrix is read from its square through a table of 8-byte positions, and its gradient back.
_RELAY_BYTES = 44
# Dropout draws a mask, reads and writes, and does so again backwards.
_DROPOUT = 5
# One more product reads the input forwards and backwards, and one more gradient of it is written and added.
_SECOND_READ = 6


@final
@dataclass(frozen=True, slots=True)
class Work:
    """Operations and memory traffic of one training step.

    Args:
        flops: Multiplications and additions of matrix products.
        bytes: Bytes read and written.
    """

    flops: float = 0.0
    bytes: float = 0.0

    def __add__(self, work: Self) -> "Work":
        """Return the sums."""
        return Work(self.flops + work.flops, self.bytes + work.bytes)

    @property
    def time(self) -> float:
        """How long it takes, in the time of one operation."""
        return self.flops + BALANCE * self.bytes


def base_work(layers: Iterable[Geometry], tokens: int) -> Work:
    """Return the work of a frozen base model: its products forwards, and backwards to their inputs.

    Args:
        layers: Every layer with a weight matrix, adapted or not.
        tokens: Tokens of a step; for a convolution positions.
    """
    return sum((_base_layer(layer, tokens) for layer in layers), Work())


def adapter_work(builder: Builder, tokens: int) -> Work:
    """Return the work that adapters add to a step, AdamW's included; nothing is built for it.

    Args:
        builder: The sites of the adapters.
        tokens: Tokens of a step; for a convolution positions.
    """
    work = Work(bytes=_BYTES * _UPDATE * builder.parameter_count())
    for site in builder.sites.values():
        if isinstance(site.geometry, Matrices):
            work += _parameter_work(site, site.geometry)
            continue
        work += Work(_site_flops(site, tokens), _BYTES * tokens * _site_traffic(site))
    for part in builder.parts().values():
        spec, rows, cols = part.spec, part.rows, part.cols
        match spec:
            case RouterSpec():
                work += _router(spec, rows, cols, tokens)
            case RelaySpec():
                side = square_side(rows * cols)
                flops = part.copies * _product(side, side, spec.k)
                work += Work(flops, _RELAY_BYTES * part.copies * rows * cols)
            case LowRankSpec():
                work += Work(part.copies * _product(rows, cols, spec.inner))
            case _:
                pass
    return work


def _parameter_work(site: Site, geometry: Matrices) -> Work:
    """Return the work of a changed parameter: it is written forwards and has a gradient, whatever the tokens.

    The base's own products with it need that gradient too, which takes as much as each of them forwards; it
    depends on the tokens that are routed to the experts, and is left out.
    """
    experts = geometry.experts or 1
    entries = experts * geometry.in_features * geometry.out_features
    flops = _product(geometry.out_features, geometry.in_features, experts * site.spec.up_rank)
    return Work(flops, _BYTES * 4 * entries)


def _product(rows: int, cols: int, times: int, *, is_trained: bool = True, passes_on: bool = True) -> float:
    """Return the operations of a product with a matrix, forwards and backwards.

    Args:
        rows: Of the matrix.
        cols: Of the matrix.
        times: To how many vectors it is applied.
        is_trained: Whether the matrix gets a gradient.
        passes_on: Whether the vectors get one.
    """
    return 2.0 * rows * cols * times * (1 + is_trained + passes_on)


def _base_layer(layer: Geometry, tokens: int) -> Work:
    inputs, outputs = layer.in_features, layer.out_features
    if isinstance(layer, Embedding):
        return Work(bytes=_BYTES * 2 * outputs * tokens)
    traffic = 2 * (inputs + outputs) + _ELEMENTWISE * outputs
    flops = _product(outputs, inputs, tokens, is_trained=False)
    return Work(flops, _BYTES * (traffic * tokens + 2 * inputs * outputs))


def _vectors(site: Site) -> tuple[int, int]:
    """Return how many vectors a token is where it enters the layer, and where it leaves."""
    router = site.spec.router
    if router is None or router.scope != "experts" or site.mlp is None:
        return 1, 1
    experts = router.top_k or site.spec.most_heads
    return (1, experts) if site.mlp.role == "entry" else (experts, 1)


def _reads_code_again(site: Site) -> bool:
    """Return whether a router reads a code of its own, since the adapter's has dropout."""
    router = site.spec.router
    return router is not None and router.reads == "code" and site.spec.dropout > 0


def _site_flops(site: Site, tokens: int) -> float:
    spec, geometry = site.spec, site.geometry
    entering, leaving = _vectors(site)
    groups = geometry.groups if isinstance(geometry, Conv2d) else 1
    is_lookup = isinstance(geometry, Embedding)
    down_is_trained = not isinstance(spec.down, FROZEN)
    # Tokens have no gradient, so behind a frozen table of codes there is none either.
    has_gradient = down_is_trained or not is_lookup
    flops = 0.0
    if not is_lookup:
        codes = spec.down_heads * spec.rank * groups
        vectors = tokens * entering * (1 + _reads_code_again(site))
        flops += _product(codes, geometry.in_features, vectors, is_trained=down_is_trained)
    if spec.core is not None:
        vectors = tokens * entering * spec.down_heads * groups
        flops += _product(spec.up_rank, spec.rank, vectors, passes_on=has_gradient)
    flops += _product(
        geometry.out_features,
        spec.most_heads * spec.up_rank,
        tokens * leaving,
        is_trained=not isinstance(spec.up, FROZEN),
        passes_on=has_gradient or spec.core is not None,
    )
    return flops


def _site_traffic(site: Site) -> float:
    """Return how many values are read and written for a token."""
    spec, geometry = site.spec, site.geometry
    entering, leaving = _vectors(site)
    inputs = 0 if isinstance(geometry, Embedding) else geometry.in_features * entering
    outputs = geometry.out_features * leaving
    down_is_trained, up_is_trained = (not isinstance(side, FROZEN) for side in (spec.down, spec.up))
    # Forwards the input is read and the output changed where it lies; backwards the other way round. The
    # gradient of a factor reads what its product read, or what it wrote.
    traffic = (3 + down_is_trained) * inputs + (3 + up_is_trained) * outputs
    has_experts = entering + leaving > 2  # noqa: PLR2004 (one each)
    if spec.dropout or has_experts or not isinstance(geometry, Linear) or geometry.transposed:
        traffic += 2 * (inputs + outputs)  # the change is a tensor of its own before it is added
    if spec.dropout:
        traffic += _DROPOUT * (inputs if spec.dropout_position == "input" else outputs)
    if spec.router is not None:
        traffic += 6 * spec.most_heads * spec.up_rank * entering
        traffic += _SECOND_READ * inputs * _reads_code_again(site)
    if has_experts:  # each chosen expert goes through the activation, and they are joined
        traffic += _ELEMENTWISE * (outputs - geometry.out_features) + 4 * (inputs - geometry.in_features)
    return traffic


def _router(spec: RouterSpec, heads: int, features: int, tokens: int) -> Work:
    flops = sum(_product(rows, cols, tokens) for rows, cols in spec.products(heads, features))
    traffic = _SECOND_READ * features if spec.reads == "input" else 0
    return Work(flops, _BYTES * traffic * tokens)
