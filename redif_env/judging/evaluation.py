"""Evaluation of samplers on held-out noises: one evaluator for the teacher, students and solvers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec

import torch
from torch import Tensor
from tqdm import tqdm

from redif_env.diffusion.grids import GRIDS
from redif_env.diffusion.placement import HOST, full_precision
from redif_env.fitted.linear_solver import LinearSolver
from redif_env.judging.baselines import AnyBaseline, all_baselines
from redif_env.mdp.policies import Policy
from redif_env.mdp.settings import shown
from redif_env.measures.classifiers import SHIPPED
from redif_env.measures.features import embed, evaluation_features, load_features
from redif_env.measures.metrics import (
    coverage,
    density,
    diversity,
    frechet_distance,
    kernel_distance,
    mean_squared_error,
    mode_switches,
    precision,
    recall,
)
from redif_env.storage.data import load_images
from redif_env.students.student import Student
from redif_env.teachers.references import TEST_SEED, TRAIN_SEED, reference_set, sizes_of
from redif_env.teachers.teacher import PipelineTeacher, Teacher

Sampler = Callable[[Tensor, Tensor], Tensor]
"""A function from noise ``(B, *S)`` and conditions ``(B,)`` to samples ``(B, *S)``."""
SCREEN_SIZE, SHORTLIST = 256, 16
"""Number of noises on which all baselines are screened, and number of baselines evaluated on all noises."""


@dataclass(frozen=True)
class Row:
    """Result of one sampler; lower is better.

    ``nfe`` is the mean over samples. ``fd_data`` is None if there are no data to compare with. ``diversity`` is the
    mean feature distance of samples of one condition (:func:`redif_env.measures.metrics.diversity`), divided by the
    teacher's; None where no two samples have the same, and for teachers of pixels that are called directly.
    """

    method: str
    grid: str
    nfe: float
    fd_teacher: float
    fd_data: float | None
    mse_teacher: float
    diversity: float | None = None


class Evaluator:
    """Compares samples of one fixed set of noises with the teacher's endpoints and with data, clipped to [-1, 1].

    Args:
        teacher: the teacher.
        size, seed: of the noises. The default seed is used in no training and no model selection.
        teacher_steps: teacher predictions per endpoint.
        train_size: size of the training set, used for :meth:`floor_row`. Sizes and steps that are None are the
            teacher's defaults (:func:`redif_env.teachers.references.sizes_of`).
        features: name for :func:`redif_env.measures.features.load_features`; defaults to
            :func:`redif_env.measures.features.evaluation_features`.
        data: images to compare with besides the endpoints, as
            :func:`redif_env.storage.data.load_images` takes them; the digits for the teachers of digits.

    Raises:
        ValueError: if the images of ``data`` have another shape than the teacher's.
    """

    def __init__(
        self,
        teacher: Teacher,
        size: int | None = None,
        seed: int = TEST_SEED,
        teacher_steps: int | None = None,
        train_size: int | None = None,
        features: str | None = None,
        data: str | None = None,
    ) -> None:
        sizes = sizes_of(teacher)
        self.teacher = teacher
        self.teacher_steps = teacher_steps or sizes.teacher_steps
        self.train_size = train_size or sizes.reference_size
        reference = reference_set(teacher, size or sizes.test_size, seed, self.teacher_steps)
        self.noise = reference.noise.to(teacher.device)
        self.condition = reference.condition
        self.endpoints = teacher.clip(reference.endpoints).to(teacher.device)
        name = features or evaluation_features(teacher.image_shape, teacher.vae)
        self.feature_name = f"{SHIPPED[name].folder}-64" if name in SHIPPED else name
        self.features = load_features(name, teacher.image_shape, teacher.vae).to(teacher.device)
        self.endpoint_features = self.embed(self.endpoints)
        self.diversity = math.nan
        if teacher.decoder is not None or isinstance(teacher, PipelineTeacher):
            self.diversity = diversity(self.endpoint_features, self.condition)
        self.data_features: Tensor | None = None
        # The digits data come with scikit-learn, which is optional.
        if data is None and teacher.name in ("digits", "digits-classes") and find_spec("sklearn"):
            data = "digits"
        if data is not None:
            self.data_features = embed(self.features, _images_of(data, teacher).to(teacher.device)).to(HOST)

    def embed(self, samples: Tensor) -> Tensor:
        """Features ``(N, D)`` of samples ``(N, *S)``, on the host; latents are decoded first."""
        with full_precision(samples.device):
            return embed(self.features, self.teacher.images(samples)).to(HOST)

    @property
    def description(self) -> str:
        """Noises and features of the evaluation, for table titles."""
        return f"{len(self.noise)} held-out noises, {self.feature_name}"

    def row(self, method: str, grid: str, nfe: float, samples: Tensor) -> Row:
        """Evaluate ``samples`` ``(size, *S)`` of ``self.noise``, in the same order."""
        samples = self.teacher.clip(samples)
        features, data = self.embed(samples), self.data_features
        return Row(
            method=method,
            grid=grid,
            nfe=nfe,
            fd_teacher=frechet_distance(features, self.endpoint_features),
            fd_data=None if data is None else frechet_distance(features, data),
            mse_teacher=mean_squared_error(samples, self.endpoints),
            diversity=None if math.isnan(self.diversity) else diversity(features, self.condition) / self.diversity,
        )

    def distance(self, sampler: Sampler, count: int | None = None) -> float:
        """Frechet distance to the teacher on the first ``count`` noises, or on all.

        Infinite if a sample is not finite.
        """
        samples = sampler(self.noise[:count], self.condition[:count])
        if not samples.isfinite().all():
            return math.inf
        return frechet_distance(self.embed(self.teacher.clip(samples)), self.endpoint_features[:count])

    def student_row(self, method: str, student: Student, price: float | None = None) -> Row:
        """Evaluate a student, at its mean NFE; ``price`` is for students that were trained with prices."""
        last = student.trajectory(self.noise, price, self.condition)[-1]
        nfe: float = last.nfe.double().mean().item()
        grid = "learned" if price is None else f"price {price:.3g}"
        return self.row(method, grid, int(nfe) if nfe.is_integer() else nfe, last.x)

    def set_measures(self, samples: Tensor) -> dict[str, float]:
        """Further metrics of samples ``(size, *S)``, clipped, against the endpoints.

        ``kd``: KID times 1000. ``fd_pixels``: Frechet distance of pixels.
        ``mode_switches``: share of samples nearer to another noise's endpoint than to their own. ``fd_switched``:
        Frechet distance with all other samples replaced by their endpoints. ``fd_others``: with these replaced.
        """
        samples = self.teacher.clip(samples)
        features, endpoints = self.embed(samples), self.endpoint_features
        switched = mode_switches(features, endpoints)[:, None]
        return {
            "kd": 1000 * kernel_distance(features, endpoints),
            "precision": precision(features, endpoints),
            "recall": recall(features, endpoints),
            "density": density(features, endpoints),
            "coverage": coverage(features, endpoints),
            "fd_pixels": frechet_distance(samples.flatten(1), self.endpoints.flatten(1)),
            "mode_switches": switched.double().mean().item(),
            "fd_switched": frechet_distance(torch.where(switched, features, endpoints), endpoints),
            "fd_others": frechet_distance(torch.where(switched, endpoints, features), endpoints),
        }

    def baselines(self, nfe: int, candidates: Sequence[AnyBaseline] | None = None) -> list[Row]:
        """Rows of training-free baselines at ``nfe`` network calls, best first: ``candidates``, or all if not given."""
        return sorted((row for row, _ in self.each_baseline(nfe, candidates)), key=lambda row: row.fd_teacher)

    def each_baseline(
        self,
        nfe: int,
        candidates: Sequence[AnyBaseline] | None = None,
        screen_size: int = SCREEN_SIZE,
        shortlist: int = SHORTLIST,
    ) -> Iterator[tuple[Row, Tensor]]:
        """As :meth:`baselines`, one by one, each with its samples.

        With more than ``screen_size`` noises, all are screened on that many, and the best ``shortlist`` evaluated.
        """
        chosen: list[AnyBaseline] = list(all_baselines() if candidates is None else candidates)
        if len(self.noise) > screen_size and len(chosen) > shortlist:
            progress = tqdm(chosen, desc="screening solvers")
            distances = {baseline: self.distance(self._sampler(baseline, nfe), screen_size) for baseline in progress}
            chosen = sorted(chosen, key=lambda baseline: distances[baseline])[:shortlist]
        for baseline in tqdm(chosen, desc=f"solvers at {nfe} NFE"):
            samples = self._sampler(baseline, nfe)(self.noise, self.condition)
            made = baseline.predictions(nfe // self.teacher.calls) * self.teacher.calls
            yield self.row(baseline.method, baseline.grid, made, samples), samples

    def _sampler(self, baseline: AnyBaseline, nfe: int) -> Sampler:
        return lambda noise, condition: baseline(self.teacher, noise, nfe // self.teacher.calls, condition)

    def teacher_row(self) -> Row:
        """The row of the teacher's endpoints, which is a perfect student's."""
        return self.row("teacher", "time", self.teacher_steps * self.teacher.calls, self.endpoints)

    def floor_row(self) -> Row:
        """The row of teacher samples from other noises: the sampling floor of the Frechet distance."""
        size = max(self.train_size, len(self.noise))
        others = reference_set(self.teacher, size, TRAIN_SEED, self.teacher_steps)
        samples = others.endpoints[: len(self.noise)].to(self.teacher.device)
        return self.row("teacher, other noises", "time", self.teacher_steps * self.teacher.calls, samples)


def _images_of(data: str, teacher: Teacher) -> Tensor:
    """Images ``(N, *S)`` of the teacher's shape."""
    images = load_images(data).images
    if images.shape[1:] != teacher.image_shape:
        raise ValueError(
            f"data={data!r} has images of shape {tuple(images.shape[1:])}, teacher={teacher.name!r} makes "
            f"{tuple(teacher.image_shape)}: choose the data that it was trained on"
        )
    return images


