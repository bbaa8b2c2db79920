"""Image generation: pictures drawn from captions by a diffusion model, whose denoiser learns."""

import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, cast

import torch
from pydantic import JsonValue
from torch import Tensor, nn
from torch.nn import functional

from rankfold.errors import DataError, SpecError, unknown_name
from rankfold.models.base import BaseModel, LoadedModel, TaskHead
from rankfold.models.noise import NoiseProcess
from rankfold.models.pipelines import TEXT_TOKENS, Conditions, Pipeline, load_pipeline
from rankfold.tasks.data.columns import Columns
from rankfold.tasks.data.picture_columns import check_pictures, find_picture_column, with_cells
from rankfold.tasks.data.pictures import Picture, PictureCell
from rankfold.tasks.data.read import Row, Rows, Table
from rankfold.tasks.data.table import quote_list
from rankfold.tasks.data.texts import find_name, text_of
from rankfold.tasks.kinds.kind import Batch, Collate, Evaluation, Examples, LabelHints, TaskKind
from rankfold.tasks.kinds.labelled import read_rows
from rankfold.tasks.kinds.learner import Features, LazyRows, Learner
from rankfold.tasks.metrics import DENOISING_GAIN, DENOISING_LOSS

_CAPTIONS = ("text", "caption", "prompt", "description", "title", "sentence", "name", "label")
_SIDE = "side"
_LARGEST_SIDE = 8192
_LEVELS = 4
"""Noise levels at which a held-out picture is measured."""

_MOST_CACHED_BYTES = 2 << 30
"""The most bytes of encoded pictures and captions in memory; others are encoded each time."""

_DIGITS = 6


@dataclass(frozen=True, slots=True)
class CaptionedPicture:
    """A caption with its picture; without one, where it is to be drawn."""

    id: int | str
    text: str
    picture: Picture | None = None


@dataclass(frozen=True, slots=True)
class PictureEncoder:
    """The processor of a pipeline: pictures and captions as its denoiser sees them, each encoded once.

    Args:
        pipeline: With its denoiser, which gets the adapter.
    """

    pipeline: Pipeline
    _tensors: dict[object, Any] = field(default_factory=dict[object, Any])
    _sizes: list[int] = field(default_factory=list[int])

    def encode(self, example: CaptionedPicture, side: int, max_length: int) -> Features:
        """Return a row: the picture, the caption, and the seed of the noise that it is measured with."""
        seed = binascii.crc32(str(example.id).encode())
        latents = self._remember((example.picture, side), lambda: self._latents(example, side))
        return {"latents": latents, "seeds": torch.tensor(seed), **self.conditions(example.text, max_length)}

    def conditions(self, caption: str, max_length: int) -> Conditions:
        """Return a caption as the denoiser reads it, without an axis of captions."""

        def encode() -> dict[str, Tensor]:
            with torch.no_grad():
                values = self.pipeline.conditions([caption], max_length)
            return {name: value[0].float().cpu() for name, value in values.items()}

        return self._remember((caption, max_length), encode)

    @property
    def is_full(self) -> bool:
        """Whether nothing more is kept in memory."""
        return sum(self._sizes) > _MOST_CACHED_BYTES

    def _latents(self, example: CaptionedPicture, side: int) -> Tensor:
        assert example.picture is not None, "a caption alone is not learned"
        return self.pipeline.latents(_square(example.picture, side)[None])[0].cpu()

    def _remember(self, key: object, encode: Any) -> Any:
        if key in self._tensors:
            return self._tensors[key]
        value: Any = encode()
        if not self.is_full:
            tensors: list[Tensor] = [value] if isinstance(value, Tensor) else list(value.values())
            self._sizes.append(sum(tensor.nbytes for tensor in tensors))
            self._tensors[key] = value
        return value


def _square(picture: Picture, side: int) -> Tensor:
    """Return the middle of a picture as numbers from -1 to 1, `[3, side, side]`."""
    import numpy as np
    from PIL import ImageOps

    image = ImageOps.fit(picture.read(), (side, side))
    return torch.tensor(np.array(image)).permute(2, 0, 1) / 127.5 - 1


