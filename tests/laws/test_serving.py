"""Laws of serving: each row of a mixed batch gets what its adapter alone would give it through PEFT."""

import copy
from concurrent.futures import ThreadPoolExecutor

import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import rankfold
from rankfold.store.loading import load_adapter
from rankfold.store.saved import open_adapter
from tests.integration.models import METHODS, PICTURE_TARGETS, bert, config_of, gpt2, ids, picture, scores
from tests.support.tolerance import assert_close
from tests.support.toys import compositions, toy, toy_sizes_allowed
from tests.support.toys import ids as toy_ids


def save(config, base, folder, seed=0):
    """An adapter with random values on a copy of a base, saved; what it is alone."""
    with toy_sizes_allowed():
        model = peft.get_peft_model(copy.deepcopy(base), config)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draw, dtype=parameter.dtype))
    model.save_pretrained(folder)
    return open_adapter(folder)


def alone(base, adapter, run):
    """The output of a base with one adapter, or without any, through PEFT."""
    model = copy.deepcopy(base)
    return run(model if adapter is None else load_adapter(model, adapter))


def served(bank, names, inputs):
    session = rankfold.Session(bank)
    with session.serving(names):
        output = session.model(inputs)
    return getattr(output, "logits", output)


@pytest.fixture(scope="module")
def bert_adapters(tmp_path_factory):
    """Every method on a BERT, twice, and PEFT's LoRA; in float64."""
    base, folder = bert().double(), tmp_path_factory.mktemp("adapters")
    adapters = {
        f"{method}-{seed}": save(config_of(method), base, folder / f"{method}-{seed}", seed)
        for method in METHODS
        for seed in range(2)
    }
    options = {"target_modules": ["query", "output.dense"], "task_type": "SEQ_CLS"}
    adapters["peft"] = save(peft.LoraConfig(r=3, lora_alpha=5, **options), base, folder / "peft")
    adapters["rslora"] = save(
        peft.LoraConfig(
            r=5, use_rslora=True, rank_pattern={"query": 2}, alpha_pattern={"query": 9}, **options
        ),
        base,
        folder / "rslora",
    )
    return base, {None: None, **adapters}


@pytest.fixture(scope="module")
def bert_scores(bert_adapters):
    base, adapters = bert_adapters
    return {name: alone(base, adapter, scores) for name, adapter in adapters.items()}


def test_mixed_batches_equal_each_adapter_alone(bert_adapters, bert_scores):
    """In any order, with any neighbours, from however few slots; the base model stays as it was."""
    base, adapters = bert_adapters
    before = scores(base)
    bank = rankfold.Bank(base, slots=6)
    for name, adapter in adapters.items():
        if name is not None:
            bank.add(name, adapter)

    @settings(max_examples=25)
    @given(st.lists(st.sampled_from(list(adapters)), min_size=6, max_size=6))
    def law(names):
        assert_close(
            served(bank, names, ids()), torch.stack([bert_scores[name][i] for i, name in enumerate(names)])
        )

    law()
    for method in METHODS:  # two of one frame, which is the fast way
        names = [f"{method}-{index % 2}" for index in range(6)]
        assert_close(
            served(bank, names, ids()), torch.stack([bert_scores[n][i] for i, n in enumerate(names)])
        )
    assert bank.stats.resident <= 6
    assert bank.stats.evictions > 0
    assert torch.equal(scores(base), before)


@settings(max_examples=15)
@given(st.lists(compositions(), min_size=1, max_size=2))
def test_compositions_nobody_has_published_are_served(tmp_path_factory, fields):
    base = toy().eval()
    adapters = {
        str(index): save(rankfold.RankfoldConfig(**values), base, tmp_path_factory.mktemp("toy"), index)
        for index, values in enumerate(fields)
    }
    bank = rankfold.Bank(base)
    for name, adapter in adapters.items():
        bank.add(name, adapter)
    names = [*adapters, None, *reversed(adapters)]
    inputs = toy_ids(len(names))
    outputs = {n: alone(base, adapters.get(n), lambda m: m(inputs)).detach() for n in {*names}}
    assert_close(served(bank, names, inputs), torch.stack([outputs[n][i] for i, n in enumerate(names)]))


