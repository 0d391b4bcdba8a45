"""The student of any policy: its own decisions, through whatever stands between it and its environment."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import SyncVectorEnv
from gymnasium.wrappers import ClipAction, FlattenObservation, NormalizeObservation, RescaleAction, TransformAction
from gymnasium.wrappers import vector as batched
from torch import nn

import redif_env  # noqa: F401
from redif_env import Student
from redif_env.envs.between import between, cores_of
from redif_env.mdp.policies import Policy

# Gymnasium warns of the bounds of whatever its own wrappers make.
pytestmark = pytest.mark.filterwarnings("ignore:.*WARN:UserWarning")
TINY = {"teacher": "gaussian-ring", "reference_size": 32, "teacher_steps": 20}


def single(wrapper=lambda env: env):
    return wrapper(gym.make("ReDiF-v0", **TINY))


def vector(wrapper=lambda env: env, **options):
    return wrapper(gym.make_vec("ReDiF-v0", num_envs=8, **TINY, **options))


def seen(env):
    """Statistics of observations, where a wrapper gathers them."""
    env.reset(seed=0)
    for _ in range(12):
        if env.step(env.action_space.sample() * 0.1)[2] is True:
            env.reset()
    return env


def network(env, activation=nn.Tanh, outputs=1, seed=0):
    """A network whose decisions are not clipped, mostly."""
    torch.manual_seed(seed)
    core = cores_of(env)[0]
    layers = nn.Sequential(
        nn.Linear(core.mdp.observation_size, 16), activation(), nn.Linear(16, outputs * core.mdp.action_size)
    )
    return layers.requires_grad_(False)


def made_by(policy, env):
    """What the policy itself makes in its environment: initial noises and samples."""
    core = cores_of(env)[0]
    observation, _ = env.reset(seed=5)
    noise, alone = core.state.x.clone(), not hasattr(env, "num_envs")
    for _ in range(4):
        given = torch.as_tensor(observation, dtype=torch.float32)
        action = policy(given[None] if alone else given).numpy()
        observation, *_ = env.step(action[0] if alone else action)
    return noise, core.last_transition.next_state.x


CARRIED = {
    "vector": vector,
    "single": single,
    "CleanRL's": lambda: single(lambda env: ClipAction(FlattenObservation(env))),
    "NormalizeObservation": lambda: seen(single(NormalizeObservation)),
    "RescaleAction": lambda: single(lambda env: RescaleAction(env, np.float32(-2), np.float32(1))),
    "vector RescaleAction": lambda: vector(lambda env: batched.RescaleAction(env, np.float32(-2), np.float32(1))),
    "ClipAction around RescaleAction": lambda: single(
        lambda env: ClipAction(RescaleAction(env, np.float32(-2), np.float32(1)))
    ),
    "vector NormalizeObservation": lambda: seen(vector(batched.NormalizeObservation, autoreset_mode="NextStep")),
    "statistics": lambda: vector(batched.RecordEpisodeStatistics),
    "SyncVectorEnv": lambda: batched.NormalizeObservation(SyncVectorEnv([single] * 2)),
}


@pytest.mark.parametrize("kind", CARRIED)
def test_a_student_makes_what_its_policy_makes(kind):
    env = CARRIED[kind]()
    policy = network(env)
    for layer in (getattr(env, "env", env), env):
        if hasattr(layer, "update_running_mean"):
            layer.update_running_mean = False
    student = Student.from_policy(policy, env)
    noise, expected = made_by(policy, env)
    samples = student.trajectory(noise)[-1].x
    torch.testing.assert_close(samples, expected, rtol=0, atol=2e-3)
    zero = Policy.from_table(torch.zeros(4, student.mdp.action_size), student.mdp.observation_size)
    assert (Student(student.mdp, zero).trajectory(noise)[-1].x - expected).abs().max() > 0.01


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU, nn.SiLU, nn.GELU, nn.ELU])
def test_activations_are_read_from_the_module(activation):
    env = vector()
    assert Student.from_policy(network(env, activation), env).policy.config.activation == activation.__name__.lower()


def test_means_and_deviations_in_one_output():
    env = vector()
    policy = network(env, outputs=2)
    assert Student.from_policy(policy, env).policy.config.sizes[-1] == env.single_action_space.shape[0]
    assert Student.from_policy(nn.Sequential(policy, nn.Softplus()), env, decide=lambda o: policy(o)[:, :5])


def test_a_final_tanh_squashes():
    env = vector()
    policy = nn.Sequential(network(env), nn.Tanh())
    assert Student.from_policy(policy, env).policy.config.squash
    plain = network(env)
    assert Student.from_policy(plain, env, squash=True, decide=lambda o: plain(o).tanh()).policy.config.squash
    with pytest.raises(ValueError, match="does not decide as the agent does"):
        Student.from_policy(plain, env, squash=True)


def test_layers_need_their_activation_and_the_decisions():
    env = vector()
    policy = network(env, nn.ReLU)
    layers = [policy[0], policy[2]]
    student = Student.from_policy(layers, env, activation="relu", decide=policy)
    assert student.policy.config.activation == "relu"
    with pytest.raises(ValueError, match="give decide="):
        Student.from_policy(layers, env, activation="relu")
    with pytest.raises(ValueError, match="activation=None is unknown"):
        Student.from_policy(layers, env, decide=policy)
    with pytest.raises(ValueError, match="does not decide as the agent does"):
        Student.from_policy(layers, env, activation="tanh", decide=policy)


def test_a_callable_exports_itself():
    env = vector()
    inner = network(env)

    class Own:
        def __init__(self, factor):
            self.factor = factor

        def __call__(self, observations):
            return (inner(observations) * self.factor).numpy()

        def export(self):
            return inner

    Student.from_policy(Own(1.0), env)
    with pytest.raises(ValueError, match=r"at step 1 they differ by 0\."):
        Student.from_policy(Own(0.5), env)


def test_maps_handed_over_are_part_of_the_student():
    env = vector()
    policy = network(env)
    size = policy[0].in_features
    mean, scale = torch.linspace(-1, 1, size), torch.linspace(0.5, 2, size)
    student = Student.from_policy(policy, env, observation=(mean, scale, 1.0), action=(0.5, 0.1))
    own = lambda o: policy(((o - mean) * scale).clamp(-1, 1)) * 0.5 + 0.1  # noqa: E731
    noise, expected = made_by(own, env)
    torch.testing.assert_close(student.trajectory(noise)[-1].x, expected, rtol=0, atol=2e-3)
    with pytest.raises(ValueError, match="does not decide"):
        Student.from_policy(policy, env, observation=(mean, scale), decide=own)


class Doubled(nn.Sequential):
    """Looks like its layers, and is something else."""

    def forward(self, x):
        return 2 * super().forward(x)


REFUSED = {
    "does not decide as the agent does": lambda env: Doubled(*network(env)),
    "LayerNorm": lambda env: nn.Sequential(nn.LayerNorm(network(env)[0].in_features), *network(env)),
    "no linear layers": lambda env: nn.Tanh(),
    "maps 3 numbers": lambda env: nn.Linear(3, 5),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_a_student_cannot_carry_is_refused(message):
    env = vector()
    with pytest.raises(ValueError, match=message):
        Student.from_policy(REFUSED[message](env), env)


def test_wrappers_and_environments_of_other_kinds_are_refused():
    env = single(lambda env: TransformAction(env, np.tanh, env.action_space))
    with pytest.raises(ValueError, match="env has the wrapper TransformAction"):
        Student.from_policy(network(env), env)
    with pytest.raises(ValueError, match="env must be a ReDiF environment"):
        Student.from_policy(nn.Linear(3, 1), gym.make("Pendulum-v1"))


def test_the_environment_goes_on_as_if_nothing_had_been_checked():
    env = seen(vector(batched.NormalizeObservation, autoreset_mode="NextStep"))
    state, count = env.unwrapped.state_dict(), env.obs_rms.count
    Student.from_policy(network(env), env)
    assert env.obs_rms.count == count
    assert between(env).names == ("NormalizeObservation",)
    assert all(torch.equal(value, env.unwrapped.state_dict()["state"][name]) for name, value in state["state"].items())


@pytest.mark.parametrize(
    "wrong",
    [
        {"observation": (0.0,)},
        {"observation": (0.0, [1.0, 2.0])},
        {"observation": (0.0, float("nan"))},
        {"observation": (0.0, 1.0, "much")},
        {"observation": (0.0, 1.0, 5.0, 5.0)},
        {"observation": 3},
        {"action": (1.0, 0.0, 0.0)},
        {"action": ("much", 0.0)},
        {"action": "much"},
    ],
)
def test_wrong_maps_are_refused_by_name(wrong):
    env = single()
    (name,) = wrong
    with pytest.raises((TypeError, ValueError), match=rf"{name} must be"):
        Student.from_policy(network(env), env, **wrong)
