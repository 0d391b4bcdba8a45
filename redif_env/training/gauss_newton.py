"""The Gauss-Newton method for action tables, by finite differences: forward passes alone.

A table has one action for each step, whatever the sample. A policy gradient learns from returns, one number an episode.
Where the reward is a distance to an endpoint, the whole error is known, and so is how it changes with a number of the
table: the episode is run again with this number a little larger. These changes are a Jacobian, with which the best
table is a least-squares problem, solved again and again (Nocedal and Wright 2006, chapter 10).

Each step draws its own noises. The squared error of an episode is stored as a quadratic function of the table, and the
next table minimises the mean error over the most recent episodes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from tqdm import tqdm

from redif_env.diffusion.placement import HOST, full_precision
from redif_env.diffusion.solvers import predict_in_parts
from redif_env.diffusion.types import State
from redif_env.mdp.process import DenoisingMDP
from redif_env.rewards.feature import embed_samples, frozen_features
from redif_env.storage.cache import cached
from redif_env.teachers.references import ReferenceSet

SMALLEST = 1e-4
"""Damping of all numbers alike, in units of the mean diagonal: for numbers that hardly change the samples."""
STEP_CALLS, NOISES = 300, (2, 8)
"""About how many network calls a step takes, and its fewest and most episodes: many steps of few episodes are better
than few of many."""
ROUNDS = 30
"""Reweighted least-squares solutions from one table to the next."""
NO_ERROR = 1e-6
"""Smallest error that an episode is weighed by."""
ARRIVAL = ("x", "half_logsnr", "timestep", "guidance")
"""What the rest of an episode depends on."""


@dataclass(frozen=True, kw_only=True)
class Rates:
    """How many episodes a step takes, and how far it goes."""

    noises: int | None = None
    """Episodes of each step; if not given 7 with 4 steps of an image, 3 with 6, and 2 with more. One takes 38 network
    calls with 4 steps, and 97 with 6."""
    difference: float = 0.05
    """Change of a number by which its derivative is taken."""
    damping: float = 0.3
    """Damping of the normal equations, in units of their diagonal (Marquardt 1963)."""
    memory: float = 0.3
    """Share of all steps, the most recent, whose episodes are used."""
    largest: float = 0.3
    """Largest change of a number in the first step; it falls linearly to zero with the budget."""


@dataclass
class GaussNewton:
    """Where the method stands.

    ``table`` ``(n, A)`` has the actions. The squared error of episode i, as a function of the flat table a, is
    ``a @ gram[i] @ a - 2 * moments[i] @ a + squares[i]``, with ``gram`` ``(N, n * A, n * A)``, ``moments``
    ``(N, n * A)`` and ``squares`` ``(N,)``, the oldest first. All are float64, on the host.
    """

    table: Tensor
    gram: Tensor
    moments: Tensor
    squares: Tensor
    steps: int = 0
    network_calls: int = 0

    @classmethod
    def at_base(cls, mdp: DenoisingMDP) -> GaussNewton:
        """The base solver's table, which is zero.

        Raises:
            ValueError: if actions decide the number of steps, or contain the prediction.
        """
        if mdp.adaptive:
            raise ValueError(
                f"min_steps={mdp.min_steps} makes episodes of several lengths, a table has one: leave it out"
            )
        if mdp.action_map.predicts:
            raise ValueError("action='noise' depends on the sample, a table does not: choose action='solver'")
        table = torch.zeros(mdp.num_steps, mdp.action_size, dtype=torch.float64, device=HOST)
        size = table.numel()
        return cls(table, table.new_zeros(0, size, size), table.new_zeros(0, size), table.new_zeros(0))

    def within(
        self, spent: Callable[[], float], mdp: DenoisingMDP, reference: ReferenceSet, rates: Rates, seed: int = 0
    ) -> Iterator[float]:
        """Steps until ``spent()``, the share of the budget that is spent, is 1: the mean error before each.

        Each takes the next pairs of ``reference``, in a random order. The last may exceed the budget.
        """
        noises = rates.noises or noises_of(mdp)
        order = torch.randperm(len(reference), generator=torch.Generator().manual_seed(seed))
        features = partial(embed_samples, frozen_features(None, mdp.teacher))
        while (share := spent()) < 1:
            place = torch.arange(noises) + self.steps * noises
            pairs = reference.rows(order[place % len(order)])
            yield self.step(mdp, features, pairs, replace(rates, largest=rates.largest * (1 - share)))

    def until(
        self, network_calls: int, mdp: DenoisingMDP, reference: ReferenceSet, rates: Rates, seed: int = 0
    ) -> Iterator[float]:
        """:meth:`within` a budget of network calls, with a progress bar."""

        def spent() -> float:
            return self.network_calls / network_calls

        with tqdm(total=network_calls, initial=self.network_calls, desc="Gauss-Newton, network calls") as bar:
            for error in self.within(spent, mdp, reference, rates, seed):
                bar.set_postfix(error=f"{error:.4f}", refresh=False)
                bar.update(self.network_calls - bar.n)
                yield error

    def step(self, mdp: DenoisingMDP, features: Callable[[Tensor], Tensor], pairs: ReferenceSet, rates: Rates) -> float:
        """Move the table by the episodes of ``pairs``; returns their mean error before.

        An episode's error is the root mean square of the difference between the ``features`` ``(B, D)`` of its last
        sample and of its endpoint, as in the reward ``"feature"``. The sum of errors is minimised, not of their
        squares.
        """
        samples, changed = self._run(mdp, pairs, rates.difference)
        runs = torch.cat([samples, *(x for _, x in changed.values()), pairs.endpoints.to(samples)])
        with full_precision(samples.device):
            reached, *others, endpoints = features(runs).to(HOST, torch.float64).split(len(samples))
        jacobian = reached.new_zeros(len(reached), self.table.numel(), reached.shape[1])
        for (index, (change, _)), other in zip(changed.items(), others, strict=True):
            jacobian[:, index] = (other - reached) / change
        missing = endpoints - reached
        self._add(jacobian, missing, max(1, round(rates.memory * (self.steps + 1))))
        self._move(rates)
        self.steps += 1
        return float(missing.square().mean(dim=1).sqrt().mean())

    def _add(self, jacobian: Tensor, missing: Tensor, steps: int) -> None:
        """Add episodes by derivatives ``(B, n * A, D)`` and differences ``(B, D)``; keep the last ``steps``' only."""
        batch, size = missing.shape
        at_zero = missing + self.table.flatten() @ jacobian  # the difference of a table of zeros, by the linear model
        products = jacobian @ torch.cat([jacobian, at_zero[:, None]], dim=1).mT / size
        self.gram = torch.cat([self.gram, products[:, :, :-1]])[-steps * batch :]
        self.moments = torch.cat([self.moments, products[:, :, -1]])[-steps * batch :]
        self.squares = torch.cat([self.squares, at_zero.square().mean(dim=1)])[-steps * batch :]

    def _move(self, rates: Rates) -> None:
        """To the table of the smallest damped mean error, within the bounds of actions and of a step."""
        before = self.table.flatten()
        bounds = (before - rates.largest).clamp(min=-1), (before + rates.largest).clamp(max=1)
        table = least_mean_error(self.gram, self.moments, self.squares, before, bounds, rates.damping)
        self.table = table.reshape(self.table.shape)

    @torch.inference_mode()
    def _run(
        self, mdp: DenoisingMDP, pairs: ReferenceSet, difference: float
    ) -> tuple[Tensor, dict[int, tuple[float, Tensor]]]:
        """The last samples ``(B, *S)`` of the table and, by the index of a changed number, its change and theirs.

        An episode with a change shares the steps before with the others. Numbers that change nothing are left out.
        """
        runs = [mdp.initial(pairs.noise.to(mdp.teacher.device), condition=pairs.condition)]
        changes: dict[int, float] = {}
        for step, action in enumerate(self.table):
            runs = self._predicted(mdp, runs)
            before = runs[0]
            runs = [_stepped(mdp, run, action) for run in runs]
            # Towards the middle, so that no number leaves its bounds.
            for number, change in enumerate(torch.where(action > 0, -difference, difference).tolist()):
                other = action.clone()
                other[number] += change
                run = _stepped(mdp, before, other)
                if any(not torch.equal(getattr(run, name), getattr(runs[0], name)) for name in ARRIVAL):
                    changes[step * len(action) + number] = change
                    # A call of its own, where a pipeline makes the predictions: no other has these levels.
                    runs.append(replace(run, wave=torch.full_like(run.wave, -len(runs))))
        samples = [run.x for run in runs]
        return samples[0], {index: (changes[index], x) for index, x in zip(changes, samples[1:], strict=True)}

    def _predicted(self, mdp: DenoisingMDP, runs: list[State]) -> list[State]:
        """All ``runs`` with their next predictions, in common batches."""
        joined = predict_in_parts(mdp.teacher, State.joined(runs), mdp.teacher.run_size)
        self.network_calls += len(joined.x) * mdp.calls
        rows = torch.arange(len(joined.x), device=HOST)
        return [joined.rows(part) for part in rows.split(len(runs[0].x))]


