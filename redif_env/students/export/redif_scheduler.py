# mypy: ignore-errors
"""A student's mean steps as a diffusers scheduler. This file only needs diffusers and torch.

It is copied into the folder of its config, so that a pipeline can load it with ``trust_remote_code=True``.
"""

import hashlib
import inspect
import os
import warnings

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import FrozenDict, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerOutput

NEAR = 5e-3
"""Share of a timestep by which another may differ and be the same: pipelines round them to their type."""
SAMPLED = 16
"""Numbers of each tensor that a digest of weights is made of."""


class ReDiFScheduler(SchedulerMixin, ConfigMixin):
    """A student's steps as a scheduler for any diffusers pipeline. ``num_inference_steps`` is their number.

    A scheduler does not have the policy's observations, so ``step`` takes the policy's mean action at each step. Use
    ``ReDiFPipeline`` to let the policy decide. Like other schedulers, this one stores the state of a run: a run starts
    at the step of the first timestep that it is given, and takes the steps in order.

    Args:
        steps: one dict per step: ``timestep`` for the network; ``alpha`` and ``sigma`` of its level, ``alpha_next`` and
            ``sigma_next`` of the next level; ``x_weight``, ``x0_weights`` and ``eps_weights`` (newest first) of the
            clean estimate; ``band_gains`` of its frequency bands.
        skipped: number of steps that a pipeline counts but skips before the first one, if it starts from an image.
        prediction_type: what the network predicts, as in diffusers.
        sigma_data: ``sigma_data`` of EDM's preconditioning, if the network has it.
        score: whether the network predicts the score, ``-eps / sigma``.
        reverse_output: whether the network's output has the opposite sign.
        init_noise_sigma: standard deviation of the first sample.
        num_train_timesteps: number of training timesteps of the schedule.
        refusal: why a scheduler cannot take the student's steps; empty if it can.
        process: decision process of the student, for ``ReDiFPipeline``.
        trained_with: if the student was trained in a pipeline: ``pipeline`` (its class), ``base_model`` (hub id),
            ``task`` (the hub's name for it), ``arguments`` of its call, ``loras`` (names), ``networks`` (digests of
            their weights), ``sample_shape``, and ``scheduler`` and ``scheduler_class`` of the pipeline, whose config
            pipelines read.
    """

    order = 1

    @register_to_config
    def __init__(
        self,
        steps=(),
        skipped=0,
        prediction_type="epsilon",
        sigma_data=None,
        score=False,
        reverse_output=False,
        init_noise_sigma=1.0,
        num_train_timesteps=1000,
        refusal="",
        process=None,
        trained_with=None,
    ):
        self.init_noise_sigma = init_noise_sigma
        sigmas = [step["sigma"] for step in steps] + [step["sigma_next"] for step in steps[-1:]]
        self.timesteps = torch.empty(0, dtype=torch.float32, device="cpu")
        self.sigmas = torch.tensor(sigmas, dtype=torch.float32, device="cpu")
        self._index, self._past = None, []

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, subfolder=None, **options):
        """Load the scheduler from a student's folder, from its own folder, or from a hub id."""
        pretrained_model_name_or_path = os.path.expanduser(pretrained_model_name_or_path)
        if subfolder is None:
            own = os.path.isfile(os.path.join(pretrained_model_name_or_path, cls.config_name))
            subfolder = "" if own else "scheduler"
        return super().from_pretrained(pretrained_model_name_or_path, subfolder=subfolder, **options)

    @property
    def config(self):
        """Its own config, together with that of the pipeline's scheduler, which pipelines read."""
        own = self._internal_dict
        return FrozenDict({**((own.get("trained_with") or {}).get("scheduler") or {}), **own})

    @property
    def arguments(self):
        """Arguments of the pipeline's call that the student was trained with."""
        return dict((self.config.trained_with or {}).get("arguments") or {})

    @property
    def num_inference_steps(self):
        """The value of this argument for calls of a pipeline."""
        return len(self.config.steps) + self.config.skipped

    def check(self, pipe, **arguments):
        """Warn of every difference between a pipeline and its call, and those that the student was trained with.

        Args:
            pipe: the pipeline that will use this scheduler.
            arguments: arguments of the coming call; the call's defaults for the others.

        Returns:
            The differences, one sentence each.
        """
        trained, found = self.config.trained_with or {}, []
        if trained.get("pipeline") not in (None, type(pipe).__name__):
            found.append(f"trained in a {trained['pipeline']}, used in a {type(pipe).__name__}")
        defaults = inspect.signature(type(pipe).__call__).parameters
        for name, value in self.arguments.items():
            given = arguments.get(name, defaults[name].default if name in defaults else value)
            if given != value:
                found.append(f"trained with {name}={value}, used with {name}={given}")
        if trained.get("loras", []) != loras_of(pipe):
            found.append(f"trained with LoRAs {trained.get('loras')}, used with {loras_of(pipe)}")
        for name, digest in (trained.get("networks") or {}).items():
            network = getattr(pipe, name, None)
            if network is None or weights_digest(network) not in (digest, None):
                found.append(f"trained with other weights of {name}, or in another precision")
        if found:
            warnings.warn(
                f"this pipeline is not the one that the student was trained in: {'; '.join(found)}", stacklevel=2
            )
        return found

    def set_timesteps(self, num_inference_steps=None, device=None, sigmas=None, mu=None, timesteps=None):
        """Start a run and set ``timesteps`` ``(n,)`` float32, the network's timestep at each step.

        The levels are learned: only the number of ``sigmas`` or ``timesteps`` is used, and ``mu`` is ignored.

        Raises:
            ValueError: if the student has another number of steps, or a scheduler cannot take its steps.
        """
        if self.config.refusal:
            raise ValueError(self.config.refusal)
        learned, own = len(self.config.steps), self.num_inference_steps
        given = next((len(values) for values in (sigmas, timesteps) if values is not None), num_inference_steps)
        if given not in (None, own):
            counted = f" (and a pipeline counts {own}, since it begins from an image)" if own > learned else ""
            raise ValueError(
                f"num_inference_steps={given}, but this student has learned {learned} steps{counted}: pass "
                f"num_inference_steps={own}"
            )
        own_timesteps = [step["timestep"] for step in self.config.steps]
        skipped = own_timesteps[:1] * self.config.skipped
        self.timesteps = torch.tensor(skipped + own_timesteps, dtype=torch.float32, device=device or "cpu")
        self._index, self._past = None, []

    def set_begin_index(self, begin_index=0):
        """Start at step ``begin_index``, for pipelines that start from an image.

        Raises:
            ValueError: if that step uses predictions of the steps before it, or there is no such step.
        """
        if begin_index != int(begin_index):
            raise ValueError(f"begin_index must be a whole number, got {begin_index}")
        self._start_at(int(begin_index) - self.config.skipped if begin_index else 0)

    def scale_model_input(self, sample, timestep=None):
        """The network's input for ``sample`` ``(B, *S)`` at the next step."""
        config = self.config
        if config.sigma_data is None:
            return sample
        return sample / (config.steps[self._place(timestep)]["sigma"] ** 2 + config.sigma_data**2) ** 0.5

    def add_noise(self, original_samples, noise, timesteps):
        """``alpha * original_samples + sigma * noise`` at the level of the step whose timestep is given first."""
        given, start = _one(timesteps), self._index or 0
        step = next((step for step in self.config.steps[start:] if _same(step["timestep"], given)), None)
        if step is None:
            self._refuse(given)
        return step["alpha"] * original_samples + step["sigma"] * noise

    def scale_noise(self, sample, timestep=None, noise=None):
        """As :meth:`add_noise`."""
        return self.add_noise(sample, noise, timestep)

    def step(
        self, model_output, timestep, sample, generator=None, return_dict=True, eta=0.0, use_clipped_model_output=None
    ):
        """The next sample ``(B, *S)``.

        Args:
            model_output: the network's output at ``sample``, both ``(B, *S)``.
            timestep: the network's timestep, one of ``timesteps``; the first one decides where the run starts.
            generator: unused, the steps are deterministic.
            return_dict: whether to return an object with ``prev_sample``, or a tuple.
            eta, use_clipped_model_output: arguments of ``DDIMPipeline``, which are not supported.

        Raises:
            ValueError: if ``set_timesteps`` was not called, the run is over, ``timestep`` is not the next one, or
                ``eta`` or ``use_clipped_model_output`` is given.
        """
        if eta or use_clipped_model_output:
            raise ValueError(
                f"eta={eta!r} and use_clipped_model_output={use_clipped_model_output!r} belong to DDIM's steps: a "
                "student's are deterministic, leave them out"
            )
        index = self._place(timestep)
        step, x = self.config.steps[index], sample if sample.dtype == torch.float64 else sample.float()
        if not self._past:
            self._check_shape(sample)
        if model_output.shape[1] != sample.shape[1]:  # a variance beside the prediction
            model_output = model_output[:, : sample.shape[1]]
        self._past.insert(0, self._read(model_output.to(x.dtype), x, step["alpha"], step["sigma"]))
        moved = take_step(step, x, *zip(*self._past, strict=True)).to(sample.dtype)
        self._index = index + 1
        return SchedulerOutput(prev_sample=moved) if return_dict else (moved,)

    def __len__(self):
        return self.config.num_train_timesteps

    def _start_at(self, index):
        steps = self.config.steps
        if not 0 <= index < len(steps):
            raise ValueError(
                f"begin_index must be from {self.config.skipped} to {self.num_inference_steps - 1}, got "
                f"{index + self.config.skipped}"
            )
        for reached, step in enumerate(steps[index:], start=index):
            made = reached - index + 1
            if any(step["x0_weights"][made:]) or any(step["eps_weights"][made:]):
                raise ValueError(
                    f"step {reached + 1} of this student uses predictions of the steps before step {index + 1}, so it "
                    "cannot start there: start from noise (no strength, no begin_index), or train with solver='ddim' "
                    "and action='step'"
                )
        self._index = index

    def _place(self, timestep):
        """The number of the next step.

        Raises:
            ValueError: if ``timestep`` is not its own.
        """
        steps = self.config.steps
        if not len(self.timesteps):
            raise ValueError(f"step() was called before set_timesteps({self.num_inference_steps}): call that first")
        given = None if timestep is None else _one(timestep)
        matching = [index for index, step in enumerate(steps) if given is not None and _same(step["timestep"], given)]
        if self._index is None:
            if given is not None and not matching:
                self._refuse(given)
            self._start_at(matching[0] if matching else 0)
        if self._index == len(steps):
            raise ValueError(f"all {len(steps)} steps were taken: call set_timesteps() to begin the next run")
        if given is not None and self._index not in matching:
            raise ValueError(
                f"timestep {given:g} is not that of step {self._index + 1}, {steps[self._index]['timestep']:g}: steps "
                "are taken in order"
            )
        return self._index

    def _refuse(self, given):
        own = [step["timestep"] for step in self.config.steps]
        raise ValueError(f"timestep {given:g} is none of this student's, which are {own}")

    def _check_shape(self, sample):
        trained, found = (self.config.trained_with or {}).get("sample_shape"), tuple(sample.shape[1:])
        if trained is not None and tuple(trained) != found:
            sizes = {name: value for name, value in self.arguments.items() if name in ("height", "width", "num_frames")}
            warnings.warn(
                f"the student was trained with samples of shape {tuple(trained)} ({sizes or 'the default size'}), and "
                f"this run's have {found}: its steps may not fit",
                stacklevel=3,
            )

    def _read(self, output, x, alpha, sigma):
        """Clean estimate and noise of a network's output."""
        config = self.config
        if config.reverse_output:
            output = -output
        if config.score:
            output = -sigma * output
        if config.sigma_data is not None:
            data, kind = config.sigma_data, config.prediction_type
            total = sigma**2 + data**2
            out = sigma * data / total**0.5 * (-1 if kind == "v_prediction" else 1)
            return data**2 / total * x + out * output, sigma / total * x - out / sigma * output
        if config.prediction_type == "epsilon":
            return (x - sigma * output) / alpha, output
        if config.prediction_type == "sample":
            return output, (x - alpha * output) / sigma
        if config.prediction_type == "flow_prediction":
            return (x - sigma * output) / (alpha + sigma), (x + alpha * output) / (alpha + sigma)
        return alpha * x - sigma * output, alpha * output + sigma * x


