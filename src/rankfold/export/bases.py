"""Learned bases: learn directions from adapters of several tasks, and express other adapters in them.

References: Brüel-Gabrielsson et al., Compress then Serve (ICML 2025, arXiv:2407.00066), whose shared sides
minimise the same sum of squared errors over a collection; and Share (arXiv:2602.06043), where new tasks are
learned in directions that earlier adapters have.
"""

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, cast, final

import torch
from safetensors import torch as safetensors_torch
from torch import Tensor

from rankfold.adapter.layout import layout_of
from rankfold.errors import DataError, NotExactError, RankfoldWarning, SpecError
from rankfold.export.certificate import (
    CERTIFICATE_NAME,
    AdapterFiles,
    BaseFiles,
    Certificate,
    LayerError,
    LogitsError,
    file_hashes,
    program_versions,
)
from rankfold.export.fold import LowRankUpdate, frobenius, relative_error
from rankfold.export.layers import MARKER, PREFIX
from rankfold.export.logits import compare_logits, read_texts
from rankfold.export.updates import Updates, read_updates
from rankfold.factors.basis import Basis, BasisLayer, BasisSpec, ends_alike, find_basis
from rankfold.factors.dense import DenseSpec
from rankfold.files import check_free_file, check_replaceable, whole_folder, write_whole
from rankfold.peft_plugin.config import RankfoldConfig
from rankfold.progress import Progress, Silent
from rankfold.seeding import random_matrix
from rankfold.store.adapter import CONFIG_NAME, WEIGHTS_NAME, spell_config
from rankfold.store.basis import SUFFIX, BasisInfo, BasisSource, write_basis
from rankfold.store.loading import load_adapter
from rankfold.store.manifest import MANIFEST_NAME
from rankfold.store.saved import open_adapter

_LINALG: Any = torch.linalg  # torch leaves its functions untyped

DTYPES: Mapping[str, torch.dtype] = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
"""The dtypes that a basis may be stored in; adapters compute with the stored values in float32."""

