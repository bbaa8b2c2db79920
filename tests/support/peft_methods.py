"""Adapters of PEFT's own methods, as they lie on a disk after training, on a very small BERT."""

import warnings

import peft
import torch
from transformers import BertConfig, BertForSequenceClassification

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
TARGETS = ["query", "value"]

# How to configure each method; what is not said is PEFT's default.
METHODS = {
    "adalora": lambda: peft.AdaLoraConfig(init_r=4, target_r=2, total_step=10, target_modules=TARGETS),
    "adamss": lambda: peft.AdamssConfig(r=4, num_subspaces=2, target_modules=TARGETS),
    "boft": lambda: peft.BOFTConfig(boft_block_size=4, target_modules=TARGETS),
    "c3a": lambda: peft.C3AConfig(block_size=8, target_modules=TARGETS),
    "delora": lambda: peft.DeloraConfig(r=4, target_modules=TARGETS),
    "dora": lambda: peft.LoraConfig(r=4, use_dora=True, target_modules=TARGETS),
    "fourierft": lambda: peft.FourierFTConfig(n_frequency=20, target_modules=TARGETS),
    "frod": lambda: peft.FrodConfig(target_modules=TARGETS, progressbar=False),
    "gralora": lambda: peft.GraloraConfig(r=4, target_modules=TARGETS),
    "hra": lambda: peft.HRAConfig(r=4, target_modules=TARGETS),
    "ia3": lambda: peft.IA3Config(target_modules=TARGETS, feedforward_modules=[]),
    "lily": lambda: peft.LilyConfig(r=4, stride_A=2, num_B=2, target_modules=TARGETS),
    "loha": lambda: peft.LoHaConfig(r=4, target_modules=TARGETS),
    "lokr": lambda: peft.LoKrConfig(r=4, target_modules=TARGETS),
    "lora": lambda: peft.LoraConfig(r=4, target_modules=TARGETS, task_type="SEQ_CLS"),
    "miss": lambda: peft.MissConfig(r=4, target_modules=TARGETS),
    "oft": lambda: peft.OFTConfig(oft_block_size=4, r=0, target_modules=TARGETS),
    "olora": lambda: peft.LoraConfig(r=4, init_lora_weights="olora", target_modules=TARGETS),
    "pvera": lambda: peft.PveraConfig(r=8, target_modules=TARGETS),
    "randlora": lambda: peft.RandLoraConfig(r=4, target_modules=TARGETS),
    "randlora_sparse": lambda: peft.RandLoraConfig(r=4, sparse=True, target_modules=TARGETS),
    "randlora_very_sparse": lambda: peft.RandLoraConfig(r=4, very_sparse=True, target_modules=TARGETS),
    "shira": lambda: peft.ShiraConfig(r=2, random_seed=3, target_modules=TARGETS),
    "tinylora": lambda: peft.TinyLoraConfig(r=2, u=8, target_modules=TARGETS),
    "unilora": lambda: peft.UniLoraConfig(r=4, theta_d_length=15, save_indices=True, target_modules=TARGETS),
    "vblora": lambda: peft.VBLoRAConfig(r=4, num_vectors=8, vector_length=4, target_modules=TARGETS),
    "vera": lambda: peft.VeraConfig(r=8, target_modules=[*TARGETS, "intermediate.dense"]),
    "waveft": lambda: peft.WaveFTConfig(n_frequency=20, target_modules=TARGETS),
}


def tiny_base():
    """Return the base model, the same one each time."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}
    return BertForSequenceClassification(BertConfig(**sizes, vocab_size=30, max_position_embeddings=64))


def save_peft(folder, config, *, dtype=torch.float32):
    """Save an adapter as PEFT does, with every trained number moved, and return the folder."""
    base = tiny_base()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's advice about its own methods
        model = peft.get_peft_model(base.to(dtype), config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter += 0.01 * torch.randn_like(parameter)
        model.save_pretrained(folder)
    (folder / "README.md").unlink()
    return folder


def files(folder):
    """Return what lies in a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}