@dataclass(frozen=True, slots=True)
class _Lesson:
    """Noise and empty captions of a batch, which its loss is computed with.

    Args:
        pipeline: Calls the denoiser.
        noise: On the device of the batch.
        empty: The empty caption, without an axis of captions.
    """

    pipeline: Pipeline
    noise: NoiseProcess
    empty: Conditions

    def to(self, device: torch.device | str, **_: Any) -> "_Lesson":
        """Return the lesson on a device, as batches are moved."""
        empty = {name: value.to(device) for name, value in self.empty.items()}
        return replace(self, noise=self.noise.to(device), empty=empty)

    def losses(self, model: nn.Module, batch: Batch, index: Tensor, noise: Tensor, drops: Tensor) -> Tensor:
        """Return the mean squared error of each row's prediction.

        Args:
            model: The denoiser.
            batch: From `collate`.
            index: A time for each row.
            noise: In the shape of the latents.
            drops: Whether each row's caption is left out.
        """
        latents: Tensor = batch["latents"]
        conditions = {
            name: torch.where(drops.reshape(-1, *(1,) * value.dim()), value, batch[name])
            for name, value in self.empty.items()
        }
        noisy = self.noise.add_noise(latents, noise, index)
        # Under bf16 weights the inputs are cast, outside autocast.
        output = self.pipeline.denoise(model, noisy, self.noise.times[index], conditions)
        target = self.noise.target_of(latents, noise, index)
        return functional.mse_loss(output.float(), target, reduction="none").flatten(1).mean(1)