_SWEEPS = 4
_LARGEST_NORM_ERROR = 1e-9
_TARGET = "basis"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class BasisRequest:
    """The basis to learn.

    Args:
        sources: The saved adapters of one base model to learn from, as for `open_adapter`.
        out: The file to write.
        rank: The most directions of a layer.
        seeded_share: The share of directions that are seeded, orthogonal to the learned ones.
        seed: Their seed.
        dtype: A key of `DTYPES`.
        model: The base model, for sources that need it.
        overwrite: Whether to replace the file.

    Raises:
        SpecError: If a value is out of range.
    """

    sources: Sequence[str | Path]
    out: Path
    rank: int = 32
    seeded_share: float = 0.0
    seed: int = 0
    dtype: str = "fp16"
    model: str | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Check every field that needs no file."""
        if not self.sources:
            raise SpecError("a basis is learned from adapters, and none is named; name some with --from.")
        if self.rank < 1:
            raise SpecError(f"rank={self.rank} leaves a basis without directions; give at least 1.")
        if not 0 <= self.seeded_share <= 1:
            raise SpecError(f"seeded_share={self.seeded_share} is no share; give one from 0 to 1.")
        if self.dtype not in DTYPES:
            raise SpecError(f"dtype='{self.dtype}' is unknown; give one of {', '.join(DTYPES)}.")


def learn_basis(request: BasisRequest, progress: Progress | None = None) -> tuple[BasisInfo, Basis]:
    """Learn a basis from saved adapters, and write its file.

    In each layer the sources' updates are scaled to one norm, so that each task counts alike. The directions
    are those whose cores reproduce them best in squares (Tucker-2, by alternating singular value
    decompositions); they are in the order of what they carry, so that a prefix works.

    Raises:
        NotExactError: If a source equals no change of its base's weights.
        AdapterFileError: If a source is damaged, or sizes of layers differ between sources.
        OutputExistsError: If the file exists.
        SpecError: If a base model is needed and not at hand, or the file cannot be written.
    """
    check_free_file(request.out, overwrite=request.overwrite)
    bar = progress or Silent()
    updates_by_layer: dict[str, list[LowRankUpdate]] = {}
    sources, bases = list[BasisSource](), dict[str, str]()
    for location in request.sources:
        updates = read_updates(location, request.model)
        _collect(updates, updates_by_layer)
        sources.append(_source(updates, location))
        if (base := updates.config.base_model_name_or_path) is not None:
            bases.setdefault(str(base), str(location))
    _warn_of_sources(sources, bases)
    layers, shares = dict[str, BasisLayer](), list[Tensor]()
    bar.start(len(updates_by_layer), "learning")
    for index, (name, updates) in enumerate(updates_by_layer.items(), 1):
        layers[name] = _learn_layer(name, updates, request)
        shares.append(_update_shares(layers[name], updates, request.rank))
        bar.advance(index)
    bar.finish()
    info = BasisInfo(
        name=_basis_name(request.out),
        base=next(iter(bases), None),
        sources=tuple(sources),
        seeded_share=float(request.seeded_share),
        seed=request.seed,
        update_shares=tuple(round(share, 6) for share in cast(Any, torch.stack(shares).mean(0)).tolist()),
    )
    return info, write_basis(request.out, info, layers)


def _learn_layer(name: str, updates: Sequence[LowRankUpdate], request: BasisRequest) -> BasisLayer:
    """Return the directions of one layer: learned ones, with seeded ones between them at equal distances."""
    rank = min(request.rank, updates[0].up.shape[0], updates[0].down.shape[1])
    is_seeded = [
        math.floor((index + 1) * request.seeded_share) > math.floor(index * request.seeded_share)
        for index in range(rank)
    ]
    left, right = shared_sides(updates, rank - sum(is_seeded))
    # Where the sources have fewer directions, seeded ones take their place.
    is_seeded = [
        seeded or index - sum(is_seeded[:index]) >= left.shape[1] for index, seeded in enumerate(is_seeded)
    ]
    sides = {
        side: _mix(learned, is_seeded, seed=request.seed, name=f"{name}.{side}")
        for side, learned in (("up", left), ("down", right))
    }
    dtype = DTYPES[request.dtype]
    return BasisLayer(sides["down"].T.to(dtype).contiguous(), sides["up"].to(dtype).contiguous())


def _mix(learned: Tensor, is_seeded: Sequence[bool], *, seed: int, name: str) -> Tensor:
    """Return learned directions and seeded ones orthogonal to them, as columns, ordered by `is_seeded`."""
    count = sum(is_seeded)
    random = random_matrix(len(learned), max(count, 1), seed=seed, name=name, std=1.0).double()[:, :count]
    seeded: Tensor = _LINALG.qr(torch.cat([learned, random], dim=1)).Q[:, learned.shape[1] :]
    mask = torch.tensor(is_seeded, dtype=torch.bool)
    mixed = learned.new_empty(len(learned), len(is_seeded))
    mixed[:, mask], mixed[:, ~mask] = seeded, learned
    return mixed


def shared_sides(updates: Sequence[LowRankUpdate], rank: int) -> tuple[Tensor, Tensor]:
    """Return orthonormal directions of outputs and inputs that several updates have in common, as columns.

    They maximise the sum of |U' W V|² over the updates W, each of which counts alike; fewer than `rank` come
    back where the updates have fewer. None of the weights is formed.

    Args:
        updates: The updates of one layer, none of them zero.
        rank: How many directions.
    """
    pairs = [
        (update.up.double() / _norm(update), update.down.double().T)
        for update in updates
        if _norm(update) > 0
    ]
    if not pairs or rank < 1:
        return updates[0].up.double()[:, :0], updates[0].down.double().T[:, :0]
    right = _leading([down @ _LINALG.qr(up).R.T for up, down in pairs], rank)
    left = right
    for _ in range(_SWEEPS):
        left = _leading([up @ (down.T @ right) for up, down in pairs], rank)
        right = _leading([down @ (up.T @ left) for up, down in pairs], rank)
    rank = min(left.shape[1], right.shape[1])
    return left[:, :rank], right[:, :rank]


def _leading(parts: Sequence[Tensor], rank: int) -> Tensor:
    """Return the leading left singular vectors of matrices side by side, largest first."""
    vectors, values, _ = _LINALG.svd(torch.cat(list(parts), dim=1), full_matrices=False)
    count = min(rank, int((values > values[0] * _LARGEST_NORM_ERROR).sum()))
    return vectors[:, :count]


def _norm(update: LowRankUpdate) -> float:
    return frobenius(_LINALG.qr(update.up.double()).R @ _LINALG.qr(update.down.double().T).R.T)


def _update_shares(layer: BasisLayer, updates: Sequence[LowRankUpdate], rank: int) -> Tensor:
    """Return the mean share of the updates, in squares, within the first 1, 2, …, `rank` directions."""
    shares: list[Tensor] = []
    for update in updates:
        norm = _norm(update) or 1.0
        core = (
            (layer.up.double().T @ update.up.double()) @ (update.down.double() @ layer.down.double().T) / norm
        )
        sums = core.square().cumsum(0).cumsum(1).diagonal()
        shares.append(torch.cat([sums, sums[-1:].expand(rank - len(sums))]))
    return torch.stack(shares).mean(0)


def _collect(updates: Updates, updates_by_layer: dict[str, list[LowRankUpdate]]) -> None:
    """Add the updates of an adapter to those of others, by the name that a layer got first."""
    for name, update in updates.layers.items():
        if update.down.ndim != _AXES:
            raise NotExactError(
                f"'{name}' of {updates.saved.title} has experts, which a basis has no directions for; leave "
                "the adapter out, or train it without target_parameters."
            )
        known = [other for other in updates_by_layer if other == name or ends_alike(other, name)]
        others = updates_by_layer.setdefault(known[0] if len(known) == 1 else name, [])
        if others and (others[0].up.shape[0], others[0].down.shape[1]) != (
            update.up.shape[0],
            update.down.shape[1],
        ):
            raise SpecError(
                f"'{name}' of {updates.saved.title} has another size than in the adapters before it; learn a "
                "basis from adapters of one base model."
            )
        others.append(update)


_AXES = 2


def _source(updates: Updates, location: str | Path) -> BasisSource:
    manifest = updates.saved.manifest
    task = None if manifest is None or manifest.task is None else manifest.task.name
    digest = sha256(updates.saved.weights_file()).hexdigest()
    return BasisSource(Path(location).name, updates.saved.method, digest, task)


def _warn_of_sources(sources: Sequence[BasisSource], bases: Mapping[str, str]) -> None:
    if len(bases) > 1:
        (one, first), (other, second), *_ = bases.items()
        message = (
            f"'{first}' names the base model '{one}' and '{second}' names '{other}'; a basis is of use only "
            "if they are the same."
        )
        warnings.warn(message, RankfoldWarning, stacklevel=3)
    if len({source.sha256 for source in sources}) < len(sources):
        message = "an adapter is named twice, so it counts twice; name each once."
        warnings.warn(message, RankfoldWarning, stacklevel=3)


def _basis_name(out: Path) -> str:
    stem = out.name.removesuffix(SUFFIX)
    name = "".join(
        letter if letter.isascii() and (letter.isalnum() or letter in "_.-") else "_" for letter in stem
    )
    return (name if name[:1].isalnum() else f"basis{name}")[:64]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class BasisFit:
    """The adapter to express in a basis.

    Args:
        adapter: The saved adapter, as for `open_adapter`.
        basis: The basis, as for `find_basis`.
        out: The folder to write.
        rank: How many of its directions are used; all if None.
        model: The base model; that of the adapter's configuration if None.
        data: Texts to compare logits on; news articles if None.
        overwrite: Whether to replace an earlier folder with a certificate.
    """

    adapter: str | Path
    basis: str
    out: Path
    rank: int | None = None
    model: str | None = None
    data: str | None = None
    overwrite: bool = False


def fit_to_basis(request: BasisFit) -> Certificate:
    """Write an adapter as cores on a basis, by least squares, with the error of every layer as certificate.

    The core of an update W is U⁺ W V⁺, of which no other is nearer in the Frobenius norm.

    Raises:
        NotExactError: If the adapter equals no change of its base's weights.
        AdapterFileError: If a file is damaged.
        OutputExistsError: If the folder has something that may not be replaced.
        SpecError: If the basis lacks a layer of the adapter, or there is none.
    """
    check = partial(
        check_replaceable, request.out, overwrite=request.overwrite, marks=[CERTIFICATE_NAME], kind="fit"
    )
    check()
    updates = read_updates(request.adapter, request.model)
    basis = find_basis(request.basis)
    config, cores, errors = _fit(updates, basis, request.rank)
    saved = updates.saved
    others = {key: tensor for key, tensor in saved.tensors.items() if _is_other(key, updates)}
    tensors = {f"{PREFIX}{name}{MARKER}core.weight": core for name, core in cores.items()} | others
    with whole_folder(request.out, check=check, last=CERTIFICATE_NAME) as folder:
        write_whole(folder / CONFIG_NAME, spell_config(config.to_dict()))
        content = cast("Any", safetensors_torch).save(tensors, metadata={"format": "pt"})
        write_whole(folder / WEIGHTS_NAME, content)
        if (manifest := saved.manifest) is not None:
            write_whole(folder / MANIFEST_NAME, manifest.with_weights(sha256(content).hexdigest()).to_json())
        logits = _compare(updates, folder, request.data)
        certificate = Certificate(
            target=_TARGET,
            method="compressed",
            dtype="fp32",
            rank=config.r,
            layers=errors,
            logits=logits if isinstance(logits, LogitsError) else None,
            logits_skipped=logits if isinstance(logits, str) else None,
            base=BaseFiles(
                config.base_model_name_or_path, None if updates.base is None else updates.base.model.sha256()
            ),
            adapter=AdapterFiles(str(request.adapter), saved.sha256()),
            result=file_hashes(folder),
            versions=program_versions(),
        )
        write_whole(folder / CERTIFICATE_NAME, json.dumps(certificate.to_dict(), indent=2).encode())
    return certificate


def _fit(
    updates: Updates, basis: Basis, rank: int | None
) -> tuple[RankfoldConfig, dict[str, Tensor], tuple[LayerError, ...]]:
    """Return the configuration, the cores and the errors of an adapter on a basis."""
    spec = BasisSpec(basis.digest, basis.name, basis.rank)
    r = basis.rank if rank is None else rank
    if not 1 <= r <= basis.rank:
        raise SpecError(f"rank={r} is not among the {basis.rank} directions of {basis.title}; give fewer.")
    cores, ranks, errors = dict[str, Tensor](), dict[str, int](), list[LayerError]()
    for name, update in updates.layers.items():
        down, up = basis.side(name, "down")[:r].double(), basis.side(name, "up")[:, :r].double()
        left: Tensor = _LINALG.lstsq(up, update.up.double()).solution
        right: Tensor = _LINALG.lstsq(down.T, update.down.double().T).solution
        core = (left @ right.T).float()
        fitted = LowRankUpdate(down, up @ core.double(), update.geometry)
        error = relative_error(fitted, update)
        cores[name], ranks[name] = core.contiguous(), len(down)
        errors.append(LayerError(name, len(down), error, error))
    largest = max(ranks.values())
    pattern = {f"^{name}": count for name, count in ranks.items() if count != largest}
    source = updates.config
    config = RankfoldConfig(
        r=largest,
        scaling="none",
        down=spec,
        core=DenseSpec("zeros"),
        up=spec,
        rank_pattern=cast(Any, pattern),
        target_modules=set(updates.layers),
        task_type=source.task_type,
        base_model_name_or_path=source.base_model_name_or_path,
        modules_to_save=list(dict.fromkeys(getattr(source, "modules_to_save", None) or ())) or None,
        layers=layout_of({name: update.geometry for name, update in updates.layers.items()}),
        inference_mode=True,
    )
    return config, cores, tuple(errors)


def _compare(updates: Updates, folder: Path, data: str | None) -> LogitsError | str:
    """Return how far the outputs are from those of the adapter, or why that was not measured."""
    if updates.base is None:
        return "the base model is not at hand; name it with --model"
    try:
        texts = read_texts(data)
    except DataError as error:
        if data is not None:
            raise
        return str(error)
    base = updates.base
    return compare_logits(base, texts, lambda: load_adapter(base.load(), open_adapter(folder)))


def _is_other(key: str, updates: Updates) -> bool:
    """Whether a tensor belongs to none of the adapted layers, such as that of a task head."""
    return not any(key.startswith(f"{PREFIX}{name}.") for name in updates.layers)
