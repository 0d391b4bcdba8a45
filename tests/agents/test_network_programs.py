"""The programs that train a student's own network, on a tiny random teacher: warm start, PPO, resuming, judging."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from agents import clone, ppo
from redif_env import Student
from redif_env.diffusion.grids import GRIDS
from redif_env.diffusion.solvers import SOLVERS
from redif_env.fitted.linear_solver import LinearSolver
from redif_env.mdp.actions import NoiseMap
from redif_env.mdp.observations import Sample
from redif_env.mdp.process import DenoisingMDP
from redif_env.sb3 import UnhealthyRunError, step_gains, student_exploration
from redif_env.sb3.training import networks
from redif_env.sb3.training.networks import NoiseSettings, network_items, warm_start
from redif_env.sb3.training.recipes import NOISE, SOLVER, settled
from redif_env.storage.checkpoints import checkpoints
from redif_env.teachers.teacher import load_teacher
from redif_env.training.runs import begin, check, read_settings, settings_json
from tests.models import unet

# Stable-Baselines3's progress bar is tqdm's, drawn by rich.
pytestmark = [
    pytest.mark.filterwarnings("ignore::tqdm.TqdmExperimentalWarning"),
    pytest.mark.usefixtures("quick_distance"),
]

CLONED = NoiseSettings(clone_updates=3, clone_batch_size=16)


@pytest.fixture
def settings(pipeline_folder, tmp_path):
    return ppo.Args(
        teacher=str(pipeline_folder),
        num_steps=3,
        action="noise",
        network_calls=144,
        num_envs=8,
        group_size=4,
        batches=2,
        reference_size=16,
        teacher_steps=8,
        test_size=16,
        held_out_size=16,
        held_out_every=2,
        checkpoint_every=24,
        network=CLONED,
        out=tmp_path / "run",
    )


@pytest.fixture(scope="module")
def saved_clone(pipeline_folder, tmp_path_factory):
    """How it was made, and the student, which lies in ``out / "student"``."""
    args = clone.Args(
        teacher=str(pipeline_folder), num_steps=3, network=CLONED, out=tmp_path_factory.mktemp("clone"), test_size=16,
        teacher_steps=8,
    )  # fmt: skip
    cloned, _ = clone.make(args)
    cloned.save_pretrained(args.out / "student")
    return args, cloned


def weights(student):
    return student.network.state_dict()


def same(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


def test_each_action_has_its_recipe():
    noise, solver = settled(ppo.Args(action="noise")), settled(ppo.Args())
    assert (noise.num_envs, noise.observation, noise.gamma) == (NOISE.num_envs, "sample", 0.0)
    assert (solver.num_envs, solver.observation, solver.learning_rate) == (SOLVER.num_envs, "features", 1e-3)
    assert settled(ppo.Args(action="noise", epochs=7)).epochs == 7
    assert settled(noise) == noise


def test_settings_survive_their_file(settings):
    """Nested settings come back as they were."""
    given = settled(replace(settings, network=replace(settings.network, width=0.5)))
    begin(given, ppo.PROGRAM)
    read = read_settings(given.out, given)
    assert settings_json(read) == settings_json(given)
    assert read.network.width == 0.5
    check(replace(read, resume=True), ppo.PROGRAM)
    with pytest.raises(ValueError, match="network="):
        check(replace(read, resume=True, network=replace(read.network, width=0.25)), ppo.PROGRAM)


def test_a_run_broken_off_ends_as_an_unbroken_one(settings):
    """From every checkpoint: the student's weights, bit for bit."""
    unbroken = replace(settings, checkpoint_every=48)
    student, facts = ppo.train(unbroken)
    assert facts["environment_steps"] == 144
    kept = checkpoints(unbroken.out / "checkpoints")
    assert [int(path.name) for path in kept] == [96, 144]
    for path in kept:
        out = unbroken.out.parent / f"from-{path.name}"
        shutil.copytree(path, out / "checkpoints" / path.name)
        config = json.loads((unbroken.out / "config.json").read_text())
        (out / "config.json").write_text(json.dumps(config))
        again, _ = ppo.train(replace(unbroken, out=out, resume=True))
        assert same(weights(again), weights(student))
        assert torch.equal(again.policy.linears[0].weight, student.policy.linears[0].weight)


