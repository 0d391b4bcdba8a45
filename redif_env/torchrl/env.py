"""Denoising episodes as a batched TorchRL environment, without Gymnasium or numpy between."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Bounded, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase

from redif_env.diffusion.placement import HOST
from redif_env.diffusion.types import Transition
from redif_env.envs.environments import ReDiFVectorEnv
from redif_env.envs.episodes import Episodes
from redif_env.envs.spaces import observation_space
from redif_env.envs.task import Task
from redif_env.mdp.arguments import takes
from redif_env.storage.checks import check_argument


class ReDiFEnv(EnvBase):
    """``num_envs`` denoising episodes with one forward pass for all.

    Reads ``action`` ``(B, A)``; writes ``observation`` ``(B, F)``, ``reward`` ``(B, 1)``, ``task_reward`` ``(B, 1)``,
    ``done`` and ``terminated`` ``(B, 1)``, all on the teacher's device. TorchRL resets finished rows itself.

    Args:
        num_envs: B.
        group_size: sub-environments in groups of this many start each episode from the same noise; from 2 on,
            ``reward`` is relative to the group's mean, and ``task_reward`` is what the task pays.
        seed: of the draws; sub-environment i has ``seed + i``, as in Gymnasium's vector form.
        arguments: the fields of :class:`redif_env.envs.task.Task`, which :class:`redif_env.ReDiFEnv` lists;
            ``observation="sample"`` is not supported.

    Raises:
        ValueError: if an argument cannot be used, or groups are asked for with an adaptive number of steps.
    """

    @takes(Task)
    def __init__(self, num_envs: int = 1, *, group_size: int = 1, seed: int | None = None, **arguments: Any) -> None:
        check_argument("seed", seed, int | None)
        task = Task(**arguments)
        episodes = Episodes(num_envs, group_size, task)
        mdp = episodes.mdp
        if task.observation == "sample":
            raise ValueError("observation='sample' is not supported with TorchRL: choose 'features' or 'steps'")
        if group_size > 1 and mdp.adaptive:
            raise ValueError(
                f"group_size={group_size} needs episodes of one length: leave min_steps={mdp.min_steps} out"
            )
        super().__init__(device=episodes.device, batch_size=torch.Size([num_envs]))
        self.episodes, self.arguments = episodes, arguments
        self.last_transition: Transition | None = None
        self._finished = torch.zeros(num_envs, dtype=torch.bool, device=HOST)
        space: Any = observation_space(mdp)
        shape = torch.Size([num_envs, *space.shape])
        low, high = (torch.as_tensor(end).expand(shape).to(self.device) for end in (space.low, space.high))
        place: dict[str, Any] = {"dtype": torch.float32, "device": self.device}
        paid = Unbounded((num_envs, 1), **place)
        self.observation_spec = Composite(
            observation=Bounded(low, high, shape, **place),
            shape=self.batch_size,
        )
        self.action_spec = Bounded(-1.0, 1.0, (num_envs, mdp.action_size), **place)
        self.reward_spec = Composite(reward=paid, task_reward=paid.clone(), shape=self.batch_size)
        flag = Categorical(2, (num_envs, 1), dtype=torch.bool, device=self.device)
        self.done_spec = Composite(done=flag, terminated=flag.clone(), shape=self.batch_size)
        if seed is not None:
            self.set_seed(seed)

    @property
    def mdp(self) -> Any:
        """The decision process."""
        return self.episodes.mdp

    def gymnasium(self) -> ReDiFVectorEnv:
        """The same task as a Gymnasium environment, for what reads those (:meth:`redif_env.Student.from_policy`)."""
        return ReDiFVectorEnv(self.episodes.num_envs, **self.arguments)

    def state_dict(self, *args: Any, **keywords: Any) -> dict[str, Any]:
        """Where every episode stands and what chance will draw: tensors and JSON values."""
        return {"episodes": self.episodes.state_dict(), "finished": self._finished}

    def load_state_dict(self, state_dict: Any, *args: Any, **keywords: Any) -> None:
        """Go on from what :meth:`state_dict` gave, with the same arguments."""
        self.episodes.load_state_dict(state_dict["episodes"])
        self._finished = state_dict["finished"].clone()

    def _reset(self, tensordict: TensorDictBase | None = None, **keywords: Any) -> TensorDictBase:
        chosen = None if tensordict is None else tensordict.get("_reset", None)
        rows = torch.ones_like(self._finished) if chosen is None else chosen.reshape(-1).to(HOST)
        with self.episodes.running():
            self.episodes.start(rows)
        self._finished = self._finished & ~rows
        return self._tensordict(observation=self._observe(), **self._flags())

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        action = tensordict["action"].detach().to(HOST, torch.float32)
        if not bool(action.isfinite().all()):
            bad = (~action.isfinite().all(1)).nonzero()[:, 0].tolist()
            raise ValueError(
                f"actions must be finite, but those of sub-environments {bad} are not: lower the agent's learning rate"
            )
        with self.episodes.running():
            self.last_transition, terms = self.episodes.step(action.clamp(-1, 1), ~self._finished)
        self._finished = self._finished | self.last_transition.terminated
        paid = torch.stack(list(terms.values())).sum(0).float().to(self.device)[:, None]
        groups = paid.reshape(-1, self.episodes.group_size)
        relative = paid if self.episodes.group_size == 1 else (groups - groups.mean(1, keepdim=True)).reshape(-1, 1)
        return self._tensordict(observation=self._observe(), reward=relative, task_reward=paid, **self._flags())

    def _set_seed(self, seed: int | None) -> None:
        if seed is not None:
            everyone = np.ones(self.episodes.num_envs, dtype=np.bool_)
            self.episodes.draws.seed([seed + index for index in range(self.episodes.num_envs)], everyone)
            self.episodes.restart_rewards()

    def _observe(self) -> torch.Tensor:
        with self.episodes.running():
            seen = self.mdp.observe(self.episodes.state)
        # A copy, which a gradient may be taken through, as through no tensor of inference mode.
        return seen.to(self.device, torch.float32).clone()

    def _flags(self) -> dict[str, torch.Tensor]:
        done = self._finished[:, None].to(self.device)
        return {"done": done.clone(), "terminated": done.clone()}

    def _tensordict(self, **values: torch.Tensor) -> TensorDictBase:
        return TensorDict(values, batch_size=self.batch_size, device=self.device)
