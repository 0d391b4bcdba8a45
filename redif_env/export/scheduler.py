"""A student's steps as a diffusers scheduler."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import ConfigMixin, ModelMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

from redif_env.actions import ACTION_MAPS
from redif_env.export.steps import Step, steps_of, take_step
from redif_env.grids import GRIDS
from redif_env.mdp import DenoisingMDP
from redif_env.observations import OBSERVATIONS
from redif_env.pipelines import sample_shape_of, schedule_of, scheduler_settings
from redif_env.predictions import read_output
from redif_env.settings import DEFAULT_GRID, DEFAULT_SOLVER, look_up, name_of
from redif_env.solvers import SOLVERS
from redif_env.teachers import Teacher
from redif_env.types import Level, PredictionType, expand


class ReDiFScheduler(SchedulerMixin, ConfigMixin):
    """The learned steps, in the form that any diffusers pipeline takes: ``set_timesteps``, then ``step`` by ``step``.

    On its own a scheduler cannot look at the state, so ``step`` takes the policy's mean action at each step;
    :class:`~redif_env.export.ReDiFPipeline` lets the policy decide. Like other schedulers it remembers the run it is
    in: steps are taken in order, from the first.

    Args:
        trained_betas, num_train_timesteps, prediction_type: the teacher's schedule and what its network predicts.
        num_steps: network calls a sample.
        solver, grid, action, observation, min_steps, prices: the decision process, by the names of ``gym.make``.
        actions: ``(num_steps, A)``, the mean action of each step; None where the policy decides how many there are.
        teacher: the teacher's name, for messages.
    """

    order = 1

    @register_to_config
    def __init__(
        self,
        trained_betas: Sequence[float],
        num_train_timesteps: int = 1000,
        prediction_type: str = "epsilon",
        num_steps: int = 4,
        solver: str = DEFAULT_SOLVER,
        grid: str = DEFAULT_GRID,
        action: str = "solver",
        observation: str = "features",
        min_steps: int | None = None,
        prices: Sequence[float] | None = None,
        actions: Sequence[Sequence[float]] | None = None,
        teacher: str = "teacher",
    ) -> None:
        self.schedule = schedule_of(self.config, teacher)
        self.timesteps = torch.empty(0)
        self._steps: list[Step] = []
        self._x0s: list[Tensor] = []
        self._epss: list[Tensor] = []

    @classmethod
    def of(cls, mdp: DenoisingMDP, actions: Tensor | None) -> ReDiFScheduler:
        """The scheduler of a decision process, and of the mean action of each of its steps.

        Raises:
            ValueError: if the process uses a solver, grid, action map or observation that has no name.
            TypeError: if its schedule is not variance-preserving.
        """
        return cls(
            **scheduler_settings(mdp.teacher.schedule, mdp.teacher.prediction_type),
            num_steps=mdp.num_steps,
            solver=name_of(mdp.solver, SOLVERS),
            grid=name_of(mdp.grid, GRIDS),
            action=name_of(mdp.action_map, ACTION_MAPS),
            observation=name_of(mdp.observation, OBSERVATIONS),
            min_steps=mdp.min_steps,
            prices=None if mdp.prices is None else list(mdp.prices),
            actions=None if actions is None else actions.tolist(),
            teacher=mdp.teacher.name,
        )

    def decision_process(self, network: ModelMixin, device: torch.device) -> DenoisingMDP:
        """The process on ``device``, with ``network`` called at each step."""
        return self._mdp(
            Teacher(
                network,
                self.schedule.to(device),
                sample_shape_of(network, self.config.teacher),
                PredictionType(self.config.prediction_type),
                self.config.teacher,
            )
        )

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the initial sample."""
        return self.schedule.init_noise_sigma

    @property
    def num_inference_steps(self) -> int:
        """Network calls a sample."""
        return int(self.config.num_steps)

    def set_timesteps(self, num_inference_steps: int | None = None, device: str | torch.device | None = None) -> None:
        """Begin a run: ``timesteps`` ``(num_steps,)`` float32 is what the network is to be told.

        Raises:
            ValueError: if ``num_inference_steps`` is not the number of steps that were learned, or there is no such.
        """
        if num_inference_steps not in (None, self.config.num_steps):
            raise ValueError(
                f"num_inference_steps={num_inference_steps}, but this student has learned {self.config.num_steps} "
                f"steps: pass num_inference_steps={self.config.num_steps}"
            )
        if not self._steps:  # they are the same for every run
            process = self._mdp(Teacher(torch.nn.Identity(), self.schedule, ()))
            self._steps = steps_of(process, torch.tensor(self.config.actions or []))
        self.timesteps = torch.tensor([step.timestep for step in self._steps], device=device)
        self._x0s, self._epss = [], []

    def scale_model_input(self, sample: Tensor, timestep: Tensor | float | None = None) -> Tensor:
        """``sample`` as it is: variance-preserving networks take their input unscaled."""
        return sample

    def step(
        self,
        model_output: Tensor,
        timestep: Tensor | float,
        sample: Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor]:
        """The next sample ``(B, *S)``.

        Args:
            model_output: the network's answer at ``sample``, both ``(B, *S)``.
            timestep: what it was told; the order of steps is this object's own.
            generator: unused, the steps are deterministic.
            return_dict: whether to return an object with ``prev_sample``, or a tuple.

        Raises:
            ValueError: if no run was begun, or it is over.
        """
        if not self._steps:
            raise ValueError(f"step() was called before set_timesteps({self.config.num_steps}): call that first")
        if len(self._x0s) == len(self._steps):
            raise ValueError(
                f"all {self.config.num_steps} steps were taken: call set_timesteps() to begin the next run"
            )
        step = self._steps[len(self._x0s)]
        x = sample.float() if sample.dtype in (torch.float16, torch.bfloat16) else sample
        level = Level(*torch.tensor([[step.alpha], [step.sigma]], dtype=torch.float64, device=x.device))
        answer = read_output(model_output.to(x.dtype), x, level, PredictionType(self.config.prediction_type))
        self._x0s.insert(0, answer.x0)
        self._epss.insert(0, answer.eps)
        reached = take_step(step, x, self._x0s, self._epss).to(sample.dtype)
        return SchedulerOutput(prev_sample=reached) if return_dict else (reached,)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """``alpha * original_samples + sigma * noise`` at training ``timesteps`` ``(B,)``."""
        schedule = self.schedule.to(original_samples.device)
        level = schedule.level(schedule.half_logsnr(timesteps.to(original_samples.device)))
        alpha, sigma = (expand(scale, noise).to(noise.dtype) for scale in (level.alpha, level.sigma))
        return alpha * original_samples + sigma * noise

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)

    def _mdp(self, teacher: Teacher) -> DenoisingMDP:
        config = self.config
        return DenoisingMDP(
            teacher=teacher,
            solver=look_up("solver", config.solver, SOLVERS),
            grid=look_up("grid", config.grid, GRIDS),
            num_steps=config.num_steps,
            action_map=look_up("action", config.action, ACTION_MAPS),
            observation=look_up("observation", config.observation, OBSERVATIONS),
            min_steps=config.min_steps,
            prices=None if config.prices is None else (config.prices[0], config.prices[1]),
        )
