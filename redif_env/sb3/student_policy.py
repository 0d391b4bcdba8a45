"""A Stable-Baselines3 policy that is a diffusion network: its noise predictions are the actions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from gymnasium.spaces import Box, Dict, Space
from stable_baselines3.common.distributions import DiagGaussianDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import CombinedExtractor
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import Tensor, nn
from torch.distributions import Normal

from redif_env.diffusion.placement import stock_defaults
from redif_env.mdp.actions import NoiseMap
from redif_env.mdp.process import DenoisingMDP
from redif_env.students.network.adapters import add_adapters, merged_weights
from redif_env.teachers.networks import build_network, call_by_name
from redif_env.teachers.teacher import config_of

VALUE_WIDTH = 64


class AveragedGaussian(DiagGaussianDistribution):
    """Diagonal Gaussian ``(B, A)`` whose log-probability and entropy are means over the A dimensions.

    Importance ratios are the A-th root of the true ones: the policy gradient has the same direction, and its scale does
    not grow with A. A sum over 3,000 dimensions has rounding errors of 1e-4.
    """

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__(mean.shape[1])
        # Not validated: HealthCheck reports values that are not finite, with the setting to change.
        self.distribution = Normal(mean, std, validate_args=False)

    def log_prob(self, actions: Tensor) -> Tensor:
        return self.distribution.log_prob(actions).mean(dim=1)

    def entropy(self) -> Tensor:
        return self.distribution.entropy().mean(dim=1)


class StudentPolicy(ActorCriticPolicy):
    """Actor-critic policy whose actor is the student network.

    One forward pass gives noise prediction, step size and value. For on-policy agents and environments with
    ``action="noise"`` and ``observation="sample"``::

        env = make_vec_env(128, action="noise", observation="sample")
        PPO(StudentPolicy, env, policy_kwargs=student_kwargs(env.unwrapped.mdp), ...)

    The network output over ``max_output`` is the mean of a Gaussian. It is in the action parameterization
    (``action_parameterization``), in which no level amplifies errors. The mean step size is one learned number per
    step, so the student is a fixed few-step sampler, which all exports support. The value is computed from the detached
    middle features of the network, so the value loss does not change the student. Standard deviations are not learned
    but set: ``log_std`` ``(num_steps, 2)`` of step size and prediction, in units of the action; callbacks may change
    it.

    ``clip_range``: use :func:`clip_range_of`, since log-probabilities are means over an action's dimensions; larger
    values never clip.

    Args:
        observation_space, action_space, lr_schedule: passed by the agent.
        network: config of a diffusers model called as ``model(sample, timestep[, class_labels])``, with
            ``_class_name``; plain values, so that saved agents hold no pickled code.
        labels: class label of each of the teacher's conditions; None without labels.
        exploration: standard deviations of the network output and of the step size's shift in logits.
        lora_rank: rank of the trained adapters; 0 trains all weights.
        autocast: run the network with bfloat16 autocast, in rollouts and updates.
        features_from: name of the submodule whose output is the input of the value head.
        max_output, max_shift: as in :class:`~redif_env.mdp.actions.NoiseMap`.
        use_sde: must be false; passed by the agent.
        optimizer_class, optimizer_kwargs: as in SB3.

    Raises:
        ValueError: if the spaces do not match, or an argument is invalid.
    """

    def __init__(
        self,
        observation_space: Space,
        action_space: Space,
        lr_schedule: Schedule,
        *,
        network: Mapping[str, Any],
        labels: list[int] | None = None,
        exploration: tuple[float, float] = (0.1, 0.1),
        lora_rank: int = 0,
        autocast: bool = False,
        features_from: str = "mid_block",
        max_output: float = NoiseMap.max_output,
        max_shift: float = NoiseMap.max_shift,
        use_sde: bool = False,
        optimizer_class: type[torch.optim.Optimizer] = torch.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
    ) -> None:
        self.num_steps = _checked(observation_space, action_space, use_sde)
        self.settings: dict[str, Any] = {
            "network": dict(network),
            "labels": labels,
            "exploration": tuple(exploration),
            "lora_rank": lora_rank,
            "autocast": autocast,
            "features_from": features_from,
            "max_output": max_output,
            "max_shift": max_shift,
        }
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            net_arch=[],
            ortho_init=False,
            # Has no weights and is never called: the network takes the observation itself.
            features_extractor_class=CombinedExtractor,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
        )

    @stock_defaults()
    def _build(self, lr_schedule: Schedule) -> None:
        settings = self.settings
        self.unet = build_network(settings["network"])
        for module in self.unet.modules():
            # Rollouts and updates must use the same network, or the ratio is not 1.
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        if settings["lora_rank"]:
            add_adapters(self.unet, settings["lora_rank"])
        self.shift = nn.Parameter(torch.zeros(self.num_steps))
        labels = settings["labels"]
        self.register_buffer("labels", None if labels is None else torch.tensor(labels), persistent=False)
        output, shift = settings["exploration"]
        std = torch.tensor([shift / settings["max_shift"], output / settings["max_output"]])
        self.register_buffer("log_std", std.log().repeat(self.num_steps, 1))
        self._watch_middle()
        width = self._features_width()
        self.value_net = nn.Sequential(nn.Linear(width, VALUE_WIDTH), nn.Tanh(), nn.Linear(VALUE_WIDTH, 1))
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        self.optimizer = self.optimizer_class(trained, lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Actions ``(B, A)``, values ``(B, 1)`` and log-probabilities ``(B,)``."""
        distribution, values = self._forward(obs)
        actions = distribution.get_actions(deterministic=deterministic)
        return actions, values, distribution.log_prob(actions)

    def evaluate_actions(self, obs: PyTorchObs, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Values ``(B, 1)``, log-probabilities ``(B,)`` and entropies ``(B,)``."""
        distribution, values = self._forward(obs)
        return values, distribution.log_prob(actions), distribution.entropy()

    def get_distribution(self, obs: PyTorchObs) -> AveragedGaussian:
        return self._forward(obs)[0]

    def predict_values(self, obs: PyTorchObs) -> Tensor:
        return self._forward(obs)[1]

    def plain_weights(self) -> dict[str, Tensor]:
        """A copy of the weights of the student network, with adapters merged."""
        return merged_weights(self.unet)

    def _forward(self, obs: PyTorchObs) -> tuple[AveragedGaussian, Tensor]:
        """The action distribution and values, in one forward pass."""
        assert isinstance(obs, dict)
        step = self.num_steps - obs["nfe_left"][:, 0].long().clamp(min=1)
        output = self._output(obs).flatten(1)
        std = self.log_std.exp()[step]
        distribution = AveragedGaussian(
            torch.cat([self.shift[step, None], output / self.settings["max_output"]], dim=1),
            torch.cat([std[:, :1], std[:, 1:].expand_as(output)], dim=1),
        )
        return distribution, self.value_net(self._features(obs))

    def _output(self, obs: dict[str, Tensor]) -> Tensor:
        labels = {} if self.labels is None else {"class_labels": self.labels[obs["condition"][:, 0].long()]}
        device = obs["sample"].device.type
        with torch.autocast(device, torch.bfloat16) if self.settings["autocast"] else nullcontext():
            output = call_by_name(self.unet, obs["sample"], obs["timestep"][:, 0], labels)
        return output.float()

    def _features(self, obs: dict[str, Tensor]) -> Tensor:
        """Inputs of the value head after a forward pass: pooled middle features, and the steps left as one-hot."""
        middle = self._middle.float()
        pooled = middle.mean(dim=(2, 3)) if middle.ndim == 4 else middle.mean(dim=1)
        left = torch.arange(1, self.num_steps + 1, device=middle.device)
        return torch.cat([pooled, (obs["nfe_left"] == left).float()], dim=1)

    def _watch_middle(self) -> None:
        name = self.settings["features_from"]
        try:
            module = self.unet.get_submodule(name)
        except AttributeError as error:
            known = ", ".join(repr(name) for name, _ in self.unet.named_children())
            raise ValueError(
                f"features_from={name!r} is not a submodule of the network: choose one of {known}"
            ) from error
        self._middle = torch.empty(0)
        module.register_forward_hook(self._store_middle)

    def _store_middle(self, module: nn.Module, inputs: Any, output: Any) -> None:
        # Detached: the value loss must not change the student, and a policy with a graph cannot be copied.
        self._middle = (output[0] if isinstance(output, tuple) else output).detach()

    @torch.no_grad()
    def _features_width(self) -> int:
        assert isinstance(self.observation_space, Dict)
        obs = {name: torch.zeros(1, *space.shape) for name, space in self.observation_space.items()}  # type: ignore[misc]
        self._output(obs)
        return self._features(obs).shape[1]

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {
            "observation_space": self.observation_space,
            "action_space": self.action_space,
            "lr_schedule": self._dummy_schedule,
            **self.settings,
            "optimizer_class": self.optimizer_class,
            "optimizer_kwargs": self.optimizer_kwargs,
        }


def student_kwargs(mdp: DenoisingMDP, network: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The ``policy_kwargs`` of a :class:`StudentPolicy` for a decision process; more can be added.

    Args:
        mdp: decision process of the environment.
        network: config of the student network; the teacher's if None.

    Raises:
        ValueError: if the action map is not a ``NoiseMap``, or the teacher takes prompts.
    """
    action_map, teacher = mdp.action_map, mdp.teacher
    if not isinstance(action_map, NoiseMap):
        raise ValueError(
            f"a StudentPolicy needs noise predictions as actions: make the environment with action='noise', "
            f"not {action_map}"
        )
    inputs = teacher.conditions.inputs
    if set(inputs) - {"class_labels"}:
        raise ValueError(
            f"teacher={teacher.name!r} takes {', '.join(sorted(inputs))}: students with their own network support "
            "class labels only: choose action='solver'"
        )
    config = network or config_of(teacher)
    labels = inputs["class_labels"].tolist() if inputs else None
    return {
        "network": dict(config),
        "labels": labels,
        "max_output": action_map.max_output,
        "max_shift": action_map.max_shift,
    }


def clip_range_of(clip_range: float, action_size: int) -> float:
    """The ``clip_range`` that has the trust region of ``clip_range`` on whole actions of ``action_size`` dimensions.

    ``(1 + clip_range) ** (1 / action_size) - 1``, since log-probabilities are means over an action's dimensions.
    """
    return math.expm1(math.log1p(clip_range) / action_size)


def _checked(observation_space: Space, action_space: Space, use_sde: bool) -> int:
    """Check the spaces, and return the number of steps."""
    if use_sde:
        raise ValueError("use_sde=True is not supported: the exploration of a StudentPolicy is set by log_std")
    if not isinstance(observation_space, Dict) or "sample" not in observation_space.spaces:
        raise ValueError(f"observation space is {observation_space}: make the environment with observation='sample'")
    size = 1 + math.prod(observation_space["sample"].shape or ())
    if not isinstance(action_space, Box) or action_space.shape != (size,):
        raise ValueError(
            f"action space is {action_space}, not of shape ({size},): make the environment with action='noise'"
        )
    left = observation_space["nfe_left"]
    assert isinstance(left, Box)
    return int(left.high[0])
