"""The judge: one evaluator for every sampler."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec

import torch
from torch import Tensor
from tqdm import tqdm

from redif_env.diffusion.grids import GRIDS
from redif_env.fitted.linear_solver import LinearSolver
from redif_env.judging.baselines import Baseline, all_baselines
from redif_env.mdp.policies import Policy
from redif_env.mdp.settings import name_of
from redif_env.measures.classifiers import SHIPPED
from redif_env.measures.features import embed, judge_features, load_features
from redif_env.measures.metrics import (
    coverage,
    density,
    frechet_distance,
    kernel_distance,
    mean_squared_error,
    precision,
    recall,
    sliced_wasserstein,
    strayed,
    wasserstein,
)
from redif_env.storage.data import load_digits
from redif_env.students.student import Student
from redif_env.teachers.mixtures import GaussianMixture
from redif_env.teachers.references import TEST_SEED, TRAIN_SEED, reference_set
from redif_env.teachers.teacher import Teacher

Sampler = Callable[[Tensor, Tensor], Tensor]
"""Noise ``(B, *S)`` and conditions ``(B,)`` to samples ``(B, *S)``."""
TEST_SIZE = 2000
TRAIN_SIZE = 4096
SCREENED, JUDGED = 256, 16
"""Noises on which solvers are compared first, and how many of them are judged on all."""


@dataclass(frozen=True)
class Row:
    """One sampler's result; lower is better everywhere. ``fd_data`` is missing where the data are unknown.

    ``nfe`` is the mean over samples, where they differ.
    """

    method: str
    grid: str
    nfe: float
    fd_teacher: float
    fd_data: float | None
    mse_teacher: float


class Evaluator:
    """Judges samples made from one fixed set of noises: clipped to [-1, 1], against the teacher's endpoints and data.

    Args:
        teacher: whose samples are the standard.
        size, seed: of the noises. The default set takes part in no training and no choice.
        teacher_steps: predictions that the teacher spends on an endpoint.
        train_size: of the training set, which shows what chance alone makes of two perfect sets.
        features: in which sets are compared, as :func:`redif_env.measures.features.load_features` names them; those of
            :func:`redif_env.measures.features.judge_features` if not given.
    """

    def __init__(
        self,
        teacher: Teacher,
        size: int = TEST_SIZE,
        seed: int = TEST_SEED,
        teacher_steps: int = 100,
        train_size: int = TRAIN_SIZE,
        features: str | None = None,
    ) -> None:
        reference = reference_set(teacher, size, seed, teacher_steps)
        self.teacher, self.teacher_steps, self.train_size = teacher, teacher_steps, train_size
        self.noise = reference.noise.to(teacher.device)
        self.condition = reference.condition.to(teacher.device)
        self.endpoints = teacher.clip(reference.endpoints).to(teacher.device)
        judge = features or judge_features(teacher.image_shape)
        self.feature_name = f"{SHIPPED[judge].folder}-64" if judge in SHIPPED else judge
        self.features = load_features(judge, teacher.image_shape).to(teacher.device)
        self.endpoint_features = self.embed(self.endpoints)
        self.data_features: Tensor | None = None
        # The digits data come with scikit-learn, which sampling and judging can do without.
        if teacher.name in ("digits", "digits-classes") and find_spec("sklearn"):
            self.data_features = embed(self.features, load_digits()[0].to(teacher.device))

    def embed(self, samples: Tensor) -> Tensor:
        """Features ``(N, D)`` of what ``samples`` ``(N, *S)`` show."""
        return embed(self.features, self.teacher.images(samples))

    @property
    def described(self) -> str:
        """What the numbers are measured on, in words."""
        return f"{len(self.noise)} held-out noises, {self.feature_name}"

    def row(self, method: str, grid: str, nfe: float, samples: Tensor) -> Row:
        """Measure ``samples`` ``(size, *S)``, made from ``noise`` in its order."""
        samples = self.teacher.clip(samples)
        features, data = self.embed(samples), self.data_features
        return Row(
            method=method,
            grid=grid,
            nfe=nfe,
            fd_teacher=frechet_distance(features, self.endpoint_features),
            fd_data=None if data is None else frechet_distance(features, data),
            mse_teacher=mean_squared_error(samples, self.endpoints),
        )

    def distance(self, sampler: Sampler, count: int | None = None) -> float:
        """Frechet distance to the teacher of what ``sampler`` makes of the first ``count`` noises, or of all.

        Infinite where samples are not finite.
        """
        samples = sampler(self.noise[:count], self.condition[:count])
        if not samples.isfinite().all():
            return math.inf
        return frechet_distance(self.embed(self.teacher.clip(samples)), self.endpoint_features[:count])

    def student_row(self, method: str, student: Student, price: float | None = None) -> Row:
        """Measure a student, at the mean of the network calls that it spends; at a price of one, if it knows prices."""
        last = student.trajectory(self.noise, price, self.condition)[-1]
        spent: float = last.nfe.double().mean().item()
        grid = "learned" if price is None else f"price {price:.3g}"
        return self.row(method, grid, int(spent) if spent.is_integer() else spent, last.x)

    def set_measures(self, samples: Tensor) -> dict[str, float]:
        """How ``samples`` ``(size, *S)`` compare with the teacher's as a set, beside the Frechet distance of a row.

        ``kd`` is the kernel distance times 1000; ``swd`` the sliced Wasserstein distance; ``fd_pixels`` the Frechet
        distance of the values themselves; ``strayed`` the share of samples that ended nearer to another noise's
        endpoint; ``fd_switched`` the Frechet distance if all others were perfect, ``fd_others`` if those were.
        """
        features, endpoints = self.embed(samples), self.endpoint_features
        astray = strayed(features, endpoints)[:, None]
        return {
            "kd": 1000 * kernel_distance(features, endpoints),
            "precision": precision(features, endpoints),
            "recall": recall(features, endpoints),
            "density": density(features, endpoints),
            "coverage": coverage(features, endpoints),
            "swd": sliced_wasserstein(features, endpoints),
            "fd_pixels": frechet_distance(self.teacher.clip(samples).flatten(1), self.endpoints.flatten(1)),
            "strayed": astray.double().mean().item(),
            "fd_switched": frechet_distance(torch.where(astray, features, endpoints), endpoints),
            "fd_others": frechet_distance(torch.where(astray, endpoints, features), endpoints),
        }

    def exact_measures(self, samples: Tensor) -> dict[str, float]:
        """What is known exactly where the data are a Gaussian mixture; nothing elsewhere.

        ``nll`` is the mean negative log likelihood of ``samples`` ``(size, *S)`` in nats, ``wasserstein`` the distance
        of order 2 to as many fresh ones of the mixture's own (seconds, for some thousands).
        """
        mixture = self.teacher.network
        if not isinstance(mixture, GaussianMixture):
            return {}
        clean = torch.full((len(samples),), torch.inf, dtype=torch.float64, device=samples.device)
        drawn = mixture.sample(len(samples), torch.Generator(samples.device).manual_seed(TEST_SEED))
        return {
            "nll": -mixture.log_prob(samples, clean).mean().item(),
            "wasserstein": wasserstein(samples.flatten(1), drawn.flatten(1)),
        }

    def baselines(self, nfe: int, candidates: Sequence[Baseline] | None = None) -> list[Row]:
        """Training-free solvers at ``nfe`` network calls, best first: ``candidates``, or every solver on every grid.

        Of many candidates and a large set of noises, those ``JUDGED`` that are the nearest on ``SCREENED`` noises.
        """
        found = all_baselines() if candidates is None else list(candidates)
        if len(self.noise) > SCREENED and len(found) > JUDGED:
            screened = tqdm(found, desc="screening solvers")
            nearest = {baseline: self.distance(self._bound(baseline, nfe), SCREENED) for baseline in screened}
            found = sorted(found, key=lambda baseline: nearest[baseline])[:JUDGED]
        rows = []
        for baseline in tqdm(found, desc=f"solvers at {nfe} NFE"):
            samples = self._bound(baseline, nfe)(self.noise, self.condition)
            rows.append(self.row(baseline.method, baseline.grid, nfe, samples))
        return sorted(rows, key=lambda row: row.fd_teacher)

    def _bound(self, baseline: Baseline, nfe: int) -> Sampler:
        return lambda noise, condition: baseline(self.teacher, noise, nfe // self.teacher.calls, condition)

    def teacher_row(self) -> Row:
        """The teacher itself: what a perfect student would score."""
        return self.row("teacher", "time", self.teacher_steps * self.teacher.calls, self.endpoints)

    def floor_row(self) -> Row:
        """The teacher on other noises: what sampling alone makes of two perfect sets of this size."""
        others = reference_set(self.teacher, self.train_size, TRAIN_SEED, self.teacher_steps)
        ends = others.endpoints[: len(self.noise)].to(self.teacher.device)
        return self.row("teacher, other noises", "time", self.teacher_steps * self.teacher.calls, ends)


def judge(evaluator: Evaluator, student: Student, method: str, baselines: Sequence[Baseline]) -> list[Row]:
    """The teacher, what chance makes of it, the student, and the best of ``baselines`` at the student's calls.

    Where the student's base solver was fitted, that has a row too.

    Where the student decides how often to call, it has a row for each of five prices, and solvers get at least as many
    calls as its dearest samples.
    """
    ours = [evaluator.student_row(method, student, price) for price in prices_of(student)]
    nfe = math.ceil(max(row.nfe for row in ours))
    fitted = fitted_rows(evaluator, student)
    return [evaluator.teacher_row(), evaluator.floor_row(), *ours, *fitted, *evaluator.baselines(nfe, baselines)]


def fitted_rows(evaluator: Evaluator, student: Student) -> list[Row]:
    """What the student's linear steps reach without it, where it has such: they were fitted to the teacher too."""
    mdp = student.mdp
    if not isinstance(mdp.solver, LinearSolver) or mdp.teacher.own_network:
        return []
    nothing = Policy.from_table(torch.zeros(mdp.num_steps, mdp.action_size), mdp.observation_size)
    row = evaluator.student_row("linear steps", Student(mdp, nothing))
    return [replace(row, grid=name_of(mdp.grid, GRIDS))]


def prices_of(student: Student, count: int = 5) -> list[float | None]:
    """Prices from the smallest to the largest that a student was trained at, evenly in the logarithm; else None."""
    if student.mdp.prices is None:
        return [None]
    low, high = student.mdp.prices
    # Rounding must not leave the range.
    return [min(high, max(low, low * (high / low) ** (index / (count - 1)))) for index in range(count)]
