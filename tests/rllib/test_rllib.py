"""RLlib: environments of runners, students of modules, a run that survives what is lost. Needs ``make test-ray``."""

import json
import os
import signal
import sysconfig
import threading
import time
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from packaging.utils import canonicalize_name

ray = pytest.importorskip("ray", reason="make test-ray")
# Ray, RLlib and Gymnasium 1.2 warn of their own changes to come.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("patient_ray")]

from agents import rllib as program  # noqa: E402
from redif_env import Student  # noqa: E402
from redif_env.rllib import CalmModule, make_env, shared_tensors, student_of_module  # noqa: E402
from redif_env.storage import cache  # noqa: E402

TINY = {"teacher": "gaussian-ring", "reference_size": 32, "teacher_steps": 20}
QUICK = dict(
    **TINY, reward=(("endpoint", 1.0),), num_envs=32, group_size=8, held_out_every=3, held_out_size=32, test_size=32,
    baselines="none",
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def cluster():
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    yield
    ray.shutdown()


def test_environments_are_batched_and_reset_as_rllib_expects():
    env = make_env({**TINY, "num_envs": 8, "group_size": 4})
    assert env.unwrapped.autoreset_mode.value == "NextStep"
    env.reset(seed=0)
    rewards = [env.step(env.action_space.sample())[1] for _ in range(4)][-1]
    np.testing.assert_allclose(rewards.reshape(2, 4).mean(1), 0, atol=1e-6)
    assert make_env({**TINY, "group_size": 4}).action_space.shape == (5,)
    with pytest.raises(ValueError, match="autoreset_mode='SameStep' cannot be used with RLlib"):
        make_env({**TINY, "num_envs": 8, "autoreset_mode": "SameStep"})


def test_costly_tensors_are_made_once(tmp_path, monkeypatch):
    """On another machine, whose cache is empty, nothing is computed."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, ignore_reinit_error=True)
    settings = TINY | {"reward": {"path": 1.0}}
    tensors = shared_tensors(**settings)
    monkeypatch.setenv("REDIF_CACHE", str(tmp_path))
    monkeypatch.setattr(cache, "_GIVEN", {})
    monkeypatch.setattr(cache, "ASSETS", tmp_path)
    monkeypatch.setattr(cache, "_stored", lambda key, compute: pytest.fail(f"{key} was computed"))
    assert make_env({**settings, "tensors": tensors, "num_envs": 2}).num_envs == 2
    monkeypatch.setattr(cache, "_GIVEN", {})
    with pytest.raises(pytest.fail.Exception, match="was computed"):
        make_env({**settings, "num_envs": 2})
    ray.shutdown()


def test_references_are_made_in_parallel_as_one_process_makes_them(tmp_path, monkeypatch):
    """By the same numbers, in batches that are not broken."""
    from redif_env.teachers.references import TRAIN_SEED, reference_set
    from redif_env.teachers.teacher import load_teacher

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, ignore_reinit_error=True)
    size = load_teacher("gaussian-ring").run_size + 5
    settings = {"teacher": "gaussian-ring", "reference_size": size, "teacher_steps": 3}
    found = []
    for workers, folder in ((0, tmp_path / "alone"), (2, tmp_path / "together")):
        monkeypatch.setenv("REDIF_CACHE", str(folder))
        monkeypatch.setattr(cache, "_GIVEN", {})
        shared_tensors(workers, **settings)
        found.append(reference_set(load_teacher("gaussian-ring"), size, TRAIN_SEED, 3).endpoints)
    assert torch.equal(*found)
    assert len(list((tmp_path / "together").glob("*"))) == len(list((tmp_path / "alone").glob("*")))
    ray.shutdown()


def test_the_module_starts_at_the_base_solver_and_is_exported():
    env = make_env({**TINY, "num_envs": 8})
    spec = CalmModule.spec()
    spec.observation_space, spec.action_space = env.single_observation_space, env.single_action_space
    module = spec.build()
    seen = torch.from_numpy(env.reset(seed=0)[0])
    out = module.forward_inference({"obs": seen})["action_dist_inputs"]
    assert out[:, :5].abs().max() < 0.05
    torch.testing.assert_close(out[:, 5:].exp(), torch.full((8, 5), 0.2))
    with torch.no_grad():
        module.pi.net.mlp[-1].bias.add_(torch.linspace(-0.5, 0.5, 5))
    student = student_of_module(module, env)
    torch.testing.assert_close(
        student.policy(seen), module.forward_inference({"obs": seen})["action_dist_inputs"][:, :5]
    )
    inference = module.forward_inference
    module.forward_inference = lambda batch: {"action_dist_inputs": inference(batch)["action_dist_inputs"] * 0.5}
    with pytest.raises(ValueError, match="does not decide as the agent does"):
        student_of_module(module, env)


def kill_a_runner(out, killed, rollouts):
    """SIGKILL to one runner once so many rollouts are stored."""
    import psutil

    while not killed:
        time.sleep(0.05)
        stored = [int(path.name.split("-")[1]) for path in out.glob("rllib-*") if path.name[6:].isdigit()]
        for process in psutil.Process().children(recursive=True) if max(stored, default=0) >= rollouts else []:
            try:
                if "EnvRunner" in "".join(process.cmdline()):
                    os.kill(process.pid, signal.SIGKILL)
                    killed.append(process.pid)
                    return
            except psutil.Error:
                continue


@pytest.mark.parametrize(
    "rollouts", [3, *(pytest.param(count, marks=pytest.mark.slow) for count in (6, 9, 12, 15))]
)  # fmt: skip
def test_a_run_survives_a_lost_runner(tmp_path, rollouts):
    """It ends, and its student is judged; its folder is not taken by another. ``-m ''`` runs all five."""
    killed = []
    thread = threading.Thread(target=kill_a_runner, args=(tmp_path, killed, rollouts), daemon=True)
    thread.start()
    # Raylets are children of this process, and runners theirs.
    args = program.Args(**QUICK, network_calls=24 * 128, runners=2, out=tmp_path)
    program.main(args)
    assert killed
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["environment_steps"] >= 24 * 128
    assert "redif-rllib" in [row["method"] for row in result["rows"]]
    assert Student.from_pretrained(tmp_path / "student")(num_samples=2).shape == (2, 2)
    (row,) = (row for row in result["rows"] if row["method"] == "redif-rllib")
    print(f"killed after {rollouts} rollouts: {result['environment_steps']} steps, FD {row['fd_teacher']:.4f}")
    with pytest.raises(ValueError, match="holds a run already"):
        program.main(args)


def test_teachers_that_drive_pipelines_work_in_runners(pipeline_folder):
    """Each runner makes its own by a function; endpoints are made once, and the student is the module."""
    import gymnasium as gym
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.tune.registry import register_env

    def driven():
        from diffusers import DDPMPipeline

        from redif_env import Teacher

        return Teacher.from_pipeline(DDPMPipeline.from_pretrained(pipeline_folder, low_cpu_mem_usage=False))

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, ignore_reinit_error=True)
    settings = {"teacher": driven, "reference_size": 8, "teacher_steps": 3, "num_steps": 2, "group_size": 2}
    register_env("redif", make_env)
    config = PPOConfig().environment("redif", env_config={**settings, "tensors": shared_tensors(**settings)})
    mode = gym.VectorizeMode.VECTOR_ENTRY_POINT
    config.env_runners(
        num_env_runners=1, num_envs_per_env_runner=4, rollout_fragment_length=2, gym_env_vectorize_mode=mode
    )
    config.rl_module(rl_module_spec=CalmModule.spec())
    config.training(train_batch_size_per_learner=8, minibatch_size=4, num_epochs=1, gamma=1.0, lambda_=1.0)
    algorithm = config.build_algo()
    assert algorithm.train()["env_runners"]["num_env_steps_sampled"] >= 8
    student = Student.from_agent(algorithm)
    assert type(student.mdp.teacher).__name__ == "PipelineTeacher"
    assert student(num_samples=2).isfinite().all()
    algorithm.stop()
    ray.shutdown()


def test_a_run_goes_on_from_its_checkpoint(tmp_path, monkeypatch):
    args = program.Args(**QUICK, network_calls=6 * 128, runners=0, out=tmp_path, resume=True)
    save = program.save

    def stop(out, algorithm, best, progress):
        save(out, algorithm, best, progress)
        algorithm.stop()
        raise KeyboardInterrupt

    monkeypatch.setattr(program, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        program.main(args)
    assert not (tmp_path / "result.json").exists()
    monkeypatch.setattr(program, "save", save)
    saved = []
    monkeypatch.setattr(program, "save", lambda *given: saved.append(given[3]["rollouts"]) or save(*given))
    program.main(args)
    assert saved == [6]
    assert json.loads((tmp_path / "result.json").read_text())["environment_steps"] == 6 * 128


def test_arguments_are_refused_before_anything_starts(tmp_path, capsys):
    with pytest.raises(ValueError, match="num_envs=32 must be a multiple of runners=3 times group_size=8"):
        program.train(program.Args(**QUICK, runners=3, out=tmp_path))
    program.main(program.Args(**QUICK, dry_run=True, out=tmp_path))
    assert "training" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_every_package_of_this_environment_is_pinned():
    """Also what the packages that pyproject.toml names depend on; not those that Ray brings inside its own."""
    root = Path(__file__).parents[2]
    lines = (root / "constraints-ray.txt").read_text(encoding="utf-8").splitlines()
    pinned = {canonicalize_name(line.split("==")[0]) for line in lines if "==" in line}
    installed = {
        canonicalize_name(each.metadata["Name"])
        for each in metadata.distributions(path=[sysconfig.get_path("purelib")])
    }
    assert installed - pinned <= {"pip", "setuptools", "redif-env"}
