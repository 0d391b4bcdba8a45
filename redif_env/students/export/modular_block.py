"""A student as a block repository for diffusers' modular pipelines."""

from __future__ import annotations

import json
from pathlib import Path
from pprint import pformat

from redif_env.students.export.redif_scheduler import ReDiFScheduler

BLOCK_FILE, STEPS_FILE, CONFIG_FILE = "redif_block.py", "redif_steps.py", "modular_config.json"
INDEX = {
    "_class_name": "ReDiFStep",
    "auto_map": {"ModularPipelineBlocks": f"{Path(BLOCK_FILE).stem}.ReDiFStep"},
}


def write_block(scheduler: ReDiFScheduler, folder: Path) -> None:
    """Write what ``ModularPipelineBlocks.from_pretrained(folder, trust_remote_code=True)`` reads.

    Blocks are made without knowing the folder that they came from, so the steps are a file of Python.
    """
    folder.mkdir()
    here = Path(__file__).parent
    for name in (BLOCK_FILE, "redif_scheduler.py"):
        (folder / name).write_bytes((here / name).read_bytes())
    config = json.loads(scheduler.to_json_string())
    text = f'"""Config of the scheduler."""\n\nCONFIG = {pformat(config, width=120, sort_dicts=False)}\n'
    (folder / STEPS_FILE).write_text(text, encoding="utf-8")
    (folder / CONFIG_FILE).write_text(json.dumps(INDEX, indent=2) + "\n", encoding="utf-8")
