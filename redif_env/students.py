"""The student: what is shipped. A few-step sampler that needs neither an environment nor an RL library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from redif_env.actions import ACTION_MAPS
from redif_env.files import CorruptFileError, sha256, write_folder
from redif_env.grids import GRIDS
from redif_env.mdp import DenoisingMDP
from redif_env.observations import OBSERVATIONS
from redif_env.policies import Policy, PolicyConfig
from redif_env.settings import look_up, name_of
from redif_env.solvers import SOLVERS
from redif_env.teachers import load_teacher
from redif_env.types import State

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.vec_env import VecEnv

FORMAT = 1
POLICY_FILE = "policy.safetensors"
CONFIG_FILE = "config.json"
TEACHER_FOLDER = "teacher"


class Student:
    """A few-step sampler: the teacher's network, stepped as a trained policy says.

    Args:
        mdp: the decision process that the policy was trained in.
        policy: observation to action, both batched.
    """

    def __init__(self, mdp: DenoisingMDP, policy: Policy) -> None:
        expected = (mdp.observation_space.shape[0], mdp.action_space.shape[0])
        if (policy.config.sizes[0], policy.config.sizes[-1]) != expected:
            raise ValueError(
                f"policy maps {policy.config.sizes}, but the decision process needs (observation, action) {expected}"
            )
        self.mdp = mdp
        self.policy = policy.to(mdp.teacher.device).eval().requires_grad_(False)

    @property
    def network(self) -> nn.Module:
        """The network that is called ``num_steps`` times a sample."""
        return self.mdp.teacher.network

    @property
    def num_steps(self) -> int:
        """Network calls (NFE) a sample; the most there can be, where the policy chooses."""
        return self.mdp.num_steps

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape S of one sample."""
        return self.mdp.teacher.sample_shape

    @torch.inference_mode()
    def __call__(
        self,
        num_samples: int | None = None,
        *,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        price: float | None = None,
    ) -> Tensor:
        """Samples ``(num_samples, *S)`` in [-1, 1].

        Args:
            num_samples: how many to draw; needed unless ``noise`` is given.
            generator: of the initial noise; torch's default one if not given.
            noise: standard normal ``(N, *S)`` to start from instead.
            price: of a network call, for a student trained at many prices: the dearer, the fewer calls. Its smallest
                price if not given.
        """
        return self.trajectory(self._initial_noise(num_samples, generator, noise), price)[-1].x.clamp(-1, 1)

    @torch.no_grad()
    def trajectory(self, noise: Tensor, price: float | None = None) -> list[State]:
        """The state after each step from ``noise`` ``(N, *S)``; the last holds the clean samples, not yet clipped.

        ``nfe`` of the last are the network calls spent on each: samples that are finished early cost no more.
        """
        mdp, states = self.mdp, []
        state = mdp.initial(noise, self._prices(len(noise), price))
        unfinished = state.steps_left > 0
        while bool(unfinished.any()):
            state = mdp.predict(state, unfinished)
            stepped = mdp.advance(state, mdp.decode(state, self.policy(mdp.observe(state))))
            state = state.merge(unfinished, stepped)
            unfinished = state.steps_left > 0
            states.append(state)
        return states

    @classmethod
    def from_agent(cls, agent: BaseAlgorithm, env: VecEnv | None = None) -> Student:
        """The student of a trained Stable-Baselines3 agent; neither SB3 nor the agent is needed afterwards.

        Args:
            agent: PPO, A2C, SAC or TD3 with a stock ``MlpPolicy``.
            env: what it was trained on, if it was loaded without.

        Raises:
            ValueError: if there is no environment, it is no ReDiF one, or the policy is of another kind.
        """
        from redif_env.sb3.export import actor_policy, environment_of

        return cls(environment_of(agent, env).mdp, actor_policy(agent.policy))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``config.json``, ``policy.safetensors`` and the teacher's folder; whole or not at all.

        Raises:
            ValueError: if the decision process uses a solver, grid, action map or observation that has no name.
        """
        mdp = self.mdp
        config: dict[str, Any] = {
            "format": FORMAT,
            "num_steps": mdp.num_steps,
            "min_steps": mdp.min_steps,
            "prices": mdp.prices,
            "solver": name_of(mdp.solver, SOLVERS),
            "grid": name_of(mdp.grid, GRIDS),
            "action": name_of(mdp.action_map, ACTION_MAPS),
            "observation": name_of(mdp.observation, OBSERVATIONS),
            "teacher": mdp.teacher.name,
            "policy": self.policy.config.to_json(),
        }
        with write_folder(Path(folder)) as half_written:
            mdp.teacher.save_pretrained(half_written / TEACHER_FOLDER)
            weights = {name: tensor.cpu().contiguous() for name, tensor in self.policy.state_dict().items()}
            save_file(weights, half_written / POLICY_FILE)
            files = sorted(path for path in half_written.rglob("*") if path.is_file())
            config["sha256"] = {path.relative_to(half_written).as_posix(): sha256(path) for path in files}
            (half_written / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str = "cpu") -> Student:
        """Read what :meth:`save_pretrained` wrote.

        Raises:
            FileNotFoundError: if there is no student in ``folder``.
            CorruptFileError: if a file is missing, or is not what was written.
        """
        folder = Path(folder)
        config = _read_config(folder)
        try:
            teacher = load_teacher(folder / TEACHER_FOLDER)
            teacher.name = config["teacher"]
            mdp = DenoisingMDP(
                teacher=teacher.to(device),
                solver=look_up("solver", config["solver"], SOLVERS),
                grid=look_up("grid", config["grid"], GRIDS),
                num_steps=config["num_steps"],
                action_map=look_up("action", config["action"], ACTION_MAPS),
                observation=look_up("observation", config["observation"], OBSERVATIONS),
                min_steps=config.get("min_steps"),
                prices=tuple(config["prices"]) if config.get("prices") else None,
            )
            sizes = tuple(config["policy"].pop("sizes"))
            policy = Policy(PolicyConfig(sizes, **config["policy"]))
            policy.load_state_dict(load_file(folder / POLICY_FILE))
        except (KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise CorruptFileError(
                f"student folder {folder} does not fit together ({error}): export it again"
            ) from error
        return cls(mdp, policy)

    def _prices(self, count: int, price: float | None) -> Tensor:
        prices = self.mdp.prices
        if prices is None and price is not None:
            raise ValueError(f"price={price} means nothing to this student: it was trained without prices")
        if prices is not None and price is not None and not prices[0] <= price <= prices[1]:
            raise ValueError(f"price must be from {prices[0]} to {prices[1]}, as in training, got {price}")
        cheapest = prices[0] if prices is not None else 0.0
        value = cheapest if price is None else price
        return torch.full((count,), value, dtype=torch.float64, device=self.mdp.teacher.device)

    def _initial_noise(
        self, num_samples: int | None, generator: torch.Generator | None, noise: Tensor | None
    ) -> Tensor:
        if (num_samples is None) == (noise is None):
            raise ValueError("give either num_samples or noise")
        if noise is None:
            if num_samples is None or num_samples < 1:
                raise ValueError(f"num_samples must be at least 1, got {num_samples}")
            device = generator.device if generator is not None else self.mdp.teacher.device
            noise = torch.randn(num_samples, *self.sample_shape, generator=generator, device=device)
        if noise.shape[1:] != self.sample_shape:
            raise ValueError(f"noise must have shape (N, {self.sample_shape}), got {tuple(noise.shape)}")
        return noise.to(self.mdp.teacher.device)


def _read_config(folder: Path) -> dict[str, Any]:
    """The config of a student folder, once every file's digest is as written."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise FileNotFoundError(f"no student in {folder}: it has no {CONFIG_FILE}")
    try:
        config: dict[str, Any] = json.loads(path.read_text())
        digests = dict(config["sha256"])
        known = config["format"] == FORMAT
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptFileError(f"{path} is no student's config ({error!r}): export the student again") from error
    if not known:
        raise ValueError(f"{path} has format {config['format']}, this version reads {FORMAT}: update redif-env")
    for name, expected in digests.items():
        if not (folder / name).is_file():
            raise CorruptFileError(f"student folder {folder} lacks {name}: export the student again")
        if sha256(folder / name) != expected:
            raise CorruptFileError(f"{folder / name} is damaged (its digest differs): export the student again")
    return config
