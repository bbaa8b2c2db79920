"""A base of a billion parameters: two steps with gradient checkpointing, and the memory that they take.

Writes a Llama of random weights in bf16, with a tokenizer and a file of questions, trains an adapter on it in
a process of its own, and states the most memory that the process had. Takes 3 GB of disk, which it frees.

    python benchmarks/one_billion.py --folder /tmp/one-billion --out benchmarks/records/one_billion.json
"""

import argparse
import json
import platform
import random
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rankfold.models.hardware import cpu_name

VOCABULARY, ROWS, WORDS = 32_000, 64, 240
LIMIT_GIB = 12
TRAINING = {
    "--method": "lora",
    "--set": "r=16",
    "--steps": "2",
    "--batch-size": "4",
    "--max-length": "256",
    "--base-dtype": "bf16",
    "--validate": "end",
    "--eval-rows": "4",
    "--checkpoint-every": "0",
}


def write_base(folder: Path) -> int:
    """Write the model and its tokenizer, and return the number of parameters."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        tie_word_embeddings=True,
        max_position_embeddings=4096,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    words = {word: index for index, word in enumerate(["<unk>", "<s>", "</s>"])}
    words |= {f"w{index}": index for index in range(len(words), VOCABULARY)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def write_rows(file: Path) -> None:
    """Write questions and answers of random words."""
    generator = random.Random(0)

    def text(count: int) -> str:
        return " ".join(f"w{generator.randrange(3, VOCABULARY)}" for _ in range(count))

    rows = ({"instruction": text(WORDS // 2), "output": text(WORDS // 2)} for _ in range(ROWS))
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")


def train(folder: Path, *, checkpointing: bool) -> dict[str, object]:
    """Train in a process of its own, and return the record's figures."""
    out = folder / ("checkpointing" if checkpointing else "plain")
    words = [word for option in TRAINING.items() for word in option]
    command = [sys.executable, "-m", "rankfold", "train", *words, "--json"]
    command += ["--model", str(folder / "base"), "--data", str(folder / "rows.jsonl"), "--out", str(out)]
    if checkpointing:
        command.append("--gradient-checkpointing")
    finished = subprocess.run(command, check=True, capture_output=True, text=True)
    record = json.loads(finished.stdout)
    return {
        "peak_gib": round(record["peak_memory_bytes"] / 2**30, 2),
        "step_seconds": round(record["seconds"]["step_median"], 2),
        "total_seconds": round(record["seconds"]["total"], 1),
        "losses": [point["loss"] for point in record["curve"]["train"]],
        "trainable": record["parameters"]["trainable"],
    }


def main() -> None:
    """Write the base, train on it, and print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="a folder to make, and delete in the end")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    parser.add_argument("--plain", action="store_true", help="train without gradient checkpointing, too")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    folder.mkdir(parents=True)
    try:
        # In a process of its own, so that its memory is free for the training.
        maker = f"from one_billion import *; print(write_base(Path({str(folder / 'base')!r})))"
        made = subprocess.run(
            [sys.executable, "-c", maker],
            check=True,
            capture_output=True,
            text=True,
            cwd=Path(__file__).parent,
        )
        write_rows(folder / "rows.jsonl")
        runs = {"checkpointing": train(folder, checkpointing=True)}
        if arguments.plain:
            runs["plain"] = train(folder, checkpointing=False)
    finally:
        shutil.rmtree(folder)
    record = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cpu": cpu_name(), "python": platform.python_version(), "torch": torch.__version__},
        "base_parameters": int(made.stdout.split()[-1]),
        "training": TRAINING,
        "limit_gib": LIMIT_GIB,
        "runs": runs,
    }
    print(json.dumps(record, indent=1))
    if arguments.out is not None:
        arguments.out.write_text(f"{json.dumps(record, indent=1)}\n", "utf-8")
    if runs["checkpointing"]["peak_gib"] > LIMIT_GIB:
        sys.exit(f"the training took more than {LIMIT_GIB} GiB.")


if __name__ == "__main__":
    main()
