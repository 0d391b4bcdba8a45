"""A student's folder: what is in it, and that every byte is as it was written."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from redif_env.mdp.process import DenoisingMDP
from redif_env.storage.files import CorruptFileError, read_sealed, write_folder, write_sealed
from redif_env.students.export.card import model_card
from redif_env.students.export.modular_block import write_block
from redif_env.students.export.redif_scheduler import ReDiFScheduler
from redif_env.students.export.stock import write_stock
from redif_env.students.record import Record
from redif_env.teachers.components import COMPONENTS

FORMAT = 5
CONFIG_FILE = "config.json"
CARD_FILE = "README.md"
STEPS_FILE = "steps.json"
OWN_ENTRIES = {
    "unet",
    "scheduler",
    "policy",
    "initial_map",
    "linear",
    "block",
    "redif_pipeline.py",
    "stock",
    *COMPONENTS,
    "model_index.json",
    CONFIG_FILE,
    CARD_FILE,
    STEPS_FILE,
}
REMEDY = "export the student again"


@contextmanager
def write_student(folder: str | Path, scheduler: ReDiFScheduler, mdp: DenoisingMDP, record: Record) -> Iterator[Path]:
    """Give a temporary folder to save the student's parts in, then seal it and put it in the place of ``folder``.

    Besides the parts: ``config.json`` (how it was made, and every file's digest), ``README.md`` (the model card), and
    where the steps are fixed ``steps.json`` (the mean steps as plain numbers); for a pipeline's student the scheduler's
    own source and a block for modular pipelines, which are read without this library and have no digest, and where
    levels alone were learned a stock scheduler.

    Raises:
        ValueError: if the folder holds something that is not a student's.
    """
    folder = Path(folder).expanduser()
    if folder.is_dir():
        foreign = sorted({path.name for path in folder.iterdir()} - OWN_ENTRIES)
        if foreign:
            raise ValueError(f"{folder} holds other things ({', '.join(foreign)}): choose a new or empty folder")
    with write_folder(folder) as fresh:
        yield fresh
        steps, trained_with = list(scheduler.config.steps), scheduler.config.trained_with
        if steps:
            (fresh / STEPS_FILE).write_text(json.dumps(steps, indent=2) + "\n", encoding="utf-8")
        if trained_with and not scheduler.config.refusal:
            shutil.copy(inspect.getfile(ReDiFScheduler), fresh / "scheduler")
            write_block(scheduler, fresh / "block")
            write_stock(scheduler, fresh / "stock")
        (fresh / CARD_FILE).write_text(model_card(mdp, record, trained_with), encoding="utf-8")
        content = {"format": FORMAT, "teacher": mdp.teacher.name, **record.to_json()}
        # Code is not fetched from the hub.
        code = {path.relative_to(fresh).as_posix() for path in fresh.rglob("*.py")}
        write_sealed(fresh, CONFIG_FILE, content, loose={CARD_FILE, *code})


def read_student(folder: Path) -> dict[str, Any]:
    """The content of a student folder's ``config.json``, once every byte of the folder is as it was written.

    Raises:
        FileNotFoundError: if there is no student in ``folder``.
        CorruptFileError: if a file is missing, or is not what was written.
        ValueError: if the folder is of another format.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise FileNotFoundError(f"no student in {folder}: it has no {CONFIG_FILE}")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["format"]
    except (ValueError, KeyError, TypeError) as error:
        if (folder / "student" / CONFIG_FILE).is_file():
            raise ValueError(f"{folder} is a run, not a student: give {folder / 'student'}") from error
        raise CorruptFileError(f"{path} is no student's config ({error!r}): {REMEDY}") from error
    content = read_sealed(folder, CONFIG_FILE, REMEDY) if found == FORMAT else {}
    if not content:
        raise ValueError(f"{path} has format {found!r}, this version reads {FORMAT}: {REMEDY}, or update redif-env")
    return content