def least_mean_error(
    gram: Tensor, moments: Tensor, squares: Tensor, start: Tensor, bounds: tuple[Tensor, Tensor], damping: float
) -> Tensor:
    """Where, within ``bounds``, the mean of errors is smallest whose squares are the given quadratic functions.

    By reweighted least squares (Weiszfeld 1937): in each round squares are divided by the errors of the round before.
    A number at a bound that would leave it is held for a round.

    Args:
        gram, moments, squares: as in :class:`GaussNewton`, ``(N, P, P)``, ``(N, P)`` and ``(N,)``.
        start: ``(P,)``, within ``bounds``. Numbers without effect stay there.
        bounds: smallest and largest numbers, both ``(P,)``.
        damping: weight of the squared distance from ``start``, in units of the first round's diagonal.
    """
    lower, upper = bounds
    found, penalty = start, None
    for _ in range(ROUNDS):
        products = gram @ found
        errors = (products @ found - 2 * moments @ found + squares).clamp(min=NO_ERROR**2).sqrt()
        curvature = (gram / errors[:, None, None]).mean(dim=0)
        if penalty is None:
            scale = curvature.diagonal()
            penalty = damping * scale + SMALLEST * scale.mean().clamp(min=1e-30)
        pull = ((moments - products) / errors[:, None]).mean(dim=0) - penalty * (found - start)
        free = torch.where(pull > 0, found < upper, found > lower)
        step = torch.zeros_like(found)
        step[free] = torch.linalg.solve((curvature + penalty.diag())[free][:, free], pull[free])
        found = torch.minimum(torch.maximum(found + step, lower), upper)
    return found


