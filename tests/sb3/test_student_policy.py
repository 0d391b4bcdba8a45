"""The student policy: spaces, export, checks, cloning and refinement."""

import copy
import math
import warnings
from dataclasses import replace
from functools import cache

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_checker import check_env as check_env_for_sb3
from stable_baselines3.common.utils import obs_as_tensor
from torch import nn
from torch.distributions import Normal, kl_divergence

from redif_env import ReDiFEnv, ReDiFVectorEnv, Student
from redif_env.diffusion.grids import GRIDS
from redif_env.diffusion.noise_schedulers import action_parameterization
from redif_env.diffusion.predictions import EDMPreconditioning
from redif_env.diffusion.schedules import FlowSchedule, VarianceExplodingSchedule, VariancePreservingSchedule
from redif_env.diffusion.solvers import SOLVERS, predict, sample
from redif_env.diffusion.types import Prediction, PredictionType
from redif_env.envs.wrappers import GroupRelativeReward
from redif_env.mdp.actions import NoiseMap
from redif_env.mdp.observations import Sample
from redif_env.mdp.process import DenoisingMDP
from redif_env.mdp.sampling import trajectory
from redif_env.rewards.endpoint import EndpointAlignment
from redif_env.sb3 import (
    HealthCheck,
    LevelNormalisedAdvantages,
    ReDiFVecEnv,
    StudentPolicy,
    UnhealthyRunError,
    clip_range_of,
    make_vec_env,
    student_kwargs,
)
from redif_env.sb3.export import student_of
from redif_env.sb3.levels import steps_of_buffer
from redif_env.sb3.student_policy import AveragedGaussian
from redif_env.students.network.adapters import add_adapters, merged_weights
from redif_env.students.network.cloning import CloningPlan, clone, cloning_loss, rollout
from redif_env.students.network.refinement import RefinementPlan, refine, solver_samples
from redif_env.teachers.networks import build_network, narrowed
from redif_env.teachers.teacher import GaussianMixtureTeacher, Teacher, config_of, own_teacher
from tests.models import save_dit, save_unet_of_classes, unet

SMALL = {"reference_size": 16, "teacher_steps": 8, "num_steps": 3}
NOISE = {"action": "noise", "observation": "sample"}


@pytest.fixture
def environment(pipeline_folder):
    return make_vec_env(8, teacher=str(pipeline_folder), **SMALL, **NOISE, group_size=4)


def make_agent(env, kind=PPO, **options):
    settings = {"batch_size": 12, "n_epochs": 2, "clip_range": 0.1} if kind is PPO else {}
    policy = {name: options.pop(name) for name in list(options) if name not in ("learning_rate", "verbose", "n_epochs")}
    kwargs = {**student_kwargs(env.unwrapped.mdp), **policy}
    return kind(StudentPolicy, env, n_steps=3, policy_kwargs=kwargs, seed=0, **{**settings, **options})


def observed(env):
    env.seed(0)
    return obs_as_tensor(env.reset(), torch.device("cpu"))


def mixture(schedule, prediction_type=None, preconditioning=None):
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(2, 5, generator=generator, dtype=torch.float64) / 2
    options = {} if preconditioning is None else {"preconditioning": preconditioning}
    return GaussianMixtureTeacher(means, 0.3, schedule=schedule, prediction_type=prediction_type, **options)


TEACHERS = {
    "vp epsilon": lambda: mixture(VariancePreservingSchedule.from_diffusers()),
    "vp v": lambda: mixture(VariancePreservingSchedule.from_diffusers(), PredictionType.V_PREDICTION),
    "vp sample": lambda: mixture(VariancePreservingSchedule.from_diffusers(), PredictionType.SAMPLE),
    "flow": lambda: mixture(FlowSchedule()),
    "ve edm": lambda: mixture(VarianceExplodingSchedule(), PredictionType.EPSILON, EDMPreconditioning()),
}


