"""Rewards: every formula, as a function of a batched transition.

A reward is any object with a ``name`` and a call from a :class:`~redif_env.types.Transition` of B episodes to ``(B,)``.
Those here are scaled so that what they pay an episode can be known beforehand: 0 for the teacher and, where a
``scale`` is taken from the base solver, -1 for the base solver, both on average over noises. ``calibrated`` makes a
reward with that scale for a decision process and its reference set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from redif_env.distances import Distance, cosine_distance, root_mean_square, squared_error, structural_dissimilarity
from redif_env.features import default_features, embed, load_features
from redif_env.kernels import (
    EnergyKernel,
    Kernel,
    RationalQuadraticKernel,
    median_lengths,
    squared_discrepancy,
    witness,
)
from redif_env.mdp import DenoisingMDP
from redif_env.predictions import noise_estimate
from redif_env.references import BASE_SIZE, ReferencePaths, ReferenceSet, base_samples, reference_paths
from redif_env.schedules import Schedule
from redif_env.solvers import trajectory
from redif_env.teachers import Teacher
from redif_env.types import State, Transition, expand


class Reward(Protocol):
    """A named reward term: ``(B,)`` from a transition of B episodes."""

    @property
    def name(self) -> str: ...

    def __call__(self, transition: Transition) -> Tensor: ...


@runtime_checkable
class Remembering(Protocol):
    """A reward with a memory of past episodes: environments call ``restart`` when they are seeded.

    Checkpoints keep the memory: ``state_dict`` gives it, ``load_state_dict`` takes it back.
    """

    def restart(self) -> None:
        """Forget all that was seen since construction."""

    def state_dict(self) -> dict[str, Any]:
        """What is remembered: tensors and JSON values."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Remember this instead."""


def restart(reward: Reward) -> None:
    """Make a reward with a memory forget; the others have nothing to forget."""
    if isinstance(reward, Remembering):
        reward.restart()


def memories(terms: Sequence[Term]) -> dict[str, dict[str, Any]]:
    """What the rewards of ``terms`` remember, by name."""
    return {term.name: term.reward.state_dict() for term in terms if isinstance(term.reward, Remembering)}


def load_memories(terms: Sequence[Term], state: Mapping[str, dict[str, Any]]) -> None:
    """Make the rewards of ``terms`` remember what :func:`memories` gave."""
    for term in terms:
        if isinstance(term.reward, Remembering):
            term.reward.load_state_dict(state[term.name])


@dataclass(frozen=True)
class Term:
    """A reward and its weight in a sum; its values are checked before an agent sees them."""

    reward: Reward
    weight: float = 1.0

    @property
    def name(self) -> str:
        return self.reward.name

    def __call__(self, transition: Transition) -> Tensor:
        """Weighted values ``(B,)``; 0 where no step was taken.

        Raises:
            ValueError: if the reward answers with something else than B finite numbers on the transition's device.
        """
        values = self.reward(transition)
        live = transition.live
        if not isinstance(values, Tensor):
            raise ValueError(f"reward {self.name!r} returned {type(values).__name__}: return a torch tensor (B,)")
        if values.shape != live.shape:
            raise ValueError(
                f"reward {self.name!r} returned shape {tuple(values.shape)}: return one number an episode, "
                f"shape {tuple(live.shape)}"
            )
        if values.device != live.device:
            raise ValueError(
                f"reward {self.name!r} returned a tensor on {values.device}: the transition is on {live.device}, "
                f"return it there"
            )
        values = torch.where(live, values.to(transition.endpoint.dtype), 0.0)
        if not bool(values.isfinite().all()):
            bad = int((~values.isfinite()).nonzero()[0, 0])
            raise ValueError(
                f"reward {self.name!r} returned {float(values[bad])} in sub-environment {bad} at step "
                f"{int(transition.state.predictions[bad])} of its episode: rewards must be finite"
            )
        return self.weight * values


