"""Suspended pipeline calls: abandoned, interrupted, interleaved, broken, and errors of bad input."""

import dataclasses
import gc
import signal
import threading
import time
import traceback

import diffusers
import gymnasium as gym
import numpy as np
import pytest
import torch

from redif_env import Teacher
from redif_env.diffusion.grids import TimeGrid
from redif_env.diffusion.solvers import DDIM, initial_state, predict, trajectory
from redif_env.mdp.settings import _shared_teacher
from redif_env.teachers.driven.suspension import SuspendedCall
from redif_env.teachers.driven.wave import Wave
from tests.teachers.zoo import ZOO, Entry, image, plain_unet

pytestmark = pytest.mark.usefixtures("quiet")


def driven_threads():
    return [thread for thread in threading.enumerate() if thread.name == "driven pipeline"]


@pytest.fixture(autouse=True)
def alone():
    """Without the suspended calls of teachers that other tests have had by name."""
    _shared_teacher.cache_clear()
    gc.collect()


@pytest.fixture
def entry():
    torch.manual_seed(0)
    return Entry(diffusers.DDPMPipeline(plain_unet().eval(), diffusers.DDPMScheduler()), [{}], {})


@pytest.fixture
def teacher(entry):
    made = Teacher.from_pipeline(entry.pipe)
    yield made
    made.close()


def started(teacher, num_steps=3, seed=0, count=2):
    noise = torch.randn(count, *teacher.sample_shape, generator=torch.Generator().manual_seed(seed))
    return initial_state(noise, teacher.schedule, TimeGrid(), num_steps, 1)


def test_abandoned_waves_leave_no_thread_and_no_memory(teacher):
    for seed in range(40):
        predict(teacher, started(teacher, seed=seed))
    gc.collect()
    assert len(driven_threads()) <= 4
    assert sum(type(thing) is Wave for thing in gc.get_objects()) <= 4
    teacher.close()
    gc.collect()
    assert not driven_threads()
    assert not any(type(thing) is Wave for thing in gc.get_objects())


def test_a_forgotten_teacher_ends_its_calls(entry):
    teacher = Teacher.from_pipeline(entry.pipe)
    predict(teacher, started(teacher))
    assert driven_threads()
    del teacher
    gc.collect()
    assert not driven_threads()


def test_an_error_has_its_own_traceback_and_the_next_episode_goes_on(teacher, tmp_path, monkeypatch):
    monkeypatch.setenv("REDIF_CACHE", str(tmp_path))
    envs = gym.make_vec("ReDiF-v0", num_envs=2, teacher=teacher, num_steps=3, reference_size=4, teacher_steps=4)
    zero = np.zeros(envs.action_space.shape, np.float32)
    envs.reset(seed=0)
    before = envs.step(zero)[0]
    envs.reset(seed=0)

    def fails(*_):
        raise ZeroDivisionError("inside")

    handle = teacher.network.register_forward_pre_hook(fails)
    with pytest.raises(ZeroDivisionError, match="inside") as caught:
        envs.step(zero)
    handle.remove()
    names = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert "fails" in names
    assert "__call__" in names
    envs.reset(seed=0)
    np.testing.assert_array_equal(envs.step(zero)[0], before)


def test_an_interrupt_does_not_wait_for_the_network(teacher):
    """The network stands still until after the interrupt has come out."""
    entered, leave = threading.Event(), threading.Event()

    def stands(*_):
        entered.set()
        leave.wait()

    def interrupts():
        entered.wait()
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    handle = teacher.network.register_forward_pre_hook(stands)
    threading.Thread(target=interrupts).start()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # shells let background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            predict(teacher, started(teacher))
    finally:
        signal.signal(signal.SIGINT, before)
        leave.set()
        handle.remove()
    while driven_threads():  # they end by themselves
        time.sleep(0.01)
    assert predict(teacher, started(teacher)).x.isfinite().all()


