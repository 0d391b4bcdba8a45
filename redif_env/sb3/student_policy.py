"""The student as a Stable-Baselines3 policy: a diffusion network whose noise predictions are the actions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext
from enum import StrEnum
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
from redif_env.diffusion.predictions import velocity
from redif_env.diffusion.schedules import preserving_level
from redif_env.mdp.actions import NoiseMap
from redif_env.mdp.process import DenoisingMDP
from redif_env.students.network.adapters import add_adapters, merged_weights
from redif_env.teachers.networks import build_network, call_by_name
from redif_env.teachers.teacher import config_of

VALUE_WIDTH = 64


class Reduction(StrEnum):
    """How the log-probabilities of an action's numbers make one."""

    MEAN = "mean"
    SUM = "sum"


class ReducedGaussian(DiagGaussianDistribution):
    """A diagonal Gaussian ``(B, A)`` whose log-probability and entropy are a mean or a sum over the A numbers.

    The mean is the sum over A, so its ratios are the A-th root of the true ones: a policy gradient in the same
    direction, in numbers that do not grow with A.
    """

    def __init__(self, mean: Tensor, std: Tensor, reduction: Reduction) -> None:
        super().__init__(mean.shape[1])
        self.reduction = reduction
        # Not validated: what is not finite is the business of a health check, which can say what to turn.
        self.distribution = Normal(mean, std, validate_args=False)

    def log_prob(self, actions: Tensor) -> Tensor:
        return self._reduced(self.distribution.log_prob(actions))

    def entropy(self) -> Tensor:
        return self._reduced(self.distribution.entropy())

    def _reduced(self, values: Tensor) -> Tensor:
        return values.mean(dim=1) if self.reduction is Reduction.MEAN else values.sum(dim=1)