def action_of(teacher, state, action_map):
    """The action that holds the prediction of ``teacher``, with the base solver's step size."""
    parameterization = action_parameterization(teacher.parameterization)
    predicted = predict(teacher, state)
    prediction = Prediction(predicted.x0_history[:, 0], predicted.eps_history[:, 0])
    output = parameterization.preconditioning.write(
        prediction, parameterization.schedule.level(state.half_logsnr), parameterization.prediction_type
    )
    return torch.cat([torch.zeros(len(output), 1), output.flatten(1) / action_map.max_output], dim=1)


@pytest.mark.parametrize("solver", ["ddim", "dpm++3m", "ipndm4"])
@pytest.mark.parametrize("kind", TEACHERS)
def test_teacher_predictions_as_actions_are_the_base_solver(kind, solver):
    """For every schedule, parameterization and solver order."""
    teacher = TEACHERS[kind]()
    mdp = DenoisingMDP(teacher, SOLVERS[solver], GRIDS["time^1.5"], 4, NoiseMap(), Sample())
    noise = torch.randn(6, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    state = mdp.initial(noise)
    for step in range(4):
        assert mdp.predict(state, torch.ones(6, dtype=torch.bool)) is state
        action = action_of(teacher, state, mdp.action_map)
        state = mdp.with_action_prediction(state, action)
        assert state.nfe.tolist() == [step + 1] * 6
        state = mdp.advance(state, mdp.decode(state, action))
    expected = sample(teacher, SOLVERS[solver], GRIDS["time^1.5"], noise, 4)
    torch.testing.assert_close(state.x, expected, rtol=1e-4, atol=1e-4)


def test_velocity_is_well_conditioned_where_epsilon_is_not():
    """An error in the action changes the clean estimate by at most its own size; an error in eps, by 157 times that."""
    teacher = TEACHERS["vp epsilon"]()
    mdp = DenoisingMDP(teacher, SOLVERS["ddim"], GRIDS["time"], 4, NoiseMap(), Sample())
    state = mdp.initial(torch.randn(1, 5, dtype=torch.float64))
    level = teacher.schedule.level(state.half_logsnr)
    assert float(level.sigma / level.alpha) == pytest.approx(157, abs=1)
    zero = torch.zeros(1, 6, dtype=torch.float64)
    perturbed = zero + torch.tensor([[0.0, 0.25, 0, 0, 0, 0]])
    x0, other = (mdp.action_map.prediction(action, state, mdp.base).x0 for action in (zero, perturbed))
    assert float((x0 - other).norm()) == pytest.approx(float(level.sigma) * 0.25 * 4)


def test_checkers_pass(pipeline_folder):
    """The checkers of Gymnasium and SB3 warn only of unbounded samples and image sizes."""
    env = gym.make("ReDiF-v0", teacher=str(pipeline_folder), **SMALL, **NOISE)
    assert env.action_space.shape == (1 + 3 * 8 * 8,)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(env.unwrapped)
        check_env_for_sb3(env.unwrapped)
    allowed = ("-infinity", "infinity", "is an image", "minimal resolution")
    assert [str(item.message) for item in caught if not any(part in str(item.message) for part in allowed)] == []


def test_single_and_batched_environments_agree(pipeline_folder):
    options = {"teacher": str(pipeline_folder), **SMALL, **NOISE}
    single, batched = ReDiFEnv(**options), ReDiFVectorEnv(2, autoreset_mode="SameStep", **options)
    observations, _ = batched.reset(seed=5)
    alone, _ = single.reset(seed=6)
    rng = np.random.default_rng(0)
    for step in range(3):
        for name, values in alone.items():
            np.testing.assert_allclose(values, observations[name][1], rtol=1e-6, atol=1e-6)
            assert values.dtype == np.float32
        assert observations["nfe_left"][:, 0].tolist() == [3 - step] * 2
        actions = rng.uniform(-0.3, 0.3, batched.action_space.shape).astype(np.float32)
        observations, rewards, done, _, infos = batched.step(actions)
        alone, reward, finished, _, info = single.step(actions[1])
        assert reward == pytest.approx(rewards[1], rel=1e-5)
        assert finished == done[1] == (step == 2)
    assert info["nfe"] == infos["final_info"]["nfe"][1] == 3
    np.testing.assert_allclose(infos["final_obs"][1]["sample"], alone["sample"], rtol=1e-6, atol=1e-6)


def test_teacher_network_is_not_evaluated(pipeline_folder):
    env = ReDiFVectorEnv(2, teacher=str(pipeline_folder), **SMALL, **NOISE)
    # All environments of the process share the network, so the hook must be removed.
    hook = env.mdp.teacher.network.register_forward_hook(lambda *_: pytest.fail("the teacher was called"))
    env.reset(seed=0)
    for _ in range(6):
        env.step(np.zeros(env.action_space.shape, np.float32))
    hook.remove()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"observation": "features"}, "observation='sample'"),
        ({"min_steps": 1}, "min_steps cannot be used with action='noise'"),
        ({"prices": (0.1, 0.2)}, "prices cannot be used with action='noise'"),
    ],
)
def test_unsupported_combinations_are_refused(options, message, pipeline_folder):
    with pytest.raises(ValueError, match=message):
        ReDiFVectorEnv(2, teacher=str(pipeline_folder), **{**SMALL, **NOISE, **options})