def test_training_moves_what_cloning_made(settings, saved_clone):
    """The warm start is what agents.clone makes with the same settings; PPO goes on from it."""
    args, cloned = saved_clone
    teacher = load_teacher(settings.teacher)
    assert not same(weights(cloned), teacher.network.state_dict())
    initialised = replace(CLONED, init=str(args.out / "student"), clone_updates=None)
    agent = ppo.build(replace(settings, network=initialised))
    warm_start(initialised, agent.get_env().unwrapped.mdp, agent.policy, 0)
    assert same(agent.policy.plain_weights(), weights(cloned))
    trained, _ = ppo.train(settings)
    assert not same(weights(trained), weights(cloned))


def test_a_clone_is_refined(saved_clone, tmp_path, monkeypatch):
    """With the cloning, or of a clone that was saved before: the same student."""
    plan = networks.refinement_plan
    monkeypatch.setattr(networks, "refinement_plan", lambda *given: replace(plan(*given), batch_size=16))
    args, cloned = saved_clone
    refined = replace(CLONED, refine_updates=2, refine_num_steps=4)
    together, _ = clone.make(replace(args, network=refined, out=tmp_path / "together"))
    initialised = replace(refined, init=str(args.out / "student"), clone_updates=None)
    later, _ = clone.make(replace(args, network=initialised, out=tmp_path / "later"))
    assert same(weights(together), weights(later))
    assert not same(weights(together), weights(cloned))


def test_a_clone_is_cloned_further(saved_clone, tmp_path):
    """A student to begin as and updates to make: it goes on from there, and without updates it stays what it is."""
    args, cloned = saved_clone
    initialised = NoiseSettings(init=str(args.out / "student"), clone_batch_size=16)
    kept, _ = clone.make(replace(args, network=initialised, out=tmp_path / "kept"))
    assert same(weights(kept), weights(cloned))
    further, _ = clone.make(replace(args, network=replace(initialised, clone_updates=2), out=tmp_path / "further"))
    assert not same(weights(further), weights(cloned))
    flow = replace(args, teacher="mnist", network=initialised, out=tmp_path / "flow")
    with pytest.raises(ValueError, match=r"predicts .*, where those of this teacher's students predict"):
        clone.make(flow)


@pytest.mark.parametrize("network", [{"width": 0.5}, {"lora_rank": 2}, {"autocast": True}])
def test_other_networks_train_too(settings, network):
    changed = replace(settings, network=replace(settings.network, **network), network_calls=48)
    student, _ = ppo.train(changed)
    count = sum(parameter.numel() for parameter in student.network.parameters())
    whole = sum(parameter.numel() for parameter in load_teacher(settings.teacher).network.parameters())
    assert count < whole if "width" in network else count == whole


