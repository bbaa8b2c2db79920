"""A Reducer in a plain loop: resting layers stay bit for bit, the others train, and a run can go on."""

import copy
import json

import pytest
import torch
from torch import nn

from rankfold import SpecError
from rankfold.adapter.module import adapters_in
from rankfold.train.reducer.blocks import find_blocks
from tests.support.reduced import LAYERS, adamw, batches, reduced_bert, reducer, train


def parts(model, role):
    """Return the parameters of one role by layer."""
    found = {}
    for path, _, adapter in adapters_in(model):
        part = getattr(adapter, role)
        if part is not None:
            found.setdefault(int(path.split("layer.")[1].split(".")[0]), []).extend(part.parameters())
    return found


def snapshot(optimizer, parameters):
    """Return values and optimiser state of parameters, bit by bit."""
    tensors = [each.detach() for each in parameters]
    tensors += [
        value
        for each in parameters
        for value in optimizer.state[each].values()
        if isinstance(value, torch.Tensor)
    ]
    return [tensor.clone() for tensor in tensors]


def same(before, after):
    return len(before) == len(after) and all(map(torch.equal, before, after))


@pytest.mark.parametrize("method", ["lora", "effilora", "relayed_lora"])
def test_resting_heads_and_their_optimiser_state_do_not_change_and_all_else_trains(method):
    model = reduced_bert(method)
    ours = reducer().attach(model)
    optimizer = adamw(model)
    ups, downs, routers = (parts(model, role) for role in ("up", "down", "router"))
    assert bool(routers) is (method == "effilora")
    head = [parameter for name, parameter in model.named_parameters() if "classifier.modules" in name]
    rested = set()
    for batch in batches(10):
        before = {layer: snapshot(optimizer, ups[layer]) for layer in ups}
        others = [
            value.detach().clone()
            for values in (*downs.values(), *routers.values(), head)
            for value in values
        ]
        train(model, ours, optimizer, [batch])
        for layer in ups:
            is_active = layer in ours.scores.active
            assert same(before[layer], snapshot(optimizer, ups[layer])) is not is_active
            rested |= set() if is_active else {layer}
        for old, value in zip(
            others, [v for vs in (*downs.values(), *routers.values(), head) for v in vs], strict=True
        ):
            assert not torch.equal(old, value)
    assert rested == set(range(LAYERS))


def test_all_of_a_resting_layer_rests_when_everything_is_frozen():
    model = reduced_bert("lora")
    ours = reducer(freeze="all").attach(model)
    optimizer = adamw(model)
    for batch in batches(5):
        layers = {layer: parts(model, "up")[layer] + parts(model, "down")[layer] for layer in range(LAYERS)}
        before = {layer: snapshot(optimizer, layers[layer]) for layer in layers}
        train(model, ours, optimizer, [batch])
        for layer in layers:
            assert same(before[layer], snapshot(optimizer, layers[layer])) is (
                layer not in ours.scores.active
            )


def test_a_layer_rests_where_it_is_the_only_one():
    model = reduced_bert()
    ours = reducer(select="random", active_fraction=0.75).attach(model)
    ours.before_step()
    learning = [layer for layer, values in parts(model, "up").items() if values[0].requires_grad]
    assert tuple(learning) == ours.scores.active
    assert len(learning) == LAYERS - 1


def test_a_shared_factor_trains_on_through_resting_layers_when_everything_is_frozen():
    model = reduced_bert("effilora")
    ours = reducer(freeze="all").attach(model)
    shared = next(value for values in parts(model, "down").values() for value in values)
    before = shared.detach().clone()
    train(model, ours, adamw(model), batches(1))
    assert not torch.equal(before, shared)


@pytest.mark.parametrize("select", ["importance", "random", "last", "all"])
def test_a_step_trains_as_many_layers_as_were_asked_for(select):
    model = reduced_bert()
    ours = reducer(select=select).attach(model)
    wanted = {"all": LAYERS}.get(select, LAYERS // 2)
    chosen = set()
    optimizer = adamw(model)
    for batch in batches(8):
        train(model, ours, optimizer, [batch])
        assert len(ours.scores.active) == wanted
        learning = [layer for layer, values in parts(model, "up").items() if values[0].requires_grad]
        assert tuple(learning) == ours.scores.active
        chosen.add(ours.scores.active)
    assert len(chosen) == 1 if select in ("last", "all") else len(chosen) > 1
    if select == "last":
        assert chosen == {(2, 3)}
    assert sum(ours.scores.trained) == 8 * wanted


def test_layers_are_chosen_anew_only_as_often_as_asked():
    ours, model = reducer(select="random", resample_every=3), reduced_bert()
    ours.attach(model)
    chosen = []
    optimizer = adamw(model)
    for batch in batches(12):
        train(model, ours, optimizer, [batch])
        chosen.append(ours.scores.active)
    assert all(len(set(chosen[start : start + 3])) == 1 for start in range(0, 12, 3))
    assert len(set(chosen)) > 1


def test_probes_move_importance_only_when_they_are_due():
    ours, model = reducer(interval=3, start_step=6), reduced_bert()
    ours.attach(model)
    seen = []
    optimizer = adamw(model)
    for batch in batches(10):
        train(model, ours, optimizer, [batch])
        seen.append(ours.scores.importance)
    assert set(seen[:6]) == {(0.0,) * LAYERS}
    assert len({*seen[6:9]}) == 1
    assert len({seen[5], seen[6], seen[9]}) == 3
    assert [point.step for point in ours.scores.history] == [3, 6, 9]


def test_a_probe_leaves_no_trace():
    model = reduced_bert()
    frozen_norm = next(module for module in model.modules() if isinstance(module, nn.LayerNorm)).eval()
    ours = reducer().attach(model)
    train(model, ours, adamw(model), batches(2))
    weights = copy.deepcopy(model.state_dict())
    random_state = torch.random.get_rng_state()
    before = ours.scores.importance
    ours.before_step()
    assert ours.scores.importance != before
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert not frozen_norm.training
    assert all(module.training for module in model.modules() if module is not frozen_norm)
    assert {adapter.strength for _, _, adapter in adapters_in(model)} == {1.0}
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())


