"""Noise of diffusion and flow matching: the definitions of the papers, against diffusers' own schedulers."""

import diffusers
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankfold.errors import SpecError
from rankfold.models.noise import NoiseProcess

TARGETS = ("epsilon", "v_prediction", "sample")


def process(target):
    if target == "flow":
        return NoiseProcess.of_scheduler(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0))
    return NoiseProcess.of_scheduler(diffusers.DDPMScheduler(prediction_type=target))


@given(target=st.sampled_from((*TARGETS, "flow")), seed=st.integers(0, 99), share=st.floats(0, 1))
def test_noise_and_target_are_those_of_diffusers(target, seed, share):
    ours = process(target)
    generator = torch.Generator().manual_seed(seed)
    picture, noise = torch.randn(2, 3, 3, 4, 4, generator=generator)
    index = ours.indices(torch.full((3,), share))
    noisy = ours.add_noise(picture, noise, index)
    if target == "flow":
        theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
        torch.testing.assert_close(noisy, theirs.scale_noise(picture, theirs.timesteps[index], noise))
        # A step from here to time zero along the right velocity gives the picture.
        level = ours.noise[index].reshape(-1, 1, 1, 1)
        velocity = ours.target_of(picture, noise, index)
        torch.testing.assert_close(noisy - level * velocity, picture, atol=1e-4, rtol=1e-4)
        return
    theirs = diffusers.DDPMScheduler(prediction_type=target)
    torch.testing.assert_close(noisy, theirs.add_noise(picture, noise, index))
    expected = {"epsilon": noise, "sample": picture}.get(target)
    if expected is None:
        expected = theirs.get_velocity(picture, noise, index)
    torch.testing.assert_close(ours.target_of(picture, noise, index), expected)


def test_min_snr_weights_make_all_targets_one_loss():
    # The error of ε is SNR times that of the picture, that of v is SNR + 1 times (Hang et al., section 3.4).
    index, gamma = torch.tensor([1, 300, 900]), 5.0
    ratio = (process("epsilon").signal[index] / process("epsilon").noise[index]) ** 2
    per_picture = process("sample").weights(index, gamma)
    torch.testing.assert_close(process("epsilon").weights(index, gamma) * ratio, per_picture)
    torch.testing.assert_close(process("v_prediction").weights(index, gamma) * (ratio + 1), per_picture)
    assert per_picture.max() == gamma
    with pytest.raises(SpecError, match="flow matching"):
        process("flow").weights(index, gamma)


def test_scheduler_without_noise_levels_of_training_is_refused():
    with pytest.raises(SpecError, match="EDMEulerScheduler"):
        NoiseProcess.of_scheduler(diffusers.EDMEulerScheduler())
