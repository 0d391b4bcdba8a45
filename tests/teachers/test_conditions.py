"""What a teacher is asked for: the table, its draws, guidance, and what reaches agent and student."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from redif_env import ReDiFEnv, ReDiFVectorEnv, Student, Teacher
from redif_env.diffusion.schedules import FlowSchedule
from redif_env.diffusion.types import PredictionType
from redif_env.judging.evaluation import Evaluator
from redif_env.mdp.policies import Policy, PolicyConfig
from redif_env.teachers.conditions import UNCONDITIONAL, Conditions, guide
from redif_env.teachers.networks import conditions_of
from redif_env.teachers.references import reference_set


class Towards(torch.nn.Module):
    """A user's own network: flow towards the point whose both coordinates are the label (halved); 3 means nowhere."""

    def forward(self, x, timestep, label):
        self.calls = getattr(self, "calls", 0) + len(x)
        target = torch.where(label == 3, 0, label).to(x.dtype)[:, None] / 2
        sigma = (timestep / 1000)[:, None].clamp(min=1e-3)
        return (x - target) / sigma  # x = (1 - sigma) x0 + sigma eps with x0 the target, so eps - x0 = (x - x0) / sigma


def towards(guidance_scale=None, labels=(0, 1, 2)):
    conditions = Conditions.of_labels(labels, null_label=3)
    kind = PredictionType.FLOW_PREDICTION
    return Teacher(Towards(), FlowSchedule(), (2,), kind, "mine", conditions=conditions, guidance_scale=guidance_scale)


def test_rows_are_found_by_value():
    conditions = Conditions.of_labels([7, 3])
    assert conditions.rows_of(3, 2).tolist() == [1, 1]
    assert conditions.rows_of([3, 7, 3], 3).tolist() == [1, 0, 1]
    assert conditions.select(torch.tensor([1, 0]))["class_labels"].tolist() == [3, 7]
    with pytest.raises(ValueError, match=r"condition=5 is not among the 2 that are known: '7', '3'"):
        conditions.rows_of(5, 1)
    with pytest.raises(ValueError, match="condition must be one or 3, got 2"):
        conditions.rows_of([7, 3], 3)


def test_weights_decide_how_often_each_is_drawn():
    """Weights 1, 0, 3: a quarter, none, three quarters of 10,000 (four standard deviations: 0.018)."""
    conditions = Conditions.of_labels({0: 1.0, 1: 0.0, 2: 3.0})
    drawn = conditions.draw(10_000, torch.Generator().manual_seed(0))
    share = torch.bincount(drawn, minlength=3) / 10_000
    assert share.tolist() == pytest.approx([0.25, 0.0, 0.75], abs=0.018)
    even = Conditions.of_labels([0, 1]).draw(10_000, torch.Generator().manual_seed(0)).double().mean()
    assert even.item() == pytest.approx(0.5, abs=0.02)


def test_one_condition_takes_nothing_from_the_generator():
    generator = torch.Generator().manual_seed(0)
    assert UNCONDITIONAL.draw(5, generator).tolist() == [0] * 5
    assert torch.equal(torch.rand(3, generator=generator), torch.rand(3, generator=torch.Generator().manual_seed(0)))


def test_a_string_is_no_list():
    """Its letters would be five prompts."""
    with pytest.raises(ValueError, match=r"conditions='a cat' is one string: give a list, as in .*\['a cat'\]"):
        Conditions.of_labels("a cat")
    for strange in (3, None, [1.5], [True], [None], [[1]]):
        with pytest.raises(ValueError, match="conditions"):
            Conditions.of_labels(strange)


def test_labels_of_numpy_are_labels():
    labels = Conditions.of_labels(np.arange(3))
    assert labels.values == (0, 1, 2)
    assert [type(value) for value in labels.values] == [int] * 3
    assert labels.rows_of(np.int64(2), 2).tolist() == [2, 2]
    assert labels.rows_of(np.array([1, 0]), 2).tolist() == [1, 0]
    assert labels.rows_of(torch.tensor([1, 0]), 2).tolist() == [1, 0]
    assert labels.rows_of(torch.tensor(2), 2).tolist() == [2, 2]
    for strange in (True, [True, False], 1.0, np.array([0.0, 1.0]), torch.ones(2), np.True_):
        with pytest.raises(ValueError, match="condition must be a label, a prompt, or a list of such"):
            labels.rows_of(strange, 2)