@dataclass(frozen=True)
class EndpointAlignment:
    """Minus the finished sample's distance to the teacher's endpoint, over ``scale``; 0 before the end.

    The default distance is not squared, so that the few noises whose error stays large whatever is done do not drown
    the many that can be helped. An episode of the base solver pays -1 on average, one of the teacher 0.
    """

    scale: float
    distance: Distance = root_mean_square
    name: str = "endpoint"

    def __post_init__(self) -> None:
        _check_scale(self.scale)

    def __call__(self, transition: Transition) -> Tensor:
        return -_when_finished(self.name, transition, self.distance) / self.scale

    @classmethod
    def calibrated(
        cls,
        mdp: DenoisingMDP,
        reference: ReferenceSet,
        distance: Distance = root_mean_square,
        name: str | None = None,
    ) -> Self:
        """With the base solver's mean distance over the reference set as scale."""
        return cls(_base_distance(mdp, reference, distance), distance, name or cls.name)


@dataclass(frozen=True)
class FeatureAlignment:
    """:class:`EndpointAlignment` in the space of a feature network: the root mean square distance of features.

    What the network does not see is not paid for, what it is sensitive to counts more: nearer to what a Frechet
    distance measures. The base solver pays -1, the teacher 0.
    """

    scale: float
    features: nn.Module
    name: str = "feature"

    def __post_init__(self) -> None:
        _check_scale(self.scale)

    def __call__(self, transition: Transition) -> Tensor:
        return -_when_finished(self.name, transition, partial(_feature_distance, self.features)) / self.scale

    @classmethod
    def calibrated(
        cls, mdp: DenoisingMDP, reference: ReferenceSet, features: nn.Module | None = None, name: str = "feature"
    ) -> FeatureAlignment:
        """With the base solver's mean distance as scale; ``features`` default to those for the sample shape."""
        network = _placed(features, mdp.teacher)
        return cls(_base_distance(mdp, reference, partial(_feature_distance, network)), network, name)


@dataclass(frozen=True)
class TrajectoryAlignment(EndpointAlignment):
    """How much nearer each step brought the predicted clean sample to the endpoint: the endpoint reward made dense.

    Potential-based shaping (Ng et al. 1999): the potential of a state is minus the distance of the network's clean
    prediction there (of the sample itself, once finished), and 0 before the first step. Undiscounted, an episode's sum
    is the endpoint reward, so the optimal policy is the same.
    """

    name: str = "trajectory"
    own: bool = False
    """Whether the predictions are the student's own: each step's is then an action's doing, the first one's too."""

    def __call__(self, transition: Transition) -> Tensor:
        before, after = transition.state, transition.next_state
        reached = torch.where(expand(transition.terminated, after.x), after.x, after.x0_history[:, 0])
        known = before.x0_history[:, 1 if self.own else 0]
        # The first prediction is the noise's doing, not an action's: where it counted as 0, the sum telescopes.
        potential = torch.where(before.predictions > 1, self.distance(known, transition.endpoint), 0.0)
        return (potential - self.distance(reached, transition.endpoint)) / self.scale

    @classmethod
    def calibrated(
        cls,
        mdp: DenoisingMDP,
        reference: ReferenceSet,
        distance: Distance = root_mean_square,
        name: str | None = None,
    ) -> Self:
        """As :meth:`EndpointAlignment.calibrated`."""
        return replace(super().calibrated(mdp, reference, distance, name), own=mdp.action_map.predicts)


