"""The environments of RLlib's runners, and how costly tensors reach them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import cache
from typing import Any

import ray
import torch
from gymnasium.vector import AutoresetMode, VectorEnv

from redif_env.envs.environments import ReDiFEnv, ReDiFVectorEnv, parse_autoreset_mode
from redif_env.envs.task import Task
from redif_env.envs.wrappers import GroupRelativeReward
from redif_env.mdp.settings import TeacherSettings, build_mdp
from redif_env.storage.cache import cached_file, gathered, give, store
from redif_env.teachers.references import TRAIN_SEED, draw_starts, reference_key
from redif_env.teachers.teacher import Teacher

OF_TEACHER = tuple(item.name for item in fields(TeacherSettings))
"""Arguments on which endpoints depend."""


def make_env(context: Mapping[str, Any]) -> ReDiFEnv | VectorEnv:
    """RLlib's environment creator: ``ray.tune.register_env("redif", make_env)``, then
    ``PPOConfig().environment("redif", env_config={"teacher": "digits"})``.

    Use it with ``.env_runners(gym_env_vectorize_mode=gym.VectorizeMode.VECTOR_ENTRY_POINT)``, so that all episodes of
    a runner share each forward pass.

    Args:
        context: arguments of :class:`redif_env.ReDiFVectorEnv`, where ``teacher`` may also be a function without
            arguments that makes it: each runner then loads a pipeline of its own (``Teacher.from_pipeline``);
            ``tensors``, what :func:`shared_tensors` returned; and ``num_envs``, which RLlib adds. With ``group_size``
            from 2 on rewards are relative to the group's mean; a group lives on one runner. A distribution reward
            compares the episodes of one runner.

    Raises:
        ValueError: for another autoreset mode than NEXT_STEP, which RLlib expects and does not check.
    """
    settings = made(context)
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


def made(context: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with their teacher, where a function makes it: once in a process."""
    settings = dict(context)
    teacher = settings.get("teacher")
    if callable(teacher) and not isinstance(teacher, Teacher):
        settings["teacher"] = _made_by(teacher)
    return settings


@cache
def _made_by(function: Callable[[], Teacher]) -> Teacher:
    return function()


def shared_tensors(workers: int = 0, gpus: float = 0.0, **settings: Any) -> list[Any]:
    """Make what an environment of these arguments needs once, and put it into Ray's object store.

    Args:
        workers: Ray tasks that share the work of making the reference set; with fewer than 2, this process makes it.
        gpus: that each of them needs.
        settings: arguments of :class:`redif_env.ReDiFVectorEnv`; ``teacher`` as for :func:`make_env`.

    Returns:
        ``[reference]``, for ``env_config["tensors"]``: a list, since RLlib copies configs and Ray resolves bare ones.
    """
    if workers > 1:
        make_references(workers, gpus, settings)
    with gathered() as found:
        ReDiFVectorEnv(settings.get("group_size", 1), **made(settings))
    return [ray.put({key: tensor.numpy() for key, tensor in found.items()})]


def make_references(workers: int, gpus: float, settings: Mapping[str, Any]) -> None:
    """Make the reference set by Ray tasks, each a share of the noises, and store it in this machine's cache.

    In the same batches as one process makes them, so that the numbers are the same.
    """
    chosen = {key: value for key, value in settings.items() if key in OF_TEACHER}
    task = Task(**{key: value for key, value in made(settings).items() if key != "group_size"})
    teacher = build_mdp(Task(**made(chosen))).teacher
    noise, condition = draw_starts(teacher, task.sizes.reference_size, TRAIN_SEED)
    steps = task.sizes.teacher_steps
    key = reference_key(teacher, noise, condition, steps)
    if cached_file(key) is not None:
        return
    share = math.ceil(len(noise) / workers / teacher.run_size) * teacher.run_size
    make = ray.remote(num_gpus=gpus)(_endpoints)
    parts = zip(noise.split(share), condition.split(share), strict=True)
    shares = [make.remote(chosen, part.numpy(), rows.numpy(), steps) for part, rows in parts]
    endpoints = torch.cat([torch.from_numpy(share.copy()) for share in ray.get(shares)])
    give({key: endpoints})
    store(key, endpoints)


def _endpoints(chosen: Mapping[str, Any], noise: Any, condition: Any, steps: int) -> Any:
    teacher = build_mdp(Task(**made(chosen))).teacher
    endpoints = teacher.endpoint(torch.from_numpy(noise.copy()), steps, torch.from_numpy(condition.copy()))
    return endpoints.cpu().numpy()