def test_a_shuffling_probe_loader_takes_nothing_from_the_random_state():
    rows = [{name: value[0] for name, value in batch.items()} for batch in batches(7)]
    loader = torch.utils.data.DataLoader(rows, batch_size=2, shuffle=True)
    ours, model = reducer(interval=1, start_step=0), reduced_bert()
    ours.attach(model, probe_loader=loader)
    random_state = torch.random.get_rng_state()
    train(model, ours, adamw(model), batches(9))
    assert torch.equal(torch.random.get_rng_state(), random_state)


def test_two_reducers_with_one_seed_draw_alike_whatever_else_is_random():
    seen = []
    for luck in (1, 2):
        torch.manual_seed(luck)
        ours, model = reducer(seed=5), reduced_bert()
        ours.attach(model)
        optimizer = adamw(model)
        for batch in batches(8):
            torch.rand(luck)
            train(model, ours, optimizer, [batch])
        seen.append((ours.scores.importance, ours.scores.trained))
    assert seen[0] == seen[1]


@pytest.mark.parametrize("stop", [2, 5])
def test_a_run_that_goes_on_from_its_state_ends_bit_for_bit_as_if_it_had_not_stopped(stop):
    options = {"resample_every": 3, "interval": 2, "start_step": 2}
    rows = [{name: value[0] for name, value in batch.items()} for batch in batches(7)]

    def begin():
        loader = torch.utils.data.DataLoader(rows, batch_size=2, shuffle=True)
        model = reduced_bert("effilora")
        return model, reducer(**options).attach(model, probe_loader=loader), adamw(model)

    whole, uncut, optimizer = begin()
    train(whole, uncut, optimizer, batches(11))

    first, stopped, optimizer = begin()
    train(first, stopped, optimizer, batches(11)[:stop])
    saved = json.loads(json.dumps(stopped.state_dict()))
    weights, inner = copy.deepcopy(first.state_dict()), copy.deepcopy(optimizer.state_dict())

    second, resumed, optimizer = begin()
    second.load_state_dict(weights)
    optimizer.load_state_dict(inner)
    resumed.load_state_dict(saved)
    assert [layer for layer, values in parts(second, "up").items() if values[0].requires_grad] == list(
        stopped.scores.active
    )
    train(second, resumed, optimizer, batches(11)[stop:])
    assert resumed.state_dict() == uncut.state_dict()
    for name, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_detaching_leaves_a_model_as_it_was():
    model = reduced_bert("lora")
    trained = [parameter.requires_grad for parameter in model.parameters()]
    ours = reducer(stop_shared_gradient=True).attach(model)
    train(model, ours, adamw(model), batches(3))
    importance = ours.scores.importance
    ours.detach()
    assert [parameter.requires_grad for parameter in model.parameters()] == trained
    assert not any(adapter.is_detached for _, _, adapter in adapters_in(model))
    assert ours.scores.importance == importance
    with pytest.raises(SpecError, match="not attached to a model; call attach"):
        ours.before_step()


def test_adapters_outside_of_blocks_always_train():
    model = reduced_bert(targets=("query", "value", "word_embeddings"))
    blocks = find_blocks(model)
    assert blocks.names == tuple(f"layer.{index}" for index in range(LAYERS))
    assert len(blocks.outside) == 1
    ours = reducer(freeze="all").attach(model)
    train(model, ours, adamw(model), batches(3))
    assert all(parameter.requires_grad for parameter in blocks.outside[0].parameters())


def test_only_the_active_adapter_is_chosen_from():
    model = reduced_bert()
    model.add_adapter("other", copy.deepcopy(model.peft_config["default"]))
    ours = reducer().attach(model)
    train(model, ours, adamw(model), batches(3))
    ours.detach()
    others = [value for name, value in model.named_parameters() if ".other." in name]
    assert others
    assert not any(value.requires_grad for value in others)


def test_own_losses_can_be_probed():
    ours, model = reducer(loss=lambda model, batch: model(batch[0]).logits.square().mean()), reduced_bert()
    ours.attach(model, probe_loader=[(batch["input_ids"],) for batch in batches(2)])
    train(model, ours, adamw(model), batches(5))
    assert any(ours.scores.importance)


def test_the_ablation_of_the_text_can_be_run():
    ours = reducer(score_rule="loss_delta", suppress_select="lowest")
    model = reduced_bert()
    ours.attach(model)
    train(model, ours, adamw(model), batches(5))
    assert any(ours.scores.importance)