def test_a_prompt_of_digits_is_a_prompt():
    """And a label as a word is a label: what a word means, the network says."""
    prompts = Conditions(("1984", "a cat"), {"text": torch.zeros(2, 1)})
    assert prompts.rows_of("1984", 1).tolist() == [0]
    with pytest.raises(ValueError, match="condition=1984 is not among"):
        prompts.rows_of(1984, 1)
    labelled = {"_class_name": "UNet2DModel", "num_class_embeds": 4}
    assert conditions_of(labelled, "labelled", ["3", "0"], None).values == (3, 0)
    assert conditions_of({"_class_name": "UNet2DConditionModel"}, "text", ["1984"], None) is None
    with pytest.raises(ValueError, match="takes texts"):
        conditions_of({"_class_name": "UNet2DConditionModel"}, "text", [1984], None)


def test_a_model_without_conditions_says_so():
    with pytest.raises(ValueError, match="condition=3 was given, but this model takes none"):
        Conditions().rows_of(3, 2)


@pytest.mark.parametrize("weight", [float("inf"), float("nan"), -1.0, "often"])
def test_weights_are_finite_numbers(weight):
    with pytest.raises(ValueError, match="weights of conditions must be"):
        Conditions.of_labels({0: 1.0, 1: weight})


def test_bad_conditions_are_refused():
    with pytest.raises(ValueError, match="conditions are empty"):
        Conditions(())
    with pytest.raises(ValueError, match="2 values, but 3 rows of 'label'"):
        Conditions((0, 1), {"label": torch.zeros(3)})
    with pytest.raises(ValueError, match="weights of conditions must be 2 finite numbers"):
        Conditions.of_labels({0: 1.0, 1: -1.0})
    with pytest.raises(ValueError, match=r"guidance_scale=2.0 needs a prediction without condition"):
        Teacher(Towards(), FlowSchedule(), (2,), conditions=Conditions.of_labels([0]), guidance_scale=2.0)
    with pytest.raises(ValueError, match="guidance_scale must be above 0 and finite, got inf"):
        towards(guidance_scale=float("inf"))
    with pytest.raises(ValueError, match="guidance_scale must be above 0"):
        towards(-1.0)
    with pytest.raises(ValueError, match="shows the condition, but teacher 'gaussian-ring' has 1"):
        ReDiFEnv(teacher="gaussian-ring", observation="features+condition", reference_size=4)
    with pytest.raises(ValueError, match="learn_guidance needs a guided teacher"):
        ReDiFEnv(teacher="gaussian-ring", learn_guidance=True, reference_size=4)
    with pytest.raises(ValueError, match="belong to a teacher that is named"):
        ReDiFEnv(teacher=towards(), conditions=[1], reference_size=4)


def test_guidance_by_hand():
    """Without the condition 1, with it 3: scale 0 is without, 1 is with, 2.5 goes on to 6."""
    free, asked, scale = torch.full((3, 1), 1.0), torch.full((3, 1), 3.0), torch.tensor([0.0, 1.0, 2.5])
    assert guide(free, asked, scale)[:, 0].tolist() == [1.0, 3.0, 6.0]


def test_each_sample_has_its_own_condition():
    """The endpoints of this network are exactly the points of the labels, for any noise."""
    teacher = towards()
    reference = reference_set(teacher, 64, num_steps=5)
    assert set(reference.condition.tolist()) == {0, 1, 2}
    expected = (reference.condition / 2)[:, None].expand(64, 2)
    torch.testing.assert_close(reference.endpoints, expected, rtol=0, atol=1e-5)


def test_guided_predictions_cost_two_calls_and_go_beyond():
    """Null leads to 0, label 1 to 0.5: with scale 2 the endpoint is 1. Every prediction is two calls."""
    teacher = towards(2.0, [1])
    noise = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(teacher.endpoint(noise, 4), torch.ones(8, 2), rtol=0, atol=1e-4)
    assert teacher.network.calls == 8 * 4 * 2
    assert (teacher.calls, towards(1.0).calls, towards().calls) == (2, 1, 1)
    # A scale of its own for each sample: 0.5 of label 1 is 0.25.
    timestep = torch.full((8,), 500.0, dtype=torch.float64)
    half_logsnr = teacher.schedule.half_logsnr(timestep)
    x0 = teacher.predict(noise, half_logsnr, timestep, None, torch.full((8,), 0.5, dtype=torch.float64)).x0
    torch.testing.assert_close(x0, torch.full((8, 2), 0.25), rtol=0, atol=1e-5)


