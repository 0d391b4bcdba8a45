"""The page: films as strips of pictures, and one HTML file that shows them without any other script."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from redif_env.measures.rendering import write_png
from redif_env.showing.films import Film
from redif_env.storage.files import write_file


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


def write_page(exhibit: Exhibit, folder: Path) -> Path:
    """Write the page into ``folder``: ``index.html``, and a picture for each film and condition. Returns its path.

    A picture is a column a frame; its rows are the samples of each seed, and below them the clean estimates.
    """
    folder.mkdir(parents=True, exist_ok=True)
    panels = []
    for place, films in enumerate(exhibit.panels):
        described = []
        for index, film in enumerate(films):
            names = []
            for row in range(len(exhibit.conditions)):
                name = f"panel{place}-film{index}-condition{row}.png"
                part = slice(row * len(exhibit.seeds), (row + 1) * len(exhibit.seeds))
                strip = np.concatenate([film.samples[:, part], film.estimates[:, part]], axis=1)
                write_png(folder / name, _sheet(strip))
                names.append(name)
            described.append(_described(film, names))
        panels.append({"name": films[0].name, "films": described})
    facts = {
        "title": exhibit.title,
        "conditions": list(exhibit.conditions),
        "seeds": list(exhibit.seeds),
        "ends": list(exhibit.ends),
        "device": exhibit.device,
        "panels": panels,
    }
    page = folder / "index.html"
    template = files("redif_env.showing").joinpath("page.html").read_text(encoding="utf-8")
    # Inside of a script "</" would end it.
    data = json.dumps(facts, ensure_ascii=False).replace("</", "<\\/")
    with write_file(page) as temporary:
        temporary.write_text(template.replace("/*facts*/", data), encoding="utf-8")
    return page


def _described(film: Film, pictures: list[str]) -> dict[str, Any]:
    return {
        "calls": film.calls,
        "milliseconds": film.milliseconds,
        "spent": film.spent,
        "timesteps": film.timesteps,
        "size": [film.samples.shape[3], film.samples.shape[2]],
        "pictures": pictures,
    }


def _sheet(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pictures ``(F, N, H, W, 3)`` as one: a column a frame, a row a sample."""
    count, rows, height, width, channels = frames.shape
    return frames.transpose(1, 2, 0, 3, 4).reshape(rows * height, count * width, channels)
