"""A method that nobody has published: a frozen down factor, a relayed up factor shared by module type.

Run it with `python examples/compose.py`; it needs nothing but rankfold and a second.
"""

import peft
import torch
import transformers

import rankfold

config = rankfold.RankfoldConfig(
    r=16,
    alpha=32,
    down=rankfold.SeededSpec(),
    up=rankfold.RelaySpec(k=4, initial="zeros"),
    share_up="module_type",
    target_modules=["query", "value"],
)
size = transformers.BertConfig(
    vocab_size=99, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128
)
base = transformers.BertModel(size).eval()
words = torch.randint(0, 99, (2, 7))
before = base(words).last_hidden_state

model = peft.get_peft_model(base, config)
after = model(words).last_hidden_state
assert torch.equal(before, after), "a fresh adapter changes nothing"

count = rankfold.count_parameters(model)
print(f"{count.stored} numbers to store, for {len(count.by_module)} layers")
for role, numbers in count.by_factor.items():
    print(f"  {role}: {numbers.stored} stored, {numbers.trainable} trained")
