# mypy: ignore-errors
"""A student's mean steps as a scheduler for the stock pipeline. This file needs diffusers and torch alone.

It is copied beside the config that it reads, so that a pipeline opens it with ``trust_remote_code=True``.
"""

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerOutput


class ReDiFStepsScheduler(SchedulerMixin, ConfigMixin):
    """Few learned steps, in the form that any diffusers pipeline takes: ``num_inference_steps`` is their number.

    Args:
        steps: one dict a step: ``timestep`` that the network is given, ``alpha``, ``sigma`` of its level and
            ``alpha_next``, ``sigma_next`` of the next, ``x_weight``, ``x0_weights`` and ``eps_weights`` (newest first)
            of the clean estimate to step with, ``band_gains`` of its frequency bands.
        prediction_type: what the network predicts, as in diffusers.
        sigma_data: of EDM's preconditioning, where there is one.
        reverse_output: whether the network's output has the opposite sign.
        num_train_timesteps: of the schedule.
        trained_with: what the student was trained in: the pipeline's class, arguments of its call, names of its LoRAs
            and a digest of its weights.
    """

    order = 1

    @register_to_config
    def __init__(
        self,
        steps=(),
        prediction_type="epsilon",
        sigma_data=None,
        reverse_output=False,
        num_train_timesteps=1000,
        trained_with=None,
    ):
        self.timesteps = torch.tensor([step["timestep"] for step in steps])
        self.sigmas = torch.tensor([step["sigma"] for step in steps] + [step["sigma_next"] for step in steps[-1:]])
        self._past = []

    @property
    def init_noise_sigma(self):
        """Standard deviation of the first sample."""
        if not self.config.steps:
            return 1.0
        first = self.config.steps[0]
        return (first["alpha"] ** 2 + first["sigma"] ** 2) ** 0.5

    def set_begin_index(self, begin_index=0):
        """Steps are taken in order, from the first."""

    def set_timesteps(self, num_inference_steps=None, device=None, sigmas=None, mu=None, timesteps=None):
        """Begin a run; ``sigmas``, ``mu`` and ``timesteps`` are without effect: the levels are learned.

        Raises:
            ValueError: if ``num_inference_steps`` is not the number that was learned.
        """
        learned = len(self.config.steps)
        for given in (sigmas, timesteps):
            num_inference_steps = num_inference_steps if given is None else len(given)
        if num_inference_steps not in (None, learned):
            raise ValueError(
                f"num_inference_steps={num_inference_steps}, but this student has learned {learned} steps: pass "
                f"num_inference_steps={learned}"
            )
        self.num_inference_steps = learned
        self.timesteps, self._past = self.timesteps.to(device), []

    def scale_model_input(self, sample, timestep=None):
        """What the network is given for ``sample``."""
        if self.config.sigma_data is None:
            return sample
        return sample / (self._step["sigma"] ** 2 + self.config.sigma_data**2) ** 0.5

    def add_noise(self, original_samples, noise, timesteps=None):
        """A clean sample with noise, at the level of the next step."""
        return self._step["alpha"] * original_samples + self._step["sigma"] * noise

    def scale_noise(self, sample, timestep=None, noise=None):
        """As :meth:`add_noise`."""
        return self.add_noise(sample, noise)

    def step(self, model_output, timestep, sample, generator=None, return_dict=True, **_):
        """The next sample."""
        step, x = self._step, sample.float()
        if model_output.shape[1] != sample.shape[1]:  # a variance beside the prediction
            model_output = model_output[:, : sample.shape[1]]
        self._past.insert(0, self._read(model_output.float(), x))
        x0 = step["x_weight"] * x
        for name, place in (("x0_weights", 0), ("eps_weights", 1)):
            for weight, prediction in zip(step[name], self._past):  # noqa: B905 - there are fewer in the first steps
                if weight:
                    x0 = x0 + weight * prediction[place]
        if step["band_gains"] and x.ndim == 4:
            x0 = x0 + _weighted_bands(x0, step["band_gains"])
        ratio = step["sigma_next"] / step["sigma"]
        moved = (ratio * x + (step["alpha_next"] - ratio * step["alpha"]) * x0).to(sample.dtype)
        return SchedulerOutput(prev_sample=moved) if return_dict else (moved,)

    def __len__(self):
        return self.config.num_train_timesteps

    @property
    def _step(self):
        """The next step; the last one, once all are taken."""
        return self.config.steps[min(len(self._past), len(self.config.steps) - 1)]

    def _read(self, output, x):
        """Clean estimate and noise of a network's output."""
        alpha, sigma, kind = self._step["alpha"], self._step["sigma"], self.config.prediction_type
        if self.config.reverse_output:
            output = -output
        if self.config.sigma_data is not None:
            data = self.config.sigma_data
            total = sigma**2 + data**2
            out = sigma * data / total**0.5 * (-1 if kind == "v_prediction" else 1)
            return data**2 / total * x + out * output, sigma / total * x - out / sigma * output
        if kind == "epsilon":
            return (x - sigma * output) / alpha, output
        if kind == "sample":
            return output, (x - alpha * output) / sigma
        if kind == "flow_prediction":
            return (x - sigma * output) / (alpha + sigma), (x + alpha * output) / (alpha + sigma)
        return alpha * x - sigma * output, alpha * output + sigma * x


def _weighted_bands(images, gains):
    """The sum of the frequency bands of images ``(B, C, H, W)``, each times its gain: rings of the Fourier plane."""
    height, width = images.shape[-2:]
    vertical = torch.fft.fftfreq(height, device=images.device).abs()[:, None]
    radius = torch.maximum(vertical, torch.fft.rfftfreq(width, device=images.device)[None]) / 0.5
    ring = (torch.ceil(radius * len(gains)) - 1).clamp(0, len(gains) - 1).long()
    weights = torch.tensor(gains, dtype=torch.float32, device=images.device)[ring]
    return torch.fft.irfft2(weights * torch.fft.rfft2(images.float()), s=(height, width)).to(images.dtype)
