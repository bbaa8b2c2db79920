"""Candidates of `rankfold fit`: every method in several ranks, options and sets of layers."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import zip_longest
from math import inf, log2
from pathlib import Path
from typing import Any, cast, final

from pydantic import JsonValue

from rankfold import presets
from rankfold.bench.fit.budget import ALL_LINEAR, DTYPES, EXACT, Budget, Size, SizeEstimator
from rankfold.errors import SpecError, unknown_name
from rankfold.factors import BasisSpec, DenseSpec
from rankfold.models.base import resolve_model
from rankfold.models.meta import MetaBase, meta_base
from rankfold.presets import Option, Preset
from rankfold.progress import Progress, Silent
from rankfold.runs.methods import PEFT_LORA
from rankfold.runs.records import label_as_stored
from rankfold.runs.request import RunRequest, StoredType
from rankfold.tasks import load_task
from rankfold.tasks.kinds import kind_base

RANKS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 14, 16, 20, 24, 32, 40, 48, 64, 96, 128, 192, 256)

_Options = dict[str, JsonValue]

_FAMILY = ("basis", "down", "up", "share_down", "scaling")
"""The options that make another composition of a method, not another size of it."""

# An option that changes the size by less does not make another candidate.
_LEAST_CHANGE = 0.1

# Uses of a budget that are nearer to the largest than this share are as good.
_ALIKE = 0.8


@final
@dataclass(frozen=True, slots=True)
class Candidate:
    """A composition on one model.

    Args:
        method: The preset's name.
        options: Its options and its layers; what is left out has its default.
        size: What it costs; None if it cannot be built.
        reason: Why it cannot be built on this model, or not sensibly.
        distance: How far it is from the method as it is published: doublings of the rank, and 1 for another
            option and for other layers.
        dtype: What it is stored in.
    """

    method: str
    options: Mapping[str, JsonValue]
    size: Size | None
    reason: str | None = None
    distance: float = 0.0
    dtype: str = EXACT

    @property
    def label(self) -> str:
        """The method with its options, as the command line takes them, and the type it is stored in."""
        return label_as_stored(self.method, self.options, self.stored_type)

    @property
    def stored_type(self) -> StoredType | None:
        """The type that it is rounded to; None if it is not."""
        return None if self.dtype == EXACT else cast("StoredType", self.dtype)

    @property
    def family(self) -> tuple[str, ...]:
        """The composition: the method with the options that say more than a size."""
        return self.method, *(f"{name}={self.options[name]}" for name in _FAMILY if name in self.options)


@final
@dataclass(frozen=True, slots=True)
class Space:
    """The compositions that are considered.

    Args:
        methods: Names of presets; all of them if empty.
        dtypes: What adapters may be stored in, the preferred type first.
        basis: A learned basis, for cores on it and for LoRA with its down side.
        most: How many compositions are on the short list.
    """

    methods: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = (EXACT,)
    basis: str | None = None
    most: int = 25

    def __post_init__(self) -> None:
        """Check the names and the number.

        Raises:
            SpecError: If a method or a type is unknown, there is no such basis, or no use for it, or nothing
                would be on the list.
        """
        for name in self.methods:
            if name not in presets.discover():
                raise unknown_name("method", name, presets.discover())
        for dtype in self.dtypes:
            if dtype not in DTYPES:
                raise unknown_name("type", dtype, DTYPES)
        if self.most < 1:
            raise SpecError(f"candidates is {self.most}, which leaves none; give 1 or more.")
        if self.basis is not None:
            BasisSpec.of(self.basis)  # refuses one that is not there
            users = [name for name in presets.discover() if _on_basis(presets.find(name), self.basis)]
            if self.methods and not {*users} & {*self.methods}:
                names = " or ".join(f"'{name}'" for name in users)
                raise SpecError(f"none of the methods has a use for a basis; add {names}, or leave it out.")


def find_candidates(
    ruler: SizeEstimator, space: Space, *, progress: Progress | None = None
) -> list[Candidate]:
    """Return every composition, those of the preferred type first, with its cost or why it cannot be built.

    Args:
        ruler: Measures on the model.
        space: What is considered.
        progress: Receives the progress, one unit a method.
    """
    progress = progress or Silent()
    names = list(dict.fromkeys(space.methods)) or list(presets.discover())
    progress.start(len(names), "methods")
    candidates: list[Candidate] = []
    try:
        for index, name in enumerate(names):
            progress.advance(index, now=name)
            candidates += _of_method(ruler, presets.find(name), space)
        progress.advance(len(names))
    finally:
        progress.finish()
    return sorted(candidates, key=lambda candidate: space.dtypes.index(candidate.dtype))


def shortlist(candidates: Sequence[Candidate], budget: Budget, most: int | None = None) -> list[Candidate]:
    """Return one candidate of each composition, set of layers and type, the largest use of the budget first.

    Of those that fit, use about as much as the largest of them, the one nearest to the method as published.

    Args:
        candidates: All of them, in the order of preference.
        budget: What they have to keep to.
        most: How many; first one of each composition, then others of it.

    Raises:
        SpecError: If none fits.
    """
    within_budget = set(map(id, fitting(candidates, budget)))
    groups: dict[tuple[str, ...], dict[tuple[str, str], list[Candidate]]] = {}
    for candidate in candidates:
        if id(candidate) in within_budget:
            place = str(candidate.options.get("target_modules")), candidate.dtype
            groups.setdefault(candidate.family, {}).setdefault(place, []).append(candidate)
    rounds = zip_longest(*(map(partial(_nearest, budget), places.values()) for places in groups.values()))
    best = [candidate for turn in rounds for candidate in turn if candidate is not None]
    return sorted(best[:most], key=lambda candidate: -_use(candidate, budget))


def _nearest(budget: Budget, siblings: Sequence[Candidate]) -> Candidate:
    """Return the candidate nearest to the published one, of those that use most of a budget."""
    largest = max(_use(candidate, budget) for candidate in siblings)
    near_best = [candidate for candidate in siblings if _use(candidate, budget) >= _ALIKE * largest]
    near_best.sort(key=lambda candidate: (candidate.distance, -_use(candidate, budget), _step(candidate)))
    return near_best[0]


def fitting(candidates: Sequence[Candidate], budget: Budget) -> list[Candidate]:
    """Return the candidates that fit, the largest use of the budget first.

    Raises:
        SpecError: If none fits.
    """
    measured_candidates = [
        (candidate, candidate.size) for candidate in candidates if candidate.size is not None
    ]
    if not measured_candidates:
        reason = next((candidate.reason for candidate in candidates if candidate.reason), "there is none")
        raise SpecError(
            f"no composition can be built on this model ({reason.rstrip('.')}); name other methods."
        )
    within_budget = [(candidate, size) for candidate, size in measured_candidates if budget.use(size) <= 1]
    if not within_budget:
        # Where the budget leaves no time beside the base, every use is infinite.
        nearest, size = min(measured_candidates, key=lambda pair: (budget.use(pair[1]), pair[1].step))
        raise SpecError(
            f"nothing fits a budget of {budget.text()}; the nearest is '{nearest.label}' with "
            f"{size.numbers:,} parameters, {size.bytes:,} bytes and {size.step:.3f}x; give at least that."
        )
    within_budget.sort(key=lambda pair: (-budget.use(pair[1]), pair[1].step, pair[0].distance))
    return [candidate for candidate, _ in within_budget]


def _use(candidate: Candidate, budget: Budget) -> float:
    return budget.use(candidate.size) if candidate.size else 0.0


def _step(candidate: Candidate) -> float:
    return candidate.size.step if candidate.size else inf


def _of_method(ruler: SizeEstimator, preset: Preset, space: Space) -> Iterator[Candidate]:
    own_targets, *other_targets = _target_sets(ruler, preset)
    variants = [*_variants(ruler, preset), *_compositions(preset, space.basis)]
    for targets in (own_targets, *other_targets):
        for variant in variants:
            for options, doublings in _with_ranks(preset, variant):
                distance = doublings + bool(variant) + (targets != own_targets)
                options["target_modules"] = targets
                yield from _with_sizes(ruler, preset.name, options, space.dtypes, distance)


def _compositions(preset: Preset, basis: str | None) -> list[_Options]:
    """Return the options of compositions that start from a method."""
    on_basis = None if basis is None else _on_basis(preset, basis)
    return [*map(dict, preset.compositions), *([on_basis] if on_basis else [])]


def _on_basis(preset: Preset, basis: str) -> _Options | None:
    """Return the options that put a method on a basis: cores, or one that trains its own up factor alone."""
    if "basis" in preset.options:
        return {"basis": basis}
    spec = preset.spec()
    is_plain = spec.core is None and spec.most_heads == 1 and not spec.shares
    sides_are_dense = isinstance(spec.down, DenseSpec) and isinstance(spec.up, DenseSpec)
    return {"down": f"basis:{basis}"} if is_plain and sides_are_dense else None


def _target_sets(ruler: SizeEstimator, preset: Preset) -> list[JsonValue]:
    """Return the layers that are recommended, those that PEFT adapts, and every linear one."""
    sets: list[JsonValue] = []
    for targets in (presets.recommend(preset.name).targets or ruler.usual, ruler.usual, ALL_LINEAR):
        if targets not in sets:
            sets.append(targets if isinstance(targets, str) else list(targets))
    return sets


def _variants(ruler: SizeEstimator, preset: Preset) -> list[_Options]:
    """Return no option, and each value of one option that changes how many numbers are trained."""
    targets: _Options = {"target_modules": _target_sets(ruler, preset)[0]}
    default_size = _with_sizes(ruler, preset.name, targets)[0].size
    variants: list[_Options] = [{}]
    if default_size is None:
        return variants
    parameter_counts = {default_size.numbers}
    for option in preset.options.values():
        for value in _values(preset, option):
            size = _with_sizes(ruler, preset.name, {**targets, option.name: value})[0].size
            if size and all(abs(size.numbers / count - 1) >= _LEAST_CHANGE for count in parameter_counts):
                parameter_counts.add(size.numbers)
                variants.append({option.name: value})
    return variants


def _values(preset: Preset, option: Option) -> list[JsonValue]:
    """Return other values of an option: its choices, or an eighth to twice its number."""
    if option.name in ("r", "seed"):
        return []
    if option.choices:
        return [choice for choice in option.choices if choice != option.default]
    default: Any = preset.spec().most_heads if option.name == "heads" else option.default
    if int not in option.types or isinstance(default, bool) or not isinstance(default, int):
        return []
    return [value for value in (default // 8, default // 4, default // 2, default * 2) if value >= 1]


def _with_ranks(preset: Preset, variant: _Options) -> Iterator[tuple[_Options, float]]:
    """Yield a variant in every rank, and by how many doublings that is not the method's own.

    Alpha keeps the scaling as it is in the method's own rank.
    """
    if "r" not in preset.options:
        yield variant, 0.0
        return
    # A basis may have fewer directions than the method's own rank.
    own_options = preset.options.keys() - {"basis"}
    spec = preset.spec(**{name: value for name, value in variant.items() if name in own_options})
    scaling = variant.get("scaling", spec.scaling)
    for rank in RANKS:
        keeps_scaling = "alpha" in preset.options and scaling == "alpha_over_r" and rank != spec.rank
        alpha: _Options = {"alpha": spec.alpha * rank / spec.rank} if keeps_scaling else {}
        yield {"r": rank, **alpha, **variant}, abs(log2(rank / spec.rank))


def _with_sizes(
    ruler: SizeEstimator,
    method: str,
    options: _Options,
    dtypes: Sequence[str] = (EXACT,),
    distance: float = 0.0,
) -> list[Candidate]:
    """Return a composition in each type, with its cost or the reason why it cannot be built."""
    try:
        sizes = ruler.sizes(method, options, dtypes)
    except (SpecError, ValueError) as error:
        return [Candidate(method, options, None, " ".join(str(error).split()), distance, dtypes[0])]
    return [Candidate(method, options, size, None, distance, dtype) for dtype, size in sizes.items()]


def largest_lora(ruler: SizeEstimator, budget: Budget) -> Candidate | None:
    """Return PEFT's LoRA that uses most of a budget, as PEFT stores it; None if none fits."""
    candidates: list[Candidate] = []
    for targets in (ruler.usual, ALL_LINEAR):
        for rank in RANKS:
            options: dict[str, JsonValue] = {"r": rank, "lora_alpha": 2 * rank}
            options["target_modules"] = cast("JsonValue", targets)
            try:
                candidates.append(Candidate(PEFT_LORA, options, ruler.lora(rank, targets)))
            except SpecError:
                break  # larger ranks are refused for the same reason
    within_budget = [
        (budget.use(candidate.size), candidate)
        for candidate in candidates
        if candidate.size and budget.use(candidate.size) <= 1
    ]
    return max(within_budget, key=lambda pair: pair[0])[1] if within_budget else None