@dataclass(frozen=True, repr=False)
class ImageGeneration(TaskKind):
    """Pictures with captions, learned by the denoiser of a text-to-image pipeline.

    Args:
        side: Side of the pictures in pixels; that which the pipeline was made for if None.
        min_snr: The γ of min-SNR weights of the training loss; None weighs all noise levels alike.
        caption_dropout: Share of training rows without their caption, which guidance needs.
        samples: Held-out captions that are drawn at the end of a training, for the report.
        sample_steps: Denoising steps of these pictures.
    """

    side: int | None = None
    min_snr: float | None = None
    caption_dropout: float = 0.1
    samples: int = 4
    sample_steps: int = 25

    name: ClassVar[str] = "image_generation"
    setting_types: ClassVar[Mapping[str, type] | None] = {_SIDE: int}
    draws: ClassVar[bool] = True
    sampling_options: ClassVar[frozenset[str]] = frozenset({"seed", "denoising_steps", "guidance"})
    metric_names: ClassVar[tuple[str, ...]] = (DENOISING_LOSS, DENOISING_GAIN)

    def with_options(self, options: Mapping[str, JsonValue]) -> "ImageGeneration":
        """Return the kind with some of the options that its class lists."""
        for name, value in options.items():
            if name not in _RANGES:
                raise unknown_name(f"option of {self.name}", name, _RANGES)
            kind, low, high = _RANGES[name]
            is_number = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
            if not (is_number and low <= cast(float, value) <= high):
                noun = "a whole number" if kind is int else "a number"
                raise SpecError(f"{name} is {value!r}; give {noun} from {low:g} to {high:g}.")
        return replace(self, **cast("dict[str, Any]", options))

    def claims_base(self, base: BaseModel) -> bool:
        """Return whether a base model is a pipeline."""
        return base.is_pipeline

    # Rows become examples.

    def columns(self, rows: Rows, overrides: Columns) -> Columns:
        """Return the columns of a picture and its caption.

        Raises:
            DataError: If one is missing, or several hold pictures.
        """
        picture = find_picture_column(rows, overrides.picture)
        if picture is None:
            raise DataError(
                f"there is no column of pictures; name it with --picture-column; the data has "
                f"{quote_list(rows[0])}."
            )
        return replace(self.input_columns(rows, overrides), picture=picture)

    def input_columns(self, rows: Rows, overrides: Columns) -> Columns:
        """Return the column of the caption: the named one, one with a usual name, or the only other one.

        Raises:
            DataError: If there is none.
        """
        present = [name for name in rows[0] if name not in (overrides.picture, overrides.group)]
        text = overrides.text or find_name(_CAPTIONS, present)
        if text is None and len(present) == 1:
            text = present[0]
        if text is None or (text not in rows[0] and "," not in text):
            raise DataError(
                f"there is no column of captions{'' if text is None else f' {text!r}'}; name it with "
                f"--text-column; the data has {quote_list(rows[0])}."
            )
        return Columns(text=text, group=overrides.group, picture=overrides.picture)

    def examples(self, tables: Mapping[str, Table], columns: Columns, hints: LabelHints) -> Examples:
        """Return captions with pictures, all of which have been opened once."""
        column = columns.picture or ""

        def read(row: Row, name: int | str) -> CaptionedPicture:
            cell = cast(PictureCell, row[column])
            return CaptionedPicture(name, text_of(row, columns.text or ""), cell.picture())

        splits = read_rows(with_cells(tables, column), read)
        pictures = [item.picture for items in splits.values() for item in items if item.picture is not None]
        return Examples(None, splits, tuple(check_pictures(pictures)), dict(hints.learned_settings or {}))

    def inputs(self, rows: Rows, columns: Columns, hints: LabelHints | None = None) -> list[CaptionedPicture]:
        """Return captions to draw."""
        return [CaptionedPicture(index, text_of(row, columns.text or "")) for index, row in enumerate(rows)]

    def label(self, example: CaptionedPicture) -> None:
        """Return nothing: a picture is no label."""

    def metrics(self, examples: Examples, task_metrics: Sequence[str] = ()) -> tuple[str, ...]:
        """Return the denoising loss, and its difference from the base model's."""
        return self.metric_names

    # Base model.

    def head(self, label_names: Sequence[str] | None = None) -> TaskHead:
        """Return that the denoiser is trained as it is."""
        return TaskHead(self.name, None, None, max_length=TEXT_TOKENS)

    def load(self, base: BaseModel, label_names: Sequence[str] | None = None) -> LoadedModel:
        """Load a pipeline; its denoiser is the model.

        Raises:
            SpecError: If the base model is no pipeline, or of a class that is not trained here.
        """
        if not base.is_pipeline:
            raise SpecError(
                f"'{base.name}' is no pipeline of diffusers, which image generation takes; name a folder "
                "with a model_index.json, or a hub id."
            )
        if base.loading.quantisation is not None or base.loading.attention is not None:
            raise SpecError(
                f"'{base.name}' is a pipeline, which is loaded neither quantised nor with another attention; "
                "leave --quantise and --attn out."
            )
        dtype = torch.bfloat16 if base.loading.dtype == "bf16" else torch.float32
        pipeline = load_pipeline(base.name, base.location, base.origin, dtype)
        return LoadedModel(cast(Any, pipeline.model), PictureEncoder(pipeline), ())

    def model_settings(self, base: LoadedModel, examples: Examples) -> Mapping[str, JsonValue]:
        """Return the side of the pictures, which a trained adapter draws with too.

        Raises:
            SpecError: If the pipeline has no pictures of this side.
        """
        pipeline = cast(PictureEncoder, base.processor).pipeline
        side, unit = self.side or pipeline.usual_side, pipeline.side_unit
        if side % unit:
            raise SpecError(f"side is {side}, and the pipeline takes multiples of {unit}; give one.")
        return {**examples.settings, _SIDE: side}

    # Training.

    def encode(
        self, learner: Learner, examples: Sequence[CaptionedPicture], *, training: bool
    ) -> Sequence[Features]:
        """Return encoded pictures and captions, in memory as far as there is room for them."""
        encoder, side = _encoder(learner), _side(learner)
        encoder.pipeline.to(learner.device)

        def encode_row(index: int) -> Features:
            return encoder.encode(examples[index], side, learner.max_length)

        with learner.reporting(len(examples) if training else 0, "encode pictures") as advance:
            for index in range(len(examples)):
                if encoder.is_full:
                    break
                _ = encode_row(index)
                advance(index + 1)
        return LazyRows(encode_row, [0] * len(examples))

    def collate(self, learner: Learner) -> Collate:
        """Return the function that stacks rows, with the noise that their loss is computed with."""
        encoder = _encoder(learner)
        empty = encoder.conditions("", learner.max_length)
        lesson = _Lesson(encoder.pipeline, encoder.pipeline.noise, empty)

        def stack(rows: Sequence[Features]) -> dict[str, Any]:
            batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
            return {**batch, "lesson": lesson}

        return stack

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the denoising loss: in training at random times, else at those of each row."""
        if not torch.is_grad_enabled():
            return self.row_losses(model, batch).mean()
        latents: Tensor = batch["latents"]
        lesson = cast(_Lesson, batch["lesson"])
        # Drawn on the CPU, so that every device has the same noise.
        shares, noise = torch.rand(len(latents)), torch.randn(latents.shape)
        drops = torch.rand(len(latents)) < self.caption_dropout
        index = lesson.noise.indices(shares.to(latents.device))
        losses = lesson.losses(
            model, batch, index, noise.to(latents.device, latents.dtype), drops.to(latents.device)
        )
        return (losses if self.min_snr is None else losses * lesson.noise.weights(index, self.min_snr)).mean()

    def row_losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return each row's loss over a few times and noises that its id alone decides.

        So all methods are measured with the same noise, and differ by what they have learned.
        """
        latents: Tensor = batch["latents"]
        lesson = cast(_Lesson, batch["lesson"])
        generators = [torch.Generator().manual_seed(int(seed)) for seed in batch["seeds"]]
        kept = torch.zeros(len(latents), dtype=torch.bool, device=latents.device)
        total = torch.zeros(len(latents), device=latents.device)
        for level in range(_LEVELS):
            shares = torch.stack([torch.rand((), generator=generator) for generator in generators])
            noise = torch.stack([torch.randn(latents.shape[1:], generator=item) for item in generators])
            index = lesson.noise.indices(((level + shares) / _LEVELS).to(latents.device))
            total += lesson.losses(model, batch, index, noise.to(latents.device), kept)
        return total / _LEVELS

    # Prediction and evaluation.

    def check(self, learner: Learner, examples: Sequence[CaptionedPicture]) -> None:
        """Check the tokens of captions, and that the loss has weights if they are wanted.

        Raises:
            SpecError: If the text encoder has another number, or min_snr is given for flow matching.
        """
        pipeline = _encoder(learner).pipeline
        if pipeline.caption_tokens not in (None, learner.max_length):
            raise SpecError(
                f"max_length is {learner.max_length}, and the pipeline's captions have "
                f"{pipeline.caption_tokens} tokens; leave it out."
            )
        if self.min_snr is not None:
            _ = pipeline.noise.weights(torch.zeros(1, dtype=torch.long), self.min_snr)

    def predict(self, learner: Learner, examples: Sequence[CaptionedPicture]) -> list[Any]:
        """Return the denoising loss of each example."""
        rows = self.encode(learner, examples, training=False)
        losses = [0.0] * len(examples)
        with learner.reporting(len(examples), "denoise") as advance:
            done = 0
            for indices, batch in learner.batches(rows, self.collate(learner)):
                with learner.evaluating():
                    values: list[float] = cast(Any, self.row_losses(learner.model, batch)).tolist()
                for index, value in zip(indices, values, strict=True):
                    losses[index] = value
                advance(done := done + len(indices))
        return losses

    @property
    def predicts_at_end(self) -> bool:
        """Whether the base model is measured at the end of the training alone."""
        return True

    def evaluate(
        self,
        learner: Learner,
        examples: Sequence[CaptionedPicture],
        metrics: Sequence[str],
        *,
        is_final: bool = True,
    ) -> Evaluation:
        """Return the loss of each row beside that of the base model, which is its label and the baseline."""
        losses = cast("list[float]", self.predict(learner, examples))
        loss = sum(losses) / len(losses)
        if not is_final:
            return Evaluation(loss, {DENOISING_LOSS: loss})
        with cast(Any, learner.model).disable_adapter():
            # Rounded, so that runs of several machines have the same labels.
            base = [float(f"{value:.{_DIGITS}g}") for value in self.predict(learner, examples)]
        return Evaluation(
            loss,
            self.score(metrics, base, losses),
            [item.id for item in examples],
            base,
            losses,
            losses,
            {"base": self.score(metrics, base, base)},
        )

    def answer(self, learner: Learner, examples: Sequence[CaptionedPicture]) -> list[dict[str, Any]]:
        """Return a picture (PIL) for each caption, and the seed of its noise, the same for all."""
        pipeline, sampling = _encoder(learner).pipeline, learner.sampling
        pipeline.to(learner.device)
        pictures: list[Any] = []
        for first in range(0, len(examples), learner.batch_size):
            captions = [item.text for item in examples[first : first + learner.batch_size]]
            with learner.evaluating():
                pictures += pipeline.draw(
                    captions,
                    [sampling.seed] * len(captions),
                    steps=sampling.denoising_steps,
                    guidance=sampling.guidance,
                    side=_side(learner),
                )
        return [{"picture": picture, "seed": sampling.seed} for picture in pictures]

    def pictures(
        self, learner: Learner, examples: Sequence[CaptionedPicture]
    ) -> list[tuple[CaptionedPicture, dict[str, Any]]]:
        """Return of the first captions the picture in the data, that of the base model, and the adapter's.

        Both models draw from the same noise.
        """
        items = list({item.text: item for item in examples}.values())[: self.samples]
        if not items:
            return []
        artist = replace(learner, sampling=replace(learner.sampling, denoising_steps=self.sample_steps))
        drawn = self.answer(artist, items)
        with cast(Any, learner.model).disable_adapter():
            base = self.answer(artist, items)
        return [
            (item, {"data": item.picture.read(), "base": plain["picture"], "adapter": own["picture"]})
            for item, plain, own in zip(items, base, drawn, strict=True)
            if item.picture is not None
        ]


_RANGES: Mapping[str, tuple[type, float, float]] = {
    "side": (int, 8, _LARGEST_SIDE),
    "min_snr": (float, 1e-6, 1e6),
    "caption_dropout": (float, 0.0, 1.0),
    "samples": (int, 0, 64),
    "sample_steps": (int, 1, 1000),
}


def _encoder(learner: Learner) -> PictureEncoder:
    return cast(PictureEncoder, learner.processor)


def _side(learner: Learner) -> int:
    side = learner.settings.get(_SIDE)
    return side if isinstance(side, int) else _encoder(learner).pipeline.usual_side


KIND = ImageGeneration()
