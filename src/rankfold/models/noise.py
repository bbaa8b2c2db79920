"""Noise of diffusion models: noise levels by time, targets of a denoiser, and its loss.

A noisy picture is `signal * picture + noise * ε` with standard normal ε. Diffusion (Ho et al., "Denoising
Diffusion Probabilistic Models", 2020, eq. 4) has `signal² + noise² = 1`; flow matching (Esser et al.,
"Scaling Rectified Flow Transformers", 2024, eq. 5) has `signal + noise = 1`.
"""

import math
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from rankfold.errors import SpecError

_FLOW = "flow"
_TARGETS = ("epsilon", "v_prediction", "sample", _FLOW)
_LEAST = 1e-8


@final
@dataclass(frozen=True, slots=True)
class NoiseProcess:
    """Noise levels of a training, and the quantity that a denoiser predicts.

    Args:
        signal: Factor of the picture at each time, `[times]`.
        noise: Factor of the noise.
        times: The number that the denoiser is given for each time.
        target: `epsilon`, `v_prediction`, `sample` or `flow`.
    """

    signal: Tensor
    noise: Tensor
    times: Tensor
    target: str

    @classmethod
    def of_scheduler(cls, scheduler: Any) -> "NoiseProcess":
        """Return the process that a scheduler of diffusers, as loaded, stands for.

        Raises:
            SpecError: If it is of a kind that training is not known for.
        """
        name = type(scheduler).__name__
        if name.startswith("FlowMatch"):
            levels = scheduler.sigmas[: len(scheduler.timesteps)].float().cpu()
            return cls(1 - levels, levels, scheduler.timesteps.float().cpu(), _FLOW)
        target = getattr(scheduler.config, "prediction_type", "epsilon")
        levels = getattr(scheduler, "alphas_cumprod", None)
        if levels is None or target not in _TARGETS:
            raise SpecError(
                f"the pipeline's scheduler is a {name} for '{target}', which training is not known for; use "
                "a pipeline with DDPMScheduler or FlowMatchEulerDiscreteScheduler."
            )
        levels = levels.float().cpu()
        return cls(levels.sqrt(), (1 - levels).sqrt(), torch.arange(len(levels)), target)

    def to(self, device: torch.device | str, **_: Any) -> "NoiseProcess":
        """Return the process on a device."""
        return NoiseProcess(self.signal.to(device), self.noise.to(device), self.times.to(device), self.target)

    def indices(self, shares: Tensor) -> Tensor:
        """Return times by index, for uniform numbers from 0 to 1.

        Diffusion takes all times alike; flow matching takes those in the middle more often, logit-normally
        (Esser et al., section 3.1).
        """
        if self.target == _FLOW:
            shares = torch.sigmoid(math.sqrt(2) * torch.erfinv((2 * shares - 1).clamp(-1 + 1e-6, 1 - 1e-6)))
        return (shares * len(self.times)).long().clamp(max=len(self.times) - 1)

    def add_noise(self, picture: Tensor, noise: Tensor, index: Tensor) -> Tensor:
        """Return noisy pictures.

        Args:
            picture: `[pictures, ...]`.
            noise: Of the same shape.
            index: A time for each picture.
        """
        return _factor(self.signal, index, picture) * picture + _factor(self.noise, index, picture) * noise

    def target_of(self, picture: Tensor, noise: Tensor, index: Tensor) -> Tensor:
        """Return the target of the denoiser's prediction; arguments as for `add_noise`.

        `v_prediction` is that of Salimans and Ho, "Progressive Distillation", 2022, appendix D.
        """
        match self.target:
            case "epsilon":
                return noise
            case "sample":
                return picture
            case "v_prediction":
                signal, level = _factor(self.signal, index, picture), _factor(self.noise, index, picture)
                return signal * noise - level * picture
            case _:
                return noise - picture

    def weights(self, index: Tensor, gamma: float) -> Tensor:
        """Return min-SNR weights of the loss at some times (Hang et al., 2023, section 3.4).

        Args:
            index: Times.
            gamma: The largest ratio of signal to noise that counts.

        Raises:
            SpecError: For flow matching, which has none.
        """
        ratio = (self.signal[index] / self.noise[index].clamp(min=_LEAST)) ** 2
        clipped = ratio.clamp(max=gamma)
        match self.target:
            case "epsilon":
                return clipped / ratio.clamp(min=_LEAST)
            case "v_prediction":
                return clipped / (ratio + 1)
            case "sample":
                return clipped
            case _:
                raise SpecError(
                    "min_snr is for diffusion, and this model learns by flow matching; leave it out."
                )


def _factor(levels: Tensor, index: Tensor, picture: Tensor) -> Tensor:
    return levels[index].reshape(-1, *(1,) * (picture.dim() - 1))
