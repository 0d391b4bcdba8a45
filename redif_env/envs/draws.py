"""The random draws of episodes: a pair of the reference set, and a price."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.utils import seeding
from numpy.typing import NDArray


class GroupDraws:
    """Draws for the episodes of B sub-environments, shared within groups of ``group_size`` neighbours.

    A group draws anew once each of its members has used the last draw: a member that finishes before the others starts
    again from the same one. So all members have the same draws, whatever number of steps each takes.

    Args:
        num_envs, group_size: B, and the size of the groups.
        size: of the reference set.
        priced: whether a price is drawn too.
    """

    def __init__(self, num_envs: int, group_size: int, size: int, priced: bool) -> None:
        self.group_size, self.size, self.priced = group_size, size, priced
        groups = num_envs // group_size
        drawn = [seeding.np_random() for _ in range(groups)]
        self.generators, self.seeds = [pair[0] for pair in drawn], [pair[1] for pair in drawn]
        self._busy = np.zeros(num_envs, dtype=np.bool_)
        self._pair = np.zeros(groups, dtype=np.int64)
        self._dial = np.zeros(groups)

    def seed(self, seeds: Sequence[int | None], rows: NDArray[np.bool_]) -> None:
        """Seed each group that has one of the given rows (``(B,)`` bool) by its first member's seed, if it has one."""
        for group, seed in enumerate(seeds[:: self.group_size]):
            members = self._members(group)
            if seed is not None and rows[members].any():
                self.generators[group], self.seeds[group] = seeding.np_random(seed)
                self._busy[members] = False

    def next(self, rows: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Pair ``(B,)`` and price dial in [0, 1] ``(B,)`` of the given rows' new episodes; the others' are unspecified.

        Without prices the dial is 0.
        """
        self._busy &= ~rows
        for group in np.flatnonzero(rows.reshape(-1, self.group_size).any(axis=1)).tolist():
            members = self._members(group)
            if not self._busy[members].any():
                self._pair[group] = self.generators[group].integers(self.size)
                self._dial[group] = self.generators[group].random() if self.priced else 0.0
                self._busy[members] = True
        return self._pair.repeat(self.group_size), self._dial.repeat(self.group_size)

    def state_dict(self) -> dict[str, Any]:
        """The generators' states and the draws in use: arrays and JSON values."""
        states = [generator.bit_generator.state for generator in self.generators]
        return {"generators": states, "busy": self._busy, "pair": self._pair, "dial": self._dial}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        for generator, own in zip(self.generators, state["generators"], strict=True):
            generator.bit_generator.state = own
        self._busy, self._pair, self._dial = (state[key].copy() for key in ("busy", "pair", "dial"))

    def _members(self, group: int) -> slice:
        return slice(group * self.group_size, (group + 1) * self.group_size)