def test_log_probabilities_by_hand():
    mean, std = torch.tensor([[0.0, 1.0, -1.0]]), torch.tensor([[1.0, 0.5, 2.0]])
    action = torch.tensor([[0.5, 1.5, -3.0]])
    each = [-(z**2) / 2 - math.log(s) - math.log(2 * math.pi) / 2 for z, s in ((0.5, 1.0), (1.0, 0.5), (-1.0, 2.0))]
    averaged = AveragedGaussian(mean, std)
    assert averaged.log_prob(action).item() == pytest.approx(sum(each) / 3, rel=1e-6)
    entropies = [0.5 + math.log(s) + math.log(2 * math.pi) / 2 for s in (1.0, 0.5, 2.0)]
    assert averaged.entropy().item() == pytest.approx(sum(entropies) / 3, rel=1e-6)


def test_clip_range_has_the_trust_region_of_whole_actions():
    """The mean's ratio is the A-th root of the whole action's."""
    assert 1 + clip_range_of(0.2, 65) == pytest.approx(1.2 ** (1 / 65), rel=1e-12)


def test_one_forward_pass_gives_actions_and_values(environment):
    policy = make_agent(environment).policy
    calls = []
    policy.unet.register_forward_hook(lambda *_: calls.append(1))
    obs = observed(environment)
    torch.manual_seed(0)
    actions, values, log_prob = policy(obs)
    assert len(calls) == 1
    assert actions.shape == (8, 193)
    assert values.shape == (8, 1)
    again = policy.evaluate_actions(obs, actions)
    assert torch.equal(again[0], values)
    assert torch.equal(again[1], log_prob)
    output = policy.unet(obs["sample"], obs["timestep"][:, 0]).sample
    torch.testing.assert_close(policy.get_distribution(obs).mode()[:, 1:], output.flatten(1) / 4)


def test_value_loss_has_no_gradient_to_the_network(environment):
    policy = make_agent(environment).policy
    policy.predict_values(observed(environment)).sum().backward()
    assert all(parameter.grad is None for parameter in policy.unet.parameters())
    assert all(parameter.grad is not None for parameter in policy.value_net.parameters())


def test_exploration_is_set_per_step(environment):
    """The columns of ``log_std`` are step size and prediction."""
    policy = make_agent(environment, exploration=(0.2, 0.4)).policy
    policy.log_std[1] += math.log(3.0)
    obs = observed(environment)
    obs["nfe_left"][:2] = torch.tensor([[3.0], [2.0]])
    std = policy.get_distribution(obs).distribution.stddev
    torch.testing.assert_close(std[0, :2], torch.tensor([0.2, 0.05]))
    torch.testing.assert_close(std[1, :2], torch.tensor([0.6, 0.15]))
    assert not policy.log_std.requires_grad


