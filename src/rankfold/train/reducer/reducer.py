"""The Reducer: in every step only some of the layers train, by preference the important ones."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self, cast, final

from torch import nn
from transformers.trainer_callback import ExportableState, TrainerCallback

from rankfold.errors import SpecError, TrainingError
from rankfold.train.reducer import importance
from rankfold.train.reducer.blocks import Blocks, find_blocks, zero_factors
from rankfold.train.reducer.importance import Layers, uniforms
from rankfold.train.reducer.layer_scores import LayerScores, check_state
from rankfold.train.reducer.probe import Loss, ProbeBatches, Prober, loss_of_model, rows_of_training
from rankfold.train.reducer.rest import Resting
from rankfold.train.reducer.spec import ReducerSpec


@dataclass(slots=True)
class _Work:
    """What a Reducer has while it is attached to a model."""

    blocks: Blocks
    resting: Resting
    prober: Prober
    batches: ProbeBatches | None
    has_masked: bool = True


@final
class Reducer(TrainerCallback, ExportableState):
    """Trains only some of a model's layers in each step: EffiLoRA's Reducer, IST's mechanism.

    A layer is a transformer block. Every `interval` steps a round of probes suppresses sets of layers and
    compares the losses; a layer that is missed becomes important. In each step the layers that train are
    drawn by importance, and the others are frozen: not pruned, and back as soon as they are drawn.

    It is a callback for `transformers.Trainer`, and in a plain loop the same object: `attach`, then
    `before_step` before each update, in the end `detach`. Every draw depends on the seed and the step alone.

    Attributes:
        spec: The options.
        scores: What is known of the layers, and its history.

    Args:
        probe_loader: Gives batches of held-out rows, each time it is iterated. Without one the Trainer's
            training rows serve, as in IST's code; a plain loop has to give one, here or to `attach`.
        loss: What a model loses on a batch; the `loss` that a Hugging Face model reports if None.
        **options: Those of `ReducerSpec`.

    Raises:
        SpecError: If an option is unknown, out of range, or contradicts another.
    """

    def __init__(
        self, *, probe_loader: Iterable[Any] | None = None, loss: Loss | None = None, **options: Any
    ) -> None:
        self.spec = ReducerSpec.of(options)
        self.scores = LayerScores()
        self._loader, self._loss = probe_loader, loss or loss_of_model
        self._work: _Work | None = None

    def attach(self, model: nn.Module, *, probe_loader: Iterable[Any] | None = None) -> Self:
        """Begin with a model: nothing is known of its layers, and nothing is frozen yet.

        Make the optimiser before the first `before_step`, while all that will train is still trainable.

        Args:
            model: With active rankfold adapters in at least two blocks.
            probe_loader: Instead of the Reducer's own.

        Raises:
            SpecError: If the model or the options leave nothing to choose, or a probe loader is missing.
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
        self._work = _Work(blocks, Resting(blocks, spec), prober, batches)
        self.scores = LayerScores.unknown(blocks.names)
        return self

    def detach(self) -> None:
        """End with the model: everything trains again. The scores are kept to be read."""
        if self._work is not None:
            self._work.resting.end()
            self._work = None

    def before_step(self) -> None:
        """Choose what the next update trains; call it once an update, before its first backward pass.

        Raises:
            SpecError: If the Reducer is not attached.
            DataError: If the probe loader is empty.
            TrainingError: If all heads are zero when probes begin, or a probe's loss is not finite; under
                `torch.distributed`, if `mask_grads` was not called before the last update.
        """
        work, spec, scores = self._attached(), self.spec, self.scores
        if not work.has_masked:
            raise TrainingError(
                "the gradients were not masked before the last update, which distributed training needs; "
                "call the Reducer's mask_grads() between the last backward pass and the optimiser's step."
            )
        is_round = scores.step % spec.interval == 0
        if spec.needs_probes and is_round and scores.step >= spec.start_step:
            self._probe(work)
        if is_round and scores.step > 0:
            scores.remember()
        if not scores.active or (spec.mode == "freeze" and scores.step % spec.resample_every == 0):
            scores.active = self._chosen()
        work.resting.put(scores.active)
        work.has_masked = not work.resting.is_masking
        scores.count_step()

    def mask_grads(self) -> None:
        """Take away the gradients of what is frozen; only needed in distributed training, before an update.

        Raises:
            SpecError: If the Reducer is not attached.
        """
        work = self._attached()
        work.resting.mask_grads()
        work.has_masked = True

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to go on bit for bit, as JSON values.

        Raises:
            SpecError: If the Reducer is not attached.
        """
        batches = self._attached().batches
        return {
            "options": self.spec.to_dict(),
            "scores": self.scores.to_dict(),
            "batches": [batches.rounds, batches.taken] if batches else [0, 0],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from the state of an equal Reducer on an equal model; attach first.

        Args:
            state: What `state_dict` returned.

        Raises:
            SpecError: If the Reducer is not attached, or the state is incomplete, or of other options or
                layers.
        """
        check_state(state, self.state_dict())
        work, self.scores = self._attached(), LayerScores.of(state["scores"])
        if work.batches is not None:
            work.batches.seek(*state["batches"])
        if self.scores.active:
            work.resting.put(self.scores.active)

    def state(self) -> dict[str, Any]:
        """Return what the Trainer writes into a checkpoint."""
        progress = self.state_dict() if self._work else None
        return {"args": self.spec.to_dict(), "attributes": {}, "progress": progress, "probes": self._source()}

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Attach to the Trainer's model, and go on where its checkpoint was."""
        is_alone = args.world_size == 1 or args.ddp_find_unused_parameters is not False
        if self.spec.leaves_parameters_out and not is_alone:
            raise SpecError(
                "stop_shared_gradient and mode='drop' leave parameters without a gradient; "
                "set ddp_find_unused_parameters=True."
            )
        rows = None
        if self._source() == "training rows":
            rows = rows_of_training(given["train_dataloader"], seed=self.spec.seed)
        self.attach(given["model"], probe_loader=rows)
        if state.global_step > 0:
            self._resume(state.stateful_callbacks.get(type(self).__name__))

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Choose what this update trains."""
        self.before_step()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take away the gradients of what is frozen."""
        self.mask_grads()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Let everything train again."""
        self.detach()

    def _attached(self) -> _Work:
        if self._work is None:
            raise SpecError("the Reducer is not attached to a model; call attach(model) first.")
        return self._work

    def _chosen(self) -> Layers:
        layers = len(self.scores.layers)
        count = self.spec.active_count(layers)
        match self.spec.select:
            case "all":
                return tuple(range(layers))
            case "last":
                return tuple(range(layers - count, layers))
            case "random":
                return importance.draw((0.0,) * layers, count, self._chances("active"))
            case "importance":
                return importance.draw(self.scores.importance, count, self._chances("active"))

    def _chances(self, purpose: str) -> list[float]:
        name = f"reducer/{purpose}/{self.scores.step}"
        return uniforms(len(self.scores.layers), seed=self.spec.seed, name=name)

    def _probe(self, work: _Work) -> None:
        spec, scores = self.spec, self.scores
        if all(zero_factors(adapter) for adapters in work.blocks.adapters for adapter in adapters):
            raise TrainingError(
                f"suppressing while all heads are zero tells no layer from another (step {scores.step}); "
                f"raise start_step (it is {spec.start_step}), so that probes begin once they have learned."
            )
        batch = cast("ProbeBatches", work.batches).next()
        count = spec.suppressed_count(len(scores.layers))
        if spec.suppress_select == "lowest":
            sets = [importance.lowest_set(scores.importance, count)]
        else:
            sets = importance.sampled_sets(
                scores.importance, count, spec.probes, lambda attempt: self._chances(f"suppressed/{attempt}")
            )
        losses = [work.prober.measure(batch, layers) for layers in sets]
        if spec.score_rule == "reward":
            moved = importance.by_reward(scores.importance, sets, losses, spec.learning_rate)
        else:
            baseline = work.prober.measure(batch, ())
            moved = importance.by_loss_delta(scores.importance, sets, losses, baseline, spec.learning_rate)
        scores.importance = moved

    def _source(self) -> str:
        """Return where a Trainer's probes take their rows."""
        if not self.spec.needs_probes:
            return "none"
        return "training rows" if self._loader is None else "probe_loader"

    def _resume(self, state: object) -> None:
        saved = cast("Mapping[str, Any]", state if isinstance(state, dict) else {})
        if saved.get("progress") is None:
            raise SpecError(
                "the checkpoint was not trained with exactly one Reducer; go on without one, or begin anew."
            )
        if saved["probes"] != self._source():
            raise SpecError(
                f"the checkpoint's Reducer took its probes from '{saved['probes']}', this one from "
                f"'{self._source()}'; give it the same probe_loader, and leave "
                "restore_callback_states_from_checkpoint False: the Reducer restores itself."
            )
        self.load_state_dict(saved["progress"])
