"""A small text-to-image set, emoji with their names as captions, and a base denoiser trained on it.

The pictures are of the npm packages `@iconify-json/noto` (Apache-2.0), `@iconify-json/fluent-emoji-flat`
(MIT) and `@iconify-json/twemoji` (CC BY 4.0), of which only `icons.json` is read. Every style has the
captions that all of them share, and the same ones are held out.

    npm install --prefix build @iconify-json/noto @iconify-json/fluent-emoji-flat @iconify-json/twemoji
    python benchmarks/emoji.py pictures build/node_modules/@iconify-json build/emoji
    python benchmarks/emoji.py base build/emoji build/emoji_diffusion.safetensors

`pictures` writes an image folder for each style. `base` trains a U-Net on pixels, which reads MiniLM's
tokens, on two of the styles together, with the style's name behind the caption; the third, noto, is left
for adapters. It takes about an hour on one core, and goes on to the same bits when it is started again
after a stop. The file is rankfold's base model `emoji_diffusion`, and noto its task `emoji_noto`.
"""

import argparse
import io
import json
import math
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import diffusers
import numpy as np
import torch
import vl_convert
from PIL import Image
from torch.nn import functional
from transformers import AutoModel, AutoTokenizer

from rankfold.files import write_whole
from rankfold.models.base import resolve_model
from rankfold.models.emoji import compose_model, pack_denoiser
from rankfold.models.noise import NoiseProcess
from rankfold.progress import quiet_libraries

STYLES = ("noto", "fluent-emoji-flat", "twemoji")
BASE_STYLES = ("fluent-emoji-flat", "twemoji")
SIDE = 32
TOKENS = 16
HELD_OUT = 10
WARM_UP_STEPS = 500
CAPTION_DROPOUT = 0.1
AVERAGING = 0.999
ABOUT = {
    "command": "python benchmarks/emoji.py base PICTURES OUT (12,000 steps of 16 pictures, seed 0)",
    "pictures": "fluent-emoji-flat (Microsoft, MIT) and twemoji (Twitter and other contributors, CC BY 4.0), "
    "of the npm packages @iconify-json/fluent-emoji-flat and @iconify-json/twemoji",
}
"""The origin of the denoiser, which its file carries."""

_VARIANTS = re.compile(r"skin-tone|-(light|medium|dark)$")


# Pictures.


def write_pictures(packages: Path, out: Path, styles: Sequence[str], side: int) -> None:
    """Write an image folder with the splits train and validation for each style."""
    icons = {style: json.loads((packages / style / "icons.json").read_bytes()) for style in styles}
    shared = set.intersection(*(set(package["icons"]) for package in icons.values()))
    names = sorted(name for name in shared if not _VARIANTS.search(name))
    for style, package in icons.items():
        lines: dict[str, list[str]] = {"train": [], "validation": []}
        for name in names:
            split = "validation" if crc32(name.encode()) % HELD_OUT == 0 else "train"
            folder = out / style / split
            folder.mkdir(parents=True, exist_ok=True)
            render(package, name, side).save(folder / f"{name}.png")
            row = {"file_name": f"{name}.png", "text": name.replace("-", " ")}
            lines[split].append(json.dumps(row))
        for split, rows in lines.items():
            write_whole(out / style / split / "metadata.jsonl", "\n".join(rows).encode())
        print(f"{style}: {', '.join(f'{len(rows):,} {split}' for split, rows in lines.items())}", flush=True)


def render(package: dict[str, Any], name: str, side: int) -> Image.Image:
    """Return an icon on white."""
    icon = package["icons"][name]
    width, height = (icon.get(key, package.get(key, 16)) for key in ("width", "height"))
    box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
    size = f'width="{side}" height="{side}" viewBox="{box}"'
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{icon["body"]}</svg>'
    picture = Image.open(io.BytesIO(vl_convert.svg_to_png(svg))).convert("RGBA").resize((side, side))
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


# The base denoiser.


def denoiser(side: int) -> Any:
    """Return a U-Net of 5.9 million numbers on pixels, with attention at a quarter of the side and below."""
    return diffusers.UNet2DConditionModel(
        sample_size=side,
        in_channels=3,
        out_channels=3,
        block_out_channels=(32, 64, 96, 128),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=384,
        attention_head_dim=4,  # diffusers reads it as the number of heads
        down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    )


@dataclass(frozen=True)
class Captions:
    """Encoded captions; the last one is the empty caption."""

    tokens: torch.Tensor
    mask: torch.Tensor

    @classmethod
    def encode(cls, captions: Sequence[str]) -> "Captions":
        """Return captions as MiniLM's tokens."""
        folder = resolve_model("minilm").location
        with quiet_libraries():
            tokenizer: Any = AutoTokenizer.from_pretrained(folder)
            model: Any = AutoModel.from_pretrained(folder).eval()
        words = tokenizer(
            [*captions, ""], padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt"
        )
        parts: list[torch.Tensor] = []
        with torch.no_grad():
            for first in range(0, len(words.input_ids), 64):
                part = {name: value[first : first + 64] for name, value in words.items()}
                parts.append(model(**part).last_hidden_state)
        return cls(torch.cat(parts), words.attention_mask.float())