def take_step(step, x, x0s, epss, bands=True):
    """The next sample ``(B, *S)``, by the numbers of a step alone.

    Args:
        step: the numbers, as in :class:`ReDiFScheduler`.
        x: sample ``(B, *S)`` at the step's level.
        x0s, epss: predictions so far, each ``(B, *S)``, the newest first; there may be fewer than weights, whose others
            are 0.
        bands: whether to use the band gains.
    """
    x0 = step["x_weight"] * x
    for weights, past in ((step["x0_weights"], x0s), (step["eps_weights"], epss)):
        for weight, prediction in zip(weights, past, strict=False):
            if weight:
                x0 = x0 + weight * prediction
    if bands and step["band_gains"] and x.ndim == 4:
        x0 = x0 + _weighted_bands(x0, step["band_gains"])
    ratio = step["sigma_next"] / step["sigma"]
    return ratio * x + (step["alpha_next"] - ratio * step["alpha"]) * x0


def _weighted_bands(images, gains):
    """The sum of the frequency bands of images ``(B, C, H, W)``, each times its gain: rings of the Fourier plane."""
    height, width = images.shape[-2:]
    vertical = torch.fft.fftfreq(height, device=images.device).abs()[:, None]
    radius = torch.maximum(vertical, torch.fft.rfftfreq(width, device=images.device)[None]) / 0.5
    ring = (torch.ceil(radius * len(gains)) - 1).clamp(0, len(gains) - 1).long()
    weights = torch.tensor(gains, dtype=torch.float32, device=images.device)[ring]
    return torch.fft.irfft2(weights * torch.fft.rfft2(images.float()), s=(height, width)).to(images.dtype)


