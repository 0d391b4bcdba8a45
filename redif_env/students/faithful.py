"""A student is what was trained: the policy of any library with what stands between it and its environment, checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from redif_env.diffusion.types import State
from redif_env.envs.between import Between, between, copied, cores_of
from redif_env.envs.environments import ReDiFVectorEnv
from redif_env.mdp.policies import ACTIVATIONS, Policy
from redif_env.mdp.process import DenoisingMDP
from redif_env.storage.checks import check_argument
from redif_env.students.layers import policy_of, with_maps

if TYPE_CHECKING:
    from redif_env.students.student import Student

TOLERANCE = 1e-3
"""Largest difference between an agent's decision and its student's, in actions (their range is [-1, 1])."""

Decide = Callable[[Tensor], Any]
"""Observations as the environment gives them, ``(B, F)`` float32, to the policy's own actions ``(B, A)``."""


def process_of(env: Any) -> DenoisingMDP:
    """The decision process of a Gymnasium environment.

    Raises:
        ValueError: if it is not a ReDiF environment, or its observations are no vectors.
    """
    mdp = cores_of(env)[0].mdp
    if mdp.action_map.predicts:
        raise ValueError("env has action='noise', whose policy is a network: train it with redif_env.sb3.StudentPolicy")
    return mdp


def policy_in(
    policy: Any,
    env: Any,
    activation: str | None,
    squash: bool | None,
    decide: Decide | None,
    observation: Sequence[Any] | None,
    action: Sequence[Any] | None,
) -> tuple[Policy, Decide]:
    """What a student of ``policy`` carries, and the policy's own decisions; arguments of ``Student.from_policy``.

    Raises:
        ValueError: if it is of a kind that a student cannot carry.
    """
    mdp = process_of(env)
    maps = handed_over(Between.nothing(cores_of(env)[0]), observation, action)
    layers = policy.export() if hasattr(policy, "export") and not isinstance(policy, nn.Module) else policy
    if not isinstance(layers, Policy):
        modules = [layers] if isinstance(layers, nn.Module) else _with_activations(layers, activation)
        layers = policy_of(modules, squash, mdp.action_size)
    if decide is None:
        if not callable(policy):
            raise ValueError(
                "policy is a list of layers, whose decisions cannot be compared with the student's: give "
                "decide=, a function from observations to the trained policy's own actions"
            )
        decide = _decisions(policy, maps, mdp.action_size)
    return with_maps(layers, handed_over(between(env), observation, action), mdp), decide


def check_decisions(student: Student, env: Any, decide: Decide) -> None:
    """Hold a student against the decisions of its policy, in an episode of a copy of the policy's environment.

    Raises:
        ValueError: as :func:`check_step`.
    """
    names = between(env).names
    env = copied(env)
    cores, single = cores_of(env), not hasattr(env, "num_envs")
    observation, _ = env.reset()
    for step in range(student.num_steps):
        before = [core.state for core in cores]
        seen = torch.as_tensor(np.asarray(observation), dtype=torch.float32)
        with torch.no_grad():
            given = decide(seen[None] if single else seen)
        actions = np.asarray(torch.as_tensor(given).detach().cpu(), dtype=np.float32)
        observation, _, terminated, *_ = env.step(actions[0] if single else actions)
        check_step(student, step, before, cores, names)
        if np.any(terminated):
            return


def check_step(
    student: Student, step: int, before: list[State], cores: list[ReDiFVectorEnv], names: Sequence[str]
) -> None:
    """Hold a student against what its policy did last in each of ``cores``, from the states before.

    Raises:
        ValueError: if any action differs by more than ``TOLERANCE``; or, of a student with a network of its own, any
            sample that is stepped to. It says by how much, and what stands between environment and policy.
    """
    difference = max(_difference(student, *pair) for pair in zip(before, cores, strict=True))
    if not difference <= TOLERANCE:
        through = f" (between them: {', '.join(names)})" if names else ""
        raise ValueError(
            f"student does not decide as the agent does: at step {step + 1} they differ by {difference:.3g}"
            f"{through}. What the agent looks at or remembers beside the observation cannot be carried"
        )


def handed_over(maps: Between, observation: Sequence[Any] | None, action: Sequence[Any] | None) -> Between:
    """``maps`` and those that stand between the environment's wrappers and the policy.

    Args:
        maps: those of the environment.
        observation: mean and scale, each a number or ``(F,)``, and perhaps a clip: the policy is given
            ``(observation - mean) * scale``, clipped to ``+-clip``.
        action: gain and offset, each a number or ``(A,)``: the environment is given ``gain * action + offset``.
    """
    check_argument("observation", observation, Sequence[Any] | None)
    check_argument("action", action, Sequence[Any] | None)
    if observation is not None:
        affine, clip = (observation, None) if len(observation) == 2 else (observation[:-1], observation[-1])
        maps = maps.normalised(*_arrays("observation", affine, maps.mean))
        check_argument("the clip of observation", clip, float | None)
        maps = replace(maps, clip=clip)
    return maps if action is None else maps.rescaled(*_arrays("action", action, maps.gain))


def _arrays(name: str, values: Sequence[Any], like: Any) -> list[Any]:
    """Two arrays of one shape.

    Raises:
        ValueError: naming the argument, if they are none, or not finite.
    """
    try:
        first, second = (np.asarray(torch.as_tensor(value).cpu(), np.float64) for value in values)
        found = [np.broadcast_to(value, like.shape) for value in (first, second)]
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} must be two numbers or arrays of shape {like.shape}, got {values!r}") from error
    if not np.isfinite(found).all():
        raise ValueError(f"{name} must be finite, got {values!r}")
    return found


def _with_activations(linears: Sequence[nn.Linear], activation: str | None) -> list[nn.Module]:
    """Layers with the activation between them."""
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"activation={activation!r} is unknown: with a list of layers, give one of {', '.join(sorted(ACTIVATIONS))}"
        )
    modules: list[nn.Module] = []
    for linear in linears:
        modules += [linear, ACTIVATIONS[activation]()]
    return modules[:-1]


def _decisions(policy: Callable[..., Any], maps: Between, num_actions: int) -> Decide:
    """The policy's own decisions, through the maps that were handed over."""
    weight = next(policy.parameters(), None) if isinstance(policy, nn.Module) else None

    def decide(observations: Tensor) -> Tensor:
        seen = (observations - torch.as_tensor(maps.mean).float()) * torch.as_tensor(maps.scale).float()
        if maps.clip is not None:
            seen = seen.clamp(-maps.clip, maps.clip)
        output = policy(seen if weight is None else seen.to(weight))
        output = torch.as_tensor(output[0] if isinstance(output, tuple) else output).cpu()
        return (
            output[:, :num_actions].float() * torch.as_tensor(maps.gain).float() + torch.as_tensor(maps.offset).float()
        )

    return decide


def _difference(student: Student, before: State, core: ReDiFVectorEnv) -> float:
    """The largest difference between what the environment did last, from the state before, and the student's step."""
    done = core.last_transition
    assert done is not None
    if not student.mdp.teacher.own_network:
        expected, found = student.policy(student.mdp.observe(before)), done.action
    else:
        with torch.no_grad():
            state = student.mdp.predict(before, done.live)
            decision = student.mdp.decode(state, student.policy(student.mdp.observe(state)))
            expected, found = student.mdp.advance(state, decision).x, done.next_state.x
    return float((expected.to(found) - found).abs().max())