def read_rows(pictures: Path, styles: Sequence[str], split: str) -> tuple[torch.Tensor, list[str]]:
    """Return the pictures of a split as bytes, `[rows, 3, side, side]`, and their captions."""
    pixels: list[Any] = []
    captions: list[str] = []
    for style in styles:
        folder = pictures / style / split
        for line in (folder / "metadata.jsonl").read_text("utf-8").splitlines():
            row = json.loads(line)
            with Image.open(folder / row["file_name"]) as picture:
                pixels.append(np.array(picture).transpose(2, 0, 1))
            captions.append(f"{row['text']}, {style.replace('-', ' ')} style")
    return torch.from_numpy(np.stack(pixels)), captions


def batches(rows: int, size: int, first: int, steps: int) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield each step from `first` with its rows, which the step alone decides."""
    for step in range(first, steps):
        epoch, place = divmod(step * size, rows - rows % size)
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(epoch))
        yield step, order[place : place + size]


def train_base(pictures: Path, out: Path, options: argparse.Namespace) -> None:
    """Train the denoiser, or go on with it, and write the pipeline."""
    torch.set_num_threads(options.threads)
    pixels, captions = read_rows(pictures, options.styles, "train")
    encoded = Captions.encode(captions)
    scheduler = diffusers.DDIMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    noise = NoiseProcess.of_scheduler(scheduler)
    torch.manual_seed(0)
    model = denoiser(pixels.shape[-1])
    average = deepcopy(model).requires_grad_(requires_grad=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, weight_decay=0.01)
    state_file = out.with_name(f"{out.name}.unfinished") / "state.pt"
    first = _restore(state_file, model, average, optimizer)
    mean = None
    for step, index in batches(len(pixels), options.batch_size, first, options.steps):
        generator = torch.Generator().manual_seed(step)
        loss = _loss(model, noise, pixels[index], encoded, index, generator)
        decay = (1 + math.cos(math.pi * step / options.steps)) / 2
        optimizer.param_groups[0]["lr"] = options.learning_rate * min(decay, (step + 1) / WARM_UP_STEPS)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            for kept, new in zip(average.parameters(), model.parameters(), strict=True):
                kept.lerp_(new, 1 - min(AVERAGING, (step + 1) / (step + 10)))
        mean = loss.item() if mean is None else 0.98 * mean + 0.02 * loss.item()
        if (step + 1) % options.log_every == 0:
            print(f"step {step + 1:,} of {options.steps:,}: loss {mean:.4f}", flush=True)
        if (step + 1) % options.save_every == 0:
            _save(state_file, step + 1, model, average, optimizer)
    write_denoiser(average, scheduler, out)
    print(f"a folder to train on: {compose_model(Path(resolve_model('minilm').location), out)}")
    shutil.rmtree(state_file.parent, ignore_errors=True)


def _loss(
    model: Any,
    noise: NoiseProcess,
    pixels: torch.Tensor,
    captions: Captions,
    index: torch.Tensor,
    generator: torch.Generator,
) -> torch.Tensor:
    """Return the loss of a batch; all that is drawn comes from the generator."""
    clean = pixels / 127.5 - 1
    times = noise.indices(torch.rand(len(clean), generator=generator))
    epsilon = torch.randn(clean.shape, generator=generator)
    dropped = torch.rand(len(clean), generator=generator) < CAPTION_DROPOUT
    rows = torch.where(dropped, len(captions.tokens) - 1, index)
    noisy = noise.add_noise(clean, epsilon, times)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(
            noisy,
            times,
            encoder_hidden_states=captions.tokens[rows],
            encoder_attention_mask=captions.mask[rows],
        ).sample
    losses = functional.mse_loss(output.float(), noise.target_of(clean, epsilon, times), reduction="none")
    return (losses.flatten(1).mean(1) * noise.weights(times, 5.0)).mean()


def _restore(file: Path, model: Any, average: Any, optimizer: Any) -> int:
    """Load the state of a training that was stopped, and return its next step."""
    if not file.is_file():
        return 0
    state = torch.load(file, weights_only=True)
    model.load_state_dict(state["model"])
    average.load_state_dict(state["average"])
    optimizer.load_state_dict(state["optimizer"])
    print(f"going on from step {state['step']:,}", flush=True)
    return int(state["step"])


def _save(file: Path, step: int, model: Any, average: Any, optimizer: Any) -> None:
    buffer = io.BytesIO()
    parts = {"model": model, "average": average, "optimizer": optimizer}
    torch.save({"step": step, **{name: part.state_dict() for name, part in parts.items()}}, buffer)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, buffer.getvalue())


def write_denoiser(model: Any, scheduler: Any, out: Path) -> None:
    """Write the file that `rankfold.models.emoji` puts together with MiniLM."""
    configs = {
        name: json.loads(part.to_json_string()) for name, part in (("unet", model), ("scheduler", scheduler))
    }
    write_whole(out, pack_denoiser(model.state_dict(), configs, ABOUT))


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, first in (("pictures", "packages"), ("base", "pictures")):
        command = commands.add_parser(name)
        command.add_argument(first, type=Path)
        command.add_argument("out", type=Path)
        command.add_argument("--styles", nargs="+", default=STYLES if name == "pictures" else BASE_STYLES)
    commands.choices["pictures"].add_argument("--side", type=int, default=SIDE)
    base = commands.choices["base"]
    base.add_argument("--learning-rate", type=float, default=1e-3)
    for name, value in (
        ("steps", 12_000),
        ("batch-size", 16),
        ("save-every", 500),
        ("log-every", 50),
        ("threads", 1),
    ):
        base.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    if options.command == "pictures":
        write_pictures(options.packages, options.out, options.styles, options.side)
    else:
        train_base(options.pictures, options.out, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
