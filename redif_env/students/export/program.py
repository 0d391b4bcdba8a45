"""The whole few-step sampler as one traced program: ``torch.export``, and ONNX made of it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from redif_env.diffusion.placement import HOST
from redif_env.diffusion.solvers import predict
from redif_env.mdp.policies import Policy
from redif_env.mdp.process import DenoisingMDP
from redif_env.storage.files import write_file


class FewStepSampler(nn.Module):
    """All steps of a student as one module: standard normal ``(B, *S)`` to samples ``(B, *S)``, in the data's range.

    With several conditions it also takes their rows ``(B,)`` int64. Latents are not decoded.

    Args:
        mdp, policy: of the student.

    Raises:
        ValueError: if the student decides its number of calls, which a program without branches cannot.
    """

    def __init__(self, mdp: DenoisingMDP, policy: Policy) -> None:
        super().__init__()
        if mdp.adaptive:
            raise ValueError(
                f"student decides its number of calls ({mdp.min_steps} to {mdp.num_steps}), which a traced program "
                "cannot: use ReDiFPipeline or Student"
            )
        self.mdp = mdp
        self.network, self.policy = mdp.teacher.network, policy

    def forward(self, noise: Tensor, condition: Tensor | None = None) -> Tensor:
        mdp = self.mdp
        state = mdp.initial(noise, mdp.constant_price(len(noise)), condition)
        for _ in range(mdp.num_steps):
            state = predict(mdp.teacher, state)
            state = mdp.advance(state, mdp.decode(state, self.policy(mdp.observe(state))))
        return mdp.teacher.clip(state.x)


def trace(mdp: DenoisingMDP, policy: Policy, batch_size: int) -> ExportedProgram:
    """The sampler as a ``torch.export`` program for ``batch_size`` noises: ``torch.export.save`` writes it.

    Raises:
        ValueError: if the student decides its number of calls.
    """
    teacher = mdp.teacher
    inputs = [torch.zeros(batch_size, *teacher.sample_shape, dtype=torch.float32, device=teacher.device)]
    if len(teacher.conditions) > 1:
        inputs.append(torch.zeros(batch_size, dtype=torch.int64, device=HOST))
    sampler = FewStepSampler(mdp, policy).eval()
    with torch.no_grad():
        # A real run first: what is computed once and stored (the masks of the bands) must not come from a trace.
        sampler(*inputs)
        return torch.export.export(sampler, tuple(inputs))


def write_onnx(mdp: DenoisingMDP, policy: Policy, batch_size: int, path: Path) -> None:
    """Write the sampler for ``batch_size`` noises as one ONNX file: ``noise`` (and ``condition``) in, ``samples`` out.

    Needs the packages ``onnx`` and ``onnxscript`` (``pip install 'redif-env[onnx]'``).

    Raises:
        ImportError: if they are not installed.
        ValueError: if the student decides its number of calls.
    """
    if find_spec("onnx") is None or find_spec("onnxscript") is None:
        raise ImportError("ONNX files are written by onnx and onnxscript: pip install 'redif-env[onnx]'")
    program = torch.onnx.export(
        trace(mdp, policy, batch_size),
        (),
        input_names=["noise", "condition"][: 1 + (len(mdp.teacher.conditions) > 1)],
        output_names=["samples"],
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    with write_file(path) as temporary:
        program.save(temporary, external_data=False)