@pytest.mark.parametrize("options", [{}, {"lora_rank": 2}, {"autocast": True}])
def test_first_ratio_is_one(options, pipeline_folder):
    """Also with dropout and bfloat16."""
    env = make_vec_env(8, teacher=str(pipeline_folder), **SMALL, **NOISE, group_size=4)
    config = {**config_of(env.unwrapped.mdp.teacher), "dropout": 0.3}
    agent = make_agent(env, network=config, **options)
    agent.learn(48, callback=HealthCheck(every=1, rows=4))
    assert agent.policy._output(observed(env)).dtype is torch.float32


class Recorded(BaseCallback):
    def __init__(self):
        super().__init__()
        self.seen = {}

    def _on_step(self):
        return True

    def _on_rollout_end(self):
        self.seen |= self.logger.name_to_value


def test_health_is_logged(environment):
    agent, recorded = make_agent(environment), Recorded()
    agent.learn(72, callback=[HealthCheck(every=1, rows=4), recorded])
    names = ["reward_std", "reward_std_in_group", "first_ratio_error"]
    names += [f"{kind}_{step}" for kind in ("exploration", "kl", "gradient") for step in range(3)]
    assert {f"health/{name}" for name in names} <= set(recorded.seen)
    assert recorded.seen["health/exploration_0"] == pytest.approx(0.1)
    for step in range(3):
        assert recorded.seen[f"health/kl_{step}"] > 0
        assert recorded.seen[f"health/gradient_{step}"] > 0


def test_first_ratio_other_than_one_stops_the_run(environment):
    agent = make_agent(environment)
    agent.policy.unet.register_forward_hook(lambda module, _, out: type(out)(out.sample + torch.randn(1)))
    with pytest.raises(UnhealthyRunError, match="ratio before the first update is off 1 by"):
        agent.learn(48, callback=HealthCheck())


def test_parameters_that_are_not_finite_stop_the_run(environment):
    agent = make_agent(environment, learning_rate=1e30)
    with pytest.raises(UnhealthyRunError, match=r"not finite after 24 steps.*lower the learning rate"):
        agent.learn(96, callback=HealthCheck())


def test_health_checks_are_for_student_policies():
    env = make_vec_env(4, teacher="gaussian-ring", reference_size=8, teacher_steps=4)
    with pytest.raises(ValueError, match="health checks are for a StudentPolicy"):
        PPO("MlpPolicy", env, n_steps=4, batch_size=8).learn(16, callback=HealthCheck())


def test_divergence_matches_torch():
    from redif_env.sb3.health import divergence

    old, new = Normal(torch.zeros(2, 3), 2.0), Normal(torch.ones(2, 3), 2.0)
    torch.testing.assert_close(divergence(old, new), torch.full((2,), 3 * 1 / (2 * 4)))
    torch.testing.assert_close(divergence(old, new), kl_divergence(old, new).sum(1))


def test_advantages_are_normalised_per_step(environment):
    agent = make_agent(environment)
    found = {}

    class Look(BaseCallback):
        def _on_step(self):
            return True

        def _on_rollout_end(self):
            buffer = self.model.rollout_buffer
            found["steps"], found["advantages"] = steps_of_buffer(buffer), buffer.advantages.copy()

    agent.learn(24, callback=[LevelNormalisedAdvantages(), Look()])
    assert np.unique(found["steps"]).tolist() == [0, 1, 2]
    for step in range(3):
        own = found["advantages"][found["steps"] == step]
        assert own.mean() == pytest.approx(0, abs=1e-5)
        assert own.std() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("options", [{}, {"lora_rank": 2}])
