"""The model card that goes with a student."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import ModelCardData

from redif_env.mdp.process import DenoisingMDP
from redif_env.mdp.settings import solver_name
from redif_env.students.record import Record

USAGE = """```python
from redif_env.students.export import ReDiFPipeline

pipeline = ReDiFPipeline.from_pretrained("path/or/hub-id")  # pip install redif-env; no RL library needed
images = pipeline(batch_size=4).images
```"""

HOME = """```python
from diffusers import DiffusionPipeline
from redif_env import ReDiFPipeline, ReDiFScheduler  # pip install redif-env; no RL library needed

pipe = DiffusionPipeline.from_pretrained("{base}")
pipe.scheduler = ReDiFScheduler.from_pretrained("path/or/hub-id")  # the mean steps, in the stock pipeline
pipe.scheduler.check(pipe, **pipe.scheduler.arguments)  # warns of what differs from training
output = pipe({given}, num_inference_steps={steps}, **pipe.scheduler.arguments)

output = ReDiFPipeline.of(pipe, "path/or/hub-id")({given})  # the policy decides each step by what it sees
```

Without redif-env: `scheduler/redif_scheduler.py` needs diffusers and torch alone. Put the folder `scheduler/` into the
pipeline's, with `"scheduler": ["redif_scheduler", "ReDiFScheduler"]` in its `model_index.json`, and open that with
`trust_remote_code=True`. `block/` is a block for modular pipelines, in the place of `after_denoiser`."""

INITIAL_MAP = ", after a linear map of the noise, fitted to trajectories of the teacher"


def model_card(mdp: DenoisingMDP, record: Record, trained_with: Mapping[str, Any] | None = None) -> str:
    """The text of ``README.md``: metadata for the hub, then what it is, how it was made, and how good it was found.

    ``trained_with`` is what a scheduler remembers of the pipeline that it was trained in.
    """
    teacher, each = mdp.teacher, mdp.teacher.calls
    calls = f"{(mdp.min_steps or 1) * each} to {mdp.num_steps * each}" if mdp.adaptive else str(mdp.num_steps * each)
    decoded = (
        f"{teacher.image_shape}, decoded"
        if teacher.decoder is not None
        else f"{teacher.sample_shape}" + ("" if teacher.bounds is None else f", in {list(teacher.bounds)}")
    )
    kinds = {True: "text-to-image", False: "unconditional-image-generation"}
    text = bool(teacher.conditions.inputs) and isinstance(teacher.conditions.values[0], str)
    task = kinds[text] if trained_with is None and len(teacher.image_shape) == 3 else None
    home = trained_with or {"task": task, "base_model": None, "arguments": {}, "loras": []}
    data = ModelCardData(
        license=record.license,
        library_name="diffusers",
        tags=["redif", "few-step", "diffusion", "reinforcement-learning"],
        pipeline_tag=home["task"],
        base_model=home["base_model"],
    )
    recipe = {**home["arguments"], **({"LoRAs": ", ".join(home["loras"])} if home["loras"] else {}), **record.training}
    network = "is its own, trained too," if teacher.own_network else "is the teacher's,"
    decided = "its steps are fixed" if teacher.own_network else "a small policy decides each step"
    sections = [
        f"---\n{data.to_yaml()}\n---\n",
        f"# {calls}-step student of {mdp.teacher.name}\n",
        f"A few-step sampler trained by reinforcement learning (ReDiF): the network {network} called {calls} "
        f"times a sample (NFE), and {decided}. Its base solver is "
        f"`{solver_name(mdp.solver)}`{INITIAL_MAP if mdp.initial_map else ''}. "
        f"Samples have shape {decoded}.{_asked(mdp)}\n",
        f"## Use\n\n{USAGE if trained_with is None else _home(mdp, trained_with)}\n",
        f"## Quality\n\n{_quality(record)}\n",
        f"## Training\n\n{_table(recipe, 'setting') or 'Not recorded.'}\n",
        f"## Versions\n\n{_table(record.versions, 'package') or 'Not recorded.'}\n",
        f"## Licence\n\n`{record.license}`: the teacher's weights decide it. The code is MIT.\n",
    ]
    return "\n".join(sections)


def _home(mdp: DenoisingMDP, trained_with: Mapping[str, Any]) -> str:
    given = "image" if trained_with["task"].startswith("image") else '"a cat"'
    base = trained_with["base_model"] or "path/or/hub-id-of-the-teacher"
    return HOME.format(base=base, given=given, steps=mdp.num_steps)


def _asked(mdp: DenoisingMDP) -> str:
    """What it can be asked for, as a sentence."""
    conditions, scale = mdp.teacher.conditions, mdp.teacher.guidance_scale
    if not conditions.inputs:
        return ""
    names = ", ".join(f"`{name}`" for name in conditions.names[:20]) + (", ..." if len(conditions) > 20 else "")
    guided = "" if scale is None else f" It is guided with scale {scale:g}, which makes each prediction two calls."
    return f" It was trained to show {names}.{guided}"


def _quality(record: Record) -> str:
    if not record.results:
        return "Not measured at export: run `redif evaluate` on this folder."
    names = list(record.results[0])
    lines = [_row(names), _row(["---"] * len(names))]
    lines += [_row([_cell(row.get(name)) for name in names]) for row in record.results]
    return f"{record.evaluated_on}. Lower is better.\n\n" + "\n".join(lines)


def _table(values: Mapping[str, Any], title: str) -> str:
    if not values:
        return ""
    return "\n".join([_row([title, "value"]), _row(["---", "---"]), *(_row([k, f"`{v}`"]) for k, v in values.items())])


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else "-" if value is None else str(value)
