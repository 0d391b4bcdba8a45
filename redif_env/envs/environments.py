"""The environments: one batched core with numpy inputs and outputs, and the same with a batch of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from torch import Tensor

from redif_env.diffusion.placement import HOST
from redif_env.diffusion.types import State, Transition
from redif_env.envs.episodes import Episodes
from redif_env.envs.spaces import action_space, observation_space
from redif_env.envs.starts import CHOICES, check_options, chosen_start
from redif_env.envs.task import Task
from redif_env.mdp.arguments import list_of, takes
from redif_env.measures.rendering import Filmstrip
from redif_env.storage.checks import check_argument, check_at_least

RENDER_MODES = ["rgb_array"]

REWARD = "reward/"
"""What the keys of reward terms in an info begin with."""

Seen = NDArray[np.float32] | dict[str, NDArray[np.float32]]
"""Observations as arrays: one, or a dict of them."""


class ReDiFVectorEnv(VectorEnv[Seen, NDArray[np.float32], NDArray[Any]]):
    """Many episodes of :class:`ReDiFEnv` that share each forward pass.

    Sub-environment i, seeded with ``seed + i``, behaves like a single environment seeded with ``seed + i``.

    Args:
        num_envs: number of episodes that run together.
        group_size: number of sub-environments in a group. All members of a group have the seed of its first member, so
            they start each episode from the same noise, as group-relative baselines need.
        autoreset_mode: ``NEXT_STEP`` (default, as in Gymnasium), ``SAME_STEP`` or ``DISABLED``, as enum or as its
            value. In ``NEXT_STEP`` the step after the last step of an episode resets: its action is ignored and its
            reward is 0.
        max_episode_steps: passed by ``gym.make_vec``; at least ``num_steps``, after which every episode ends anyway.
        render_mode: None or ``"rgb_array"``.
        arguments: the fields of :class:`redif_env.envs.task.Task`, which :class:`ReDiFEnv` lists.

    ``last_transition`` is the last step as torch tensors, before any reset. Reward wrappers read it.
    """

    metadata = {
        "render_modes": RENDER_MODES,
        "render_fps": 4,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    _spec: EnvSpec | None = None

    @takes(Task)
    def __init__(
        self,
        num_envs: int = 1,
        *,
        group_size: int = 1,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        **arguments: Any,
    ) -> None:
        task = Task(**arguments)
        if render_mode is not None and render_mode not in RENDER_MODES:
            raise ValueError(f"render_mode={render_mode!r} is unknown: choose None or 'rgb_array'")
        check_argument("max_episode_steps", max_episode_steps, int | None)
        check_at_least(1, max_episode_steps=max_episode_steps)
        if max_episode_steps is not None and max_episode_steps < task.num_steps:
            raise ValueError(
                f"max_episode_steps={max_episode_steps} is below num_steps={task.num_steps}, after which every episode "
                f"ends by itself: choose num_steps={max_episode_steps}"
            )
        self.episodes = Episodes(num_envs, group_size, task)
        self.mdp, self.reference, self.terms = self.episodes.mdp, self.episodes.reference, self.episodes.terms
        self.num_envs, self.group_size, self.render_mode = num_envs, group_size, render_mode
        self.autoreset_mode = parse_autoreset_mode(autoreset_mode)
        self.metadata = {**type(self).metadata, "autoreset_mode": self.autoreset_mode}

        self.single_action_space = action_space(self.mdp)
        self.single_observation_space = observation_space(self.mdp)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)

        self.last_transition: Transition | None = None
        self._done = np.zeros(num_envs, dtype=np.bool_)
        self._film = Filmstrip(num_envs, task.num_steps, self.mdp.teacher.image_shape) if render_mode else None

    @property  # type: ignore[override]
    def np_random(self) -> tuple[np.random.Generator, ...]:
        """The generator of each sub-environment, its only source of randomness; group members share one."""
        return tuple(generator for generator in self.episodes.draws.generators for _ in range(self.group_size))

    @np_random.setter  # type: ignore[override]
    def np_random(self, value: Sequence[np.random.Generator]) -> None:
        if len(value) != self.num_envs:
            raise ValueError(f"np_random must be {self.num_envs} generators, one a sub-environment, got {len(value)}")
        draws = self.episodes.draws
        draws.generators = list(value[:: self.group_size])
        draws.seeds = [-1] * len(draws.generators)

    @property  # type: ignore[override]
    def np_random_seed(self) -> Any:
        """The seeds of :attr:`np_random`; -1 for generators that were set directly."""
        return tuple(seed for seed in self.episodes.draws.seeds for _ in range(self.group_size))

    @property  # type: ignore[override]
    def spec(self) -> EnvSpec | None:
        """The spec that Gymnasium sets, with arguments that can be written as JSON (:func:`plain`)."""
        return self._spec

    @spec.setter
    def spec(self, spec: EnvSpec | None) -> None:
        self._spec = plain(spec)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Seen, dict[str, Any]]:
        """Start new episodes, in all sub-environments or in those of ``options["reset_mask"]`` (``(num_envs,)`` bool).

        Args:
            seed: an int seeds sub-environment i with ``seed + i``; a sequence has one seed per sub-environment.
            options: ``reset_mask``, and fixed starts of the new episodes, which are drawn otherwise: ``index``, rows of
                the reference set ``(num_envs,)``; or ``noise`` ``(num_envs, *S)``, whose endpoints the teacher
                computes; ``condition``, one label or prompt for all, or one each.

        Raises:
            ValueError: if an option is unknown or its value is invalid.
        """
        seeds = self._parse_seed(seed)
        options = dict(check_options(options, ("reset_mask", *CHOICES)))
        mask = self._parse_reset_mask(options)
        teacher = self.mdp.teacher
        start = chosen_start(options, self.num_envs, teacher.sample_shape, teacher.conditions, len(self.reference))
        if any(value is not None for value in seeds):
            self.episodes.draws.seed(seeds, mask)
            self.restart_rewards()
        with self.episodes.running():
            self.episodes.start(torch.from_numpy(mask), start)
            self._record_initial(torch.from_numpy(mask), self.state)
            seen = self._observe(self.state)
        self._done[mask] = False
        return seen, self._info(mask, self.state)

    def step(
        self, actions: NDArray[np.float32]
    ) -> tuple[Seen, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """Take one solver step and make the next network call, in every sub-environment.

        Raises:
            ValueError: if ``actions`` has another shape than ``(num_envs, size)`` or holds NaN or infinity.
            gymnasium.error.ResetNeeded: before the first reset, or on a finished episode in mode ``DISABLED``.
        """
        if self.episodes.started is None:
            raise gym.error.ResetNeeded("step() was called before reset(): call reset() first")
        with self.episodes.running():
            return self._step(self._parse_actions(actions))

    def restart_rewards(self) -> None:
        """Make rewards with a memory of past episodes forget them, as seeding does."""
        self.episodes.restart_rewards()

    def state_dict(self) -> dict[str, Any]:
        """The states of episodes, random generators and rewards, as tensors and JSON values.

        Raises:
            gymnasium.error.ResetNeeded: before the first reset.
        """
        if self.episodes.started is None:
            raise gym.error.ResetNeeded("state_dict() was called before reset(): there is no state yet")
        return {**self.episodes.state_dict(), "done": self._done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state of :meth:`state_dict`, in an environment made with the same arguments."""
        self.episodes.load_state_dict(state)
        self._done = state["done"].copy()

    def render(self) -> tuple[NDArray[np.uint8], ...] | None:
        """One frame per sub-environment if ``render_mode`` is ``"rgb_array"`` (``Filmstrip``).

        A finished episode is shown until the first step of the next one.
        """
        return self._film.frames() if self._film else None

    @property
    def state(self) -> State:
        """The state of every episode.

        Raises:
            gymnasium.error.ResetNeeded: before the first reset.
        """
        return self.episodes.state

    # The step, in the order in which things happen.

    def _step(self, action: Tensor) -> tuple[Any, ...]:
        resetting = self._done.copy() if self.autoreset_mode is AutoresetMode.NEXT_STEP else np.zeros_like(self._done)
        if self.autoreset_mode is AutoresetMode.DISABLED and self._done.any():
            over = np.flatnonzero(self._done).tolist()
            raise gym.error.ResetNeeded(f"episodes {over} are finished: reset them with options['reset_mask'] first")
        transition, paid = self.episodes.step(action, torch.from_numpy(~resetting))
        self.last_transition = transition
        terms = {name: values.numpy() for name, values in paid.items()}
        terminated = transition.terminated.numpy().copy()
        infos: dict[str, Any] = {}

        finished = self.state
        self._record_step(transition)
        ended: dict[str, Any] = {}
        if self.autoreset_mode is AutoresetMode.SAME_STEP:
            resetting = terminated
            ended = self._info(terminated, finished, terms) if terminated.any() else ended
        self.episodes.start(torch.from_numpy(resetting))
        if self.autoreset_mode is AutoresetMode.NEXT_STEP:
            self._record_initial(torch.from_numpy(resetting), self.state)
        if ended:
            # Both are observed at once, so that the host waits for the device once.
            both = self._observe(State.joined([finished, self.state]))
            final, seen = rows_of(both, slice(None, self.num_envs)), rows_of(both, slice(self.num_envs, None))
            infos |= self._final(terminated, final, ended)
        else:
            seen = self._observe(self.state)
        self._done = terminated.copy()
        infos |= self._info(np.ones_like(terminated), self.state, terms, no_reward=resetting)
        return seen, sum(terms.values()), terminated, np.zeros_like(terminated), infos

    # The border: numpy in and out, checks, pictures.

    def _observe(self, state: State) -> Seen:
        seen = self.mdp.observe(state)
        if not isinstance(seen, dict):
            return seen.numpy()
        # Copies: on the CPU numpy would look into the state itself.
        return {name: values.to(HOST).numpy().copy() for name, values in seen.items()}

    def _info(
        self,
        rows: NDArray[np.bool_],
        state: State,
        terms: Mapping[str, NDArray[np.float64]] | None = None,
        no_reward: NDArray[np.bool_] | None = None,
    ) -> dict[str, Any]:
        """Info of the given rows in Gymnasium's vector form: arrays, and masks under ``_key``."""
        columns = {
            "nfe": state.nfe.numpy(),
            "pair": self.episodes.pair.numpy(),
            "condition": state.condition.numpy(),
            "half_logsnr": state.half_logsnr.numpy(),
        }
        info: dict[str, Any] = {}
        for key, values in columns.items():
            info[key], info[f"_{key}"] = np.where(rows, values, 0), rows.copy()
        rewarded = rows if no_reward is None else rows & ~no_reward
        for name, values in (terms or {}).items():
            add_term(info, name, values, rewarded)
        return info

    def _final(self, terminated: NDArray[np.bool_], final: Seen, info: dict[str, Any]) -> dict[str, Any]:
        observations = np.full(self.num_envs, None, dtype=object)
        for index in np.flatnonzero(terminated).tolist():
            observations[index] = rows_of(final, index)
        return {
            "final_obs": observations,
            "_final_obs": terminated.copy(),
            "final_info": info,
            "_final_info": terminated.copy(),
        }

    def _parse_actions(self, actions: NDArray[np.float32]) -> Tensor:
        array = np.asarray(actions, dtype=np.float32)
        expected = self.action_space.shape
        if array.shape != expected:
            raise ValueError(f"actions must have shape {expected}, got {array.shape}")
        if not np.isfinite(array).all():
            bad = np.flatnonzero(~np.isfinite(array).all(axis=1)).tolist()
            raise ValueError(
                f"actions must be finite, but those of sub-environments {bad} are not: lower the agent's learning rate"
            )
        return torch.from_numpy(array.clip(-1.0, 1.0))

    def _parse_seed(self, seed: int | Sequence[int | None] | None) -> list[int | None]:
        if seed is None:
            return [None] * self.num_envs
        each = list(seed) if isinstance(seed, Sequence | np.ndarray) else [seed]
        # Of any length: Gymnasium draws seeds of 128 bits.
        if any(not isinstance(one, int | np.integer | NoneType) or isinstance(one, bool) for one in each):
            raise TypeError(f"seed must be a whole number, or {self.num_envs} of them (or None), got {seed!r}")
        if isinstance(seed, int | np.integer):
            return [int(seed) + index for index in range(self.num_envs)]
        if len(seed) != self.num_envs:
            raise ValueError(f"seed must be an int or {self.num_envs} of them, got {len(seed)}")
        return [None if one is None else int(one) for one in seed]

    def _parse_reset_mask(self, options: Mapping[str, Any]) -> NDArray[np.bool_]:
        mask = options.get("reset_mask")
        if mask is None:
            return np.ones(self.num_envs, dtype=np.bool_)
        if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_ or mask.shape != (self.num_envs,):
            raise ValueError(f"options['reset_mask'] must be a bool array of shape ({self.num_envs},), got {mask!r}")
        if not mask.any():
            raise ValueError("options['reset_mask'] must choose at least one sub-environment")
        if self.episodes.started is None and not mask.all():
            raise gym.error.ResetNeeded("the first reset() must reset every sub-environment: leave reset_mask out")
        return mask.copy()

    def _record_initial(self, rows: Tensor, state: State) -> None:
        if self._film and bool(rows.any()):
            self._film.clear(rows)
            self._film.record(rows, torch.zeros_like(state.steps_left), *self._shown(state, state.x0_history[:, 0]))

    def _record_step(self, transition: Transition) -> None:
        if not self._film:
            return
        self._record_initial(transition.live & (transition.state.predictions == 1), transition.state)
        column = self.mdp.num_steps - transition.next_state.steps_left
        self._film.record(transition.live, column, *self._shown(transition.next_state, transition.decision.x0))

    def _shown(self, state: State, x0: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures of the sample and of its clean estimate."""
        teacher = self.mdp.teacher
        return teacher.images(teacher.schedule.normalised(state.x, state.half_logsnr)), teacher.images(x0)


class ReDiFEnv(gym.Env[Seen, NDArray[np.float32]]):
    """Denoise one sample in a few network calls, as close as possible to the many-step teacher's sample.

    ## Description

    A diffusion model turns noise into a sample in many small steps, and each step calls a large network. In this
    environment, an episode makes one sample with few calls. At each step the agent observes the sample and the
    network's prediction, and chooses the step size and the noise prediction of the step. A reset draws a pair of
    initial noise and the teacher's sample of that noise (its endpoint) from the reference set. Everything else is
    deterministic. The idea is that of "ReDiF: Reinforced Distillation for Few Step Diffusion" (arXiv 2512.22802).

    ## Action Space

    A flat float32 `Box` in [-1, 1]. The zero action is exactly the base solver's step. Values outside are clipped.

    - `"solver"` (default; 7 numbers for images, 5 for other samples): the step size, and a correction to the base
      solver's noise prediction. :class:`redif_env.mdp.actions.SolverMap` gives each number's unit.
    - `"step"` (1 number): only the step size.
    - `"noise"` (1 number plus the size of a sample): the step size, and the whole noise prediction, which replaces the
      teacher's. It needs `observation="sample"`. The policy is the student's network
      (:class:`redif_env.sb3.StudentPolicy`). :class:`redif_env.mdp.actions.NoiseMap` gives the units. With this map,
      zero means the base solver's step size only; a prediction of zero has no special meaning.

    `learn_guidance` adds a number for the guidance scale. `min_steps` below `num_steps` adds a last number, by which
    the agent gives up steps (:class:`redif_env.mdp.process.DenoisingMDP`).

    ## Observation Space

    - `"features"` (default): a short float32 vector of the steps left, the noise level, and statistics of the sample,
      of the predicted clean sample and of its change. :class:`redif_env.mdp.observations.Features` lists them.
    - `"features+condition"`: the same, followed by the embedding of the condition.
    - `"steps"`: only the number of steps left, one-hot, for policies that do not depend on the sample.
    - `"sample"`: a dict of the noisy sample, the conditioning timestep, the level, the network calls left and the index
      of the condition (:class:`redif_env.mdp.observations.Sample`).

    With `prices`, the price of the episode is appended to the vectors.

    ## Rewards

    The reward is 0 until the sample is finished. Then it is minus the sample's root mean square distance to the
    teacher's endpoint, divided by the base solver's mean distance over the reference set. On average the zero action
    has a return of -1, and the teacher has 0. `info["reward/endpoint"]` holds the term. The `reward` argument and the
    wrappers of :mod:`redif_env.envs.wrappers` give other rewards and weighted sums; `docs/rewards.md` lists them.

    ## Starting State

    `x` is the noise of a random pair of the reference set, and the network has been called once. With `prices`, the
    price of a network call is drawn for the episode, log-uniformly from the range.

    ## Episode End

    An episode terminates when the sample is clean: after `num_steps` steps, or earlier if the agent gave up steps, but
    not before `min_steps`. It never truncates.

    ## Information

    - `nfe`: network calls spent on the sample
    - `half_logsnr`: level of the sample, `inf` when clean
    - `condition`: index of the condition among the teacher's
    - `pair`: index of the pair in the reference set
    - `reward/<name>` (after a step): each term of the reward; their sum is the reward

    In the vector environment each key has a mask under `_<key>`, as in Gymnasium. `env.unwrapped.last_transition` holds
    the step itself, as torch tensors with a batch dimension of 1.

    ## Arguments

    ```python
    import gymnasium as gym
    import redif_env

    env = gym.make("ReDiF-v0", teacher="digits", num_steps=4)
    ```

    {arguments}
    - `autoreset_mode=None`: ignored by the single environment, which never resets itself. `gym.make` accepts it so that
      the same arguments work with `gym.make_vec`, whose default is `"NextStep"`. (Stable-Baselines3 needs
      `"SameStep"`, which `redif_env.sb3.make_vec_env` sets.)
    - `render_mode=None`: None, or `"rgb_array"` for the trajectory as one image.

    When you construct the class directly, you can pass objects (a `Teacher`, a `Solver`, ...) instead of names.

    ## Version History

    * v0: initial version
    """

    metadata = {"render_modes": RENDER_MODES, "render_fps": 4}

    _spec: EnvSpec | None = None

    @takes(Task)
    def __init__(
        self,
        *,
        autoreset_mode: AutoresetMode | str | None = None,
        render_mode: str | None = None,
        **arguments: Any,
    ) -> None:
        if autoreset_mode is not None:
            parse_autoreset_mode(autoreset_mode)
        mode = AutoresetMode.DISABLED
        self.batch = ReDiFVectorEnv(1, autoreset_mode=mode, render_mode=render_mode, **arguments)
        self.render_mode = render_mode
        self.action_space = self.batch.single_action_space
        self.observation_space = self.batch.single_observation_space

    spec = ReDiFVectorEnv.spec  # type: ignore[assignment]

    @property
    def last_transition(self) -> Transition | None:
        """The last step as torch tensors with a batch dimension of 1."""
        return self.batch.last_transition

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Seen, dict[str, Any]]:
        """Start a new episode.

        Args:
            seed: seed of the random draws.
            options: a fixed start, which is drawn otherwise: ``index``, a row of the reference set; or ``noise``
                ``(*S)``, whose endpoint the teacher computes; ``condition``, a label or prompt.

        Raises:
            ValueError: if an option is unknown or its value is invalid.
        """
        rows = {
            name: value if name == "condition" else np.asarray(value)[None]
            for name, value in check_options(options, CHOICES).items()
        }
        super().reset(seed=seed)
        if seed is not None:
            self.batch.restart_rewards()
        self.batch.np_random = [self.np_random]
        observations, infos = self.batch.reset(options=rows)
        return rows_of(observations, 0), info_of(infos, 0)

    def step(self, action: NDArray[np.float32]) -> tuple[Seen, float, bool, bool, dict[str, Any]]:
        """Take one solver step and make the next network call.

        Raises:
            ValueError: if ``action`` has another shape than the action space or holds NaN or infinity.
            gymnasium.error.ResetNeeded: before the first reset, or once the episode is finished.
        """
        array = np.asarray(action, dtype=np.float32)
        if array.shape != self.action_space.shape:
            raise ValueError(f"action must have shape {self.action_space.shape}, got {array.shape}")
        observations, rewards, terminated, truncated, infos = self.batch.step(array[None])
        return rows_of(observations, 0), float(rewards[0]), bool(terminated[0]), bool(truncated[0]), info_of(infos, 0)

    def render(self) -> NDArray[np.uint8] | None:  # type: ignore[override]
        """The trajectory so far as one frame, if ``render_mode`` is ``"rgb_array"``."""
        frames = self.batch.render()
        return frames[0] if frames else None


# None where docstrings are stripped (python -OO).
if ReDiFEnv.__doc__:
    ReDiFEnv.__doc__ = ReDiFEnv.__doc__.replace("{arguments}", list_of(Task))


def plain(spec: EnvSpec | None) -> EnvSpec | None:
    """``spec`` with what is a string or a number in another form as that: paths, an autoreset mode, numpy's numbers."""
    if spec is None:
        return None
    for name, value in list(spec.kwargs.items()):
        if isinstance(value, Path):
            spec.kwargs[name] = str(value)
        elif isinstance(value, AutoresetMode):
            spec.kwargs[name] = value.value
        elif isinstance(value, np.generic):
            spec.kwargs[name] = value.item()
    return spec


def parse_autoreset_mode(mode: AutoresetMode | str) -> AutoresetMode:
    """An autoreset mode by its value.

    Raises:
        ValueError: if there is none.
    """
    try:
        return AutoresetMode(mode)
    except ValueError as error:
        known = ", ".join(repr(known.value) for known in AutoresetMode)
        raise ValueError(f"autoreset_mode={mode!r} is unknown: choose one of {known}") from error


def add_term(info: dict[str, Any], name: str, values: NDArray[np.float64], rows: NDArray[np.bool_]) -> None:
    """Put a reward term ``(B,)`` of the given rows under ``info["reward/<name>"]``, in Gymnasium's vector form.

    Raises:
        ValueError: if there is a term of that name already.
    """
    if not rows.any():
        return
    key = term_key(info, name)
    info[key], info[f"_{key}"] = np.where(rows, values, 0.0), rows.copy()


def term_key(info: Mapping[str, Any], name: str) -> str:
    """The key of a reward term that ``info`` does not have yet.

    Raises:
        ValueError: if it has one of that name.
    """
    key = f"{REWARD}{name}"
    if key in info:
        raise ValueError(f"two reward terms are named {name!r}: give one of them another name")
    return key


def terms_of(info: Mapping[str, Any]) -> dict[str, Any]:
    """The reward terms in an info of any kind, by name, without masks."""
    return {key.removeprefix(REWARD): value for key, value in info.items() if key.startswith(REWARD)}


def rows_of(observations: Seen, index: int | slice) -> Any:
    """The observations of one sub-environment, or of some."""
    if isinstance(observations, dict):
        return {name: values[index] for name, values in observations.items()}
    return observations[index]


def info_of(infos: dict[str, Any], index: int) -> dict[str, Any]:
    """The info of one sub-environment: plain numbers, without masks."""
    return {
        key: info_of(value, index) if isinstance(value, dict) else value[index].item()
        for key, value in infos.items()
        if not key.startswith("_")
    }
