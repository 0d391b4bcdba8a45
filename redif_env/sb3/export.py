"""Conversion of Stable-Baselines3 agents to students."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from redif_env.diffusion.noise_schedulers import action_parameterization
from redif_env.diffusion.types import State
from redif_env.envs.environments import ReDiFVectorEnv
from redif_env.envs.spaces import observation_space
from redif_env.mdp.actions import NoiseMap
from redif_env.mdp.observations import Features
from redif_env.mdp.policies import ACTIVATIONS, Policy
from redif_env.mdp.process import DenoisingMDP
from redif_env.sb3.student_policy import StudentPolicy
from redif_env.sb3.wrappers import Between, between, copied, cores_of
from redif_env.students.student import Student
from redif_env.teachers.networks import build_network
from redif_env.teachers.teacher import own_teacher

TOLERANCE = 1e-3
"""Largest difference between an agent's decision and its student's, in actions (their range is [-1, 1])."""


def student_of_agent(agent: BaseAlgorithm, env: VecEnv | None = None) -> Student:
    """The student of a trained agent; ``env`` defaults to the agent's environment.

    Affine wrappers (observation normalisers, rescaled actions) become part of the student. Before it is given back, the
    agent acts for one episode in a copy of its environment, and each decision must be the student's.

    Raises:
        ValueError: if there is no environment, it is no ReDiF one, the policy or a wrapper is of a kind that a student
            cannot carry, or the student's decisions are not the agent's.
    """
    wrapped = env if env is not None else agent.get_env()
    if wrapped is None:
        raise ValueError("agent has no environment: pass env=")
    mdp = cores_of(found)[0].mdp
    student = student_of(agent.policy, mdp, between(found))
    check_decisions(agent, found, student)
    return student


def check_decisions(agent: BaseAlgorithm, env: VecEnv, student: Student) -> None:
    """Hold a student against its agent, in an episode of a copy of the agent's environment.

    Raises:
        ValueError: if any action differs by more than ``TOLERANCE``; or, of a student with a network of its own, any
            sample that is stepped to. It says by how much, and what stands between environment and policy.
    """
    names = between(env).names
    env = copied(env)
    cores = cores_of(env)
    observation, memory, first = env.reset(), None, np.ones(env.num_envs, dtype=np.bool_)
    for step in range(student.num_steps):
        before = [core.state for core in cores]
        action, memory = agent.predict(observation, state=memory, episode_start=first, deterministic=True)
        observation, _, first, _ = env.step(action)
        difference = max(_difference(student, *pair) for pair in zip(before, cores, strict=True))
        if not difference <= TOLERANCE:
            through = f" (between them: {', '.join(names)})" if names else ""
            raise ValueError(
                f"student does not decide as the agent does: at step {step + 1} they differ by {difference:.3g}"
                f"{through}. What the agent looks at or remembers beside the observation cannot be carried"
            )
        if first.any():
            return


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


def student_of(policy: BasePolicy, mdp: DenoisingMDP, maps: Between | None = None) -> Student:
    """The student that a policy amounts to in the decision process it was trained in.

    ``maps`` are the affine maps between the two, if there are any.

    The student of a :class:`~redif_env.sb3.StudentPolicy` has the policy's network, and takes the steps it has learned.

    Raises:
        ValueError: if the policy is not supported.
    """
    if not isinstance(policy, StudentPolicy):
        return Student(mdp, with_maps(actor_policy(policy), maps, mdp) if maps else actor_policy(policy))
    action_map = mdp.action_map
    assert isinstance(action_map, NoiseMap)
    network = build_network(policy.settings["network"])
    network.load_state_dict(policy.plain_weights())
    table = action_map.table(policy.shift.detach().cpu().clamp(-1, 1))
    parameterization = (
        mdp.teacher.parameterization
        if policy.settings["predicts_noise"]
        else action_parameterization(mdp.teacher.parameterization)
    )
    own = own_teacher(mdp.teacher, network, parameterization).to(mdp.teacher.device, mdp.teacher.dtype)
    process = replace(mdp, teacher=own, action_map=action_map.finished, observation=Features())
    return Student(process, Policy.from_table(table, process.observation_size))


def actor_policy(policy: BasePolicy) -> Policy:
    """The deterministic actor of an ``MlpPolicy`` of PPO, A2C, SAC or TD3.

    Raises:
        ValueError: if the policy is not supported.
    """
    _check_features(policy)
    if isinstance(policy, ActorCriticPolicy):
        if policy.squash_output:
            raise ValueError("agent has squash_output=True (gSDE), which is not supported: train without use_sde")
        modules = [policy.mlp_extractor.policy_net, policy.action_net]
        return _build(modules, squash=False)
    actor = getattr(policy, "actor", None)
    if actor is not None and hasattr(actor, "latent_pi"):
        return _build([actor.latent_pi, actor.mu], squash=True)
    if actor is not None and hasattr(actor, "mu"):
        return _build([actor.mu], squash=True)
    raise ValueError(f"agent has a {type(policy).__name__}: only MlpPolicy actors can be exported")


def _check_features(policy: BasePolicy) -> None:
    """Refuse what stands between the observation and the layers of the actor."""
    if hasattr(policy, "lstm_actor"):
        raise ValueError(
            f"agent has a {type(policy).__name__}, which remembers earlier steps (an LSTM): a student has no memory, "
            "train with MlpPolicy"
        )
    actor = getattr(policy, "actor", None) or policy
    extractor = getattr(actor, "pi_features_extractor", None) or getattr(actor, "features_extractor", None)
    if extractor is not None and type(extractor) is not FlattenExtractor:
        raise ValueError(
            f"agent has the features extractor {type(extractor).__name__}, which a student cannot carry: train without "
            "features_extractor_class; policy_kwargs={'net_arch': ...} makes a larger policy"
        )


def with_maps(policy: Policy, maps: Between, mdp: DenoisingMDP) -> Policy:
    """A policy with the affine maps between it and the environment built in.

    Raises:
        ValueError: if observations have another size, or the maps take an action's range to another than [-1, 1].
    """
    inputs, outputs = policy.config.sizes[0], policy.config.sizes[-1]
    if (inputs, outputs) != (mdp.observation_size, mdp.action_size):
        raise ValueError(
            f"agent's policy maps {inputs} numbers to {outputs}, but the environment's observation has "
            f"{mdp.observation_size} and its action {mdp.action_size}: {', '.join(maps.names) or 'something'} stands "
            "between them, which a student cannot carry"
        )
    linears = [copy.deepcopy(linear) for linear in policy.linears]
    if not policy.config.squash:  # the others' output is a share of the range, whatever that is
        _fold(linears[-1], gain=maps.gain, offset=maps.offset)
    if not _may_clip(maps, mdp):
        first = linears[0].weight.detach().double().numpy(force=True)
        with torch.no_grad():
            linears[0].bias.sub_(torch.as_tensor(first @ (maps.mean * maps.scale)).to(linears[0].bias))
            linears[0].weight.mul_(torch.as_tensor(maps.scale).to(linears[0].weight))
        return Policy.from_linears(linears, policy.config.activation, policy.config.squash)
    return Policy.from_linears(
        linears,
        policy.config.activation,
        policy.config.squash,
        (torch.as_tensor(maps.mean), torch.as_tensor(maps.scale), maps.clip),
    )


def _fold(linear: nn.Linear, gain: NDArray[np.float64], offset: NDArray[np.float64]) -> None:
    """Multiply what a layer gives by ``gain`` and add ``offset``."""
    factor, added = (torch.as_tensor(values).to(linear.weight) for values in (gain, offset))
    with torch.no_grad():
        linear.weight.mul_(factor[:, None])
        linear.bias.mul_(factor).add_(added)


def _may_clip(maps: Between, mdp: DenoisingMDP) -> bool:
    """Whether an observation in its bounds can leave the range of the normaliser's clip."""
    if maps.clip is None:
        return False
    space = observation_space(mdp)
    ends = np.stack([space.low, space.high]).astype(np.float64)
    ends[:, : mdp.num_steps] = [[0.0], [1.0]]  # the steps left, one-hot
    return bool((np.abs((ends - maps.mean) * maps.scale) > maps.clip).any())


def _build(modules: list[nn.Module], squash: bool) -> Policy:
    # The hidden part of a linear policy is an empty Sequential.
    layers = [layer for module in modules for layer in module.modules() if not isinstance(layer, nn.Sequential)]
    linears = [layer for layer in layers if isinstance(layer, nn.Linear)]
    # A Tanh after the output layer (TD3) squashes the action; it is not a hidden activation.
    hidden = layers[: layers.index(linears[-1])]
    names = {name for name, kind in ACTIVATIONS.items() for layer in hidden if isinstance(layer, kind)}
    unknown = [layer for layer in hidden if not isinstance(layer, (nn.Linear, *ACTIVATIONS.values()))]
    if unknown or len(names) > 1:
        raise ValueError(f"agent's policy has layers that a student does not support: {unknown or sorted(names)}")
    return Policy.from_linears(linears, names.pop() if names else "tanh", squash)