def test_embeddings_convolutions_and_conv1d_are_served(tmp_path):
    for number, (base, targets) in enumerate(
        [(picture(), PICTURE_TARGETS), (gpt2(), ["c_attn", "c_fc", "wte"])]
    ):
        base = base.double()
        own = {"target_modules": targets}
        adapters = {
            "dense": save(config_of("lora", task_type=None, **own), base, tmp_path / f"{number}-lora"),
            "core": save(config_of("tlora", task_type=None, **own), base, tmp_path / f"{number}-tlora", 1),
        }
        if number:
            adapters["peft"] = save(
                peft.LoraConfig(r=3, target_modules=targets, fan_in_fan_out=True), base, tmp_path / "peft", 2
            )
        bank = rankfold.Bank(base)
        for name, adapter in adapters.items():
            bank.add(name, adapter)
        names = [*adapters, None, "core", "dense", "dense"][:6]
        names += ["dense"] * (6 - len(names))
        outputs = {n: alone(base, adapters.get(n), scores) for n in {*names}}
        assert_close(served(bank, names, ids()), torch.stack([outputs[n][i] for i, n in enumerate(names)]))


def test_heads_of_different_sizes_are_filled_up(tmp_path):
    base = bert(num_labels=2)
    small = save(config_of("lora"), base, tmp_path / "small")
    large = save(config_of("relayed_lora"), bert(num_labels=5), tmp_path / "large")
    bank = rankfold.Bank(base)
    bank.add("small", small)
    bank.add("large", large)
    logits = served(bank, ["small", "large", None, "large", "small", None], ids())
    assert logits.shape == (6, 5)
    assert torch.isneginf(logits[[0, 2, 4, 5], 2:]).all()
    assert_close(logits[[1, 3]], alone(bert(num_labels=5), large, scores)[[1, 3]])
    assert_close(logits[[0, 4], :2], alone(base, small, scores)[[0, 4]])


VERSIONS = ("lora-0", "lora-1", "tlora-0", "effilora-0")


def faults_of(session, right, seed):
    """Rows that got what no adapter of their name gives, of batches of random names."""
    faults = []
    draw = torch.Generator().manual_seed(seed)
    for _ in range(25):
        rows = torch.randint(0, 4, (6,), generator=draw).tolist()
        try:
            logits = session.run({"input_ids": ids()}, [f"name{row}" for row in rows]).logits
        except rankfold.SpecError as error:
            faults += [] if "no adapter 'name1'" in str(error) else [error]
            continue
        faults += [
            f"name{row}"
            for index, row in enumerate(rows)
            if not any(torch.allclose(logits[index], output[index]) for output in right[row])
        ]
    return faults


def test_threads_get_their_rows_while_adapters_are_replaced_and_deleted(tmp_path, bert_adapters, bert_scores):
    """Every answer is that of an adapter that had the name at the time; few slots, so that all evict all."""
    base, adapters = bert_adapters
    path = tmp_path / "adapters.db"
    right = [[bert_scores[version]] for version in VERSIONS]
    right[0] = right[0] + right[1]
    with rankfold.AdapterStore(path) as store, ThreadPoolExecutor() as pool:
        for index, version in enumerate(VERSIONS):
            store.put(f"name{index}", adapters[version])
        session = rankfold.Session(rankfold.Bank(base, path, slots=4, host_bytes=30_000))
        readers = [pool.submit(faults_of, session, right, seed) for seed in range(3)]
        turn = 0
        while not all(reader.done() for reader in readers):
            turn += 1
            store.put("name0", adapters[VERSIONS[turn % 2]], replace=True)
            store.delete("name1")
            store.put("name1", adapters[VERSIONS[1]])
        assert [reader.result() for reader in readers] == [[], [], []]


def test_a_replaced_adapter_serves_from_the_next_batch_on_and_a_deleted_one_no_more(
    tmp_path, bert_adapters, bert_scores
):
    base, adapters = bert_adapters
    with rankfold.AdapterStore(tmp_path / "adapters.db") as store:
        store.put("a", adapters["lora-0"])
        bank = rankfold.Bank(base, store)
        assert_close(served(bank, ["a"] * 6, ids()), bert_scores["lora-0"])
        store.put("a", adapters["relayed_lora-1"], replace=True)
        assert_close(served(bank, ["a"] * 6, ids()), bert_scores["relayed_lora-1"])
        store.delete("a")
        with pytest.raises(rankfold.SpecError, match="no adapter 'a'"):
            served(bank, ["a"] * 6, ids())


def test_replaced_adapters_leave_the_memory(tmp_path, bert_adapters):
    base, adapters = bert_adapters
    with rankfold.AdapterStore(tmp_path / "adapters.db") as store:
        bank = rankfold.Bank(base, store)
        sizes = []
        for turn in range(4):
            for name in "ab":
                store.put(name, adapters[f"lora-{turn % 2}"], replace=turn > 0)
                served(bank, [name] * 6, ids())
            sizes.append(bank.stats.host_bytes)
    assert sizes == [sizes[0]] * 4
    assert sizes[0] > 0
