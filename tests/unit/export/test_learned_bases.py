"""Bases are learned from adapters of any method, and adapters are fitted to them with the error certified."""

import json
import warnings

import peft
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification

import rankfold
from rankfold.adapter.geometry import Linear
from rankfold.errors import NotExactError, OutputExistsError, RankfoldWarning, SpecError
from rankfold.export.bases import BasisFit, BasisRequest, fit_to_basis, learn_basis, shared_sides
from rankfold.export.fold import LowRankUpdate
from rankfold.export.updates import read_updates
from rankfold.store.basis import read_basis
from tests.support.tiny_models import tiny_bert

__all__ = ["tiny_bert"]

SIZE = st.integers(2, 9)


@st.composite
def updates(draw):
    """Draw updates of one layer, of several ranks."""
    rows, cols = draw(SIZE), draw(SIZE)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    ranks = draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
    return [
        LowRankUpdate(
            torch.randn(rank, cols, generator=generator, dtype=torch.float64),
            torch.randn(rows, rank, generator=generator, dtype=torch.float64),
            Linear(cols, rows),
        )
        for rank in ranks
    ]


@given(updates(), st.integers(1, 12))
def test_shared_sides_are_orthonormal_and_lose_nothing_when_there_is_room(layer, rank):
    left, right = shared_sides(layer, rank)
    identity = torch.eye(left.shape[1], dtype=torch.float64)
    torch.testing.assert_close(left.T @ left, identity)
    torch.testing.assert_close(right.T @ right, identity)
    assert left.shape[1] <= rank
    if rank >= max(layer[0].geometry.in_features, layer[0].geometry.out_features):
        return  # fewer directions on one side than the other may need
    needed = sum(update.rank for update in layer)
    for update in layer:
        core = left.T @ update.matrix() @ right
        if needed <= min(rank, *update.matrix().shape):
            torch.testing.assert_close(left @ core @ right.T, update.matrix())


@given(updates())
def test_first_direction_is_no_worse_than_the_best_of_any_one_update(layer):
    """In squares over all updates, each of norm one."""

    def carried(left, right):
        return sum(((left.T @ one.matrix() @ right) / one.matrix().norm()).square().sum() for one in layer)

    shared = carried(*shared_sides(layer, 1))
    for update in layer:
        left, _, right = torch.linalg.svd(update.matrix())
        assert shared >= 0.5 * carried(left[:, :1], right[:1].T)


def model_of(folder):
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)


METHODS = {
    "lora": lambda: peft.LoraConfig(r=2, lora_alpha=7, use_rslora=True, target_modules=["query", "value"]),
    "wide": lambda: peft.LoraConfig(r=3, target_modules="all-linear", task_type="SEQ_CLS"),
    "patterns": lambda: peft.LoraConfig(
        r=2, rank_pattern={"query": 1}, alpha_pattern={"query": 5}, target_modules=["query", "value"]
    ),
    "vera": lambda: peft.VeraConfig(r=4, target_modules=["query", "value"]),
    "tlora": lambda: rankfold.config("tlora", r=3, target_modules=["query", "value"]),
    "relayed": lambda: rankfold.config("relayed_lora", r=2, k=1, target_modules=["query", "dense"]),
}


@pytest.fixture(scope="module")
def sources(tiny_bert, tmp_path_factory):
    """Adapters of several methods on one model, with random values, by name."""
    folder = tmp_path_factory.mktemp("sources")
    for seed, (name, config) in enumerate(METHODS.items()):
        torch.manual_seed(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = peft.get_peft_model(model_of(tiny_bert), config())
        for parameter in model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.3)
        model.save_pretrained(folder / name)
    return folder


def change_of(model, path):
    """The update of one layer in PEFT's own model."""
    return model.get_submodule(path).get_delta_weight("default").detach()


@pytest.mark.parametrize("name", METHODS)
def test_updates_are_those_of_the_model(name, sources, tiny_bert):
    read = read_updates(sources / name, str(tiny_bert))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.PeftModel.from_pretrained(model_of(tiny_bert), sources / name)
    assert read.layers
    for layer, update in read.layers.items():
        change = change_of(model, f"base_model.model.{layer}")
        torch.testing.assert_close(update.matrix().float(), change.float(), rtol=1e-4, atol=1e-5)


def learn(sources, out, *names, **options):
    request = BasisRequest(sources=[sources / name for name in names], out=out, **options)
    return learn_basis(request)


