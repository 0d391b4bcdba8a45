"""What a task is: all arguments of the environments, in one place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from redif_env.diffusion.types import Transition
from redif_env.mdp.settings import MDPSettings, default_sizes
from redif_env.rewards.reward import Reward
from redif_env.storage.checks import check_at_least
from redif_env.teachers.references import SetSizes


@dataclass(frozen=True, kw_only=True)
class Task(MDPSettings):
    """A denoising process, and what an agent learns it for and from.

    ``gym.make("ReDiF-v0")``, ``gym.make_vec``, the environments' classes, ``make_vec_env`` and the training programs
    take these fields as arguments: add one here and all of them have it, with its docs.
    """

    reward: str | Reward | Callable[[Transition], Tensor] | Mapping[str, float] = "endpoint"
    """A name of `redif_env.rewards.names.REWARDS`, or names with weights: `{"endpoint": 1.0, "feature": 0.5}`, at the
    command line `endpoint 1 feature 0.5`; in Python also a `Reward`, or a function of a `Transition` of B episodes that
    returns a tensor `(B,)`."""
    reference_size: int | None = None
    """Pairs (initial noise, the teacher's endpoint of it) that episodes are drawn from; 4,096 if not given, 1,024 of
    `"cifar10"`, 512 of a driven pipeline. Computed once and cached under `$REDIF_CACHE` or `~/.cache/redif`; shipped
    for the defaults of `"digits"` and `"cifar10"`."""
    teacher_steps: int | None = None
    """Predictions that the teacher spends on each endpoint; 100 if not given, 40 of `"cifar10"` and of a driven
    pipeline."""
    autocast: bool = False
    """Run the teacher in bfloat16 in steps, for speed; endpoints are made in its own type."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, reference_size=self.reference_size, teacher_steps=self.teacher_steps)

    @property
    def sizes(self) -> SetSizes:
        """The sizes of the reference sets: those given, else the teacher's defaults."""
        given = {"reference_size": self.reference_size, "teacher_steps": self.teacher_steps}
        return replace(default_sizes(self), **{name: value for name, value in given.items() if value is not None})
