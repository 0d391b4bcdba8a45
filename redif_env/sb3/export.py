"""Conversion of Stable-Baselines3 agents to students."""

from __future__ import annotations

from dataclasses import replace

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from redif_env.diffusion.noise_schedulers import action_parameterization
from redif_env.envs.environments import ReDiFEnv, ReDiFVectorEnv
from redif_env.mdp.actions import NoiseMap
from redif_env.mdp.observations import Features
from redif_env.mdp.policies import ACTIVATIONS, Policy
from redif_env.mdp.process import DenoisingMDP
from redif_env.sb3.student_policy import StudentPolicy
from redif_env.students.student import Student
from redif_env.teachers.networks import build_network
from redif_env.teachers.teacher import own_teacher


def student_of_agent(agent: BaseAlgorithm, env: VecEnv | None = None) -> Student:
    """The student of a trained agent; ``env`` defaults to the agent's environment.

    Raises:
        ValueError: if there is no environment, it is not a ReDiF environment, or the policy is not supported.
    """
    return student_of(agent.policy, environment_of(agent, env).mdp)


def environment_of(agent: BaseAlgorithm, env: VecEnv | None) -> ReDiFVectorEnv:
    """The unwrapped ReDiF environment of an agent.

    Raises:
        ValueError: if there is none.
    """
    wrapped = env if env is not None else agent.get_env()
    if wrapped is None:
        raise ValueError("agent has no environment: pass env=")
    base = wrapped.unwrapped
    if isinstance(base, ReDiFVectorEnv):
        return base
    try:
        single = base.get_attr("unwrapped")[0]
    except (AttributeError, NotImplementedError):
        single = None
    if isinstance(single, ReDiFEnv):
        return single.batch
    raise ValueError(f"env must be a ReDiF environment, wrapped or not, got {base!r}")


def student_of(policy: BasePolicy, mdp: DenoisingMDP) -> Student:
    """The student of a policy in the decision process it was trained in.

    The student of a :class:`~redif_env.sb3.StudentPolicy` has the policy's network and its learned step sizes.

    Raises:
        ValueError: if the policy is not supported.
    """
    if not isinstance(policy, StudentPolicy):
        return Student(mdp, actor_policy(policy))
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
