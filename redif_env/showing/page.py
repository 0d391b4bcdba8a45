"""The page: one HTML file, with films as strips of pictures and the script that shows them."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from redif_env.showing.films import Film


@dataclass(frozen=True)
class Exhibit:
    """All that a page shows: a panel is a list of films of the same sampler, in different numbers of calls.

    The samples of each film are those of each condition in turn, with every seed.
    """

    title: str
    conditions: Sequence[str]
    seeds: Sequence[int]
    ends: tuple[float, float]
    """Training timesteps of noise and of clean data."""
    device: str
    panels: Sequence[Sequence[Film]]


def page_of(exhibit: Exhibit) -> str:
    """The page as HTML, which loads nothing else: a picture for each film and condition is part of it.

    A picture is a column a frame; its rows are the samples of each seed, and below them the clean estimates.
    """
    facts = {
        "title": exhibit.title,
        "conditions": list(exhibit.conditions),
        "seeds": list(exhibit.seeds),
        "ends": list(exhibit.ends),
        "device": exhibit.device,
        "panels": [
            {"name": films[0].name, "films": [_described(film, len(exhibit.seeds)) for film in films]}
            for films in exhibit.panels
        ],
    }
    template = files("redif_env.showing").joinpath("page.html").read_text(encoding="utf-8")
    # Inside of a script "</" would end it.
    return template.replace("/*facts*/", json.dumps(facts, ensure_ascii=False).replace("</", "<\\/"))


def _described(film: Film, seeds: int) -> dict[str, Any]:
    parts = (slice(first, first + seeds) for first in range(0, film.samples.shape[1], seeds))
    return {
        "calls": film.calls,
        "milliseconds": film.milliseconds,
        "spent": film.spent,
        "timesteps": film.timesteps,
        "size": [film.samples.shape[3], film.samples.shape[2]],
        "pictures": [_url(np.concatenate([film.samples[:, part], film.estimates[:, part]], axis=1)) for part in parts],
    }


def _url(frames: NDArray[np.uint8]) -> str:
    """Pictures ``(F, N, H, W, 3)`` as the address of one PNG: a column a frame, a row a sample."""
    count, rows, height, width, channels = frames.shape
    sheet = frames.transpose(1, 2, 0, 3, 4).reshape(rows * height, count * width, channels)
    written = BytesIO()
    Image.fromarray(sheet).save(written, format="PNG", optimize=True)
    return "data:image/png;base64," + b64encode(written.getvalue()).decode()