@dataclass(frozen=True)
class PathAlignment:
    """Minus the distance of where each step lands to where the teacher's own way from the same noise passes: dense.

    Each step is paid for by itself, so ``gamma`` may be small: then an action's reward no longer carries the chance of
    those that follow, which is what thousands of action numbers need. Distances are root mean squares of samples of the
    size that variance-preserving schedules have; ``scale`` is the base solver's mean sum over an episode, so it pays
    -1, and the teacher 0. The ways cost the teacher's many steps once more, and are cached like its endpoints.
    """

    paths: ReferencePaths
    schedule: Schedule
    scale: float
    name: str = "path"

    def __post_init__(self) -> None:
        _check_scale(self.scale)

    def __call__(self, transition: Transition) -> Tensor:
        return -self.strayed(transition.next_state, transition.pair) / self.scale

    def strayed(self, state: State, pair: Tensor) -> Tensor:
        """How far ``state`` is from the ways of rows ``pair`` ``(B,)``, ``(B,)``."""
        x = self.schedule.normalised(state.x, state.half_logsnr)
        return root_mean_square(x, self.paths.at(pair, state.half_logsnr))

    @classmethod
    def calibrated(cls, mdp: DenoisingMDP, reference: ReferenceSet, name: str = "path") -> PathAlignment:
        """With the base solver's mean sum of distances over the reference set as scale."""
        bare = cls(reference_paths(mdp.teacher, reference), mdp.teacher.schedule, 1.0, name)
        noise, asked = (part[:BASE_SIZE].to(mdp.teacher.device) for part in (reference.noise, reference.condition))
        pair = torch.arange(len(noise), device=noise.device)
        with torch.no_grad():
            begun = mdp.begun(noise, asked)
            steps = trajectory(mdp.teacher, mdp.solver, mdp.grid, begun, mdp.num_steps, asked)
            scale = sum(float(bare.strayed(state, pair).double().mean()) for state in steps)
        return replace(bare, scale=scale)


@dataclass(frozen=True)
class ScoreAgreement:
    """Minus the distance of each step's noise prediction to the teacher's own at the same state: a dense reward.

    Relative to the size of the teacher's prediction and averaged over the steps of the budget: DDIM, which steps with
    what the teacher predicts, earns exactly 0 an episode; stepping with no noise prediction at all -1. Costs one more
    network call a step, which the student does not pay.
    """

    teacher: Teacher
    num_steps: int
    name: str = "score"

    def __call__(self, transition: Transition) -> Tensor:
        state, schedule = transition.state, self.teacher.schedule
        level = schedule.level(state.half_logsnr)
        stepped = noise_estimate(state.x, transition.decision.x0, level)
        told = schedule.timestep(state.half_logsnr)
        answer = self.teacher.predict(state.x, state.half_logsnr, told, state.condition).eps
        zero = torch.zeros_like(answer)
        return -root_mean_square(stepped, answer) / root_mean_square(answer, zero) / self.num_steps

    @classmethod
    def calibrated(cls, mdp: DenoisingMDP, reference: ReferenceSet, name: str = "score") -> ScoreAgreement:
        """For a decision process; its scale needs no reference set."""
        return cls(mdp.teacher, mdp.num_steps, name)


@dataclass(frozen=True)
class TeacherResidual:
    """Minus how badly the teacher denoises the finished sample once it is noised again; 0 before the end.

    The residual is the mean squared error of its noise prediction at a few levels: the denoising bound on the negative
    log likelihood (Ho et al. 2020, Eq. 14). No endpoint is needed. It is measured above ``floor``, the teacher's own
    endpoints' mean, so they earn 0 and the base solver -1 on average. Smooth samples are easy to denoise, so more than
    0 can be earned by what is less detailed than the teacher's.

    ``noise`` ``(L, *S)`` is the same for all samples, so that they differ by what they are; ``half_logsnr`` ``(L,)``
    are its levels. Costs L network calls a finished sample, which the student does not pay.
    """

    teacher: Teacher
    noise: Tensor
    half_logsnr: Tensor
    floor: float = 0.0
    scale: float = 1.0
    name: str = "residual"

    def __post_init__(self) -> None:
        _check_scale(self.scale)

    def residual(self, samples: Tensor, condition: Tensor | None = None) -> Tensor:
        """Mean squared error ``(N,)`` of the noise predicted in noised samples ``(N, *S)``, asked for ``condition``."""
        errors = []
        for noise, lam in zip(self.noise.to(samples), self.half_logsnr, strict=True):
            levels = lam.expand(len(samples)).to(samples.device)
            level = self.teacher.schedule.level(levels)
            alpha, sigma = (expand(value, samples).to(samples.dtype) for value in (level.alpha, level.sigma))
            x = alpha * self.teacher.clip(samples) + sigma * noise
            predicted = self.teacher.predict(x, levels, self.teacher.schedule.timestep(levels), condition).eps
            errors.append(squared_error(predicted, noise.expand_as(predicted)))
        return torch.stack(errors).mean(dim=0)

    def __call__(self, transition: Transition) -> Tensor:
        asked = transition.state.condition[transition.terminated]
        return _when_finished(self.name, transition, lambda x, _: self.floor - self.residual(x, asked)) / self.scale

    @classmethod
    def calibrated(
        cls,
        mdp: DenoisingMDP,
        reference: ReferenceSet,
        times: tuple[float, ...] = (0.1, 0.3),
        name: str = "residual",
    ) -> TeacherResidual:
        """With levels at these fractions of the schedule's time.

        Raises:
            ValueError: if the teacher finds the base solver's samples easier to denoise than its own.
        """
        schedule = mdp.teacher.schedule
        fractions = torch.tensor(times, dtype=torch.float64, device=mdp.teacher.device)
        half_logsnr = schedule.half_logsnr_at(fractions)
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(len(times), *mdp.teacher.sample_shape, generator=generator)
        bare = cls(mdp.teacher, noise, half_logsnr)
        base, endpoints = _base_pairs(mdp, reference)
        asked = reference.condition[: len(base)].to(base.device)
        with torch.no_grad():
            floor, reached = (float(bare.residual(samples, asked).mean()) for samples in (endpoints, base))
        if reached <= floor:
            raise ValueError(
                f"reward {name!r}: the base solver's samples have a smaller residual ({reached:.4f}) than the "
                f"teacher's own ({floor:.4f}) at times={times}, so it would lead away from the teacher: choose others"
            )
        return cls(mdp.teacher, noise, half_logsnr, floor, reached - floor, name)