def evaluate(evaluator: Evaluator, student: Student, method: str, baselines: Sequence[AnyBaseline]) -> list[Row]:
    """Rows of the teacher, the sampling floor, the student, its base solver if that is fitted, and the baselines.

    A student that chooses its number of steps has one row for each of five prices; baselines get at least as many
    network calls as its largest NFE.
    """
    students = [evaluator.student_row(method, student, price) for price in prices_of(student)]
    nfe = math.ceil(max(row.nfe for row in students))
    fitted = fitted_rows(evaluator, student)
    return [evaluator.teacher_row(), evaluator.floor_row(), *students, *fitted, *evaluator.baselines(nfe, baselines)]


def fitted_rows(evaluator: Evaluator, student: Student) -> list[Row]:
    """The row of the student's least-squares solver with zero actions, or none if it has another solver."""
    mdp = student.mdp
    if not isinstance(mdp.solver, LinearSolver) or mdp.teacher.own_network:
        return []
    zero = Policy.from_table(torch.zeros(mdp.num_steps, mdp.action_size, device=HOST), mdp.observation_size)
    row = evaluator.student_row("least squares", Student(mdp, zero))
    return [replace(row, grid=shown(mdp.grid, GRIDS))]


def prices_of(student: Student, count: int = 5) -> list[float | None]:
    """``count`` prices over the student's range, evenly spaced in log scale; ``[None]`` if it has none."""
    if student.mdp.prices is None:
        return [None]
    low, high = student.mdp.prices
    # Clamped, because rounding can leave the range.
    return [min(high, max(low, low * (high / low) ** (index / (count - 1)))) for index in range(count)]
