"""Every leg on an accelerator, pretended: with double precision like CUDA, and without like Apple's MPS."""

import copy
import json
from functools import cache

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline
from stable_baselines3 import PPO, SAC
from torch import nn

from experiments.pretended_device import NAME, PretendedDevice
from redif_env import ReDiFEnv, ReDiFVectorEnv, Student, Teacher
from redif_env.judging.evaluation import Evaluator
from redif_env.mdp.policies import Policy, PolicyConfig
from redif_env.mdp.settings import MDPSettings, build_mdp
from redif_env.rewards.names import REWARDS
from redif_env.sb3 import StudentPolicy, make_vec_env, student_kwargs
from redif_env.sb3.checkpoints import agent_state, load_agent_state
from redif_env.students.export import ReDiFPipeline, ReDiFScheduler
from redif_env.students.export.home import scheduler_at_home
from redif_env.students.export.steps import run_steps
from redif_env.teachers.references import reference_paths, reference_set
from redif_env.teachers.teacher import load_teacher
from redif_env.training.gauss_newton import GaussNewton, Rates
from tests.teachers.zoo import ZOO

SMALL = {"reference_size": 16, "teacher_steps": 4, "num_steps": 3}
NEAR = {"rtol": 0, "atol": 1e-5}
ON_GPU = pytest.mark.filterwarnings("ignore:You are trying to run PPO on the GPU")


@pytest.fixture(params=[False, True], ids=["without-float64", "with-float64"])
def device(request):
    with PretendedDevice(float64=request.param) as device:
        yield device


def played(env, steps=7):
    """All that an environment gives along random actions."""
    rng, found = np.random.default_rng(0), [env.reset(seed=3)[0]]
    for _ in range(steps):
        observations, rewards, terminated, _, _ = env.step(
            rng.uniform(-0.5, 0.5, env.action_space.shape).astype(np.float32)
        )
        found += [observations, rewards, terminated]
        if terminated.any() and env.metadata["autoreset_mode"].value == "Disabled":
            found.append(env.reset(options={"reset_mask": terminated.copy()})[0])
    return found


@cache
def played_here(teacher, steps, settings):
    """What the host gives, once for all devices; ``settings`` as JSON."""
    return played(ReDiFVectorEnv(teacher=load_teacher(teacher), **json.loads(settings)), steps)


def same_as_here(teacher, settings, steps=7):
    """Hold an environment on the device against the one on the host."""
    env = ReDiFVectorEnv(teacher=load_teacher(teacher), device=NAME, **settings)
    same(played(env, steps), played_here(teacher, steps, json.dumps(settings)))
    return env


def same(found, expected):
    for value, target in zip(found, expected, strict=True):
        if isinstance(value, dict):
            same(value.values(), target.values())
        else:
            np.testing.assert_allclose(value, target, rtol=3e-5, atol=1e-5)


# What the pretended device finds


def test_planted_double_precision_is_found():
    with PretendedDevice(float64=False), pytest.raises(TypeError, match="does not support float64"):
        torch.zeros(2, device=NAME).double()
    with PretendedDevice(float64=True):
        assert torch.zeros(2, device=NAME).double().dtype == torch.float64


def test_planted_mixes_of_devices_are_found():
    with PretendedDevice(), pytest.raises(RuntimeError, match="all tensors to be on the same device"):
        torch.zeros(2, device=NAME) + torch.zeros(2)
    with PretendedDevice(), pytest.raises(RuntimeError, match="numpy"):
        torch.zeros(2, device=NAME).numpy()


@pytest.mark.parametrize(
    "wait",
    [
        torch.Tensor.item,
        float,
        bool,
        lambda one: one.tolist(),
        torch.Tensor.cpu,
        lambda one: one.reshape(1)[one.reshape(1) > 0],
    ],
    ids=["item", "float", "bool", "tolist", "cpu", "mask"],
)
def test_planted_waits_are_counted(wait):
    with PretendedDevice() as device:
        one = torch.ones((), device=NAME)
        device.forget()
        one + one
        assert (device.totals[0], device.totals[2]) == (1, 0)
        wait(one)
        assert device.totals[2] == 1