def test_a_config_file_names_the_network(settings, tmp_path):
    config = {**unet(channels=(4, 8)).config, "_class_name": "UNet2DModel"}
    (tmp_path / "network.json").write_text(json.dumps(config))
    agent = ppo.build(replace(settings, network=NoiseSettings(config=str(tmp_path / "network.json"))))
    assert agent.policy.settings["network"]["block_out_channels"] == [4, 8]
    for text, message in (("{", "is no JSON"), ("[]", "names no _class_name")):
        (tmp_path / "network.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            ppo.build(replace(settings, network=NoiseSettings(config=str(tmp_path / "network.json"))))


def test_another_network_s_weights_are_refused(settings, tmp_path):
    student, _ = ppo.train(replace(settings, network=replace(settings.network, width=0.5), network_calls=24))
    student.save_pretrained(tmp_path / "narrow")
    wrong = replace(settings, out=tmp_path / "wrong", network=NoiseSettings(init=str(tmp_path / "narrow")))
    with pytest.raises(ValueError, match="has another network than this student"):
        ppo.train(wrong)


def test_a_run_that_breaks_leaves_the_last_good_student(settings):
    broken = replace(settings, learning_rate=1e18)
    with pytest.raises(UnhealthyRunError, match=r"lower the learning rate.*The last good student is in"):
        ppo.train(broken)
    student = Student.from_pretrained(settings.out / "student")
    assert bool(student(num_samples=2).isfinite().all())


def test_the_programs_report_and_the_command_judges_by_the_teacher(settings, saved_clone, tmp_path, capsys):
    """The whole of agents.ppo and agents.clone; and the teacher is what ``redif evaluate`` judges by."""
    from redif_env.cli import Info, load, teacher_of

    ppo.main(replace(settings, baselines="quick"))
    rows = json.loads((settings.out / "result.json").read_text())["rows"]
    found = {row["method"]: row for row in rows}
    assert found["redif-ppo"]["fd_teacher"] > 0
    assert (settings.out / "samples.png").stat().st_size > 0
    card = (settings.out / "student" / "README.md").read_text()
    assert "its own, trained too" in card
    standard, teacher = teacher_of(load(str(settings.out / "student"), "cpu")), load_teacher(settings.teacher)
    assert not standard.own_network
    assert standard.fingerprint == teacher.fingerprint
    Info(str(settings.out / "student")).run()
    assert "its own, v_prediction" in capsys.readouterr().out
    cloning = replace(saved_clone[0], out=tmp_path / "clone", baselines="none")
    clone.main(cloning)
    clone.main(replace(cloning, resume=True))
    assert "is finished" in capsys.readouterr().out


def slopes_of_ddim(mdp):
    """By hand: what an output of 1, a velocity, does to where each of 3 steps in time lands."""
    schedule = mdp.teacher.schedule
    level = schedule.level(schedule.half_logsnr_at(torch.tensor([1.0, 2 / 3, 1 / 3], dtype=torch.float64)))
    reached = [*zip(level.alpha[1:].tolist(), level.sigma[1:].tolist(), strict=True), (1.0, 0.0)]
    return [
        4 * sigma * (after[0] - alpha * after[1] / sigma)
        for alpha, sigma, after in zip(level.alpha.tolist(), level.sigma.tolist(), reached, strict=True)
    ]


def test_every_step_explores_as_far_in_the_sample():
    mdp = DenoisingMDP(load_teacher("gaussian-ring"), SOLVERS["ddim"], GRIDS["time"], 3, NoiseMap(), Sample())
    slopes = slopes_of_ddim(mdp)
    assert step_gains(mdp).tolist() == pytest.approx(slopes, rel=1e-5)
    table = student_exploration(mdp, 0.1, 0.2)
    assert table[:, 0].tolist() == pytest.approx([0.1] * 3)
    assert table[:, 1].tolist() == pytest.approx([0.1 / slope for slope in slopes], rel=1e-5)


def test_steps_that_clip_explore_by_their_slope():
    """A prediction that strays by 1 is clipped; what exploration is set by must not be."""
    teacher, grid, shares = load_teacher("gaussian-ring"), GRIDS["time"], (0.5, 0.9, 1.2)
    levels = grid.half_logsnr(torch.arange(3, dtype=torch.float64) / 3, teacher.schedule)
    matrices = torch.zeros(3, 4, 2, 2)
    for step, share in enumerate(shares):
        matrices[step, 1] = share * torch.eye(2)
    solver = LinearSolver(tuple(levels.tolist()), matrices, torch.zeros(3, 1, 2), clipped=True)
    mdp = DenoisingMDP(teacher, solver, grid, 3, NoiseMap(), Sample())
    expected = [share * slope for share, slope in zip(shares, slopes_of_ddim(mdp), strict=True)]
    assert step_gains(mdp).tolist() == pytest.approx(expected, rel=1e-5)


def test_the_plan_counts_what_a_network_costs_besides():
    args = settled(ppo.Args(action="noise", network_calls=1000, epochs=2, reference_size=50, teacher_steps=10))
    found = {item.name: item.calls for item in network_items(args)}
    # 1,000 updates of 128 states; 10 times 512 noises over 4 steps, each asked of the teacher and of the student.
    assert found["cloning the teacher"] == 3 * 1000 * 128 + 10 * 512 * 4 * 2
    assert found["updates of the network, forward and back"] == 3 * 1000 * 2
    assert found["the teacher's trajectories, for the path reward"] == 50 * 10
    initialised = replace(args, network=NoiseSettings(init="elsewhere"), reward=(("feature", 1.0),))
    assert [item.calls for item in network_items(initialised)] == [0, 6000]
    refined = replace(args, network=NoiseSettings(refine_updates=100))
    found = {item.name: item.calls for item in network_items(refined)}
    assert found["refining the clone"] == 100 * 256 * (3 * 4 + 3 + 8) + 2 * 1024 * 4 * 2
    further = replace(args, network=NoiseSettings(init="elsewhere", clone_updates=100))
    assert network_items(further)[0].calls == 3 * 100 * 128 + 512 * 4 * 2