def noises_of(mdp: DenoisingMDP) -> int:
    """Episodes of a step, as their numbers of network calls suggest."""
    calls = mdp.num_steps + mdp.action_size * mdp.num_steps * (mdp.num_steps - 1) // 2
    return min(max(round(STEP_CALLS / calls), NOISES[0]), NOISES[1])


def fitted_table(mdp: DenoisingMDP, reference: ReferenceSet, network_calls: int, rates: Rates, seed: int = 0) -> Tensor:
    """The table ``(n, A)`` that so many network calls find, float64 on the host; from the cache, if it is there.

    Raises:
        ValueError: as :meth:`GaussNewton.at_base`.
    """
    found = GaussNewton.at_base(mdp)

    def compute() -> Tensor:
        for _ in found.until(network_calls, mdp, reference, rates, seed):
            pass
        return found.table

    initial = "noise" if mdp.initial_map is None else mdp.initial_map.key
    process = f"{mdp.solver} {mdp.grid} {mdp.num_steps} {mdp.action_map} {mdp.learn_guidance} {initial}"
    description = f"Gauss-Newton table {reference.key} {process} {rates} {network_calls} {seed}"
    return cached(hashlib.sha256(description.encode()).hexdigest(), compute)


def _stepped(mdp: DenoisingMDP, state: State, action: Tensor) -> State:
    """All rows of ``state`` after the same ``action`` ``(A,)``."""
    return mdp.advance(state, mdp.decode(state, action.float().expand(len(state.x), -1)))
