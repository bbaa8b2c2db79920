"""Core on a learned basis: frozen sides learned from other tasks, r x r trained numbers a layer."""

from typing import Annotated

from rankfold.adapter.spec import AdapterSpec
from rankfold.factors import BasisSpec, DenseSpec, SeededSpec
from rankfold.presets._preset import Alpha, Dropout, Preset, Rank, Seed
from rankfold.presets._recipes import RECIPES


def _spec(
    *,
    r: Rank = 18,
    alpha: Alpha = 16.0,
    dropout: Dropout = 0.0,
    basis: Annotated[
        str | None, "file, name or digest of a learned basis; none: seeded directions of the same length"
    ] = None,
    seed: Seed = 0,
) -> AdapterSpec:
    sides = SeededSpec("unit") if basis is None else BasisSpec.of(basis)
    return AdapterSpec(
        rank=r, alpha=alpha, dropout=dropout, down=sides, core=DenseSpec("zeros"), up=sides, seed=seed
    )


PRESET = Preset(
    name="basis_core",
    title="Core on a basis",
    paper="after Brüel-Gabrielsson et al., Compress then Serve, 2025, arXiv:2407.00066",
    summary="A small core between frozen factors, learned from other tasks; without a basis they are seeded.",
    learning_rate=RECIPES["basis_core"].learning_rate,
    build=_spec,
    targets="all-linear",
)
