"""A student's steps as a diffusers scheduler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from diffusers import ConfigMixin, DiffusionPipeline, ModelMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

from redif_env.diffusion.grids import GRIDS
from redif_env.diffusion.noise_schedulers import read_scheduler, scheduler_config
from redif_env.diffusion.placement import HOST, place
from redif_env.diffusion.predictions import PLAIN
from redif_env.diffusion.solvers import SOLVERS, Solver
from redif_env.diffusion.types import Level
from redif_env.fitted.initial_maps import LinearInitialMap
from redif_env.fitted.linear_solver import LinearSolver
from redif_env.mdp.observations import OBSERVATIONS
from redif_env.mdp.process import DenoisingMDP
from redif_env.mdp.settings import (
    DEFAULT_GRID,
    DEFAULT_SOLVER,
    LINEAR,
    action_entry,
    action_map_of,
    look_up,
    name_of,
    solver_name,
)
from redif_env.students.export.steps import Step, steps_of, take_step
from redif_env.teachers.components import decoder_of, encode_prompts
from redif_env.teachers.conditions import Conditions, ConditionsLike
from redif_env.teachers.networks import call_by_name, conditions_of, shape_of
from redif_env.teachers.teacher import Teacher

REMEDY = "give both as they were saved"
NEAR = 1e-3
"""Share of a timestep by which another may differ and be the same: pipelines round them to their type."""


class ReDiFScheduler(SchedulerMixin, ConfigMixin):
    """The learned steps, in the form that any diffusers pipeline takes: ``set_timesteps``, then ``step`` by ``step``.

    On its own a scheduler cannot look at the state, so ``step`` takes the policy's mean action at each step;
    ``ReDiFPipeline`` lets the policy decide. Like other schedulers it remembers the run it is
    in: a run starts at the step whose timestep it is given first, and goes on in order. An action map of one's own is
    imported only if ``allow_imports`` is set to true.

    Args:
        trained_betas, num_train_timesteps, prediction_type: the teacher's schedule and what its network predicts, where
            it is variance-preserving.
        noise: config of the diffusers scheduler that has them, where it is not.
        num_steps: steps, and so predictions, a sample.
        solver, grid, action, observation, min_steps, prices: the decision process, by the names of ``gym.make``.
        actions: ``(num_steps, A)``, the mean action of each step; None where the policy decides how many there are.
        learn_guidance: whether the guidance scale is decided.
        conditions: ``values`` (class labels or prompts), ``weights`` and ``null_label`` of the teacher's conditions.
        guidance_scale: of classifier-free guidance.
        teacher: the teacher's name, for messages.
        own_network: whether the network is the student's own, and not the teacher's.
        linear_initial_map: whether an initial map replaces the first steps; a pipeline holds it, a scheduler cannot.
        bounds: range of the data, to which pipelines clip finished samples; None if they have none.
    """

    order = 1

    @register_to_config
    def __init__(
        self,
        trained_betas: Sequence[float] | None = None,
        num_train_timesteps: int = 1000,
        prediction_type: str = "epsilon",
        num_steps: int = 4,
        solver: str = DEFAULT_SOLVER,
        grid: str = DEFAULT_GRID,
        action: str | Mapping[str, Any] = "solver",
        observation: str = "features",
        min_steps: int | None = None,
        prices: Sequence[float] | None = None,
        actions: Sequence[Sequence[float]] | None = None,
        noise: Mapping[str, Any] | None = None,
        learn_guidance: bool = False,
        conditions: Mapping[str, Any] | None = None,
        guidance_scale: float | None = None,
        teacher: str = "teacher",
        own_network: bool = False,
        linear_initial_map: bool = False,
        bounds: Sequence[float] | None = None,
    ) -> None:
        self.parameterization = read_scheduler(noise or self.config, teacher)
        self.schedule = self.parameterization.schedule
        self.allow_imports = False
        self.timesteps = torch.empty(0, device=HOST)
        self._steps: list[Step] = []
        self._index: int | None = None
        self._x0s: list[Tensor] = []
        self._epss: list[Tensor] = []

    @classmethod
    def of(cls, mdp: DenoisingMDP, actions: Tensor | None) -> ReDiFScheduler:
        """The scheduler of a decision process, and of the mean action of each of its steps.

        Raises:
            ValueError: if the process uses a solver, grid, action map or observation that has no name.
            TypeError: if no diffusers scheduler has its schedule.
        """
        noise = scheduler_config(mdp.teacher.parameterization)
        preserving = noise["_class_name"] == "DDPMScheduler"
        settings = (
            {key: value for key, value in noise.items() if key != "_class_name"} if preserving else {"noise": noise}
        )
        scheduler = cls(
            **settings,
            num_steps=mdp.num_steps,
            solver=solver_name(mdp.solver),
            grid=name_of(mdp.grid, GRIDS),
            action=action_entry(mdp.action_map),
            observation=name_of(mdp.observation, OBSERVATIONS),
            min_steps=mdp.min_steps,
            prices=None if mdp.prices is None else list(mdp.prices),
            actions=None if actions is None else actions.tolist(),
            learn_guidance=mdp.learn_guidance,
            conditions=_described(mdp.teacher.conditions),
            guidance_scale=mdp.teacher.guidance_scale,
            teacher=mdp.teacher.name,
            own_network=mdp.teacher.own_network,
            linear_initial_map=mdp.initial_map is not None,
            bounds=None if mdp.teacher.bounds is None else list(mdp.teacher.bounds),
        )
        scheduler.allow_imports = True  # what it would import is here already
        return scheduler

    def decision_process(
        self,
        network: ModelMixin,
        device: torch.device,
        source: DiffusionPipeline | None = None,
        initial_map: LinearInitialMap | None = None,
        linear: LinearSolver | None = None,
    ) -> DenoisingMDP:
        """The process on ``device``, with ``network`` called at each step.

        Args:
            network: the student's.
            device: where the process runs.
            source: the stock pipeline that decodes its latents and encodes its prompts, if it needs one.
            initial_map: what noise is mapped to first, if it was trained so.
            linear: the steps of its base solver, if that is linear.

        Raises:
            ValueError: if the initial map or the linear steps are missing, or are not the student's.
        """
        if (self.config.solver == LINEAR) != (linear is not None):
            raise ValueError(f"linear is {linear}, but the scheduler has solver={self.config.solver!r}: {REMEDY}")
        if self.config.linear_initial_map != (initial_map is not None):
            raise ValueError(
                f"initial_map is {initial_map}, but the scheduler has "
                f"linear_initial_map={self.config.linear_initial_map}: {REMEDY}"
            )
        solver = linear or look_up("solver", self.config.solver, SOLVERS)
        return replace(
            self._mdp(self.teacher(network, device, source, self._requested()), solver), initial_map=initial_map
        )

    def teacher(
        self,
        network: ModelMixin,
        device: torch.device,
        source: DiffusionPipeline | None,
        requested: ConditionsLike | None,
    ) -> Teacher:
        """``network`` as a teacher with the conditions ``requested``."""
        name, config = self.config.teacher, {**network.config, "_class_name": type(network).__name__}
        shape = shape_of(config, name)
        described = self.config.conditions or {}
        conditions = conditions_of(config, name, requested, described.get("null_label"))
        if conditions is None:
            assert source is not None
            assert requested is not None
            conditions = encode_prompts(source, requested)
        return Teacher(
            network,
            self.schedule,
            shape,
            self.parameterization.prediction_type,
            name,
            preconditioning=self.parameterization.preconditioning,
            conditions=conditions,
            guidance_scale=self.config.guidance_scale,
            call=call_by_name,
            decoder=decoder_of(source, shape),
            source=source,
            bounds=self.config.bounds,
            own_network=self.config.own_network,
        )

    def _requested(self) -> ConditionsLike | None:
        described = self.config.conditions
        if described is None:
            return None
        values, weights = described["values"], described["weights"]
        return list(values) if weights is None else dict(zip(values, weights, strict=True))

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the initial sample."""
        grid = look_up("grid", self.config.grid, GRIDS)
        first = grid.half_logsnr(torch.zeros(1, dtype=torch.float64, device=HOST), self.schedule)
        return float(self.schedule.size(first))

    @property
    def num_inference_steps(self) -> int:
        """Network calls a sample."""
        return int(self.config.num_steps)

    def set_timesteps(self, num_inference_steps: int | None = None, device: str | torch.device | None = None) -> None:
        """Start a run: ``timesteps`` ``(num_steps,)`` float32 are the conditioning timesteps.

        Raises:
            ValueError: if ``num_inference_steps`` is not the number of steps that were learned, or there is no such;
                or if the student has a linear initial map or linear steps, which a scheduler cannot hold.
        """
        if self.config.solver == LINEAR:
            raise ValueError(
                "this student steps with matrices (solver='linear'), which no scheduler holds: use ReDiFPipeline or "
                "Student"
            )
        if self.config.linear_initial_map:
            raise ValueError(
                "this student maps its noise first (linear_initial_map=True), which no pipeline does for a scheduler: "
                "use ReDiFPipeline or Student"
            )
        if num_inference_steps not in (None, self.config.num_steps):
            raise ValueError(
                f"num_inference_steps={num_inference_steps}, but this student has learned {self.config.num_steps} "
                f"steps: pass num_inference_steps={self.config.num_steps}"
            )
        if not self._steps:  # they are the same for every run
            process = self._mdp(self._probe(), look_up("solver", self.config.solver, SOLVERS))
            actions = torch.tensor(self.config.actions or [], dtype=torch.float64, device=HOST)
            self._steps = steps_of(process, actions)
        timesteps = [step.timestep for step in self._steps]
        self.timesteps = torch.tensor(timesteps, dtype=torch.float32, device=device or HOST)
        self._x0s, self._epss, self._index = [], [], None

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start at step ``begin_index``, as pipelines that begin from a picture say it.

        Raises:
            ValueError: if that step uses predictions of the steps before it, or there is no such step.
        """
        self._start_at(begin_index)

    def _start_at(self, index: int) -> None:
        if not 0 <= index < len(self._steps):
            raise ValueError(f"begin_index must be from 0 to {len(self._steps) - 1}, got {index}")
        for reached in range(index, len(self._steps)):
            made = reached - index + 1
            step = self._steps[reached]
            if any(step.x0_weights[made:]) or any(step.eps_weights[made:]):
                raise ValueError(
                    f"step {reached + 1} of this student uses predictions of the steps before step {index + 1}, so it "
                    "cannot start there: start from noise (no strength, no begin_index), or train with solver='ddim' "
                    "and action='step'"
                )
        self._index = index

    def _place(self, timestep: Tensor | float | None) -> int:
        """The number of the next step.

        Raises:
            ValueError: if ``timestep`` is not its own.
        """
        if not self._steps:
            raise ValueError(f"step() was called before set_timesteps({self.config.num_steps}): call that first")
        timesteps = [step.timestep for step in self._steps]
        given = None if timestep is None else float(torch.as_tensor(timestep).flatten()[0])
        matching = [] if given is None else [i for i, own in enumerate(timesteps) if _same(own, given)]
        if self._index is None:
            if given is not None and not matching:
                raise ValueError(f"timestep {given:g} is none of this student's, which are {timesteps}")
            self._start_at(matching[0] if matching else 0)
        assert self._index is not None
        if self._index == len(self._steps):
            raise ValueError(
                f"all {self.config.num_steps} steps were taken: call set_timesteps() to begin the next run"
            )
        if given is not None and self._index not in matching:
            raise ValueError(
                f"timestep {given:g} is not that of step {self._index + 1}, {timesteps[self._index]:g}: steps are "
                "taken in order"
            )
        return self._index

    def scale_model_input(self, sample: Tensor, timestep: Tensor | float | None = None) -> Tensor:
        """The network's input for ``sample`` ``(B, *S)`` at the next step."""
        if self.parameterization.preconditioning == PLAIN:
            return sample
        return self.parameterization.preconditioning.inputs(sample, self._level(sample, self._place(timestep)))

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
            model_output: the network's output at ``sample``, both ``(B, *S)``.
            timestep: the conditioning timestep, one of ``timesteps``; the first one says where the run starts.
            generator: unused, the steps are deterministic.
            return_dict: whether to return an object with ``prev_sample``, or a tuple.

        Raises:
            ValueError: if ``set_timesteps`` was not called, the run is over, or ``timestep`` is not its next one.
        """
        index = self._place(timestep)
        step = self._steps[index]
        x = sample.float() if sample.dtype in (torch.float16, torch.bfloat16) else sample
        prediction = self.parameterization.preconditioning.read(
            model_output.to(x.dtype), x, self._level(x, index), self.parameterization.prediction_type
        )
        self._x0s.insert(0, prediction.x0)
        self._epss.insert(0, prediction.eps)
        reached = take_step(step, x, self._x0s, self._epss).to(sample.dtype)
        self._index = index + 1
        return SchedulerOutput(prev_sample=reached) if return_dict else (reached,)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """``alpha * original_samples + sigma * noise`` at ``timesteps`` ``(B,)``.

        A timestep of this student's steps stands for the level of the step, any other for its own.
        """
        levels = {step.timestep: step.level_timestep for step in self._steps}
        trained = [
            next((level for own, level in levels.items() if _same(own, given)), given)
            for given in timesteps.flatten().tolist()
        ]
        level = self.schedule.level(self.schedule.half_logsnr(torch.tensor(trained, dtype=torch.float64, device=HOST)))
        return place(level.alpha, noise) * original_samples + place(level.sigma, noise) * noise

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)

    def _level(self, sample: Tensor, index: int) -> Level:
        """The level of step ``index``, a row for each sample."""
        step = self._steps[index]
        scales = torch.tensor([step.alpha, step.sigma], dtype=torch.float64, device=HOST)
        return Level(*scales[:, None].expand(2, len(sample)))

    def _probe(self) -> Teacher:
        """A stand-in for the teacher where no network is called: its schedule, and how many conditions it has."""
        described = self.config.conditions or {"values": ("",)}
        bare = Conditions(tuple(described["values"]), null={})
        return Teacher(
            torch.nn.Identity(), self.schedule, (), conditions=bare, guidance_scale=self.config.guidance_scale
        )

    def _mdp(self, teacher: Teacher, solver: Solver) -> DenoisingMDP:
        config = self.config
        return DenoisingMDP(
            teacher=teacher,
            solver=solver,
            grid=look_up("grid", config.grid, GRIDS),
            num_steps=config.num_steps,
            action_map=action_map_of(config.action, self.allow_imports),
            observation=look_up("observation", config.observation, OBSERVATIONS),
            min_steps=config.min_steps,
            prices=None if config.prices is None else (config.prices[0], config.prices[1]),
            learn_guidance=config.learn_guidance,
        )


def _same(timestep: float, given: float) -> bool:
    return abs(timestep - given) <= NEAR * (1 + abs(timestep))


def _described(conditions: Conditions) -> dict[str, Any] | None:
    """Conditions as JSON values; None where there are none."""
    if not conditions.inputs:
        return None
    null = (conditions.null or {}).get("class_labels")
    return {
        "values": list(conditions.values),
        "weights": None if conditions.weights is None else conditions.weights.tolist(),
        "null_label": None if null is None else int(null),
    }
