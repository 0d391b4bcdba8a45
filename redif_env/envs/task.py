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
    """All arguments of an environment: the denoising process, its reward and its reference set.

    ``gym.make("ReDiF-v0")``, ``gym.make_vec``, the environment classes, ``make_vec_env`` and the training programs take
    these fields as arguments, with these descriptions.
    """

    reward: str | Reward | Callable[[Transition], Tensor] | Mapping[str, float] = "endpoint"
    """A name of `redif_env.rewards.names.REWARDS`, or names with weights: `{"endpoint": 1.0, "feature": 0.5}`, on the
    command line `endpoint 1 feature 0.5`. In Python also a `Reward`, or a function of a `Transition` of B episodes that
    returns a tensor `(B,)`."""
    reference_size: int | None = None
    """Number of pairs (initial noise and the teacher's endpoint) that episodes are drawn from. If not given: 1,024 for
    `"cifar10"`, 512 for a driven pipeline, 4,096 otherwise. They are computed once and cached in `$REDIF_CACHE` or
    `~/.cache/redif`; those for the defaults of `"digits"` and `"cifar10"` are shipped."""
    teacher_steps: int | None = None
    """Number of predictions that the teacher makes for each endpoint. If not given: 40 for `"cifar10"` and for driven
    pipelines, 100 otherwise."""
    autocast: bool = False
    """Run the teacher's network with bfloat16 autocast in environment steps, for speed; endpoints are not affected."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, reference_size=self.reference_size, teacher_steps=self.teacher_steps)

    @property
    def sizes(self) -> SetSizes:
        """The sizes of the reference sets: those given, else the teacher's defaults."""
        given = {"reference_size": self.reference_size, "teacher_steps": self.teacher_steps}
        return replace(default_sizes(self), **{name: value for name, value in given.items() if value is not None})
