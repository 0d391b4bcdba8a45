"""A student as a block repository for diffusers' modular pipelines."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from pprint import pformat

from redif_env.students.export.redif_scheduler import ReDiFScheduler

BLOCK_FILE, CONFIG_FILE = "redif_block.py", "modular_config.json"
EMPTY = "CONFIG = {}\n"


def write_block(scheduler: ReDiFScheduler, folder: Path) -> None:
    """Write what ``ModularPipelineBlocks.from_pretrained(folder, trust_remote_code=True)`` reads.

    Blocks are made without knowing the folder that they came from, so the scheduler's config is written into the code.
    A process imports each name once, so the file's name ends in a digest.
    """
    folder.mkdir()
    here, config = Path(__file__).parent, json.loads(scheduler.to_json_string())
    text = (here / BLOCK_FILE).read_text(encoding="utf-8")
    assert EMPTY in text
    text = text.replace(EMPTY, f"CONFIG = {pformat(config, width=120, sort_dicts=False)}\n")
    name = f"{Path(BLOCK_FILE).stem}_{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    (folder / f"{name}.py").write_text(text, encoding="utf-8")
    shutil.copy(here / "redif_scheduler.py", folder)
    index = {"_class_name": "ReDiFStep", "auto_map": {"ModularPipelineBlocks": f"{name}.ReDiFStep"}}
    (folder / CONFIG_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
