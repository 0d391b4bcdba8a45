"""What a stock pipeline makes on its own: the references that driven pipelines are compared with.

Nothing here knows of the library's waves: a scheduler with a table of levels is put into the pipeline, which is then
called once for each sample.
"""

import copy
import functools
from dataclasses import dataclass

import torch

ONE = property(lambda self: 1.0, lambda self, value: None)
"""The standard deviation of initial latents: they are given as they are."""


@dataclass
class Seen:
    """The first and the last sample of a run, and what the pipeline returned."""

    first: torch.Tensor | None = None
    last: torch.Tensor | None = None
    output: object = None


def recorded(stock, seen):
    """``stock`` that notes the first sample it was given and the last that it returned."""
    kind = type(stock)

    @functools.wraps(kind.step)
    def step(self, model_output, timestep, sample, *args, **kwargs):
        if self.seen is not None and seen.first is None:
            seen.first = sample.clone()
        if model_output.shape != sample.shape and model_output.ndim == sample.ndim:
            model_output = model_output[:, : sample.shape[1]]
        result = kind.step(self, model_output, timestep, sample, *args, **kwargs)
        if self.seen is not None:
            seen.last = result[0] if isinstance(result, tuple) else result.prev_sample
        return result

    def deep(self, memo):  # the copy that a second state is stepped with is not watched
        other = object.__new__(type(self))
        other.__dict__.update({key: copy.deepcopy(value) for key, value in self.__dict__.items() if key != "seen"})
        other.seen = None
        return other

    made = copy.deepcopy(stock)
    made.__class__ = type(kind.__name__, (kind,), {"step": step, "__deepcopy__": deep, "init_noise_sigma": ONE})
    made.seen = seen
    return made


def scripted(stock, timesteps, levels, read):
    """A scheduler that takes DDIM steps through a table.

    Args:
        stock: whose class and config it has.
        timesteps: ``(n,)`` given to the network.
        levels: ``[(alpha, sigma), ...]``, n + 1 of them.
        read: ``(output, x, alpha, sigma)`` to the clean estimate and the noise.
    """
    kind = type(stock)

    @functools.wraps(kind.set_timesteps)
    def set_timesteps(self, *args, **kwargs):
        kind.set_timesteps(self, *args, **kwargs)
        skipped = len(self.timesteps) - len(timesteps)
        self.timesteps = torch.cat([self.timesteps[:skipped].float(), timesteps.float()])
        if hasattr(self, "sigmas"):
            sigmas = torch.tensor([sigma for _, sigma in levels])
            sigmas = 1 - sigmas if self.config.get("invert_sigmas") else sigmas
            self.sigmas = torch.cat([self.sigmas[:skipped], sigmas.float()])
        self.place = 0

    @functools.wraps(kind.step)
    def step(self, model_output, timestep, sample, *args, return_dict=True, **kwargs):
        if model_output.shape != sample.shape and model_output.ndim == sample.ndim:
            model_output = model_output[:, : sample.shape[1]]
        (alpha, sigma), (next_alpha, next_sigma) = levels[self.place], levels[self.place + 1]
        x0, eps = read(model_output, sample, alpha, sigma)
        self.place += 1
        moved = next_alpha * x0 + next_sigma * eps
        return (moved,) if not return_dict else kind_output(moved)

    def scale_model_input(self, sample, timestep=None):
        return self.scaled(sample, levels[self.place][1])

    def noised(self, clean, *rest, noise=None):
        tensors = [value for value in rest if torch.is_tensor(value) and value.shape == clean.shape]
        noise = noise if noise is not None else tensors[0]
        alpha, sigma = levels[self.place]
        return alpha * clean + sigma * noise

    body = {"set_timesteps": set_timesteps, "step": step, "scale_model_input": scale_model_input,
            "add_noise": noised, "scale_noise": noised,
            "init_noise_sigma": ONE}  # fmt: skip
    made = copy.deepcopy(stock)
    made.__class__ = type(kind.__name__, (kind,), body)
    made.place = 0
    made.scaled = lambda sample, sigma: sample
    return made


def kind_output(moved):
    from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput

    return DDIMSchedulerOutput(prev_sample=moved)