def test_an_interrupt_while_the_thread_starts_does_not_wait_for_the_body(monkeypatch):
    leave, ended = threading.Event(), threading.Event()

    def body(suspend):
        leave.wait()
        try:
            suspend(1)
        finally:
            ended.set()

    call = SuspendedCall(body)
    start = call._thread.start

    def starts():
        start()
        raise KeyboardInterrupt

    monkeypatch.setattr(call._thread, "start", starts)
    with pytest.raises(KeyboardInterrupt):
        call.resume()
    call.close()  # waits for nobody
    assert call.finished
    assert not ended.is_set()
    leave.set()
    assert ended.wait(timeout=60)


def alternately(*runs):
    """The states of several runs, one step of each at a time."""
    return list(zip(*runs, strict=True))


def test_two_teachers_on_one_pipeline_predict_as_each_alone():
    made = ZOO["stable_diffusion"]()
    teachers = [
        Teacher.from_pipeline(made.pipe, [prompt], guidance_scale=scale)
        for prompt, scale in (("a cat", 6.0), ("x", 2.0))
    ]
    noise = torch.randn(2, *teachers[0].sample_shape, generator=torch.Generator().manual_seed(0))
    alone = [list(trajectory(teacher, DDIM(), TimeGrid(), noise, 3)) for teacher in teachers]
    assert not torch.allclose(alone[0][-1].x, alone[1][-1].x)
    together = alternately(*(trajectory(teacher, DDIM(), TimeGrid(), noise, 3) for teacher in teachers))
    for number, teacher in enumerate(teachers):
        for states, expected in zip(together, alone[number], strict=True):
            torch.testing.assert_close(states[number].x, expected.x, rtol=0, atol=0)
        teacher.close()


def test_two_runs_of_one_teacher_predict_as_each_alone(teacher):
    noises = [torch.randn(2, *teacher.sample_shape, generator=torch.Generator().manual_seed(s)) for s in (0, 1)]
    alone = [list(trajectory(teacher, DDIM(), TimeGrid(), noise, 3))[-1].x for noise in noises]
    both = alternately(*(trajectory(teacher, DDIM(), TimeGrid(), noise, 3) for noise in noises))[-1]
    for state, expected in zip(both, alone, strict=True):
        torch.testing.assert_close(state.x, expected, rtol=0, atol=0)


def test_episodes_of_different_lengths_predict_as_each_alone(teacher):
    """Rows that are at different steps, and rows that go on without others, have calls of their own."""
    first = predict(teacher, started(teacher, count=3))
    (second,) = [state for index, state in enumerate(trajectory(teacher, DDIM(), TimeGrid(), first.x, 3)) if index == 0]
    mixed = second.merge(torch.tensor([True, False, True]), started(teacher, count=3))
    found = predict(teacher, mixed)
    for row in range(3):
        alone = teacher.predict(mixed.x[row : row + 1], mixed.half_logsnr[row : row + 1], mixed.timestep[row : row + 1])
        torch.testing.assert_close(found.eps_history[row : row + 1, 0], alone.eps, rtol=1e-5, atol=1e-5)


def test_the_pipeline_stays_as_it_was(entry):
    before = dict(entry.pipe.__dict__)
    teacher = Teacher.from_pipeline(entry.pipe)
    predict(teacher, started(teacher))
    assert entry.pipe.__dict__ == before
    assert type(entry.pipe) is diffusers.DDPMPipeline
    assert all(parameter.requires_grad for parameter in entry.pipe.unet.parameters())
    teacher.close()


def test_gradients_of_the_caller_are_not_turned_off(teacher):
    predict(teacher, started(teacher))
    assert torch.is_grad_enabled()


def test_a_suspended_call_is_over_when_it_is_over():
    call = SuspendedCall(lambda suspend: suspend(1) + suspend(2))
    assert call.resume() == (False, 1)
    assert call.resume(10) == (False, 2)
    assert call.resume(20) == (True, 30)
    with pytest.raises(RuntimeError, match="is over"):
        call.resume()


# Bad input.


def test_what_is_no_pipeline_is_refused():
    with pytest.raises(TypeError, match="is no diffusers pipeline"):
        Teacher.from_pipeline(plain_unet())


def test_a_refused_scheduler_says_why():
    pipe = diffusers.DDPMPipeline(plain_unet(), diffusers.DDPMScheduler())
    pipe.scheduler = diffusers.LCMScheduler()
    with pytest.raises(ValueError, match="LCMScheduler cannot be driven: it is a few-step student already"):
        Teacher.from_pipeline(pipe)