class StudentPolicy(ActorCriticPolicy):
    """A network that is the student: one forward pass gives noise prediction, step size and value.

    For ``action="noise"`` and ``observation="sample"``, and any on-policy agent::

        env = make_vec_env(128, action="noise", observation="sample")
        PPO(StudentPolicy, env, policy_kwargs=student_kwargs(env.unwrapped.mdp), ...)

    The network's output over ``max_output`` is the mean of a Gaussian; it is read in the form of
    ``action_parameterization``, in which no level magnifies errors. (A copy of a teacher that
    predicts noise ``predicts_noise``, which is put into that form.) The step size's mean is one learned number a step:
    the finished student is then a fixed few-step sampler, which every export holds.
    The value is read from the network's middle features; its gradient stops there, and never moves the student. The
    standard deviations are not learned but set: ``log_std`` ``(num_steps, 2)``, first to last step, of the step size
    and of the prediction, both in units of the action.

    ``clip_range``: the ratio of a sum is that of the whole action, and PPO's usual 0.1 to 0.2 applies. A mean's is its
    A-th root, for which the same trust region is the usual clip range over A: :func:`clip_range_of`. Wider ones clip
    nothing. The summed log-probability of 3,000 numbers has rounding errors of 1e-4, so its ratio is 1 only to that.

    Args:
        observation_space, action_space, lr_schedule: given by the agent.
        network: config of a diffusers model that is called as ``model(sample, timestep[, class_labels])``, with its
            ``_class_name``; plain values, so that agents are saved without pickles of code.
        predicts_noise: the network predicts the noise, on a variance-preserving schedule, and not the velocity that
            actions bring there.
        labels: the class label of each row of the teacher's conditions; none where it takes none.
        reduction: of the log-probability and the entropy over the numbers of an action.
        exploration: standard deviation of the network's output and of the step size's shift, in the units of the
            network's output and of logits: a callback may change ``log_std`` over training.
        lora_rank: trains adapters of this rank on all layers, the other weights stay; 0 trains all weights.
        autocast: runs the network in bfloat16 where that is safe, in rollouts and updates alike.
        features_from: name of the submodule whose output the value is read from.
        max_output, max_shift: of the :class:`~redif_env.mdp.actions.NoiseMap`.
        use_sde: must be false; given by the agent.
        optimizer_class, optimizer_kwargs: as in SB3.

    Raises:
        ValueError: if the spaces are of another action map or observation, or an argument cannot be.
    """

    def __init__(
        self,
        observation_space: Space,
        action_space: Space,
        lr_schedule: Schedule,
        *,
        network: Mapping[str, Any],
        predicts_noise: bool = False,
        labels: list[int] | None = None,
        reduction: Reduction | str = Reduction.MEAN,
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
            "predicts_noise": predicts_noise,
            "labels": labels,
            "reduction": Reduction(reduction),
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
            # Without weights, and never called: the network takes the observation as it is.
            features_extractor_class=CombinedExtractor,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
        )

    @stock_defaults()
    def _build(self, lr_schedule: Schedule) -> None:
        settings = self.settings
        self.unet = build_network(settings["network"])
        for module in self.unet.modules():
            # Rollouts and updates must see the same network, or the ratio is not 1.
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
        distribution, values = self._answer(obs)
        actions = distribution.get_actions(deterministic=deterministic)
        return actions, values, distribution.log_prob(actions)

    def evaluate_actions(self, obs: PyTorchObs, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Values ``(B, 1)``, log-probabilities ``(B,)`` and entropies ``(B,)``."""
        distribution, values = self._answer(obs)
        return values, distribution.log_prob(actions), distribution.entropy()

    def get_distribution(self, obs: PyTorchObs) -> ReducedGaussian:
        return self._answer(obs)[0]

    def predict_values(self, obs: PyTorchObs) -> Tensor:
        return self._answer(obs)[1]

    def plain_weights(self) -> dict[str, Tensor]:
        """Weights of the student's network, adapters merged; a copy."""
        return merged_weights(self.unet)

    def _answer(self, obs: PyTorchObs) -> tuple[ReducedGaussian, Tensor]:
        """All that one forward pass gives."""
        assert isinstance(obs, dict)
        step = self.num_steps - obs["nfe_left"][:, 0].long().clamp(min=1)
        output = self._spoken(obs, self._output(obs)).flatten(1)
        std = self.log_std.exp()[step]
        distribution = ReducedGaussian(
            torch.cat([self.shift[step, None], output / self.settings["max_output"]], dim=1),
            torch.cat([std[:, :1], std[:, 1:].expand_as(output)], dim=1),
            self.settings["reduction"],
        )
        return distribution, self.value_net(self._features(obs))

    def _spoken(self, obs: dict[str, Tensor], output: Tensor) -> Tensor:
        """The network's output in the form of actions."""
        if not self.settings["predicts_noise"]:
            return output
        return velocity(obs["sample"], output, preserving_level(obs["level"][:, 0]))

    def _output(self, obs: dict[str, Tensor]) -> Tensor:
        labels = {} if self.labels is None else {"class_labels": self.labels[obs["condition"][:, 0].long()]}
        device = obs["sample"].device.type
        with torch.autocast(device, torch.bfloat16) if self.settings["autocast"] else nullcontext():
            output = call_by_name(self.unet, obs["sample"], obs["timestep"][:, 0], labels)
        return output.float()

    def _features(self, obs: dict[str, Tensor]) -> Tensor:
        """What the value is read from, once the network was called: pooled middle features, and the calls left."""
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
            raise ValueError(f"features_from={name!r} is no part of the network: choose one of {known}") from error
        self._middle = torch.empty(0)
        module.register_forward_hook(self._keep_middle)

    def _keep_middle(self, module: nn.Module, inputs: Any, output: Any) -> None:
        # Detached: the value must not move the student, and a kept graph could not be copied with the policy.
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
    """``policy_kwargs`` of a :class:`StudentPolicy` for a decision process, to add others to.

    Args:
        mdp: of the environment.
        network: the student's config; its teacher's if not given.

    Raises:
        ValueError: if the action map is another, or the teacher takes prompts.
    """
    action_map, teacher = mdp.action_map, mdp.teacher
    if not isinstance(action_map, NoiseMap):
        raise ValueError(
            f"a StudentPolicy is the network itself: make the environment with action='noise', not {action_map}"
        )
    inputs = teacher.conditions.inputs
    if set(inputs) - {"class_labels"}:
        raise ValueError(
            f"teacher={teacher.name!r} takes {', '.join(sorted(inputs))}: students with a network of their own can be "
            "asked for class labels alone; choose action='solver'"
        )
    config = network or config_of(teacher)
    labels = inputs["class_labels"].tolist() if inputs else None
    return {
        "network": dict(config),
        "labels": labels,
        "max_output": action_map.max_output,
        "max_shift": action_map.max_shift,
    }


def clip_range_of(clip_range: float, action_size: int, reduction: Reduction) -> float:
    """The ``clip_range`` whose trust region on the whole action of ``action_size`` numbers is ``clip_range``'s.

    For a mean of log-probabilities, ``(1 + clip_range) ** (1 / action_size) - 1``.
    """
    return clip_range if reduction is Reduction.SUM else math.expm1(math.log1p(clip_range) / action_size)


def _checked(observation_space: Space, action_space: Space, use_sde: bool) -> int:
    """The number of steps that the spaces tell."""
    if use_sde:
        raise ValueError("use_sde=True cannot be used: the exploration of a StudentPolicy is set by log_std")
    if not isinstance(observation_space, Dict) or "sample" not in observation_space.spaces:
        raise ValueError(f"observation space is {observation_space}: make the environment with observation='sample'")
    size = 1 + math.prod(observation_space["sample"].shape or ())
    if not isinstance(action_space, Box) or action_space.shape != (size,):
        raise ValueError(f"action space is {action_space}, not of {size} numbers: make it with action='noise'")
    left = observation_space["nfe_left"]
    assert isinstance(left, Box)
    return int(left.high[0])
