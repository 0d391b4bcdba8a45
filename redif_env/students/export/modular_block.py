"""A student as a block repository for diffusers' modular pipelines."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from pprint import pformat

from redif_env.students.export.redif_scheduler import ReDiFScheduler

BLOCK_FILE, STEPS_FILE, CONFIG_FILE = "redif_block.py", "redif_steps.py", "modular_config.json"


def write_block(scheduler: ReDiFScheduler, folder: Path) -> None:
    """Write what ``ModularPipelineBlocks.from_pretrained(folder, trust_remote_code=True)`` reads.

    Blocks are made without knowing the folder that they came from, so the steps are a file of Python. A process imports
    each name once, so the names of what differs from student to student end in a digest.
    """
    folder.mkdir()
    here, config = Path(__file__).parent, json.loads(scheduler.to_json_string())
    digest = hashlib.sha256(json.dumps(config).encode()).hexdigest()[:12]
    steps, block = (f"{Path(name).stem}_{digest}" for name in (STEPS_FILE, BLOCK_FILE))
    shutil.copy(here / "redif_scheduler.py", folder)
    text = (here / BLOCK_FILE).read_text(encoding="utf-8").replace("redif_steps", steps)
    (folder / f"{block}.py").write_text(text, encoding="utf-8")
    text = f'"""Config of the scheduler."""\n\nCONFIG = {pformat(config, width=120, sort_dicts=False)}\n'
    (folder / f"{steps}.py").write_text(text, encoding="utf-8")
    index = {"_class_name": "ReDiFStep", "auto_map": {"ModularPipelineBlocks": f"{block}.ReDiFStep"}}
    (folder / CONFIG_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
