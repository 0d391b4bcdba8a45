"""The suspended calls of one pipeline: which of them a batch of episodes goes on with, and when another is opened."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from redif_env.teachers.driven.drive import Drive
from redif_env.teachers.driven.wave import Answer, Place, Wave


class Waves:
    """Calls of a driven pipeline, by their numbers.

    Episodes that begin together make a wave. As long as they go in lockstep, each of their predictions is the next step
    of one call. Others are given a call of their own, whose earlier steps are skipped without network calls.

    Args:
        drive: the pipeline.
        size: samples in one call at most.
    """

    def __init__(self, drive: Drive, size: int) -> None:
        self.drive, self.size = drive, size
        self._open: dict[int, tuple[Wave, list[int]]] = {}

    def __len__(self) -> int:
        return len(self._open)

    def predict(
        self, place: Place, condition: Tensor, index: Tensor, num_steps: Tensor, number: Tensor
    ) -> list[tuple[list[int], int, Answer]]:
        """Predictions for B samples, in parts: the rows of each, the number of its wave, what the pipeline handed out.

        Args:
            place: where the samples are.
            condition: rows ``(B,)`` of the drive's conditions.
            index: predictions that each sample had before ``(B,)``.
            num_steps: those that it will have had in the end, at most ``(B,)``.
            number: of the wave that made its last one ``(B,)``; 0 for none.
        """
        groups: dict[tuple[int, int], list[int]] = defaultdict(list)
        for row, key in enumerate(zip(number.tolist(), index.tolist(), strict=True)):
            groups[key].append(row)
        conditions, parts = condition.tolist(), []
        for (wave_number, step), members in groups.items():
            for first in range(0, len(members), self.size):
                rows = members[first : first + self.size]
                here = _rows(place, rows)
                wave = self._wave(
                    wave_number, step, [conditions[row] for row in rows], int(num_steps[rows].max()), here, len(index)
                )
                answer = self._answer(wave, here)
                parts.append((rows, wave.number, answer))
        return parts

    def drop(self, numbers: Iterable[int]) -> None:
        """Unwind the calls of these numbers."""
        for number in set(numbers) & set(self._open):
            self._open.pop(number)[0].close()

    def close(self) -> None:
        """Unwind all calls."""
        while self._open:
            self._open.popitem()[1][0].close()

    def _wave(self, number: int, step: int, conditions: list[int], num_steps: int, here: Place, batch: int) -> Wave:
        """The call that makes prediction ``step`` of episodes with these conditions."""
        if number in self._open:
            wave, known = self._open[number]
            if known == conditions and wave.predicted == step:
                return wave
        self._make_room(-(-batch // self.size))
        wave = self.drive.wave(conditions, self.drive.start(max(num_steps, step + 1)))
        self._open[wave.number] = wave, conditions
        wave.skipping = True
        for _ in range(step):
            self._answer(wave, here)
        wave.skipping = False
        return wave

    def _answer(self, wave: Wave, here: Place) -> Answer:
        try:
            answer = wave.predict(here)
        except BaseException:
            self._open.pop(wave.number, None)
            wave.close()
            raise
        if answer is None:
            self._open.pop(wave.number, None)
            raise RuntimeError(f"the pipeline took fewer steps than the {wave.predicted + 1} that were expected of it")
        return answer

    def _make_room(self, needed: int) -> None:
        """Close calls that are over, and the oldest of those that nobody may come back to."""
        for number in [number for number, (wave, _) in self._open.items() if wave.remaining <= 1]:
            self._open.pop(number)[0].close()
        while len(self._open) >= 2 * needed + 2:
            self._open.pop(next(iter(self._open)))[0].close()


def _rows(place: Place, rows: Sequence[int]) -> Place:
    assert place.x is not None
    assert place.half_logsnr is not None
    assert place.timestep is not None
    if len(rows) == len(place.x):
        return place
    chosen = torch.tensor(rows)
    return Place(place.x[chosen.to(place.x.device)], place.half_logsnr[chosen], place.timestep[chosen])
