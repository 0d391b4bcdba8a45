"""Denoising episodes that run together: physics, draws and rewards in torch, without spaces, autoreset or info.

The Gymnasium environments and TorchRL's are shells around it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor

from redif_env.diffusion.placement import HOST, full_precision
from redif_env.diffusion.types import State, Transition, chosen
from redif_env.envs.draws import GroupDraws
from redif_env.envs.starts import Start
from redif_env.envs.task import Task
from redif_env.mdp.settings import build_mdp, sample_dtype
from redif_env.rewards.custom import CallableReward
from redif_env.rewards.names import build_terms
from redif_env.rewards.reward import Term, load_reward_states, pay, reset_reward, reward_states
from redif_env.storage.checks import check_argument, check_at_least
from redif_env.teachers.references import reference_set


def check_groups(num_envs: int, group_size: int) -> None:
    """Hold the number of sub-environments against the size of their groups.

    Raises:
        TypeError, ValueError: naming the argument, if one is out of range or they do not go together.
    """
    check_argument("num_envs", num_envs, int)
    check_argument("group_size", group_size, int)
    check_at_least(1, num_envs=num_envs)
    if group_size < 1 or num_envs % group_size:
        raise ValueError(f"group_size must divide num_envs={num_envs}, got {group_size}")


class Episodes:
    """B episodes of a task, each at its own step.

    Args:
        num_envs: B.
        group_size: neighbours that start each episode from the same noise; divides ``num_envs``.
        task: what is denoised, and what for.
    """

    def __init__(self, num_envs: int, group_size: int, task: Task) -> None:
        check_groups(num_envs, group_size)
        self.mdp = build_mdp(task)
        self.autocast = task.autocast
        if task.autocast and (task.dtype != "float32" or self.mdp.action_map.predicts):
            raise ValueError(
                f"autocast=True needs dtype='float32' and an action map whose predictions are the teacher's, got "
                f"dtype={task.dtype!r} and action={task.action!r}: leave it out (a student's own network has an "
                "autocast of its own)"
            )
        self.num_envs, self.group_size = num_envs, group_size
        reference = reference_set(self.mdp.teacher, task.sizes.reference_size, num_steps=task.sizes.teacher_steps)
        self.reference = reference.to(self.mdp.teacher.device, sample_dtype(task.dtype))
        self.terms = self._build_terms(task.reward)
        self.draws = GroupDraws(num_envs, group_size, len(reference), priced=task.prices is not None)
        self.pair = torch.zeros(num_envs, dtype=torch.int64, device=HOST)
        self.endpoint = torch.zeros_like(self.reference.endpoints[:1]).expand(num_envs, *self.mdp.teacher.sample_shape)
        self.started: State | None = None

    @property
    def device(self) -> torch.device:
        """Where the samples are."""
        return self.endpoint.device

    @property
    def state(self) -> State:
        """Where every episode stands.

        Raises:
            gymnasium.error.ResetNeeded: before the first reset.
        """
        if self.started is None:
            raise gym.error.ResetNeeded("the state was read before reset(): call reset() first")
        return self.started

    @contextmanager
    def running(self) -> Iterator[None]:
        """In which episodes are started, stepped and observed: no gradient, and no lower precision than asked for.

        In inference mode, which takes a seventh off small operations.
        """
        with torch.inference_mode(), full_precision(self.device):
            yield

    def start(self, rows: Tensor, start: Start | None = None) -> None:
        """New episodes in the given rows ``(B,)`` bool: a pair each, drawn or chosen, and the first prediction."""
        if not bool(rows.any()):
            return
        start = start or Start()
        drawn, dial = (torch.from_numpy(drawn) for drawn in self.draws.next(rows.numpy()))
        pair, teacher = start.pairs(drawn, self.reference), self.mdp.teacher
        if start.noise is None:
            placed = pair.to(self.device)
            noise, condition = self.reference.noise[placed], self.reference.condition[pair]
            endpoint = self.reference.endpoints[placed]
        else:
            assert start.condition is not None
            noise, condition = start.noise.to(self.endpoint), start.condition
            endpoint = teacher.endpoint(noise, self.reference.num_steps, condition).to(noise)
        self.pair = torch.where(rows, pair, self.pair)
        self.endpoint = chosen(rows, endpoint, self.endpoint)
        initial = self.mdp.initial(noise, self.mdp.price(dial), condition)
        state = initial if self.started is None else self.started.merge(rows, initial)
        # Members of a group begin alike, so one call serves them all; what a caller chooses may differ.
        alike = start == Start() and self.group_size > 1 and self.mdp.teacher.memoryless
        self.started = self._predicted(state, rows, self._first_members(rows) if alike else None)

    def step(self, action: Tensor, live: Tensor) -> tuple[Transition, dict[str, Tensor]]:
        """One step of the live rows ``(B,)`` bool, by actions ``(B, A)`` on the host, and what each term pays."""
        state = self.mdp.with_action_prediction(self.state, action)
        decision = self.mdp.decode(state, action)
        next_state = self.mdp.advance(state, decision)
        terminated = live & (next_state.steps_left == 0)
        next_state = self._predicted(next_state, live & ~terminated)
        transition = Transition(
            state=state,
            action=action,
            decision=decision,
            next_state=next_state,
            endpoint=self.endpoint,
            pair=self.pair,
            terminated=terminated,
            live=live,
        )
        terms = pay(self.terms, transition)
        self.started = self.state.merge(live, next_state)
        return transition, terms

    def restart_rewards(self) -> None:
        """Make rewards with a memory of past episodes forget them, as seeding does."""
        for term in self.terms:
            reset_reward(term.reward)

    def state_dict(self) -> dict[str, Any]:
        """Where every episode stands, what chance will draw, and what rewards remember: tensors and JSON values."""
        return {
            "state": dict(self.state.items()),
            "pair": self.pair,
            "endpoint": self.endpoint,
            "draws": self.draws.state_dict(),
            "rewards": reward_states(self.terms),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave, with the same arguments."""
        device = self.device
        self.started = State(**{name: tensor.to(HOST) for name, tensor in state["state"].items()}).to(device)
        self.pair, self.endpoint = state["pair"].to(HOST), state["endpoint"].to(device)
        self.draws.load_state_dict(state["draws"])
        load_reward_states(self.terms, state["rewards"])

    def _predicted(self, state: State, rows: Tensor, leader: Tensor | None = None) -> State:
        """``state`` with the teacher's predictions on the given rows."""
        with torch.autocast(state.x.device.type, torch.bfloat16) if self.autocast else nullcontext():
            return self.mdp.predict(state, rows, leader)

    def _first_members(self, rows: Tensor) -> Tensor:
        """For each sub-environment the first of its group among the given rows, ``(B,)``."""
        first = rows.reshape(-1, self.group_size).to(torch.int64).argmax(dim=1)
        return (first + torch.arange(0, len(rows), self.group_size, device=HOST)).repeat_interleave(self.group_size)

    def _build_terms(self, reward: Any) -> list[Term]:
        if isinstance(reward, str):
            reward = {reward: 1.0}
        if isinstance(reward, Mapping):
            return build_terms(reward, self.mdp, self.reference)
        if not hasattr(reward, "name"):  # a plain function
            name = getattr(reward, "__name__", "custom")
            reward = CallableReward(reward, "custom" if name == "<lambda>" else name)
        return [Term(reward)]