def test_exported_student_has_the_samples_of_the_policy(environment, options, tmp_path):
    """The agent in the environment, its student, and the saved and loaded student give the same samples."""
    agent = make_agent(environment, learning_rate=1e-2, **options)
    agent.learn(72)
    mdp = environment.unwrapped.mdp
    noise = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    def act(observation):
        return agent.policy.get_distribution(observation).mode().clamp(-1, 1).detach()

    *_, last = trajectory(mdp, act, noise)
    student = Student.from_agent(agent)
    assert student.mdp.teacher.own_network
    torch.testing.assert_close(student.trajectory(noise)[-1].x, last.x, rtol=1e-4, atol=1e-5)
    assert student.trajectory(noise)[-1].nfe.tolist() == [3] * 5
    student.save_pretrained(tmp_path / "student")
    read = Student.from_pretrained(tmp_path / "student")
    assert read.mdp.teacher.own_network
    assert torch.equal(read.trajectory(noise)[-1].x, student.trajectory(noise)[-1].x)
    assert torch.equal(read.pipeline()(latents=noise, output_type="latent").images, student(noise=noise))


@pytest.mark.parametrize("kind", [PPO, A2C])
def test_sb3_saves_and_loads_the_policy_without_custom_objects(kind, environment, tmp_path):
    agent = make_agent(environment, kind, lora_rank=1)
    agent.learn(48)
    agent.save(tmp_path / "agent")
    loaded = kind.load(tmp_path / "agent")
    obs = observed(environment)
    assert torch.equal(loaded.policy.get_distribution(obs).mode(), agent.policy.get_distribution(obs).mode())
    agent.policy.save(tmp_path / "policy")
    policy = StudentPolicy.load(tmp_path / "policy")
    assert torch.equal(policy.get_distribution(obs).mode(), agent.policy.get_distribution(obs).mode())


@pytest.mark.slow
def test_network_compiles_in_place(environment):
    """Rollouts and updates run, and the weights have the same names."""
    agent = make_agent(environment)
    names = list(agent.policy.state_dict())
    agent.policy.unet.compile(backend="eager")
    agent.learn(24, callback=HealthCheck(rows=4))
    assert list(agent.policy.state_dict()) == names


def test_copied_policy_reads_features_of_its_own_network(environment):
    policy = make_agent(environment).policy
    obs = observed(environment)
    policy.predict_values(obs)
    other = copy.deepcopy(policy)
    with torch.no_grad():
        for parameter in other.unet.parameters():
            parameter.zero_()
    before = policy.predict_values(obs)
    assert not torch.equal(other.predict_values(obs), before)
    assert torch.equal(policy.predict_values(obs), before)


@pytest.mark.parametrize(
    ("save", "conditions", "policy"),
    [
        (save_unet_of_classes, {"null_label": 3}, {}),
        (save_dit, {"conditions": [0, 1, 2, 3]}, {"features_from": "transformer_blocks.0"}),
    ],
)
def test_student_of_a_guided_teacher_needs_one_call_per_step(save, conditions, policy, tmp_path):
    """A UNet with labels, and a transformer of latents."""
    save(tmp_path / "teacher")
    env = make_vec_env(8, teacher=str(tmp_path / "teacher"), **SMALL, **NOISE, **conditions, guidance_scale=2.0)
    assert env.unwrapped.mdp.calls == 1
    assert env.unwrapped.mdp.teacher.calls == 2
    agent = make_agent(env, **policy)
    agent.learn(36)
    assert len(observed(env)["condition"].unique()) > 1
    student = Student.from_agent(agent)
    noise = torch.randn(2, *student.sample_shape)
    state = student.trajectory(noise, condition=torch.tensor([0, 1]))[-1]
    assert state.nfe.tolist() == [3] * 2
    student.save_pretrained(tmp_path / "student")
    read = Student.from_pretrained(tmp_path / "student")
    assert torch.equal(read.trajectory(noise, condition=torch.tensor([0, 1]))[-1].x, state.x)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network": {"_class_name": "AutoencoderKL"}}, "network has _class_name='AutoencoderKL'"),
        ({"features_from": "nowhere"}, "features_from='nowhere' is not a submodule of the network"),
        ({"lora_rank": -1}, "rank of adapters must be at least 1"),
    ],
)
def test_invalid_arguments_are_refused(change, message, environment):
    with pytest.raises(ValueError, match=message):
        make_agent(environment, **change)


