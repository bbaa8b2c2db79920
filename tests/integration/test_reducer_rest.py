"""Savings of rest: no gradient, no memory; and rest where processes share gradients."""

from contextlib import contextmanager

import pytest
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from rankfold import SpecError, TrainingError
from rankfold.adapter.module import adapters_in
from rankfold.train.reducer.blocks import find_blocks
from tests.support.reduced import LAYERS, adamw, batches, reduced_bert, reducer, train

ALL_LINEAR = ("query", "key", "value", "dense")


def in_layer(name):
    return int(name.split("layer.")[1].split(".")[0]) if "layer." in name else None


def saved_bytes(model, batch):
    """Return the bytes that a forward pass keeps for the backward pass, parameters left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(**batch).loss
    loss.backward()
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize("method", ["lora", "effilora", "relayed_lora", "tlora", "tlora_plus"])
def test_a_layer_that_stops_gradients_changes_the_output_as_before_and_learns_nothing(method):
    model = reduced_bert(method, targets=ALL_LINEAR, dropout=0.0)
    batch = batches(1)[0]
    wanted = model(**batch).logits.detach()
    ours = reducer(select="last", stop_shared_gradient=True).attach(model)
    ours.before_step()
    result = model(**batch)
    assert torch.equal(result.logits, wanted)
    result.loss.backward()
    adapters = {name: value for name, value in model.named_parameters() if ".rankfold_" in name}
    shared = {name for name in adapters if name.endswith(".weight") and "rankfold_down" in name}
    for name, value in adapters.items():
        is_shared = method == "effilora" and name in shared
        rests = in_layer(name) in range(LAYERS // 2)  # the pooler's adapter is in no layer
        assert (value.grad is not None) is (not rests or is_shared), name


def test_a_shared_factor_learns_from_the_active_layers_only():
    gradients = []
    for stops in (False, True):
        model = reduced_bert("effilora")
        ours = reducer(select="last", stop_shared_gradient=stops).attach(model)
        ours.before_step()
        model(**batches(1)[0]).loss.backward()
        gradients.append(next(p.grad for n, p in model.named_parameters() if "rankfold_down" in n))
    assert not torch.allclose(gradients[0], gradients[1])


def test_only_stopping_gradients_saves_memory_when_the_top_half_trains():
    sizes = {}
    for name, options in {
        "all": {"select": "all", "start_step": 1},
        "heads": {"select": "last"},
        "stopped": {"select": "last", "stop_shared_gradient": True},
    }.items():
        model = reduced_bert("effilora", targets=ALL_LINEAR)
        ours = reducer(**options).attach(model)
        ours.before_step()
        sizes[name] = saved_bytes(model, batches(1)[0])
        ours.detach()
    assert sizes["heads"] > 0.9 * sizes["all"]
    assert sizes["stopped"] < 0.6 * sizes["all"]


@pytest.mark.parametrize("method", ["lora", "relayed_lora", "tlora", "tlora_plus", "share_lora"])
@pytest.mark.parametrize("select", ["last", "random"])
def test_folded_layers_act_as_frozen_ones_while_all_others_learn(method, select):
    models, counts = [], []
    for folds in (False, True):
        model = reduced_bert(method, targets=ALL_LINEAR, dropout=0.0).double()
        ours = reducer(select=select, stop_shared_gradient=True, fold_frozen=folds).attach(model)
        train(model, ours, adamw(model), batches(6))
        counts.append(sum(adapter._folded is not None for _, _, adapter in adapters_in(model)))
        ours.detach()
        models.append(model)
    frozen, folded = models
    assert counts == [0, LAYERS // 2 * len(ALL_LINEAR) + LAYERS]  # a BERT layer has three called "dense"
    for left, right in zip(frozen.parameters(), folded.parameters(), strict=True):
        assert torch.allclose(left, right, rtol=1e-9, atol=1e-12)
    folded.eval()
    folded(**batches(1)[0])
    assert all(adapter._folded is None for _, _, adapter in adapters_in(folded)), "the copies are given back"


def test_a_folded_layer_sees_weights_that_are_loaded_into_it():
    model = reduced_bert(targets=ALL_LINEAR, dropout=0.0).double()
    ours = reducer(select="last", stop_shared_gradient=True, fold_frozen=True).attach(model)
    ours.before_step()
    before = model(**batches(1)[0]).logits.detach()
    torch.manual_seed(1)
    changed = {key: value + 0.1 * torch.randn_like(value) for key, value in model.state_dict().items()}
    model.load_state_dict(changed)
    folded = model(**batches(1)[0]).logits.detach()
    ours.detach()
    assert torch.allclose(folded, model(**batches(1)[0]).logits, rtol=1e-9)
    assert not torch.allclose(folded, before)


def test_adapters_whose_gates_depend_on_the_input_are_not_folded():
    with pytest.raises(SpecError, match="take a method without a router"):
        reducer(stop_shared_gradient=True, fold_frozen=True).attach(reduced_bert("effilora"))


def test_dropped_layers_stay_off_and_come_back_unchanged(tmp_path):
    model = reduced_bert("lora", random_start=False)
    ours = reducer(select="random", mode="drop", seed=1).attach(model)
    fresh = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer, chosen = adamw(model), set()
    for batch in batches(4):
        train(model, ours, optimizer, [batch])
        chosen.add(ours.scores.active)
    assert len(chosen) == 1
    active = chosen.pop()
    for path, _, adapter in adapters_in(model):
        assert adapter.strength == (1.0 if in_layer(path) in active else 0.0)
    for name, value in model.named_parameters():
        if ".rankfold_" in name:
            assert torch.equal(value, fresh[name]) is (in_layer(name) not in active), name
    model.eval()
    with torch.no_grad():
        dropped = model(**batches(1)[0]).logits
        ours.detach()
        assert torch.equal(model(**batches(1)[0]).logits, dropped)


@pytest.mark.parametrize(
    ("method", "options"),
    [("lora", {}), ("relay_in_one_pool", {"random_start": False, "share_down": "none", "share_up": "slice"})],
)
def test_dropping_is_refused_where_a_saved_adapter_would_bring_the_layer_back(method, options):
    ours = reducer(select="random", mode="drop").attach(reduced_bert(method, **options))
    with pytest.raises(SpecError, match=r"mode='drop' would switch off an adapter of 'layer\.\d'"):
        ours.before_step()


@contextmanager
def one_process():
    """Give a process group of this process alone."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def trainable(*, is_distributed):
    """Return a trained model, and the norms of the gradient that clipping saw."""
    model = reduced_bert("effilora")
    ours = reducer().attach(model)
    wrapped = DistributedDataParallel(model) if is_distributed else model
    norms = []

    def each_step():
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0))
        ours.mask_grads()

    train(wrapped, ours, adamw(model), batches(6), each_step=each_step)
    return model, norms


def test_masked_gradients_train_as_frozen_ones_do_bit_for_bit():
    with one_process():
        masked, masked_norms = trainable(is_distributed=True)
    frozen, frozen_norms = trainable(is_distributed=False)
    assert masked_norms == frozen_norms
    for left, right in zip(masked.parameters(), frozen.parameters(), strict=True):
        assert torch.equal(left, right)


def test_forgetting_to_mask_is_an_error():
    with one_process():
        model = reduced_bert()
        ours = reducer().attach(model)
        with pytest.raises(TrainingError, match="the gradients were not masked before the last update"):
            train(model, ours, adamw(model), batches(2))


def test_short_names_of_blocks_do_not_depend_on_what_the_model_is_wrapped_in():
    model = reduced_bert()
    assert find_blocks(model).names == find_blocks(model.base_model.model).names