class DistributionAlignment:
    """Minus the distance between the student's distribution and the teacher's, a sample's own share; 0 before the end.

    The squared maximum mean discrepancy of a kernel in feature space, between a moving set of the last finished samples
    and the teacher's endpoints of the same noises. A sample at features ``z`` earns
    ``-(2 * witness(z) + E k(y, y') - E k(x, x')) / scale``: on average over the moving set that is minus the squared
    discrepancy over ``scale``, and its policy gradient is that of the discrepancy, since the terms without ``z`` are a
    baseline. With :class:`~redif_env.kernels.EnergyKernel` the discrepancy is the energy distance.

    The moving set starts as the base solver's samples, for which the mean is -1; a student that makes the teacher's
    endpoints earns 0. The reward depends on past episodes: two environments agree if they saw the same ones, and
    seeding an environment starts the set afresh.

    Args:
        kernel, features: what is compared, and how.
        samples, endpoints: the base solver's samples and the teacher's endpoints of the same noises, both
            ``(M, *S)``; M is the size of the moving set. Keeping noises in common leaves their chance out of the
            witness, which else would be larger than what a good student has left to improve.
    """

    def __init__(self, kernel: Kernel, features: nn.Module, samples: Tensor, endpoints: Tensor, name: str) -> None:
        self.kernel, self.features, self.name = kernel, features, name
        self._first = (self._embed(samples), self._embed(endpoints))
        self.scale = float(squared_discrepancy(kernel, *self._first))
        _check_scale(self.scale)
        self.restart()

    def restart(self) -> None:
        """The moving set as at construction."""
        self._samples, self._endpoints = (bank.clone() for bank in self._first)
        self._oldest = 0

    def __call__(self, transition: Transition) -> Tensor:
        return _when_finished(self.name, transition, self._pay)

    def state_dict(self) -> dict[str, Any]:
        return {"samples": self._samples, "endpoints": self._endpoints, "oldest": self._oldest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        # Copies: the set is updated in place.
        self._samples, self._endpoints = (state[key].to(self._samples).clone() for key in ("samples", "endpoints"))
        self._oldest = state["oldest"]

    def shares(self, at: Tensor) -> Tensor:
        """What samples with features ``at`` ``(B, D)`` earn against the moving set, ``(B,)``."""
        kernel, samples, endpoints = self.kernel, self._samples, self._endpoints
        baseline = kernel(endpoints, endpoints).mean() - kernel(samples, samples).mean()
        return -(2 * witness(kernel, at, samples, endpoints) + baseline) / self.scale

    def _pay(self, samples: Tensor, endpoints: Tensor) -> Tensor:
        """What finished samples earn against the moving set, which they then join."""
        finished = self._embed(samples)
        shares = self.shares(finished)
        self._remember(finished, self._embed(endpoints))
        return shares

    def _embed(self, samples: Tensor) -> Tensor:
        # A good student's samples lie so near their endpoints that single precision would lose the difference.
        return _embed(self.features, samples).double()

    def _remember(self, samples: Tensor, endpoints: Tensor) -> None:
        """Put new pairs in the places of the oldest ones."""
        size = len(self._samples)
        samples, endpoints = samples[-size:], endpoints[-size:]
        places = (self._oldest + torch.arange(len(samples), device=samples.device)) % size
        self._samples[places], self._endpoints[places] = samples, endpoints
        self._oldest = (self._oldest + len(samples)) % size

    @classmethod
    def calibrated(
        cls,
        mdp: DenoisingMDP,
        reference: ReferenceSet,
        kernel: Kernel | None = None,
        features: nn.Module | None = None,
        name: str = "mmd",
    ) -> DistributionAlignment:
        """For a decision process; the default kernel is rational quadratic, its lengths around the median distance."""
        network = _placed(features, mdp.teacher)
        base, endpoints = _base_pairs(mdp, reference)
        chosen = kernel or RationalQuadraticKernel(median_lengths(_embed(network, endpoints)))
        return cls(chosen, network, base, endpoints, name)


@dataclass(frozen=True)
class StepCost:
    """Minus a price for each network call, which makes the number of steps itself a decision.

    An episode of n calls pays ``-cost * n``. Without a ``cost``, each episode's own price is taken
    (:attr:`redif_env.types.State.price`). In units of :class:`EndpointAlignment`: at a cost of 0.01, a call more is
    worth it if it takes a hundredth off the base solver's distance.
    """

    cost: float | None = None
    name: str = "step_cost"

    def __post_init__(self) -> None:
        if self.cost is not None and not self.cost >= 0:
            raise ValueError(f"cost must be at least 0, got {self.cost}: it is subtracted from the reward")

    def __call__(self, transition: Transition) -> Tensor:
        state = transition.state
        # A guided prediction is two network calls.
        calls = state.nfe // state.predictions.clamp(min=1)
        return -(state.price if self.cost is None else torch.full_like(state.price, self.cost)) * calls


@dataclass(frozen=True)
class CallableReward:
    """Any function of the transition as a reward: differentiable or not, a network's answer, a file's size, a count.

    ``fn`` takes a :class:`~redif_env.types.Transition` of B episodes and returns a tensor ``(B,)`` on its device.
    """

    fn: Callable[[Transition], Tensor]
    name: str = field(default="custom")

    def __call__(self, transition: Transition) -> Tensor:
        return self.fn(transition)


class LatentFeatures(nn.Module):
    """Features ``(B, D)`` of the images that latents ``(B, *S)`` are decoded to, by a teacher's decoder."""

    def __init__(self, features: nn.Module, teacher: Teacher) -> None:
        super().__init__()
        self.features, self.teacher = features, teacher

    def forward(self, latents: Tensor) -> Tensor:
        return embed(self.features, self.teacher.images(latents))


@dataclass(frozen=True)
class ImageDistance:
    """A distance of images, between latents: both are decoded first."""

    distance: Distance
    teacher: Teacher

    def __call__(self, samples: Tensor, endpoints: Tensor) -> Tensor:
        return self.distance(self.teacher.images(samples), self.teacher.images(endpoints))


def of_images(distance: Distance, teacher: Teacher) -> Distance:
    """A distance between what the teacher's samples show: for latents, between the decoded images."""
    return distance if teacher.decoder is None else ImageDistance(distance, teacher)


Calibrated = Callable[[DenoisingMDP, ReferenceSet], Reward]

REWARDS: dict[str, Calibrated] = {
    "endpoint": EndpointAlignment.calibrated,
    "endpoint_squared": lambda mdp, ref: EndpointAlignment.calibrated(mdp, ref, squared_error, "endpoint_squared"),
    "endpoint_cosine": lambda mdp, ref: EndpointAlignment.calibrated(mdp, ref, cosine_distance, "endpoint_cosine"),
    "endpoint_ssim": lambda mdp, ref: EndpointAlignment.calibrated(
        mdp, ref, of_images(structural_dissimilarity, mdp.teacher), "endpoint_ssim"
    ),
    "feature": FeatureAlignment.calibrated,
    "trajectory": TrajectoryAlignment.calibrated,
    "path": PathAlignment.calibrated,
    "score": ScoreAgreement.calibrated,
    "residual": TeacherResidual.calibrated,
    "mmd": DistributionAlignment.calibrated,
    "energy": lambda mdp, ref: DistributionAlignment.calibrated(mdp, ref, EnergyKernel(), name="energy"),
    "step_cost": lambda mdp, ref: StepCost(1.0),
    "price": lambda mdp, ref: StepCost(name="price"),
}
"""The rewards by the names used at the command line and in ``gym.make``."""


def build_terms(weights: Mapping[str, float], mdp: DenoisingMDP, reference: ReferenceSet) -> list[Term]:
    """The weighted sum that ``{name: weight}`` describes.

    Raises:
        ValueError: if a name is unknown, or there is none.
    """
    if not weights:
        raise ValueError("reward names no term: give at least one, as in {'endpoint': 1.0}")
    for name in weights:
        if name not in REWARDS:
            raise ValueError(f"reward={name!r} is unknown: choose one of {', '.join(map(repr, REWARDS))}")
    return [Term(REWARDS[name](mdp, reference), weight) for name, weight in weights.items()]


def _check_scale(scale: float) -> None:
    if not scale > 0:
        raise ValueError(f"scale must be above 0, got {scale}: the base solver already equals the teacher")


def _when_finished(name: str, transition: Transition, of: Distance) -> Tensor:
    """``of(samples, endpoints)`` of the episodes that ended, 0 for the others, ``(B,)``."""
    ended = transition.terminated.nonzero()[:, 0]
    values = torch.zeros_like(transition.endpoint.flatten(1)[:, 0])
    if len(ended):
        found = of(transition.next_state.x[ended], transition.endpoint[ended])
        if found.shape != ended.shape:
            raise ValueError(
                f"reward {name!r}: its distance returned shape {tuple(found.shape)} for {len(ended)} samples: return "
                f"one number a sample"
            )
        values[ended] = found.to(values.dtype)
    return values


def _base_pairs(mdp: DenoisingMDP, reference: ReferenceSet) -> tuple[Tensor, Tensor]:
    """Samples of the base solver and the teacher's endpoints of the same noises, ``(M, *S)`` each."""
    base = base_samples(mdp.teacher, reference, mdp.solver, mdp.grid, mdp.num_steps, mdp.start)
    return base, reference.endpoints[: len(base)].to(base)


def _base_distance(mdp: DenoisingMDP, reference: ReferenceSet, distance: Distance) -> float:
    return float(distance(*_base_pairs(mdp, reference)).double().mean())


def _feature_distance(features: nn.Module, samples: Tensor, endpoints: Tensor) -> Tensor:
    both = _embed(features, torch.cat([samples, endpoints]))
    return root_mean_square(*both.chunk(2))


def feature_distance(teacher: Teacher, features: nn.Module | None = None) -> Distance:
    """The distance of :class:`FeatureAlignment`, not scaled; ``features`` default to those for the sample shape."""
    return partial(_feature_distance, _placed(features, teacher))


def _embed(features: nn.Module, samples: Tensor) -> Tensor:
    # Latents leave [-1, 1], to which the others are clipped.
    found: Tensor = features(samples) if isinstance(features, LatentFeatures) else embed(features, samples)
    return found


def _placed(features: nn.Module | None, teacher: Teacher) -> nn.Module:
    """A feature network of what the teacher's samples show, frozen, on its device."""
    network = features or load_features(default_features(teacher.image_shape), teacher.image_shape)
    network = network.eval().requires_grad_(False).to(teacher.device)
    return network if teacher.decoder is None else LatentFeatures(network, teacher)