def test_other_spaces_are_refused(pipeline_folder):
    options = {"teacher": str(pipeline_folder), **SMALL}
    env = make_vec_env(4, **options, **NOISE)
    kwargs = student_kwargs(env.unwrapped.mdp)
    compact = make_vec_env(4, **options)
    with pytest.raises(ValueError, match="observation='sample'"):
        PPO(StudentPolicy, compact, policy_kwargs=kwargs)
    with pytest.raises(ValueError, match="action='noise'"):
        PPO(StudentPolicy, make_vec_env(4, **options, observation="sample"), policy_kwargs=kwargs)
    with pytest.raises(ValueError, match="action='noise'"):
        student_kwargs(compact.unwrapped.mdp)
    with pytest.raises(ValueError, match="use_sde"):
        PPO(StudentPolicy, env, policy_kwargs=kwargs, use_sde=True)


def test_adapters_start_at_zero_and_merge_into_a_plain_network():
    torch.manual_seed(0)
    network, x = unet(channels=(8, 8)), torch.randn(2, 3, 8, 8)
    plain = network(x, 3).sample
    add_adapters(network, 2)
    torch.testing.assert_close(network(x, 3).sample, plain)
    trained = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    assert trained
    assert all(".lora_" in name for name in trained)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    merged = unet(channels=(8, 8))
    merged.load_state_dict(merged_weights(network))
    assert not torch.allclose(network(x, 3).sample, plain, atol=1e-3)
    torch.testing.assert_close(merged(x, 3).sample, network(x, 3).sample, rtol=1e-4, atol=1e-5)


def test_narrower_networks_have_whole_groups():
    config = {**unet(channels=(32, 64)).config, "_class_name": "UNet2DModel", "norm_num_groups": 8}
    assert narrowed(config, 0.5)["block_out_channels"] == [16, 32]
    assert narrowed(config, 0.1)["block_out_channels"] == [8, 8]
    assert narrowed({**config, "attention_head_dim": 16}, 0.1)["block_out_channels"] == [8, 16]
    whole, half = build_network(config), build_network(narrowed(config, 0.5))
    sizes = [sum(parameter.numel() for parameter in network.parameters()) for network in (whole, half)]
    assert sizes[1] < 0.4 * sizes[0]
    with pytest.raises(ValueError, match="width=0"):
        narrowed(config, 0)
    with pytest.raises(ValueError, match=r"width=0\.5 cannot be given a DiT"):
        narrowed({"_class_name": "DiTTransformer2DModel"}, 0.5)


class Line(nn.Module):
    """The form of a Gaussian's exact velocity: linear in the sample, with weights for each timestep."""

    def __init__(self, steps, size):
        super().__init__()
        self.steps = torch.tensor(steps)
        self.scale, self.offset = (
            nn.Parameter(torch.zeros(len(steps), size)),
            nn.Parameter(torch.zeros(len(steps), size)),
        )

    def forward(self, x, timestep):
        row = (timestep[:, None] - self.steps).abs().argmin(dim=1)
        return self.scale[row] * x + self.offset[row]


def test_cloning_learns_the_exact_velocity():
    """The clone learns the linear velocity of a Gaussian, and its samples are the base solver's."""
    means, stds = torch.tensor([[0.3, -0.2, 0.1]]), torch.tensor([[0.5, 0.2, 1.0]])
    teacher = GaussianMixtureTeacher(means, stds)
    mdp = DenoisingMDP(teacher, SOLVERS["dpm++2m"], GRIDS["time"], 3, NoiseMap(), Sample())
    examples = rollout(mdp, None, 4, torch.Generator().manual_seed(0))
    network = Line(sorted(set(examples.timestep.tolist())), 3)
    losses = []
    clone(mdp, network, CloningPlan(600, rollouts=128, learning_rate=0.05, decay=0.9), losses.append)
    assert losses[-1] < 1e-4 < losses[0]
    noise = torch.randn(64, 3, generator=torch.Generator().manual_seed(1))
    student, base = (
        own_teacher(teacher, network, action_parameterization(teacher.parameterization)),
        (SOLVERS["dpm++2m"], GRIDS["time"]),
    )
    torch.testing.assert_close(sample(student, *base, noise, 3), sample(teacher, *base, noise, 3), rtol=0, atol=0.03)


