"""Tiny random models and made-up data, so that the examples beside run in seconds without a download."""

import tokenizers
import transformers

TEMPLATE = (
    "{% for message in messages %}"
    "{{ message['role'] }} : {{ message['content'] }} {{ eos_token }} {% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)
COLOURS = ("red", "green", "blue", "white")
THINGS = ("sky", "grass", "rose", "snow")
WORDS = (
    "<pad>",
    "<eos>",
    "<unk>",
    "user",
    "assistant",
    ":",
    "what",
    "colour",
    "is",
    "the",
    "?",
    *COLOURS,
    *THINGS,
)


def tiny_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Return a tokenizer that knows a few words, with a chat template."""
    words = tokenizers.models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>")
    tokenizer = tokenizers.Tokenizer(words)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        chat_template=TEMPLATE,
    )


def tiny_llama() -> transformers.LlamaForCausalLM:
    """Return a decoder of two layers."""
    size = transformers.LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        initializer_range=0.05,
    )
    return transformers.LlamaForCausalLM(size)


def questions() -> list[tuple[str, str, str]]:
    """Return questions about colours, each with the right answer and a wrong one."""
    return [
        (f"what colour is the {thing} ?", right, wrong)
        for thing, right in zip(THINGS, ("blue", "green", "red", "white"), strict=True)
        for wrong in COLOURS
        if wrong != right
    ]
