"""The student: a few-step sampler that needs neither an environment nor an RL library."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from redif_env.diffusion.placement import HOST, full_precision
from redif_env.diffusion.types import State
from redif_env.mdp.policies import Policy
from redif_env.mdp.process import DenoisingMDP
from redif_env.mdp.sampling import trajectory
from redif_env.mdp.settings import parse_device
from redif_env.storage.checks import check_argument, check_at_least
from redif_env.students.agents import student_of_agent
from redif_env.students.record import Record
from redif_env.teachers.references import VALIDATION_SEED, draw_starts
from redif_env.teachers.teacher import PipelineTeacher

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.vec_env import VecEnv
    from torch.export import ExportedProgram

    from redif_env.students.export import ReDiFPipeline
    from redif_env.students.export.steps import Step

MEAN_OVER = 128
"""Number of noises over which mean actions are averaged."""


class Student:
    """A few-step sampler: a diffusion network and a trained policy that chooses the steps.

    Args:
        mdp: the decision process that the policy was trained in.
        policy: a function from batched observations to batched actions.
        record: metadata of training and evaluation.

    Raises:
        ValueError: if the sizes of ``policy`` do not match ``mdp``.
    """

    def __init__(self, mdp: DenoisingMDP, policy: Policy, record: Record | None = None) -> None:
        check_argument("mdp", mdp, DenoisingMDP)
        check_argument("policy", policy, Policy)
        check_argument("record", record, Record | None)
        expected = (mdp.observation_size, mdp.action_size)
        if (policy.config.sizes[0], policy.config.sizes[-1]) != expected:
            raise ValueError(
                f"policy maps {policy.config.sizes}, but the decision process needs (observation, action) {expected}"
            )
        self.mdp = mdp
        self.policy = policy.to(HOST).eval().requires_grad_(False)
        self.record = record or Record()

    @property
    def network(self) -> nn.Module:
        """The diffusion network, evaluated ``num_steps`` times per sample."""
        return self.mdp.teacher.network

    @property
    def num_steps(self) -> int:
        """Number of steps per sample, or the largest number if the policy chooses it."""
        return self.mdp.num_steps

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape S of one sample."""
        return self.mdp.teacher.sample_shape

    @property
    def fixed(self) -> bool:
        """Whether all samples take the same steps, because the policy only depends on the number of steps left."""
        return not self.mdp.adaptive and self.policy.table(self.num_steps) is not None

    @torch.inference_mode()
    def __call__(
        self,
        num_samples: int | None = None,
        *,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        price: float | None = None,
        condition: int | str | Sequence[int] | Sequence[str] | None = None,
        seed: int | None = None,
    ) -> Tensor:
        """Draw samples ``(num_samples, *S)``, clipped to the bounds of the data if they have any; latents are decoded.

        Args:
            num_samples: number of samples; required unless ``noise`` is given.
            generator: generator of the initial noise; torch's default if None.
            noise: standard normal ``(N, *S)`` to use instead.
            price: price of a network call, for students trained with prices. A higher price gives fewer calls. The
                lowest price of training if None.
            condition: class label or prompt of training, one for all or one per sample; drawn as in training if None.
            seed: seed of a generator on the CPU, instead of ``generator``.

        Raises:
            ValueError: if not exactly one of ``num_samples`` and ``noise`` is given, or an argument is invalid.
        """
        check_argument("price", price, float | None)
        generator = _seeded(generator, seed)
        noise = self._initial_noise(num_samples, generator, noise)
        conditions = self.mdp.teacher.conditions
        if condition is None:
            rows = conditions.draw(len(noise), torch.default_generator if generator is None else generator)
        else:
            rows = conditions.rows_of(condition, len(noise))
        return self.mdp.teacher.images(self.trajectory(noise, price, rows)[-1].x)

    def to(self, device: str | torch.device) -> Student:
        """Move this student to a device. Its network is copied, so environments that use the network are not affected.

        Raises:
            ValueError: if this machine has no such device, or the network belongs to a pipeline.
        """
        self.mdp = replace(self.mdp, teacher=self.mdp.teacher.on(parse_device(device)))
        return self

    @torch.no_grad()
    def trajectory(self, noise: Tensor, price: float | None = None, condition: Tensor | None = None) -> list[State]:
        """The state after each step from ``noise`` ``(N, *S)``. The last state holds the clean samples before clipping.

        ``nfe`` of the last state is the number of network calls of each sample. ``condition`` ``(N,)`` holds indices of
        the teacher's conditions; the first if None.
        """
        prices = self.mdp.constant_price(len(noise), price)
        with full_precision(noise.device):
            return list(trajectory(self.mdp, self.policy, noise, prices, condition))

    @cached_property
    def mean_actions(self) -> Tensor | None:
        """The policy's mean action at each step ``(num_steps, A)`` over 128 noises.

        None if the policy chooses the number of steps.
        """
        if self.mdp.adaptive:
            return None
        table = self.policy.table(self.num_steps)
        if table is not None:
            return table
        drawn = draw_starts(self.mdp.teacher, MEAN_OVER, VALIDATION_SEED)
        noise, condition = drawn[0].to(self.mdp.teacher.device), drawn[1]
        actions: list[Tensor] = []

        def recorded(observation: Tensor) -> Tensor:
            action = self.policy(observation)
            actions.append(action.mean(dim=0))
            return action

        with torch.no_grad():
            list(trajectory(self.mdp, recorded, noise, self.mdp.constant_price(len(noise)), condition))
        return torch.stack(actions)

    def frozen(self) -> Student:
        """A student that takes the policy's mean action at each step, whatever the state, as fixed-step exports do.

        Raises:
            ValueError: if this student chooses its number of steps.
        """
        if self.mean_actions is None:
            raise ValueError(
                f"student chooses its number of steps ({self.mdp.min_steps} to {self.num_steps}), so it has no mean "
                "actions: use the student itself"
            )
        policy = Policy.from_table(self.mean_actions, self.mdp.observation_size)
        return Student(self.mdp, policy, self.record)

    def steps(self) -> list[Step]:
        """The mean steps as plain numbers (``export.steps``). They start from the sample of ``mdp.initial_sample``.

        Raises:
            ValueError: if this student chooses its number of steps.
        """
        from redif_env.students.export.steps import steps_of

        actions = self.frozen().mean_actions
        assert actions is not None
        return steps_of(self.mdp, actions)

    def trace(self, batch_size: int) -> ExportedProgram:
        """Export all steps as one ``torch.export`` program, from noise ``(batch_size, *S)`` to samples.

        Raises:
            ValueError: if this student chooses its number of steps.
        """
        from redif_env.students.export.program import trace

        return trace(self.mdp, self.policy, batch_size)

    def write_onnx(self, path: str | Path, batch_size: int) -> None:
        """Write all steps as one ONNX file: input ``noise`` ``(batch_size, *S)``, output ``samples``.

        Raises:
            ImportError: without the extra ``redif-env[onnx]``.
            ValueError: if this student chooses its number of steps.
        """
        from redif_env.students.export.program import write_onnx

        write_onnx(self.mdp, self.policy, batch_size, Path(path))

    def pipeline(self) -> ReDiFPipeline:
        """This student as a diffusers pipeline; the network is shared.

        Raises:
            ValueError: if a part of the decision process cannot be written to a file.
            TypeError: if the network is not a diffusers model.
        """
        from redif_env.students.export import ReDiFPipeline

        policy = None if self.fixed else self.policy
        return ReDiFPipeline.of_process(self.mdp, policy, self.mean_actions, self.record)

    @classmethod
    def from_agent(cls, agent: BaseAlgorithm, env: VecEnv | None = None) -> Student:
        """Make the student of a trained Stable-Baselines3 agent. Using the student does not need SB3.

        Args:
            agent: PPO, A2C, SAC or TD3 with ``MlpPolicy``, or an agent with a :class:`~redif_env.sb3.StudentPolicy`,
                whose network becomes the student's.
            env: the environment of training, if the agent was loaded without it.

        Raises:
            ValueError: if there is no environment, it is not a ReDiF environment, or the policy is not supported.
        """
        return student_of_agent(agent, env)

    @classmethod
    def from_policy(
        cls,
        policy: Any,
        env: Any,
        *,
        activation: str | None = None,
        squash: bool | None = None,
        decide: Callable[[Tensor], Any] | None = None,
        observation: Sequence[Any] | None = None,
        action: Sequence[Any] | None = None,
    ) -> Student:
        """Make the student of a policy that was trained with any library or your own code.

        Gymnasium's affine wrappers around ``env`` become part of the student, and so do ``observation`` and ``action``.
        Then the policy acts for one episode in a copy of ``env``, and each of its actions must be the student's.

        Args:
            policy: a torch module of linear layers with one kind of activation, from observations to actions (if it
                also returns deviations, the means must come first); a list of its linear layers; or a callable from
                observations to actions with a method ``export()`` that returns one of these.
            env: the environment of training with its wrappers: a single or vector environment of Gymnasium, or
                :class:`redif_env.torchrl.ReDiFEnv`.
            activation: activation between the layers of a list: ``"tanh"``, ``"relu"``, ``"silu"``, ``"gelu"`` or
                ``"elu"``.
            squash: whether tanh is applied to the output. By default, true if the module ends in ``Tanh``.
            decide: function that returns the policy's deterministic actions ``(B, A)``, as ``env`` takes them, for
                observations ``(B, F)``, as ``env`` returns them. By default the output of the module or callable.
                Required for a list of layers.
            observation: mean, scale and optionally clip of a normaliser outside of ``env``: the policy's input was
                ``(observation - mean) * scale``, clipped to ``+-clip``.
            action: gain and offset of a scaling outside of ``env``: ``env`` was given ``gain * action + offset``.

        Raises:
            ValueError: if ``env`` is not a ReDiF environment, if a student cannot represent the policy or a wrapper, or
                if the student's actions differ from the policy's.
        """
        from redif_env.envs.between import as_gymnasium
        from redif_env.students.faithful import check_decisions, policy_in, process_of

        env = as_gymnasium(env)
        own, decide = policy_in(policy, env, activation, squash, decide, observation, action)
        student = cls(process_of(env), own)
        check_decisions(student, env, decide)
        return student

    def save_pretrained(self, folder: str | Path) -> None:
        """Save the student as the folder of :meth:`pipeline`: configs, safetensors and a model card, written
        atomically. A student of :meth:`redif_env.Teacher.from_pipeline` is saved without the pipeline's networks; use
        it with ``ReDiFScheduler.from_pretrained(folder)`` or ``ReDiFPipeline.of(pipe, folder)``.

        Raises:
            ValueError: if a part of the decision process cannot be written to a file, or the folder holds files that
                are not a student's.
            TypeError: if the network is not a diffusers model.
        """
        if not isinstance(self.mdp.teacher, PipelineTeacher):
            self.pipeline().save_pretrained(folder)
            return
        from redif_env.students.export.home import save_at_home

        save_at_home(folder, self.mdp, None if self.fixed else self.policy, self.mean_actions, self.record)

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str = "cpu", allow_imports: bool = False) -> Student:
        """Load a student that :meth:`save_pretrained` saved, from a folder or the hub.

        ``allow_imports`` says whether user-defined parts may be imported from the modules that the file names.

        Raises:
            ValueError: if this machine has no such device.
            FileNotFoundError: if there is no student in ``folder``.
            CorruptFileError: if a file is missing or was changed.
        """
        from redif_env.students.export import ReDiFPipeline

        check_argument("folder", folder, str | Path)
        check_argument("allow_imports", allow_imports, bool)
        placed = parse_device(device)
        pipeline = ReDiFPipeline.from_pretrained(folder, allow_imports=allow_imports).to(placed)
        return cls(pipeline.mdp, pipeline.actor, pipeline.record)

    def _initial_noise(
        self, num_samples: int | None, generator: torch.Generator | None, noise: Tensor | None
    ) -> Tensor:
        check_argument("num_samples", num_samples, int | None)
        check_argument("generator", generator, torch.Generator | None)
        check_argument("noise", noise, Tensor | None)
        if (num_samples is None) == (noise is None):
            raise ValueError("give either num_samples or noise")
        if noise is None:
            assert num_samples is not None
            check_at_least(1, num_samples=num_samples)
            shape, device = (num_samples, *self.sample_shape), HOST if generator is None else generator.device
            try:
                noise = torch.randn(shape, generator=generator, dtype=torch.float32, device=device)
            except (RuntimeError, MemoryError) as error:
                raise ValueError(f"num_samples={num_samples} do not fit into memory ({error}): draw fewer") from error
        if noise.shape[1:] != self.sample_shape:
            raise ValueError(f"noise must have shape (N, {self.sample_shape}), got {tuple(noise.shape)}")
        return noise.to(self.mdp.teacher.device, torch.promote_types(noise.dtype, torch.float32))


def _seeded(generator: torch.Generator | None, seed: int | None) -> torch.Generator | None:
    """The generator of a seed; ``generator`` without one."""
    check_argument("seed", seed, int | None)
    if seed is None:
        return generator
    if generator is not None:
        raise ValueError(f"seed={seed} and generator cannot both be given: leave one out")
    check_at_least(0, seed=seed)
    return torch.Generator().manual_seed(int(seed))