@cache
def cloned_gaussian():
    """A decision process of a Gaussian, and a network with its velocity."""
    teacher = GaussianMixtureTeacher(torch.tensor([[0.3, -0.2, 0.1]]), torch.tensor([[0.2, 0.1, 0.3]]))
    mdp = DenoisingMDP(teacher, SOLVERS["dpm++2m"], GRIDS["time"], 3, NoiseMap(), Sample())
    examples = rollout(mdp, None, 4, torch.Generator().manual_seed(0))
    network = Line(sorted(set(examples.timestep.tolist())), 3)
    clone(mdp, network, CloningPlan(600, rollouts=128, learning_rate=0.05, decay=0.9), lambda loss: None)
    return mdp, network


def gaussian_student(scale=1.0, offset=0.0):
    """The same, the network up to a scale and an offset."""
    mdp, network = cloned_gaussian()
    network = copy.deepcopy(network)
    with torch.no_grad():
        network.scale.mul_(scale)
        network.offset.add_(offset)
    return mdp, network


def finer(mdp):
    """The same decision process with fifteen steps."""
    return replace(mdp, num_steps=15)


def test_refinement_matches_the_moments_of_the_endpoints():
    """With the energy distance alone."""
    mdp, network = gaussian_student(scale=1.1, offset=0.2)
    noise, condition = torch.randn(4096, 3, generator=torch.Generator().manual_seed(1)), torch.zeros(4096).long()
    endpoints = solver_samples(finer(mdp), mdp.teacher, noise, condition)

    @torch.no_grad()
    def errors():
        student = own_teacher(
            mdp.teacher, copy.deepcopy(network), action_parameterization(mdp.teacher.parameterization)
        )
        samples = solver_samples(mdp, student, noise, condition)
        return (
            float((samples.mean(dim=0) - endpoints.mean(dim=0)).norm()),
            float((samples.std(dim=0) - endpoints.std(dim=0)).norm()),
        )

    (mean, std), losses = errors(), []
    plan = RefinementPlan(60, learning_rate=0.03, decay=0.9, paired=0.0, cloned=0.0)
    refine(mdp, network, plan, finer(mdp), losses.append)
    assert losses[-1] < losses[0] / 20
    assert mean > 0.2
    assert std > 0.2
    mean, std = errors()
    assert mean < 0.03  # 0.021, 0.015 and 0.012 from the plan's seeds 0, 1 and 2
    assert std < 0.02  # 0.005


def test_refinement_with_the_cloning_loss_alone_does_not_change_a_clone():
    """The other losses have no weight."""
    mdp, network = gaussian_student()
    before = copy.deepcopy(network.state_dict())
    refine(mdp, network, RefinementPlan(20, paired=0.0, energy=0.0), finer(mdp), lambda loss: None)
    for name, weight in network.state_dict().items():
        torch.testing.assert_close(weight, before[name], rtol=0, atol=5e-3)


def test_refinement_that_diverges_is_an_error():
    mdp, network = gaussian_student()
    plan = RefinementPlan(50, learning_rate=1e30)
    with pytest.raises(FloatingPointError, match=r"learning_rate=1e\+30"):
        refine(mdp, network, plan, finer(mdp), lambda loss: None)


def test_half_of_the_rollouts_use_the_student():
    """Half of the trajectories use the student's predictions; all target outputs are the teacher's."""
    teacher = TEACHERS["vp epsilon"]()
    mdp = DenoisingMDP(teacher, SOLVERS["ddim"], GRIDS["time"], 2, NoiseMap(), Sample())
    wrong = own_teacher(teacher, Line([0.0], 5).double(), action_parameterization(teacher.parameterization))
    alone, mixed = (rollout(mdp, student, 64, torch.Generator().manual_seed(0)) for student in (None, wrong))
    assert torch.equal(alone.inputs[:64], mixed.inputs[:64])
    changed = (alone.inputs[64:] != mixed.inputs[64:]).any(dim=1)
    assert 0.25 < changed.double().mean() < 0.75
    level = teacher.schedule.level(teacher.schedule.half_logsnr(mixed.timestep))
    prediction = teacher.predict(mixed.inputs, teacher.schedule.half_logsnr(mixed.timestep), mixed.timestep)
    parameterization = action_parameterization(teacher.parameterization)
    torch.testing.assert_close(
        mixed.output,
        parameterization.preconditioning.write(prediction, level, parameterization.prediction_type),
        rtol=1e-6,
        atol=1e-6,
    )