def test_networks_can_be_left_out_of_the_count():
    with PretendedDevice() as device:
        network = nn.Linear(2, 2).to(NAME)
        x = torch.zeros(1, 2, device=NAME)
        with device.not_counting(network):
            device.forget()
            network(x)
            assert device.totals == (0, 0, 0)
        network(x)
        assert device.totals[0] > 0


# The legs


@pytest.mark.parametrize(
    ("mode", "action"), [("SameStep", "solver"), ("NextStep", "step"), ("Disabled", "solver"), ("SameStep", "step")]
)
def test_vector_environments(device, pipeline_folder, mode, action):
    env = same_as_here(pipeline_folder, SMALL | {"action": action, "autoreset_mode": mode, "num_envs": 4})
    transition = env.last_transition
    assert transition.next_state.x.device.type == transition.endpoint.device.type == NAME
    for name, value in transition.next_state.items():
        assert (value.device.type == NAME) == (name in ("x", "history")), name
    assert {value.device.type for value in (transition.pair, transition.live, transition.terminated)} == {"cpu"}


@pytest.mark.usefixtures("small_fits")
@pytest.mark.parametrize(
    "settings",
    [
        {"solver": "dpm++3m", "grid": "logsnr"},
        {"solver": "linear", "grid": "time@4", "initial_map": "linear"},
        {"min_steps": 1, "prices": (0.01, 0.1), "reward": {"endpoint": 1.0, "price": 1.0}},
    ],
    ids=["dpm", "linear", "adaptive"],
)
def test_solvers_and_budgets(device, settings):
    common = SMALL | settings | {"num_envs": 3}
    same_as_here("gaussian-ring", common)


def test_conditions_and_guidance(device, labelled):
    settings = SMALL | {"learn_guidance": True, "observation": "features+condition", "num_envs": 3}
    teachers = [load_teacher(labelled, conditions=[0, 1], null_label=2, guidance_scale=2.0) for _ in range(2)]
    expected = played(ReDiFVectorEnv(teacher=teachers[0], **settings))
    same(played(ReDiFVectorEnv(teacher=teachers[1], device=NAME, **settings)), expected)


def test_tables(device):
    """A step of the Gauss-Newton method."""
    tables = []
    for place in ("cpu", NAME):
        mdp = build_mdp(MDPSettings(teacher=load_teacher("gaussian-ring"), num_steps=3, device=place))
        found = GaussNewton.at_base(mdp)
        for _ in found.until(100, mdp, reference_set(mdp.teacher, 16, num_steps=4), Rates(noises=4)):
            pass
        tables.append(found.table)
    torch.testing.assert_close(*tables, rtol=0, atol=1e-3)
    assert tables[0].abs().max() > 0.1


def test_single_environments(device):
    envs = [ReDiFEnv(teacher=load_teacher("gaussian-ring"), device=name, **SMALL) for name in ("cpu", NAME)]
    found = [[env.reset(seed=5)[0], *(env.step(np.full(5, 0.2, np.float32))[0] for _ in range(3))] for env in envs]
    same(*found)


def test_network_students(device, pipeline_folder):
    """``action="noise"``: rollouts of a network student and an update."""
    settings = SMALL | {"action": "noise", "observation": "sample", "reward": "trajectory"}
    env = make_vec_env(2, teacher=load_teacher(pipeline_folder), device=NAME, **settings)
    here = json.dumps(settings | {"num_envs": 2, "autoreset_mode": "SameStep"})
    same(played(env.unwrapped), played_here(pipeline_folder, 7, here))
    kwargs = student_kwargs(env.unwrapped.mdp)
    agent = PPO(StudentPolicy, env, n_steps=3, batch_size=6, n_epochs=1, policy_kwargs=kwargs, device=NAME, seed=0)
    before = {name: value.cpu().clone() for name, value in agent.policy.unet.state_dict().items()}
    agent.learn(6)
    moved = agent.policy.unet.state_dict()
    assert any(not torch.equal(value, moved[name].cpu()) for name, value in before.items())