_ANY_METHOD = ""


@final
@dataclass(frozen=True, slots=True)
class Proposal:
    """The compositions considered for one model and budget.

    Args:
        base: What all runs would share: fields of `RunRequest` without method, options, steps and out.
        budget: The limits.
        ruler: Measures on the model.
        candidates: Everything that was considered.
        space: What that was.
    """

    base: Mapping[str, Any]
    budget: Budget
    ruler: SizeEstimator
    candidates: tuple[Candidate, ...]
    space: Space

    @property
    def fitting(self) -> list[Candidate]:
        """Every composition that fits, the largest use of the budget first."""
        return fitting(self.candidates, self.budget)

    @property
    def shortlist(self) -> list[Candidate]:
        """Of each composition, set of layers and type the one that uses most of the budget."""
        return shortlist(self.candidates, self.budget, self.space.most)

    @property
    def unbuilt(self) -> list[Candidate]:
        """Candidates that cannot be built on the model, or not sensibly."""
        return [candidate for candidate in self.candidates if candidate.size is None]

    @property
    def left_out(self) -> dict[str, str]:
        """Why a method is not on the short list, by its name."""
        listed_methods = {candidate.method for candidate in self.shortlist}
        reasons: dict[str, str] = {}
        for candidate in self.candidates:
            if candidate.method in listed_methods:
                continue
            if candidate.size is not None:
                reasons[candidate.method] = "nothing of it fits"
            else:
                reasons.setdefault(candidate.method, (candidate.reason or "").rstrip("."))
        return reasons

    def small_print(self) -> str:
        """Return a note on the meaning of the figures."""
        head = self.ruler.head()
        head_sentence = (
            f" Beside any of them a task head of {head:,} parameters is trained and saved." if head else ""
        )
        layers = self.ruler.usual if isinstance(self.ruler.usual, str) else ", ".join(self.ruler.usual)
        return (
            "No statement on quality: the list is in the order of what is used of the budget.\n"
            f"Bytes: of the numbers, as they are stored.{head_sentence}\n"
            f"Step: predicted, in steps of LoRA of rank 8 on {layers}, with {self.ruler.tokens:,} tokens."
        )

    def to_dict(self, *, all_shown: bool) -> dict[str, Any]:
        """Return the proposal as plain values."""
        candidates = self.fitting if all_shown else self.shortlist
        return {
            "model": self.base["model"],
            "budget": asdict(self.budget),
            "head": self.ruler.head(),
            "reference": {"rank": 8, "target_modules": self.ruler.usual, "tokens": self.ruler.tokens},
            "considered": len(self.candidates),
            "compositions": [self._row(candidate) for candidate in candidates],
            "left_out": self.left_out,
            "not_built": [
                {"method": candidate.method, "options": dict(candidate.options), "reason": candidate.reason}
                for candidate in self.unbuilt
            ],
        }

    def _row(self, candidate: Candidate) -> dict[str, Any]:
        size = candidate.size
        assert size is not None, "what fits has a size"
        costs = {**asdict(size), "use": self.budget.use(size)}
        row = {"method": candidate.method, "options": dict(candidate.options), "dtype": candidate.dtype}
        return {**row, **costs}