def loras_of(pipe):
    """Names of the LoRAs that a pipeline's networks have now, fused ones too."""
    fused = set(getattr(pipe, "fused_loras", ()))
    try:
        listed = pipe.get_list_adapters()
    except (AttributeError, ValueError):  # the pipeline takes none, or what loads them is not installed
        listed = {}
    return sorted(fused.union(*listed.values()))


def weights_digest(network):
    """SHA-256 of a network's names, shapes and some numbers of each tensor; None if the weights are not at hand."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        if tensor.is_meta:
            return None
        flat = tensor.detach().flatten()
        part = (
            flat[:: max(1, len(flat) // SAMPLED)][:SAMPLED].cpu().double() if tensor.is_floating_point() else flat[:0]
        )
        digest.update(f"{name}{tuple(tensor.shape)}{part.tolist()}".encode())
    return digest.hexdigest()


def _one(timesteps):
    """The timestep that all samples of a batch have.

    Raises:
        ValueError: if they differ.
    """
    given = set(torch.as_tensor(timesteps).flatten().tolist())
    if len(given) != 1:
        raise ValueError(f"timestep must be one for all samples of a batch, got {sorted(given)}")
    return float(given.pop())


def _same(timestep, given):
    return abs(timestep - given) <= NEAR * (1 + abs(timestep))
