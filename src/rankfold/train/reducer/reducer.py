"""Reducer: in every step only some layers train, important ones more often (EffiLoRA, IST)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self, cast, final

from torch import nn
from transformers.trainer_callback import ExportableState, TrainerCallback

from rankfold.errors import SpecError, TrainingError
from rankfold.train.reducer.blocks import BlockFreezer, Blocks, find_blocks, zero_factors
from rankfold.train.reducer.probe import Loss, ProbeBatches, Prober, loss_of_model, training_probes
from rankfold.train.reducer.scores import (
    Layers,
    LayerScores,
    check_state,
    importance_by_loss_delta,
    importance_by_reward,
    least_important,
    sample_layers,
    sample_sets,
    uniform_numbers,
)
from rankfold.train.reducer.spec import ReducerSpec


@dataclass(slots=True)
class _Attachment:
    """The parts of a Reducer that exist while it is attached to a model."""

    blocks: Blocks
    freezer: BlockFreezer
    prober: Prober
    batches: ProbeBatches | None
    has_masked: bool = True


@final
class Reducer(TrainerCallback, ExportableState):
    """Trains only some of a model's layers in each step: EffiLoRA's Reducer, IST's mechanism.

    A layer is a transformer block. Every `interval` steps a round of probes suppresses sets of layers and
    compares the losses; a layer whose suppression hurts becomes important. In each step the layers that
    train are sampled by importance, and the others are frozen. Nothing is pruned.

    It is a callback for `transformers.Trainer`, and in a plain loop the same object: `attach`, then
    `before_step` before each update, in the end `detach`. Every sample depends on seed and step alone.

    Attributes:
        spec: The options.
        scores: Importance of the layers, and its history.

    Args:
        probe_loader: Yields batches of held-out rows each time it is iterated. Without one a Trainer's
            training rows are used, as in IST's code; a plain loop has to give one, here or to `attach`.
        loss: Function of model and batch; the `loss` that a Hugging Face model returns if None.
        **options: The fields of `ReducerSpec`.

    Raises:
        SpecError: If an option is unknown, out of range, or contradicts another.
    """

    def __init__(
        self, *, probe_loader: Iterable[Any] | None = None, loss: Loss | None = None, **options: Any
    ) -> None:
        self.spec = ReducerSpec.of(options)
        self.scores = LayerScores()
        self._loader, self._loss = probe_loader, loss or loss_of_model
        self._attachment: _Attachment | None = None

    def attach(self, model: nn.Module, *, probe_loader: Iterable[Any] | None = None) -> Self:
        """Attach to a model: reset all scores, freeze nothing yet.

        Make the optimiser before the first `before_step`, while all that will train is still trainable.

        Args:
            model: With active rankfold adapters in at least two blocks.
            probe_loader: Replaces the Reducer's own.

        Raises:
            SpecError: If model and options leave no choice of layers, or a probe loader is missing.
        """
        self.detach()
        spec, blocks = self.spec, find_blocks(model)
        spec.active_count(len(blocks.names))
        batches = None
        if spec.needs_probes:
            spec.suppressed_count(len(blocks.names))
            loader = self._loader if probe_loader is None else probe_loader
            if loader is None:
                raise SpecError(
                    f"select='{spec.select}' needs held-out rows to probe; give the Reducer probe_loader=."
                )
            batches = ProbeBatches(loader, seed=spec.seed)
        prober = Prober(model, blocks, self._loss, spec.suppress_factor)
        self._attachment = _Attachment(blocks, BlockFreezer(blocks, spec), prober, batches)
        self.scores = LayerScores.initial(blocks.names)
        return self

    def detach(self) -> None:
        """Detach from the model and unfreeze everything. The scores stay readable."""
        if self._attachment is not None:
            self._attachment.freezer.unfreeze_all()
            self._attachment = None

    def before_step(self) -> None:
        """Choose the layers that train in the next update; call it once per update, before the backward pass.

        Raises:
            SpecError: If the Reducer is not attached.
            DataError: If the probe loader is empty.
            TrainingError: If all heads are zero when probes begin, or a probe's loss is not finite; under
                `torch.distributed`, if `mask_grads` was not called before the last update.
        """
        attachment, spec, scores = self._require_attachment(), self.spec, self.scores
        if not attachment.has_masked:
            raise TrainingError(
                "the gradients were not masked before the last update, which distributed training needs; "
                "call the Reducer's mask_grads() between the last backward pass and the optimiser's step."
            )
        is_round = scores.step % spec.interval == 0
        if spec.needs_probes and is_round and scores.step >= spec.start_step:
            self._probe(attachment)
        if is_round and scores.step > 0:
            scores.add_to_history()
        if not scores.active or (spec.mode == "freeze" and scores.step % spec.resample_every == 0):
            scores.active = self._sample_active()
        attachment.freezer.freeze_all_but(scores.active)
        attachment.has_masked = not attachment.freezer.is_masking
        scores.count_step()

    def mask_grads(self) -> None:
        """Remove gradients of frozen parameters; needed before an update in distributed training only.

        Raises:
            SpecError: If the Reducer is not attached.
        """
        attachment = self._require_attachment()
        attachment.freezer.mask_grads()
        attachment.has_masked = True

    def state_dict(self) -> dict[str, Any]:
        """Return the complete state as JSON values, for a bit-identical continuation.

        Raises:
            SpecError: If the Reducer is not attached.
        """
        batches = self._require_attachment().batches
        return {
            "options": self.spec.to_dict(),
            "scores": self.scores.to_dict(),
            "batches": [batches.rounds, batches.position] if batches else [0, 0],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of an equal Reducer on an equal model; attach first.

        Args:
            state: The value of `state_dict`.

        Raises:
            SpecError: If the Reducer is not attached, or the state is incomplete, or of other options or
                layers.
        """
        check_state(state, self.state_dict())
        attachment, self.scores = self._require_attachment(), LayerScores.from_dict(state["scores"])
        if attachment.batches is not None:
            attachment.batches.seek(*state["batches"])
        if self.scores.active:
            attachment.freezer.freeze_all_but(self.scores.active)

    def state(self) -> dict[str, Any]:
        """State for the Trainer's checkpoints."""
        progress = self.state_dict() if self._attachment else None
        return {"args": self.spec.to_dict(), "attributes": {}, "progress": progress, "probes": self._source()}

    def on_train_begin(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        """Attach to the Trainer's model, and restore the state of its checkpoint."""
        supports_unused = args.world_size == 1 or args.ddp_find_unused_parameters is not False
        if self.spec.leaves_parameters_out and not supports_unused:
            raise SpecError(
                "stop_shared_gradient and mode='drop' leave parameters without a gradient; "
                "set ddp_find_unused_parameters=True."
            )
        rows = None
        if self._source() == "training rows":
            rows = training_probes(objects["train_dataloader"], seed=self.spec.seed)
        self.attach(objects["model"], probe_loader=rows)
        if state.global_step > 0:
            self._resume(state.stateful_callbacks.get(type(self).__name__))

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Choose the layers that train in this update."""
        self.before_step()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Remove gradients of frozen parameters."""
        self.mask_grads()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Detach: unfreeze everything."""
        self.detach()

    def _require_attachment(self) -> _Attachment:
        if self._attachment is None:
            raise SpecError("the Reducer is not attached to a model; call attach(model) first.")
        return self._attachment

    def _sample_active(self) -> Layers:
        layers = len(self.scores.layers)
        count = self.spec.active_count(layers)
        match self.spec.select:
            case "all":
                return tuple(range(layers))
            case "last":
                return tuple(range(layers - count, layers))
            case "random":
                return sample_layers((0.0,) * layers, count, self._uniforms("active"))
            case "importance":
                return sample_layers(self.scores.importance, count, self._uniforms("active"))

    def _uniforms(self, purpose: str) -> list[float]:
        name = f"reducer/{purpose}/{self.scores.step}"
        return uniform_numbers(len(self.scores.layers), seed=self.spec.seed, name=name)

    def _probe(self, attachment: _Attachment) -> None:
        spec, scores = self.spec, self.scores
        if all(zero_factors(adapter) for adapters in attachment.blocks.adapters for adapter in adapters):
            raise TrainingError(
                f"all heads are zero at step {scores.step}, so suppressing layers changes no loss; "
                f"raise start_step (it is {spec.start_step}), so that probes begin later."
            )
        batch = cast("ProbeBatches", attachment.batches).next()
        count = spec.suppressed_count(len(scores.layers))
        if spec.suppress_select == "lowest":
            sets = [least_important(scores.importance, count)]
        else:
            sets = sample_sets(
                scores.importance, count, spec.probes, lambda attempt: self._uniforms(f"suppressed/{attempt}")
            )
        losses = [attachment.prober.compute_loss(batch, layers) for layers in sets]
        if spec.score_rule == "reward":
            scores.importance = importance_by_reward(scores.importance, sets, losses, spec.learning_rate)
        else:
            baseline = attachment.prober.compute_loss(batch, ())
            scores.importance = importance_by_loss_delta(
                scores.importance, sets, losses, baseline, spec.learning_rate
            )

    def _source(self) -> str:
        """Source of the probe rows in a Trainer, as written into checkpoints."""
        if not self.spec.needs_probes:
            return "none"
        return "training rows" if self._loader is None else "probe_loader"

    def _resume(self, state: object) -> None:
        checkpoint = cast("Mapping[str, Any]", state if isinstance(state, dict) else {})
        if checkpoint.get("progress") is None:
            raise SpecError(
                "the checkpoint was not written by a training with exactly one Reducer; resume without a "
                "Reducer, or start a new training."
            )
        if checkpoint["probes"] != self._source():
            raise SpecError(
                f"the checkpoint's Reducer took its probes from '{checkpoint['probes']}', this one from "
                f"'{self._source()}'; give it the same probe_loader, and leave "
                "restore_callback_states_from_checkpoint False: the Reducer restores itself."
            )
        self.load_state_dict(checkpoint["progress"])