def test_a_refused_class_says_why():
    pipe = object.__new__(diffusers.AmusedPipeline)
    with pytest.raises(ValueError, match="AmusedPipeline cannot be driven: discrete diffusion moves between tokens"):
        Teacher.from_pipeline(pipe)


@pytest.mark.parametrize("component", ["text_encoder", "unet", "vae"])
def test_an_error_in_any_component_comes_out_as_it_is(component):
    """Its own traceback; afterwards all goes on."""
    made = ZOO["stable_diffusion"]()
    teacher = Teacher.from_pipeline(made.pipe, ["a cat"])
    latents = predict(teacher, started(teacher)).x
    before = teacher.images(latents)

    def fails(*_, **__):
        raise ZeroDivisionError("inside")

    part = getattr(made.pipe, component)
    broken = part.decoder if component == "vae" else part
    handle = broken.register_forward_pre_hook(fails)
    uses = {
        "text_encoder": lambda: Teacher.from_pipeline(made.pipe, ["two dogs"]),
        "unet": lambda: predict(teacher, started(teacher)),
        "vae": lambda: teacher.images(latents),
    }
    with pytest.raises(ZeroDivisionError, match="inside") as caught:
        uses[component]()
    handle.remove()
    names = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert names[-1] == "fails"
    assert "__call__" in names
    assert torch.equal(teacher.images(predict(teacher, started(teacher)).x), before)
    teacher.close()
    assert not driven_threads()


def test_an_argument_that_the_pipeline_does_not_take_is_named(entry):
    with pytest.raises(ValueError, match="DDPMPipeline does not take hight: its call takes batch_size"):
        Teacher.from_pipeline(entry.pipe, hight=64)


def test_images_of_different_sizes_are_refused():
    made = ZOO["image_to_image"]()
    conditions = [{"prompt": "a cat", "image": image(32)}, {"prompt": "x", "image": image(16)}]
    with pytest.raises(ValueError, match="image of different sizes in one batch"):
        Teacher.from_pipeline(made.pipe, conditions)


def test_conditions_with_different_arguments_are_refused():
    made = ZOO["stable_diffusion"]()
    with pytest.raises(ValueError, match="conditions differ in their arguments"):
        Teacher.from_pipeline(made.pipe, ["a cat", {"prompt": "x", "negative_prompt": "y"}])


def test_what_must_be_common_to_a_batch_is_named():
    made = ZOO["stable_diffusion"]()
    conditions = [{"prompt": "a", "guidance_scale": 2.0}, {"prompt": "b", "guidance_scale": 3.0}]
    with pytest.raises(ValueError, match=r"conditions have guidance_scale=2\.0 and others"):
        Teacher.from_pipeline(made.pipe, conditions)


def test_a_prediction_that_is_not_finite_names_the_step_and_the_prompt():
    made = ZOO["stable_diffusion"]()
    teacher = Teacher.from_pipeline(made.pipe, ["a cat", "two dogs"])
    state = started(teacher, count=2)
    state = next(trajectory(teacher, DDIM(), TimeGrid(), state.x, 3, torch.tensor([0, 1])))
    overflowing = state.x.clone()
    overflowing[1] = torch.inf
    with pytest.raises(ValueError, match="predicted NaN or infinity at step 2 for 'two dogs'"):
        predict(teacher, dataclasses.replace(state, x=overflowing))
    teacher.close()


def test_each_prompt_is_encoded_once():
    made = ZOO["stable_diffusion"]()
    evaluated = []
    handle = made.pipe.text_encoder.register_forward_pre_hook(lambda *_: evaluated.append(1))
    teacher = Teacher.from_pipeline(made.pipe, ["a cat", "two dogs", "x"], guidance_scale=6.0)
    for rows in ([0, 1], [1, 2], [2, 0], [0, 0]):
        state = initial_state(
            torch.zeros(2, *teacher.sample_shape), teacher.schedule, TimeGrid(), 3, 1, torch.tensor(rows)
        )
        predict(teacher, state)
    assert len(evaluated) == 2 * 3  # each with its negative prompt
    handle.remove()
    teacher.close()