@ON_GPU
@pytest.mark.parametrize("kind", [PPO, SAC])
def test_agents_learn(device, kind):
    env = make_vec_env(4, teacher=load_teacher("gaussian-ring"), device=NAME, **SMALL)
    settings = (
        {"n_steps": 6, "batch_size": 12, "n_epochs": 2} if kind is PPO else {"learning_starts": 8, "batch_size": 8}
    )
    agent = kind("MlpPolicy", env, device=NAME, seed=0, **settings)
    agent.learn(24)
    student = Student.from_agent(agent)
    assert student(3, generator=torch.Generator().manual_seed(0)).isfinite().cpu().all()


def test_references(device, pipeline_folder):
    near, far = load_teacher(pipeline_folder), load_teacher(pipeline_folder).to(NAME)
    for seed in (11, 12):  # one set computed on each device first, and read from the cache on the other
        pair = [near, far] if seed == 11 else [far, near]
        found = [reference_set(teacher, 4, seed, 5) for teacher in pair]
        assert torch.equal(found[0].endpoints, found[1].endpoints)
        assert found[0].key == found[1].key
    noise = reference_set(near, 4, 11, 5).noise
    torch.testing.assert_close(far.endpoint(noise, 5).cpu(), near.endpoint(noise, 5), **NEAR)
    paths = reference_paths(far, reference_set(far, 4, 12, 5).to(NAME, torch.float32))
    assert paths.at(torch.arange(4), torch.zeros(4, dtype=torch.float64)).cpu().isfinite().all()


@pytest.mark.parametrize("name", list(REWARDS))
def test_rewards(device, pipeline_folder, name):
    prices = {"prices": (0.01, 0.1)} if name == "price" else {}
    settings = SMALL | prices | {"reward": name, "num_envs": 3}
    same_as_here(pipeline_folder, settings, 4)


def small_student(teacher):
    mdp = ReDiFVectorEnv(1, teacher=teacher, **SMALL).mdp
    torch.manual_seed(0)
    return Student(mdp, Policy(PolicyConfig((mdp.observation_size, 8, mdp.action_size))))


def test_the_judge(device, pipeline_folder):
    students = [small_student(load_teacher(pipeline_folder).to(name)) for name in ("cpu", NAME)]
    students[1].mdp.teacher.to(NAME)
    rows, measures = [], []
    for student in students:
        evaluator = Evaluator(student.mdp.teacher, 16, teacher_steps=10, train_size=16)
        rows.append(evaluator.student_row("redif", student))
        samples = student.trajectory(evaluator.noise, None, evaluator.condition)[-1].x
        measures.append(evaluator.set_measures(samples))
    assert rows[0].fd_teacher == pytest.approx(rows[1].fd_teacher, rel=1e-3)
    assert rows[0].mse_teacher == pytest.approx(rows[1].mse_teacher, rel=1e-4)
    assert measures[0] == pytest.approx(measures[1], rel=1e-2, abs=1e-4)


