"""Schedule x prediction type x model class x conditioning: every cell, from a folder on disk to a student and back.

``python -m pytest tests/teachers/test_matrix.py --write-matrix docs/models.md`` writes the outcome into the docs.
"""

import numpy as np
import pytest
import torch

from redif_env import ReDiFEnv, Student, Teacher
from redif_env.mdp.policies import Policy, PolicyConfig
from redif_env.mdp.settings import MDPSettings, build_mdp
from tests.models import CELLS, MODELS, Cell


@pytest.fixture(scope="session")
def templates(tmp_path_factory):
    return tmp_path_factory.mktemp("templates")


def said_by_hand(teacher, x, timestep, condition):
    """Clean estimate by the network's own call and the scheduler's config alone: no code of the library's."""
    network, level = teacher.network, teacher.schedule.level(teacher.schedule.half_logsnr(timestep))
    alpha, sigma = level.alpha[0].float(), level.sigma[0].float()
    given = x / (sigma**2 + 0.25).sqrt() if "EDM" in type(teacher.preconditioning).__name__ else x
    inputs = {name: rows[condition : condition + 1] for name, rows in teacher.conditions.inputs.items()}
    output = network(given, timestep=timestep.float(), **inputs).sample[:, : x.shape[1]]
    if teacher.guidance_scale:
        free = network(given, timestep=timestep.float(), **teacher.conditions.null).sample[:, : x.shape[1]]
        output = free + teacher.guidance_scale * (output - free)
    kind, parts = teacher.prediction_type.value, type(teacher.preconditioning).__name__
    if parts == "EDMPreconditioning":
        sign = -1 if kind == "v_prediction" else 1
        return (0.25 * x + sign * sigma * 0.5 * (sigma**2 + 0.25).sqrt() * output) / (sigma**2 + 0.25)
    if parts == "ScorePreconditioning":
        return x + sigma**2 * output
    return {
        "epsilon": lambda: (x - sigma * output) / alpha,
        "sample": lambda: output,
        "v_prediction": lambda: alpha * x - sigma * output,
        "flow_prediction": lambda: x - sigma * output,
    }[kind]()


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_cell(cell: Cell, templates, tmp_path):
    """The loaded teacher predicts as the network, an episode runs, and the loaded student equals the saved one."""
    cell.write(templates, tmp_path / "teacher")
    teacher = Teacher.from_pretrained(tmp_path / "teacher", **cell.model.options)
    last = len(teacher.conditions) - 1
    x = torch.randn(1, *teacher.sample_shape, generator=torch.Generator().manual_seed(0))
    half_logsnr = teacher.schedule.half_logsnr_at(torch.tensor([0.4], dtype=torch.float64))
    timestep = teacher.schedule.timestep(half_logsnr)
    with torch.no_grad():
        found = teacher.predict(x, half_logsnr, timestep, torch.tensor([last])).x0
        torch.testing.assert_close(found, said_by_hand(teacher, x, timestep, last), rtol=1e-3, atol=1e-4)

    shown = "features+condition" if len(teacher.conditions) > 1 else "features"
    options = {"teacher": teacher, "num_steps": 2, "observation": shown, "learn_guidance": teacher.calls == 2}
    env = ReDiFEnv(**options, reference_size=4, teacher_steps=3)
    observation, info = env.reset(seed=0)
    assert info["nfe"] == teacher.calls
    total, ended = 0.0, False
    while not ended:
        assert env.observation_space.contains(observation)
        observation, reward, ended, _, info = env.step(np.zeros(env.action_space.shape, np.float32))
        total += reward
    assert info["nfe"] == 2 * teacher.calls
    assert np.isfinite(total)
    assert total < 0

    sizes = (env.batch.mdp.observation_size, 4, env.batch.mdp.action_size)
    torch.manual_seed(1)
    student = Student(env.batch.mdp, Policy(PolicyConfig(sizes)))
    images = student(3, generator=torch.Generator().manual_seed(2))
    assert images.shape == (3, *teacher.image_shape)
    assert bool(images.isfinite().all())
    student.save_pretrained(tmp_path / "student")
    again = Student.from_pretrained(tmp_path / "student")
    assert torch.equal(again(3, generator=torch.Generator().manual_seed(2)), images)


def test_every_class_is_in_the_matrix():
    from redif_env.teachers.networks import NETWORKS

    assert {model.network.split()[0] for model in MODELS} | {"GaussianMixtureModel"} == set(NETWORKS)


def test_the_guided_mdp_counts_two_calls(templates, tmp_path):
    """Budgets, prices and tables see two network calls a prediction."""
    cell = next(cell for cell in CELLS if cell.model.conditioning == "class labels, guided")
    cell.write(templates, tmp_path / "teacher")
    teacher = Teacher.from_pretrained(tmp_path / "teacher", **cell.model.options)
    mdp = build_mdp(MDPSettings(teacher=teacher, num_steps=3, solver="ddim", grid="time"))
    state = mdp.predict(mdp.initial(torch.randn(2, *teacher.sample_shape)), torch.ones(2, dtype=torch.bool))
    assert (state.nfe.tolist(), state.predictions.tolist()) == ([2, 2], [1, 1])
