"""What two processes do together, for `test_distributed`: start it with torchrun and name a folder."""

import json
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from click.testing import CliRunner
from peft.utils.other import fsdp_auto_wrap_policy
from torch import distributed
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullStateDictConfig, FullyShardedDataParallel, StateDictType, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from transformers import Trainer, TrainingArguments
from transformers.models.bert.modeling_bert import BertLayer

import rankfold
from rankfold.cli.main import cli
from rankfold.runs.request import RunRequest
from rankfold.runs.run import run
from rankfold.train.distributed import shard_shared_factors, shared_factors
from tests.integration.models import adapted, config_of, ids

METHODS = ("effilora", "relayed_lora", "tlora", "mola")
REDUCER = {"active_fraction": 0.5, "interval": 2, "start_step": 1, "seed": 3}
ROWS = 24
LABELS = torch.arange(ROWS) % 3


def trainer(model: Any, folder: Path, rows_a_process: int) -> Trainer:
    """Return a user's own Trainer; plain SGD, for it shows a gradient of the wrong size."""
    rows = [{"input_ids": row, "labels": label} for row, label in zip(ids(ROWS), LABELS, strict=True)]
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=4,
        per_device_train_batch_size=rows_a_process,
        learning_rate=0.5,
        optim="sgd",
        lr_scheduler_type="constant",
        average_tokens_across_devices=False,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    return Trainer(model=model, args=arguments, train_dataset=rows)


def plain_steps(model: Any, rows: slice) -> None:
    """Take two steps on some of six rows."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=2.0)
    for _ in range(2):
        model(input_ids=ids()[rows], labels=LABELS[:6][rows]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def reduced_run(folder: Path) -> RunRequest:
    """Return a run with a Reducer; without the rows that it holds out, the others fill their batches."""
    request = run_request(folder, "lora")
    return replace(request, out=folder / "run-reduced", reducer=REDUCER, steps=7, train_rows=35)


def reduced_trainer(folder: Path, rows_a_process: int) -> tuple[Trainer, rankfold.Reducer]:
    """Return a user's own Trainer with a Reducer, which probes with rows that nobody trains on."""
    probes = [{"input_ids": ids(4, seed=seed), "labels": LABELS[:4]} for seed in (7, 8, 9)]
    reducer = rankfold.Reducer(probe_loader=probes, **REDUCER)
    ours = trainer(adapted(config_of("effilora")), folder, rows_a_process)
    ours.add_callback(reducer)
    return ours, reducer


def run_request(folder: Path, method: str) -> RunRequest:
    """Return a run of two epochs, on the model and the data of the folder."""
    return RunRequest(
        model=str(folder / "bert"),
        method=method,
        data=str(folder / "data"),
        out=folder / f"run-{method}",
        # Each process draws its own dropout, so that equal results take a run without.
        options={"r": 4, "dropout": 0.0} | ({"k": 2} if method == "relayed_lora" else {}),
        steps=5,
        batch_size=16,
        learning_rate=1e-2,
        max_length=32,
        checkpoint_every=2,
        threads=1,
    )


class StopAt:
    """A progress that stops every process at one step."""

    def start(self, total: int, description: str) -> None:
        """Do nothing."""

    def advance(self, done: int, **fields: object) -> None:
        """Stop at the fourth step."""
        if done == 4:
            raise KeyboardInterrupt

    def finish(self) -> None:
        """Do nothing."""


def _through_trainer(folder: Path, method: str) -> None:
    model = adapted(config_of(method))
    ours = trainer(model, folder / "scratch", 4)
    ours.train()
    ours.save_model(str(folder / f"trainer-{method}"))


def _stopped_and_resumed(folder: Path, method: str) -> None:
    request = run_request(folder, method)
    try:
        run(request, progress=StopAt())
    except KeyboardInterrupt:
        run(replace(request, resume=True))


def _on_the_command_line(folder: Path, rank: int) -> None:
    request = run_request(folder, "relayed_lora")
    result = CliRunner().invoke(cli, list(request.command()[1:]))
    (folder / f"stdout-{rank}").write_text(result.stdout)
    (folder / f"exit-{rank}").write_text(str(result.exit_code))


def _reduced(folder: Path, rank: int) -> None:
    run(reduced_run(folder))
    ours, reducer = reduced_trainer(folder / "scratch", 4)
    ours.train()
    (folder / f"reducer-{rank}.json").write_text(json.dumps(reducer.scores.to_dict()))
    ours.save_model(str(folder / "trainer-reduced"))


def _my_half(rank: int) -> slice:
    return slice(3 * rank, 3 * rank + 3)


def _through_fsdp2(folder: Path, method: str, rank: int) -> None:
    mesh = init_device_mesh("cpu", (2,))
    model = adapted(config_of(method)).train()
    shard_shared_factors(model, mesh=mesh)
    for block in model.base_model.model.bert.encoder.layer:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    plain_steps(model, _my_half(rank))
    whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if rank == 0:
        model.save_pretrained(str(folder / f"fsdp2-{method}"), state_dict=whole)


def _through_fsdp1(folder: Path, method: str, rank: int, *, with_policy_of_peft: bool) -> None:
    model = adapted(config_of(method)).train()
    shared = shared_factors(model)
    for parameter in (each for factor in shared for each in factor.parameters()):
        parameter.register_post_accumulate_grad_hook(_average)
    sharded = FullyShardedDataParallel(
        model,
        use_orig_params=True,
        auto_wrap_policy=fsdp_auto_wrap_policy(model)
        if with_policy_of_peft
        else ModuleWrapPolicy({BertLayer}),
        ignored_modules=shared,
        device_id=torch.device("cpu"),
    )
    plain_steps(sharded, _my_half(rank))
    full = FullStateDictConfig(rank0_only=False)
    with FullyShardedDataParallel.state_dict_type(sharded, StateDictType.FULL_STATE_DICT, full):
        whole = sharded.state_dict()
    if rank == 0:
        # PEFT finds no adapter inside FSDP1's wrappers, so an unwrapped copy is saved.
        copy = adapted(config_of(method))
        copy.load_state_dict(whole)
        way = "fsdp1_peft" if with_policy_of_peft else "fsdp1"
        copy.save_pretrained(str(folder / f"{way}-{method}"))


def _average(parameter: torch.Tensor) -> None:
    assert parameter.grad is not None
    distributed.all_reduce(parameter.grad.div_(distributed.get_world_size()))


def main(folder: Path) -> None:
    """Do everything, one after the other."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", timeout=timedelta(minutes=2))
    rank = distributed.get_rank()
    _on_the_command_line(folder, rank)
    _stopped_and_resumed(folder, "effilora")
    _reduced(folder, rank)
    for method in METHODS:
        _through_trainer(folder, method)
        _through_fsdp2(folder, method, rank)
        for with_policy_of_peft in (False, True):
            _through_fsdp1(folder, method, rank, with_policy_of_peft=with_policy_of_peft)
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