def test_students_and_their_exports(device, pipeline_folder, tmp_path):
    """From a file; the pipeline; the scheduler in a stock pipeline; the steps as numbers. One seed, one sample."""
    student = small_student(load_teacher(pipeline_folder))
    student.save_pretrained(tmp_path / "student")
    expected = student(4, generator=torch.Generator().manual_seed(0))
    frozen = student.frozen()(4, generator=torch.Generator().manual_seed(0))
    far = Student.from_pretrained(tmp_path / "student", NAME)
    torch.testing.assert_close(far(4, generator=torch.Generator().manual_seed(0)).cpu(), expected, **NEAR)
    pipeline = ReDiFPipeline.from_pretrained(tmp_path / "student").to(NAME)
    made = pipeline(4, torch.Generator().manual_seed(0), output_type="latent").images
    assert made.device.type == NAME
    torch.testing.assert_close(made.cpu(), expected, **NEAR)
    scheduler = ReDiFScheduler.from_pretrained(tmp_path / "student", subfolder="scheduler")
    stock = DDPMPipeline(pipeline.unet, scheduler).to(NAME)
    pictures = stock(4, torch.Generator().manual_seed(0), num_inference_steps=3, output_type="pt").images
    torch.testing.assert_close(torch.as_tensor(pictures).cpu(), frozen / 2 + 0.5, **NEAR)


def test_exported_steps(device):
    student = small_student(load_teacher("gaussian-ring")).frozen()
    noise = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    steps, expected = student.steps(), student.trajectory(noise)[-1].x
    student.mdp.teacher.to(NAME)
    assert student.steps() == steps
    made = run_steps(steps, student.network, noise.to(NAME))
    torch.testing.assert_close(made.cpu(), expected, **NEAR)


@ON_GPU
@pytest.mark.parametrize(("first", "then"), [("cpu", NAME), (NAME, "cpu")])
def test_a_run_goes_on_on_another_device(device, first, then):
    def agent_on(name):
        env = make_vec_env(2, teacher=load_teacher("gaussian-ring"), device=name, **SMALL)
        return PPO("MlpPolicy", env, n_steps=3, batch_size=6, n_epochs=1, device=name, seed=0)

    first_agent = agent_on(first)
    first_agent.learn(6)
    state = agent_state(first_agent)
    action = np.full((2, 5), 0.1, np.float32)
    gone_on = agent_on(then)
    load_agent_state(gone_on, state)
    expected = first_agent.env.step(action)
    same(gone_on.env.step(action)[:3], expected[:3])
    gone_on.learn(6, reset_num_timesteps=False)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", ["ddpm", pytest.param("stable_diffusion", marks=pytest.mark.slow)])
def test_driven_pipelines(device, name):
    """Environment and reward, levels of each sample's own, and the student's scheduler in the pipeline itself."""
    entry, found = ZOO[name](), []
    for placed in ("cpu", NAME):
        pipe = copy.deepcopy(entry.pipe).to(placed)
        teacher = Teacher.from_pipeline(pipe, entry.conditions, **entry.shared)
        assert teacher.device.type == placed
        env = ReDiFVectorEnv(2, teacher=teacher, device=placed, **SMALL | {"reference_size": 2, "teacher_steps": 4})
        found.append(played(env, 4))
        mdp = env.mdp
        pipe.scheduler = scheduler_at_home(mdp, torch.zeros(3, mdp.action_size))
        generator = torch.Generator().manual_seed(0)
        images = pipe(
            **entry.shared, **entry.conditions[0], num_inference_steps=3, generator=generator, output_type="np"
        )
        found[-1].append(images[0])
        teacher.close()
    assert not teacher.common_levels
    same(found[1], found[0])


def test_double_precision_is_refused_where_there_is_none():
    with (
        PretendedDevice(float64=False),
        pytest.raises(ValueError, match="dtype='float64' cannot be used on device='npu'"),
    ):
        ReDiFVectorEnv(1, teacher="gaussian-ring", device=NAME, dtype="float64", **SMALL)
    with PretendedDevice(float64=False), pytest.raises(ValueError, match="is float64, which npu has not"):
        load_teacher("gaussian-ring").to(NAME, torch.float64)
    with PretendedDevice(float64=True):
        env = ReDiFVectorEnv(1, teacher=load_teacher("gaussian-ring"), device=NAME, dtype="float64", **SMALL)
        env.reset(seed=0)