def test_cloning_loss_by_hand():
    """Errors of 1, 2 and 0 at the three steps."""
    mdp, network = gaussian_student()
    examples = rollout(mdp, None, 4, torch.Generator().manual_seed(0))
    student = own_teacher(mdp.teacher, network, action_parameterization(mdp.teacher.parameterization))
    with torch.no_grad():
        output = student.call(
            network, examples.inputs, examples.timestep, student.conditions.select(examples.condition)
        )
        error = torch.tensor([1.0, 2.0, 0.0]).repeat_interleave(4)[:, None]
        loss = cloning_loss(student, replace(examples, output=output + error))
    assert loss.item() == pytest.approx((1 + 4) / 3)


def test_action_parameterization():
    """Noise prediction on variance-preserving schedules becomes velocity; all others are unchanged."""
    forms = {kind: action_parameterization(make().parameterization).prediction_type for kind, make in TEACHERS.items()}
    assert forms == {
        "vp epsilon": PredictionType.V_PREDICTION,
        "vp v": PredictionType.V_PREDICTION,
        "vp sample": PredictionType.SAMPLE,
        "flow": PredictionType.FLOW_PREDICTION,
        "ve edm": PredictionType.EPSILON,
    }


def test_teacher_without_a_config_is_refused():
    teacher = Teacher(nn.Linear(2, 2), VariancePreservingSchedule.from_diffusers(), (2,))
    with pytest.raises(ValueError, match="no diffusers model"):
        config_of(teacher)


def test_student_of_supports_mlp_policies():
    env = make_vec_env(4, teacher="gaussian-ring", reference_size=8, teacher_steps=4)
    agent = PPO("MlpPolicy", env, n_steps=4, batch_size=8)
    assert not student_of(agent.policy, env.unwrapped.mdp).mdp.teacher.own_network


def test_network_learns_a_known_optimum():
    """With one step and data of nearly one image, the best output is minus that image for any noise."""
    image = torch.tensor([[0.5, -0.5, 0.25, 0.0], [-0.25, 0.5, 0.0, -0.5], [0.5, 0.5, -0.5, 0.25], [0.0] * 4])
    teacher = GaussianMixtureTeacher(image[None, None], 0.02)
    options = {"num_steps": 1, "reference_size": 64, "teacher_steps": 10, "group_size": 8, **NOISE}
    options["autoreset_mode"] = "SameStep"
    env = ReDiFVecEnv(
        GroupRelativeReward(ReDiFVectorEnv(64, teacher=teacher, reward=EndpointAlignment(1.0), **options))
    )
    config = {**unet(samples=1).config, "_class_name": "UNet2DModel", "sample_size": 4, "add_attention": False}
    kwargs = {**student_kwargs(env.unwrapped.mdp, config), "exploration": (0.15, 0.01)}
    agent = PPO(
        StudentPolicy, env, n_steps=2, batch_size=64, n_epochs=4, learning_rate=4e-3, gamma=0.0, seed=0,
        clip_range=clip_range_of(0.2, 17), policy_kwargs=kwargs,
    )  # fmt: skip
    noise = torch.randn(64, 1, 4, 4, generator=torch.Generator().manual_seed(1))

    def error():
        return (Student.from_agent(agent).trajectory(noise)[-1].x - image).square().mean().sqrt().item()

    before = error()
    agent.learn(128 * 20)  # to 0.098, 0.103 and 0.083 from the seeds 0, 1 and 2
    assert before > 0.3
    assert error() < 0.13
