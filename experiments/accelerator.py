"""All measurements that wait for an accelerator, within a time: ten minutes on one large GPU.

    python -m experiments.accelerator --out results/gpu
    python -m experiments.accelerator --small --device cpu --dtype float32 --out results/rehearsal

The parts run one after another, each in a process of its own, and write as they go. What is stored in ``--out`` is not
made again, so that a second call goes on where the time ended. With ``--small`` all parts run at sizes for a CPU, as a
rehearsal.
"""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from experiments.placement import Placement
from experiments.tables import print_table
from redif_env.training.command import run
from redif_env.training.runs import prepare_folder

RIVALS = ("gauss-newton", "redif-ppo, no state", "gradient, table", "dyweight", "amed", "gits", "optimal steps", "pas")


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
    """The parts, those first whose results are waited for most."""
    data = () if args.data is None else ("--data", args.data)
    sizes = ("--reference-size", "64", "--teacher-steps", "10", "--test-size", "64") if args.small else ()
    return [
        Part("agreement", "pytest", ("-m", "", "-n", "0", "-q", "tests/test_accelerator.py")),
        Part("curve", "experiments.nfe_curve", (*curve(args), *args.options, *data, "--out", f"{args.out / 'curve'}")),
        Part("training", "experiments.bench_training", (*training(args), *args.options)),
        Part("environment", "experiments.bench_env", (*environment(args), *args.options)),
        Part(
            "rivals",
            "experiments.compare",
            (*rivals(args), *sizes, *args.options, *data, "--out", f"{args.out / 'rivals'}"),
        ),
    ]


def curve(args: Args) -> tuple[str, ...]:
    """Students of 4, 6 and 8 calls beside all solvers, with up to twice the calls."""
    if args.small:
        return tuple(
            "--teacher digits --nfe 4 --solvers-only 8 --seeds 1 --jobs 1 --table-calls 500 --network-calls 2000 "
            "--test-size 64 --baselines quick --screen-size 32 --shortlist 2".split()
        )
    return tuple(
        "--teacher cifar10 --nfe 4 6 8 --solvers-only 10 12 16 --seeds 3 --jobs 3 --solver ipndm3 --grid time@20 "
        "--num-envs 256 --table-calls 20000 --network-calls 40000 --learning-rate 5e-4 --test-size 2000 "
        "--baselines all --screen-size 64 --shortlist 6".split()
    )


def training(args: Args) -> tuple[str, ...]:
    """Memory and speed for large networks."""
    networks = "small" if args.small else "sd15 sdxl"
    batches = "1" if args.small else "2 8 16"
    return ("--network", *networks.split(), "--batch-sizes", *batches.split(), "--out", f"{args.out / 'training.json'}")


def environment(args: Args) -> tuple[str, ...]:
    """Speed of the environment, beside bare forward passes."""
    if args.small:
        return tuple("--num-envs 16 --single-envs 4 --rounds 1 --steps 2".split())
    return tuple("--teacher cifar10 --num-envs 1024 --single-envs 16 --rounds 5".split())


def rivals(args: Args) -> tuple[str, ...]:
    """Trained rivals in equal seconds, six at a time."""
    if args.small:
        common = "--teacher digits --nfe 4 --trained-nfe 4 --seeds 1 --seconds 2 --jobs 1 --choosing-size 16"
    else:
        common = "--teacher cifar10 --nfe 4 6 8 --trained-nfe 4 6 8 --seeds 3 --seconds 30 --jobs 6 --choosing-size 256"
    names = RIVALS[:3] if args.small else RIVALS
    held_out = "16" if args.small else "256"
    base = "--solver ipndm3 --grid time@20 --held-out-size"
    return (*common.split(), *base.split(), held_out, "--methods", *names)


def main(args: Args) -> None:
    prepare_folder(args.out)
    end, lines = time.monotonic() + 60 * args.minutes, []
    for part in parts_of(args):
        start = time.monotonic()
        outcome = part.run(args.out, end - start) if start < end else "not begun: the time was over"
        lines.append([part.name, f"{time.monotonic() - start:.0f}", outcome, str(args.out / f"{part.name}.log")])
        print(f"{part.name}: {outcome}", flush=True)
    print_table(f"{args.device}, {args.dtype}", ("part", "seconds", "outcome", "what it printed"), lines)


if __name__ == "__main__":
    run(main, Args)