def test_guided_and_plain_teachers_do_not_share_a_cache():
    prints = {towards().fingerprint, towards(2.0).fingerprint, towards(3.0).fingerprint, towards(None, [1]).fingerprint}
    assert len(prints) == 4
    # Nor do teachers that differ in the null condition or in the unit of the timestep.
    for null_label in (3, 4):
        conditions = Conditions.of_labels((0, 1, 2), null_label)
        for unit in (1000, 500):
            schedule = FlowSchedule(1.0, unit)
            kind = PredictionType.FLOW_PREDICTION
            prints.add(Teacher(Towards(), schedule, (2,), kind, conditions=conditions, guidance_scale=2.0).fingerprint)
    assert len(prints) == 4 + 3  # one of the four was there before


@pytest.mark.parametrize("options", [{}, {"learn_guidance": True, "min_steps": 1, "prices": (0.001, 0.1)}])
def test_conditional_environments_are_clean_and_equal(options):
    """check_env, and the batched environment against single ones, with conditions, guidance and all else decided."""
    teacher = towards(2.0, {0: 1.0, 1: 2.0, 2: 1.0})
    settings = {
        "teacher": teacher,
        "num_steps": 3,
        "observation": "features+condition",
        "reference_size": 16,
        "teacher_steps": 4,
        **options,
    }
    single = ReDiFEnv(**settings)
    check_env(single, skip_render_check=True)
    batch = ReDiFVectorEnv(3, **settings, autoreset_mode="Disabled")
    actions = np.random.default_rng(0).uniform(-1, 0, (2, 3, *single.action_space.shape)).astype(np.float32)
    together, infos = batch.reset(seed=5)
    seen = batch.step(actions[0])
    for index in range(3):
        alone, info = single.reset(seed=5 + index)
        assert np.array_equal(alone, together[index])
        assert info["condition"] == infos["condition"][index]
        one_hot = alone[-3 - ("prices" in options) :][:3]
        assert one_hot[info["condition"]] == 1
        assert one_hot.sum() == 1
        observation, reward, *_ = single.step(actions[0, index])
        np.testing.assert_allclose(observation, seen[0][index], atol=1e-5)
        assert reward == pytest.approx(seen[1][index], abs=1e-6)


def test_the_action_moves_the_guidance_scale():
    """Zero keeps the teacher's scale; +-1 multiplies its excess over 1 by 4 and 1/4, from the second call on."""
    env = ReDiFVectorEnv(3, teacher=towards(2.0), num_steps=3, learn_guidance=True, reference_size=8, teacher_steps=4)
    env.reset(seed=0)
    actions = np.zeros(env.action_space.shape, np.float32)
    actions[:, -1] = (0, 1, -1)
    env.step(actions)
    transition = env.last_transition
    assert transition.state.guidance.tolist() == [2.0, 2.0, 2.0]
    assert transition.next_state.guidance.tolist() == [2.0, 5.0, 1.25]


def test_step_cost_charges_both_calls():
    for scale, calls in ((None, 1), (2.0, 2)):
        env = ReDiFVectorEnv(
            1, teacher=towards(scale), num_steps=2, reward={"step_cost": 0.5}, reference_size=4, teacher_steps=4
        )
        env.reset(seed=0)
        assert env.step(np.zeros(env.action_space.shape, np.float32))[1].tolist() == [-0.5 * calls]


def test_student_samples_follow_the_condition():
    teacher = towards()
    env = gym.make("ReDiF-v0", teacher=teacher, num_steps=2, reference_size=4, teacher_steps=4)
    mdp = env.unwrapped.batch.mdp
    student = Student(mdp, Policy(PolicyConfig((mdp.observation_size, mdp.action_size))))
    for parameter in student.policy.parameters():
        parameter.data.zero_()  # the base solver
    asked = student(3, generator=torch.Generator().manual_seed(0), condition=[2, 0, 1])
    torch.testing.assert_close(asked, torch.tensor([[1.0, 1.0], [0.0, 0.0], [0.5, 0.5]]), rtol=0, atol=1e-4)
    drawn = student(64, generator=torch.Generator().manual_seed(0))
    assert set((2 * drawn[:, 0]).round().tolist()) == {0.0, 1.0, 2.0}
    with pytest.raises(ValueError, match="condition=7 is not among the 3"):
        student(1, condition=7)


def test_evaluation_uses_the_same_conditions_for_all_samplers():
    """All solvers reach the endpoints of this network if their conditions are the teacher's."""
    rows = Evaluator(towards(2.0, [0, 1]), size=32, teacher_steps=8).baselines(8)
    assert {row.nfe for row in rows} == {8}
    assert max(row.mse_teacher for row in rows) < 1e-3
