"""The student: what is shipped. A few-step sampler that needs neither an environment nor an RL library."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from redif_env.diffusion.types import State
from redif_env.mdp.policies import Policy
from redif_env.mdp.process import DenoisingMDP
from redif_env.mdp.sampling import trajectory
from redif_env.mdp.settings import parse_device
from redif_env.storage.checks import check_argument, check_at_least
from redif_env.students.agents import student_of_agent
from redif_env.students.record import Record
from redif_env.teachers.references import VALIDATION_SEED, draw_starts

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.vec_env import VecEnv
    from torch.export import ExportedProgram

    from redif_env.students.export import ReDiFPipeline
    from redif_env.students.export.steps import Step

MEAN_OVER = 128
"""Noises over which a policy's mean action at each step is taken."""


class Student:
    """A few-step sampler: the teacher's network, stepped as a trained policy says.

    Args:
        mdp: the decision process that the policy was trained in.
        policy: observation to action, both batched.
        record: how it was made.
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
        self.policy = policy.to(mdp.teacher.device).eval().requires_grad_(False)
        self.record = record or Record()

    @property
    def network(self) -> nn.Module:
        """The network that is asked ``num_steps`` times a sample."""
        return self.mdp.teacher.network

    @property
    def num_steps(self) -> int:
        """Steps, and so predictions, a sample; the most there can be, where the policy chooses."""
        return self.mdp.num_steps

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape S of one sample."""
        return self.mdp.teacher.sample_shape

    @property
    def fixed(self) -> bool:
        """Whether every sample takes the same steps: the policy looks at nothing but the steps left."""
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
    ) -> Tensor:
        """Samples ``(num_samples, *S)``, clipped to the data's bounds if they have any; latents decoded to images.

        Args:
            num_samples: how many to draw; needed unless ``noise`` is given.
            generator: of the initial noise; torch's default one if not given.
            noise: standard normal ``(N, *S)`` to start from instead.
            price: of a network call, for a student trained at many prices: the dearer, the fewer calls. Its smallest
                price if not given.
            condition: class label or prompt that it was trained with, for all or one each; drawn as in training if not
                given.
        """
        check_argument("price", price, float | None)
        start = self._initial_noise(num_samples, generator, noise)
        conditions = self.mdp.teacher.conditions
        if condition is None:
            rows = conditions.draw(len(start), torch.default_generator if generator is None else generator)
        else:
            rows = conditions.rows_of(condition, len(start))
        return self.mdp.teacher.images(self.trajectory(start, price, rows)[-1].x)

    @torch.no_grad()
    def trajectory(self, noise: Tensor, price: float | None = None, condition: Tensor | None = None) -> list[State]:
        """The state after each step from ``noise`` ``(N, *S)``; the last holds the clean samples, not yet clipped.

        ``nfe`` of the last are the network calls spent on each: samples that are finished early cost no more.
        ``condition`` ``(N,)`` are rows of the teacher's conditions; the first if not given.
        """
        prices = self.mdp.constant_price(len(noise), price)
        return list(trajectory(self.mdp, self.policy, noise, prices, condition))

    @cached_property
    def mean_actions(self) -> Tensor | None:
        """The policy's mean action at each step ``(num_steps, A)``, over 128 noises.

        None where the policy decides the number of steps.
        """
        if self.mdp.adaptive:
            return None
        table = self.policy.table(self.num_steps)
        if table is not None:
            return table
        starts = draw_starts(self.mdp.teacher, MEAN_OVER, VALIDATION_SEED)
        noise, condition = (part.to(self.mdp.teacher.device) for part in starts)
        actions: list[Tensor] = []

        def noted(observation: Tensor) -> Tensor:
            action = self.policy(observation)
            actions.append(action.mean(dim=0))
            return action

        with torch.no_grad():
            list(trajectory(self.mdp, noted, noise, self.mdp.constant_price(len(noise)), condition))
        return torch.stack(actions)

    def frozen(self) -> Student:
        """The student that takes the mean action of each step, whatever it sees: what plain exports can hold.

        Raises:
            ValueError: if this student decides its number of calls.
        """
        if self.mean_actions is None:
            raise ValueError(
                f"student decides its number of calls ({self.mdp.min_steps} to {self.num_steps}), so it has no mean "
                "actions: use it as it is"
            )
        policy = Policy.from_table(self.mean_actions, self.mdp.observation_size)
        return Student(self.mdp, policy, self.record)

    def steps(self) -> list[Step]:
        """The mean steps as plain numbers (``export.steps``), from where ``mdp.begun`` puts the noise.

        Raises:
            ValueError: if this student decides its number of calls.
        """
        from redif_env.students.export.steps import steps_of

        actions = self.frozen().mean_actions
        assert actions is not None
        return steps_of(self.mdp, actions)

    def trace(self, batch_size: int) -> ExportedProgram:
        """All steps as one ``torch.export`` program, from noise ``(batch_size, *S)`` to samples.

        Raises:
            ValueError: if this student decides its number of calls.
        """
        from redif_env.students.export.program import trace

        return trace(self.mdp, self.policy, batch_size)

    def write_onnx(self, path: str | Path, batch_size: int) -> None:
        """Write all steps as one ONNX file: input ``noise`` ``(batch_size, *S)``, output ``samples``.

        Raises:
            ImportError: without the extra ``redif-env[onnx]``.
            ValueError: if this student decides its number of calls.
        """
        from redif_env.students.export.program import write_onnx

        write_onnx(self.mdp, self.policy, batch_size, Path(path))

    def pipeline(self) -> ReDiFPipeline:
        """This student for users of diffusers; it shares the network.

        Raises:
            ValueError: if the decision process uses a solver, grid, action map or observation that has no name.
            TypeError: if the network is no diffusers model.
        """
        from redif_env.students.export import ReDiFPipeline

        return ReDiFPipeline.of(self.mdp, None if self.fixed else self.policy, self.mean_actions, self.record)

    @classmethod
    def from_agent(cls, agent: BaseAlgorithm, env: VecEnv | None = None) -> Student:
        """The student of a trained Stable-Baselines3 agent; neither SB3 nor the agent is needed afterwards.

        Args:
            agent: PPO, A2C, SAC or TD3 with a stock ``MlpPolicy``; or one with a
                :class:`~redif_env.sb3.StudentPolicy`, whose network becomes the student's.
            env: what it was trained on, if it was loaded without.

        Raises:
            ValueError: if there is no environment, it is no ReDiF one, or the policy is of another kind.
        """
        return student_of_agent(agent, env)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the folder of :meth:`pipeline`: config.json, safetensors, a model card; whole or not at all.

        Raises:
            ValueError: if the decision process uses a solver, grid, action map or observation that has no name, or the
                folder holds something that is not a student's.
            TypeError: if the network is no diffusers model.
        """
        self.pipeline().save_pretrained(folder)

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str = "cpu", allow_imports: bool = False) -> Student:
        """Read what :meth:`save_pretrained` wrote, from a folder or the hub.

        ``allow_imports``: whether an action map of one's own may be imported, from the module that the file names.

        Raises:
            FileNotFoundError: if there is no student in ``folder``.
            CorruptFileError: if a file is missing, or is not what was written.
        """
        from redif_env.students.export import ReDiFPipeline

        check_argument("folder", folder, str | Path)
        check_argument("allow_imports", allow_imports, bool)
        parse_device(device)
        pipeline = ReDiFPipeline.from_pretrained(folder, allow_imports=allow_imports).to(device)
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
            device = generator.device if generator is not None else self.mdp.teacher.device
            try:
                noise = torch.randn(num_samples, *self.sample_shape, generator=generator, device=device)
            except (RuntimeError, MemoryError) as error:
                raise ValueError(f"num_samples={num_samples} do not fit into memory ({error}): draw fewer") from error
        if noise.shape[1:] != self.sample_shape:
            raise ValueError(f"noise must have shape (N, {self.sample_shape}), got {tuple(noise.shape)}")
        return noise.to(self.mdp.teacher.device, torch.promote_types(noise.dtype, torch.float32))
