"""The compatibility corpus: where it lies, and its base models, opened without rankfold."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.pytorch_utils import Conv1D

CORPUS = Path(__file__).with_name("0.1.0")
INPUT_IDS = torch.tensor([[2, 5, 10, 11, 7, 3], [2, 12, 6, 9, 14, 3]])
"""Two rows of tokens, which every base model takes."""


class Toy(nn.Module):
    """An embedding, a grouped convolution, a linear layer and GPT-2's transposed one."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(24, 8)
        self.linear = nn.Linear(8, 8)
        self.transposed = Conv1D(8, 8)
        self.picture = nn.Conv2d(4, 6, (2, 3), stride=(1, 2), padding=(1, 0), groups=2)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Map ids [batch, 6] to numbers [batch, 6, 5, 1]."""
        x = self.tokens(input_ids)
        x = x + self.transposed(torch.tanh(self.linear(x)))
        return self.picture(x.reshape(-1, 4, 4, 3))


def open_base(name: str, folder: Path = CORPUS) -> nn.Module:
    """Return a base model of the corpus: `llama`, `bert` (with a new head of three classes) or `toy`.

    Args:
        name: Which.
        folder: The corpus, or a copy of it.
    """
    torch.manual_seed(0)
    if name == "toy":
        model = Toy()
        model.load_state_dict(load_file(folder / "bases" / "toy.safetensors"))
        return model.eval()
    location = str(folder / "bases" / name)
    if name == "llama":
        return AutoModelForCausalLM.from_pretrained(location, dtype=torch.float32).eval()
    return AutoModelForSequenceClassification.from_pretrained(
        location, dtype=torch.float32, num_labels=3
    ).eval()


def outputs_of(model: nn.Module) -> Tensor:
    """Return a model's outputs on the fixed input, in float32."""
    with torch.inference_mode():
        outputs = model(input_ids=INPUT_IDS)
    return getattr(outputs, "logits", outputs).float().clone()


def read_cases(folder: Path = CORPUS) -> dict[str, str]:
    """Return the base model of each adapter by the name of its folder."""
    return json.loads((folder / "adapters.json").read_text("utf-8"))
