"""The environments of RLlib's runners, and how costly tensors reach them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray
import torch
from gymnasium.vector import AutoresetMode, VectorEnv

from redif_env.envs.environments import ReDiFEnv, ReDiFVectorEnv, parse_autoreset_mode
from redif_env.envs.wrappers import GroupRelativeReward
from redif_env.storage.cache import gathered, give


def make_env(context: Mapping[str, Any]) -> ReDiFEnv | VectorEnv:
    """RLlib's environment creator: ``ray.tune.register_env("redif", make_env)``, then
    ``PPOConfig().environment("redif", env_config={"teacher": "digits"})``.

    Use it with ``.env_runners(gym_env_vectorize_mode=gym.VectorizeMode.VECTOR_ENTRY_POINT)``, so that all episodes of
    a runner share each network call.

    Args:
        context: arguments of :class:`redif_env.ReDiFVectorEnv`; ``tensors``, what :func:`shared_tensors` returned; and
            ``num_envs``, which RLlib adds. With ``group_size`` from 2 on rewards are relative to the group's mean; a
            group lives on one runner. A distribution reward compares the episodes of one runner.

    Raises:
        ValueError: for another autoreset mode than NEXT_STEP, which RLlib expects and does not check.
    """
    settings = dict(context)
    mode = parse_autoreset_mode(settings.pop("autoreset_mode", AutoresetMode.NEXT_STEP))
    if mode is not AutoresetMode.NEXT_STEP:
        raise ValueError(
            f"autoreset_mode={mode.value!r} cannot be used with RLlib, which expects 'NextStep': leave it out"
        )
    tensors = settings.pop("tensors", None)
    if tensors:
        stored = ray.get(tensors[0])
        # Ray's arrays are read-only memory that all processes of a machine share; torch wants its own.
        give({key: torch.from_numpy(array.copy()) for key, array in stored.items()})
    if "num_envs" not in settings:
        settings.pop("group_size", None)
        return ReDiFEnv(**settings)
    env = ReDiFVectorEnv(**settings)
    return GroupRelativeReward(env) if env.group_size > 1 and not env.mdp.adaptive else env


def shared_tensors(**settings: Any) -> list[Any]:
    """Make what an environment of these arguments needs once, and put it into Ray's object store.

    Returns:
        ``[reference]``, for ``env_config["tensors"]``: a list, since RLlib copies configs and Ray resolves bare ones.
    """
    with gathered() as found:
        ReDiFVectorEnv(settings.get("group_size", 1), **settings)
    return [ray.put({key: tensor.numpy() for key, tensor in found.items()})]
