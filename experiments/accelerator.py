"""All measurements that wait for an accelerator, within a time: ten minutes on one large GPU.

    python -m experiments.accelerator --out results/gpu
    python -m experiments.accelerator --small --device cpu --dtype float32 --out results/rehearsal

The parts run one after another, each in a process of its own, and write as they go. What is stored in ``--out`` is not
made again, so that a second call goes on where the time ended. With ``--small`` all parts run at sizes for a CPU, as a
rehearsal.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

from experiments.placement import Placement
from experiments.tables import print_table
from redif_env.training.command import run
from redif_env.training.runs import prepare_folder

AGREEMENT = "pytest -m '' -n 0 -q tests/test_accelerator.py"
"""Whether the accelerator gives what the CPU gives."""
RIVALS = """--methods gauss-newton 'redif-ppo, no state' 'gradient, table' dyweight amed gits 'optimal steps' pas
    --solver ipndm3 --grid time@20 --out {out}/rivals"""
FULL = {
    "curve": """experiments.nfe_curve --teacher cifar10 --nfe 4 6 8 --solvers-only 10 12 16 --seeds 3 --jobs 3
        --solver ipndm3 --grid time@20 --num-envs 256 --table-calls 20000 --network-calls 20000 --learning-rate 5e-4
        --exploration 0.2 0.1 --held-out-every 10 --test-size 2000 --baselines all --screen-size 64 --shortlist 6
        --out {out}/curve""",
    "training": "experiments.bench_training --network sd15 sdxl --batch-sizes 2 8 16 --out {out}/training.json",
    "environment": "experiments.bench_env --teacher cifar10 --num-envs 1024 --single-envs 16 --rounds 5",
    "rivals": """experiments.compare --teacher cifar10 --nfe 4 6 8 --trained-nfe 4 6 8 --seeds 3 --seconds 30 --jobs 6
        --choosing-size 256 --held-out-size 256 """
    + RIVALS,
}
"""The programs, those first whose results are waited for most: students of 4, 6 and 8 calls beside all solvers with up
to twice the calls; memory and speed of training for large networks; speed of the environment; rivals in equal
seconds, six at a time."""
SMALL = {
    "curve": """experiments.nfe_curve --teacher digits --nfe 4 --solvers-only 8 --seeds 1 --jobs 1 --table-calls 500
        --network-calls 2000 --test-size 64 --baselines quick --screen-size 32 --shortlist 2 --out {out}/curve""",
    "training": "experiments.bench_training --network small --batch-sizes 1 --out {out}/training.json",
    "environment": "experiments.bench_env --num-envs 16 --single-envs 4 --rounds 1 --steps 2",
    "rivals": """experiments.compare --teacher digits --nfe 4 --trained-nfe 4 --seeds 1 --seconds 2 --jobs 1
        --reference-size 64 --teacher-steps 10 --test-size 64 --choosing-size 16 --held-out-size 16
        --trajectories 16 """
    + RIVALS,
}
"""The same for a rehearsal on a CPU."""
REPORTING = ("curve", "rivals")
"""Programs that compare samples with data."""


@dataclass(frozen=True)
class Args(Placement):
    device: str = "auto"
    dtype: str = "bfloat16"
    minutes: float = 10
    """Time for all parts; a part that is under way when it is over is stopped."""
    data: str | None = None
    """CIFAR-10's images, as agents.ppo takes them, for the distance to the data."""
    small: bool = False
    """Small sizes, on the digits teacher."""
    out: Path = Path("results/accelerator")


@dataclass(frozen=True)
class Part:
    """A program and its arguments."""

    name: str
    module: str
    arguments: tuple[str, ...]

    def run(self, out: Path, seconds: float) -> str:
        """How it ended, in words; what it prints goes to a file in ``out``."""
        command = [sys.executable, "-m", self.module, *self.arguments]
        with (out / f"{self.name}.log").open("a", encoding="utf-8") as log:
            log.write(f"{' '.join(command)}\n")
            log.flush()
            try:
                code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, timeout=seconds).returncode
            except subprocess.TimeoutExpired:
                return "stopped: the time was over"
        return "done" if code == 0 else f"failed, exit code {code}"


def parts_of(args: Args) -> list[Part]:
    """All parts, in order."""
    data = () if args.data is None else ("--data", args.data)
    parts = [part_of("agreement", AGREEMENT, args.out)]
    for name, command in (SMALL if args.small else FULL).items():
        part = part_of(name, command, args.out)
        given = (*args.options, *(data if name in REPORTING else ()))
        parts.append(replace(part, arguments=(*part.arguments, *given)))
    return parts


def part_of(name: str, command: str, out: Path) -> Part:
    """What a command says."""
    module, *arguments = (word.format(out=out) for word in shlex.split(command))
    return Part(name, module, tuple(arguments))


def main(args: Args) -> None:
    prepare_folder(args.out)
    end, lines = time.monotonic() + 60 * args.minutes, []
    for part in parts_of(args):
        start = time.monotonic()
        outcome = part.run(args.out, end - start) if start < end else "not run: the time was over"
        lines.append([part.name, f"{time.monotonic() - start:.0f}", outcome, str(args.out / f"{part.name}.log")])
        print(f"{part.name}: {outcome}", flush=True)
    print_table(f"{args.device}, {args.dtype}", ("part", "seconds", "outcome", "what it printed"), lines)


if __name__ == "__main__":
    run(main, Args)