def test_fit_on_a_basis_of_its_own_directions_is_exact_and_prefixes_lose_less_and_less(
    sources, tiny_bert, tmp_path
):
    options = {"rank": 16, "dtype": "fp32", "model": str(tiny_bert)}
    info, basis = learn(sources, tmp_path / "own.basis", "lora", "tlora", "vera", **options)
    assert [source.method for source in info.sources] == ["LORA", "RANKFOLD", "VERA"]
    assert list(info.update_shares) == sorted(info.update_shares)
    assert info.update_shares[-1] == pytest.approx(1, abs=1e-4)
    errors = []
    for rank in (1, 4, basis.rank):
        out = tmp_path / f"fit{rank}"
        request = BasisFit(
            adapter=sources / "lora",
            basis=str(tmp_path / "own.basis"),
            out=out,
            rank=rank,
            model=str(tiny_bert),
        )
        certificate = fit_to_basis(request)
        assert not certificate.is_exact
        assert certificate.rank == rank
        errors.append(max(layer.written for layer in certificate.layers))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-5
    inputs = {"input_ids": torch.arange(3, 11)[None]}
    fitted, original = (
        peft.PeftModel.from_pretrained(model_of(tiny_bert), folder).eval()
        for folder in (out, sources / "lora")
    )
    for layer in read_updates(sources / "lora").layers:
        path = f"base_model.model.{layer}"
        torch.testing.assert_close(change_of(fitted, path), change_of(original, path), rtol=1e-4, atol=1e-5)
    assert fitted(**inputs).logits.shape == original(**inputs).logits.shape
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["down"] == {"kind": "basis", "digest": basis.digest, "name": "own", "rank": 16}
    assert str(tmp_path) not in json.dumps({**config, "base_model_name_or_path": None})


@pytest.mark.parametrize("seeded", [0.0, 0.25, 0.5, 1.0])
def test_every_prefix_has_its_share_of_seeded_directions_orthogonal_to_the_others(seeded, sources, tmp_path):
    _, basis = learn(sources, tmp_path / "b.basis", "lora", "wide", rank=8, dtype="fp32", seeded_share=seeded)
    again = read_basis(tmp_path / "b.basis")[1]
    assert again is basis
    _, learned = learn(sources, tmp_path / "l.basis", "lora", "wide", rank=8, dtype="fp32")
    for name, layer in basis.layers.items():
        identity = torch.eye(len(layer.down))
        torch.testing.assert_close(layer.down @ layer.down.T, identity, atol=1e-5, rtol=0)
        torch.testing.assert_close(layer.up.T @ layer.up, identity, atol=1e-5, rtol=0)
        if name.endswith("query") and seeded == 0.5:
            # The first, third, … are the learned ones.
            count = min(4, len(learned.layers[name].down))
            inside = basis.layers[name].down[::2][:count] @ learned.layers[name].down.T
            assert inside.square().sum() > 0.8 * count


def test_layers_that_few_sources_have_are_learned_from_those(sources, tmp_path):
    _, basis = learn(sources, tmp_path / "b.basis", "lora", "wide", rank=4)
    both, wide = (len(read_updates(sources / name).layers) for name in ("lora", "wide"))
    assert len(basis.layers) == wide > both
    with pytest.raises(SpecError, match=r"has none of the layer '.*'; leave the layer out of target_modules"):
        fit_to_basis(
            BasisFit(
                adapter=sources / "wide",
                basis=str(learn(sources, tmp_path / "few.basis", "lora")[1].digest),
                out=tmp_path / "out",
            )
        )
    assert not (tmp_path / "out").exists()


def test_wrong_requests_are_named(sources, tmp_path):
    for options, message in (
        ({"sources": []}, "none is named; name some with --from"),
        ({"rank": 0}, "rank=0 leaves a basis without directions"),
        ({"seeded_share": 1.5}, "seeded_share=1.5 is no share; give one from 0 to 1"),
        ({"dtype": "int4"}, "dtype='int4' is unknown; give one of fp16, bf16, fp32"),
    ):
        with pytest.raises(SpecError, match=message):
            BasisRequest(**{"sources": ["x"], "out": tmp_path / "x", **options})
    (tmp_path / "there").write_text("")
    with pytest.raises(OutputExistsError):
        learn(sources, tmp_path / "there", "lora")
    config = json.loads((sources / "vera" / "adapter_config.json").read_text())
    folder = tmp_path / "moved"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": None}))
    weights = (sources / "vera" / "adapter_model.safetensors").read_bytes()
    (folder / "adapter_model.safetensors").write_bytes(weights)
    with pytest.raises(SpecError, match="of PEFT's method VERA, whose updates take its base model"):
        read_updates(folder)
    with pytest.warns(RankfoldWarning, match="an adapter is named twice"):
        learn(sources, tmp_path / "twice", "lora", "lora")


def test_adapter_with_a_router_is_refused(tiny_bert, tmp_path):
    config = rankfold.config("hydra_lora", r=2, target_modules=["query"])
    peft.get_peft_model(model_of(tiny_bert), config).save_pretrained(tmp_path / "routed")
    with pytest.raises(NotExactError, match="router"):
        read_updates(tmp_path / "routed")
