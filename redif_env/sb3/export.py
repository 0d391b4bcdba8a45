"""Conversion of Stable-Baselines3 agents to students."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import VecEnv

from redif_env.diffusion.noise_schedulers import action_parameterization
from redif_env.envs.between import Between
from redif_env.mdp.actions import NoiseMap
from redif_env.mdp.observations import Features
from redif_env.mdp.policies import Policy
from redif_env.mdp.process import DenoisingMDP
from redif_env.sb3.student_policy import StudentPolicy
from redif_env.sb3.wrappers import between, copied, cores_of
from redif_env.students.faithful import check_step
from redif_env.students.layers import policy_of, with_maps
from redif_env.students.student import Student
from redif_env.teachers.networks import build_network
from redif_env.teachers.teacher import own_teacher


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
    mdp = cores_of(wrapped)[0].mdp
    student = student_of(agent.policy, mdp, between(wrapped))
    check_decisions(agent, wrapped, student)
    return student


def check_decisions(agent: BaseAlgorithm, env: VecEnv, student: Student) -> None:
    """Hold a student against its agent, in an episode of a copy of the agent's environment.

    Raises:
        ValueError: as :func:`redif_env.students.faithful.check_step`.
    """
    names = between(env).names
    env = copied(env)
    cores = cores_of(env)
    observation, memory, first = env.reset(), None, np.ones(env.num_envs, dtype=np.bool_)
    for step in range(student.num_steps):
        before = [core.state for core in cores]
        action, memory = agent.predict(observation, state=memory, episode_start=first, deterministic=True)
        observation, _, first, _ = env.step(action)
        check_step(student, step, before, cores, names)
        if first.any():
            return


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
    table = policy.shift.detach().cpu().clamp(-1, 1)[:, None]
    parameterization = action_parameterization(mdp.teacher.parameterization)
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
        return policy_of(modules, squash=False)
    actor = getattr(policy, "actor", None)
    if actor is not None and hasattr(actor, "latent_pi"):
        return policy_of([actor.latent_pi, actor.mu], squash=True)
    if actor is not None and hasattr(actor, "mu"):
        return policy_of([actor.mu], squash=True)
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