def propose(
    base: Mapping[str, Any],
    budget: Budget,
    space: Space,
    *,
    reads_data: bool = False,
    progress: Progress | None = None,
) -> Proposal:
    """Find every composition on a model that a budget allows.

    Args:
        base: Fields of `RunRequest` that all runs share; `model` is needed, the data with `reads_data` only.
        budget: What the compositions have to keep to.
        space: What is considered.
        reads_data: Take the kind of the task and its classes from the data.
        progress: Receives the progress, one unit a method.

    Raises:
        SpecError: If there is no such model, task or method, or a setting is not possible.
        DataError: If the data cannot be read or understood.
    """
    request = RunRequest(**base, hold_out=True, method=_ANY_METHOD, out=Path())
    head_base = _head_base(request, reads_data=reads_data)
    length = request.max_length or head_base.head.max_length
    ruler = SizeEstimator(head_base, tokens=request.batch_size * length)
    candidates = find_candidates(ruler, space, progress=progress)
    return Proposal(dict(base), budget, ruler, tuple(candidates), space)


def _head_base(request: RunRequest, *, reads_data: bool) -> MetaBase:
    if not reads_data:
        return kind_base(request.model, kind=request.kind, num_labels=2)
    base = resolve_model(request.model, trust_remote_code=request.trust_remote_code)
    data = load_task(request.task_request, is_causal=base.is_causal)
    return meta_base(request.model, lambda _: data.kind.head(data.examples.label_names))
