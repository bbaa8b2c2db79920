"""Impossible uses of a Reducer are refused, with the remedy."""

import pytest
import torch
from torch import nn

from rankfold import SpecError, TrainingError
from rankfold.errors import DataError
from tests.support.reduced import batches, reduced_bert, reducer


def test_a_model_without_adapters_is_refused():
    with pytest.raises(SpecError, match="no active rankfold adapter"):
        reducer().attach(nn.Linear(2, 2))


def test_adapters_of_one_block_are_refused():
    with pytest.raises(SpecError, match=r"in one block \('layer\.0'\); a Reducer chooses"):
        reducer().attach(reduced_bert(layers=1))


def test_more_layers_than_there_are_are_refused():
    options = {"active_layers": 5, "active_fraction": 0.75}
    with pytest.raises(SpecError, match="active_layers=5, but the model has 4 layers"):
        reducer(**options).attach(reduced_bert())


def test_a_missing_probe_loader_is_refused():
    ours = reducer()
    ours._loader = None
    with pytest.raises(SpecError, match="needs held-out rows to probe; give the Reducer probe_loader="):
        ours.attach(reduced_bert())


def test_an_empty_probe_loader_is_refused():
    ours, model = reducer(start_step=0), reduced_bert()
    ours.attach(model, probe_loader=[])
    with pytest.raises(DataError, match="the probe loader is empty"):
        ours.before_step()


def test_probing_while_all_heads_are_zero_is_refused():
    ours, model = reducer(start_step=0), reduced_bert(random_start=False)
    ours.attach(model)
    with pytest.raises(TrainingError, match=r"all heads are zero at step 0, .* raise start_step"):
        ours.before_step()


def test_shared_heads_are_refused():
    with pytest.raises(SpecError, match=r"up factors are shared between blocks \(share_up\)"):
        reducer().attach(reduced_bert("relay_in_one_pool", share_up="module_type"))


def test_heads_that_are_frozen_anyway_are_refused():
    with pytest.raises(SpecError, match="the up factors have no trainable parameter"):
        reducer().attach(reduced_bert("tlora"))


def test_everything_shared_is_refused():
    model = reduced_bert("relay_in_one_pool", share_up="module_type")
    with pytest.raises(SpecError, match="are shared by all blocks, so no block can be frozen"):
        reducer(freeze="all").attach(model)


def test_a_probe_without_labels_is_refused():
    ours, model = reducer(start_step=0), reduced_bert()
    ours.attach(model, probe_loader=[{"input_ids": batches(1)[0]["input_ids"]}])
    with pytest.raises(SpecError, match="reports no loss for a probe batch"):
        ours.before_step()


def test_a_probe_that_is_no_mapping_is_refused():
    ours, model = reducer(start_step=0), reduced_bert()
    ours.attach(model, probe_loader=[batches(1)[0]["input_ids"]])
    with pytest.raises(SpecError, match="a probe batch is a Tensor, not the model's arguments"):
        ours.before_step()


def test_a_loss_that_is_not_a_number_is_refused():
    ours = reducer(start_step=0, loss=lambda *_: torch.tensor(torch.nan))
    ours.attach(reduced_bert())
    with pytest.raises(TrainingError, match="the loss of a probe is nan"):
        ours.before_step()


def test_a_state_of_other_options_is_refused():
    saved = reducer(interval=2).attach(reduced_bert()).state_dict()
    with pytest.raises(SpecError, match="made with interval=2, but this Reducer has interval=4"):
        reducer(interval=4).attach(reduced_bert()).load_state_dict(saved)


def test_a_state_of_other_layers_is_refused():
    saved = reducer().attach(reduced_bert(layers=3)).state_dict()
    with pytest.raises(SpecError, match=r"of 3 layers \('layer\.0' to 'layer\.2'\), but the model has 4"):
        reducer().attach(reduced_bert()).load_state_dict(saved)


def test_a_damaged_state_is_refused():
    saved = reducer().attach(reduced_bert()).state_dict()
    del saved["scores"]["step"]
    with pytest.raises(SpecError, match="the Reducer's state is damaged"):
        reducer().attach(reduced_bert()).load_state_dict(saved)
