"""Every schedule against diffusers' own: levels, timesteps, preconditioning, and whole runs on an exact teacher."""

import inspect
from dataclasses import dataclass
from functools import cache

import diffusers
import pytest
import torch

from redif_env.diffusion.grids import GRIDS, Grid
from redif_env.diffusion.noise_schedulers import REFUSED_SCHEDULERS, Parameterization, read_scheduler, scheduler_config
from redif_env.diffusion.predictions import PLAIN, EDMPreconditioning, ScorePreconditioning
from redif_env.diffusion.schedules import (
    FlowSchedule,
    NoiseLabel,
    VarianceExplodingSchedule,
    VariancePreservingSchedule,
)
from redif_env.diffusion.solvers import SOLVERS, DPMSolverPP, sample, trajectory
from redif_env.diffusion.types import Prediction, PredictionType
from redif_env.teachers.mixture_model import GaussianMixtureModel
from redif_env.teachers.teacher import GaussianMixtureTeacher, Teacher

VP = VariancePreservingSchedule.from_diffusers()
ZERO = VariancePreservingSchedule.from_diffusers(beta_schedule="scaled_linear", rescale_betas_zero_snr=True)
VE = VarianceExplodingSchedule(0.01, 50.0)
READINGS = {
    "vp-epsilon": Parameterization(VP, PredictionType.EPSILON),
    "vp-sample": Parameterization(VP, PredictionType.SAMPLE),
    "vp-v": Parameterization(VP, PredictionType.V_PREDICTION),
    "zero-snr-v": Parameterization(ZERO, PredictionType.V_PREDICTION),
    "edm-epsilon": Parameterization(VE, PredictionType.EPSILON, EDMPreconditioning(0.5)),
    "edm-v": Parameterization(VE, PredictionType.V_PREDICTION, EDMPreconditioning(0.7)),
    "ve-score": Parameterization(
        VarianceExplodingSchedule(0.01, 50.0, label=NoiseLabel.SIGMA), PredictionType.EPSILON, ScorePreconditioning()
    ),
    "flow": Parameterization(FlowSchedule(), PredictionType.FLOW_PREDICTION),
    "flow-shift": Parameterization(FlowSchedule(3.0), PredictionType.FLOW_PREDICTION),
}
each_parameterization = pytest.mark.parametrize("parameterization", READINGS.values(), ids=READINGS)


def config_of(scheduler):
    """As it is read from a file."""
    return {**scheduler.config, "_class_name": type(scheduler).__name__}


def levels_of(schedule, count=9):
    """Levels over the schedule's range, its ends included."""
    return schedule.half_logsnr_at(torch.linspace(0.001, 1, count, dtype=torch.float64))


def mixture(parameterization):
    """Three Gaussians in two dimensions, double precision."""
    means = torch.tensor([[0.6, 0.2], [-0.5, 0.4], [0.1, -0.7]]).double()
    stds = torch.tensor([[0.2, 0.1], [0.1, 0.3], [0.2, 0.2]]).double()
    return GaussianMixtureTeacher(
        means,
        stds,
        torch.tensor([0.5, 0.2, 0.3]).double(),
        parameterization.schedule,
        prediction_type=parameterization.prediction_type,
        preconditioning=parameterization.preconditioning,
    )


@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace"])
def test_betas_are_diffusers(kind):
    """Every kind of betas that diffusers' reference scheduler has, by its own cumulated products."""
    schedule = VariancePreservingSchedule.from_diffusers(beta_schedule=kind)
    expected = diffusers.DDPMScheduler(beta_schedule=kind).alphas_cumprod.double()
    level = schedule.level(schedule.half_logsnr(torch.arange(1000)))
    torch.testing.assert_close(level.alpha**2, expected, rtol=2e-4, atol=1e-8)


def test_exponential_betas_are_diffusers():
    from diffusers.schedulers.scheduling_ddpm import betas_for_alpha_bar

    expected = betas_for_alpha_bar(1000, alpha_transform_type="exp").double()
    found = VariancePreservingSchedule.from_diffusers("exp").betas
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_zero_terminal_snr_is_diffusers(kind):
    """As its multistep solvers have it: rescaled, and 2**-24 of signal left at the noisiest level.

    That is more than the level before holds, or nearly, on the linear schedules, where we leave less.
    """
    settings = {"beta_schedule": kind, "rescale_betas_zero_snr": True}
    expected = diffusers.DPMSolverMultistepScheduler(**settings).alphas_cumprod.double()
    schedule = VariancePreservingSchedule.from_diffusers(**settings)
    level = schedule.level(schedule.half_logsnr(torch.arange(1000)))
    torch.testing.assert_close(level.alpha[:-1] ** 2, expected[:-1], rtol=1e-3, atol=1e-7)
    assert 0 < level.alpha[-1].item() <= 2**-12 * 1.0001
    assert bool((schedule.knots.diff() < 0).all())
    # Betas that end in 1 are read the same way.
    betas = diffusers.DDPMScheduler(**settings).betas.tolist()
    given = read_scheduler({"trained_betas": betas, "prediction_type": "v_prediction"}, "given").schedule
    torch.testing.assert_close(given.knots[-1], schedule.knots[-1], rtol=1e-3, atol=0)


BETAS = [
    kind
    for kind in sorted(set(dir(diffusers)) - set(REFUSED_SCHEDULERS))
    if kind.endswith("Scheduler") and "beta_schedule" in inspect.signature(getattr(diffusers, kind).__init__).parameters
]
STRIPPED = {"nothing": {}, "betas' kind alone": {"beta_schedule": "scaled_linear"}}


# KDPM2's constructors call numpy with a torch tensor.
@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning")
@pytest.mark.parametrize("given", STRIPPED)
@pytest.mark.parametrize("kind", BETAS)
def test_a_config_s_missing_settings_are_its_class_s_own(kind, given):
    """From a stripped config and from a whole one: the table of the class itself."""
    if kind == "UnCLIPScheduler" and STRIPPED[given]:
        given = "nothing"
    scheduler = getattr(diffusers, kind)(**STRIPPED[given])
    expected = scheduler.alphas_cumprod.double()
    for config in ({"_class_name": kind, **STRIPPED[given]}, config_of(scheduler)):
        schedule = read_scheduler(config, "stripped").schedule
        level = schedule.level(schedule.half_logsnr(torch.arange(len(expected))))
        torch.testing.assert_close(level.alpha**2, expected, rtol=5e-4, atol=1e-8)
        torch.testing.assert_close(level.sigma**2, 1 - expected, rtol=5e-4, atol=1e-7)


@pytest.mark.parametrize("kind", ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"])
def test_stripped_edm_configs_have_their_class_s_sigmas(kind):
    scheduler = getattr(diffusers, kind)()
    found = read_scheduler({"_class_name": kind}, "stripped")
    assert found == read_scheduler(config_of(scheduler), "whole")
    scheduler.set_timesteps(7)
    sigmas = found.schedule.level(found.schedule.half_logsnr_at(torch.linspace(1, 0, 7, dtype=torch.float64))).sigma
    torch.testing.assert_close(sigmas, scheduler.sigmas[:-1].double(), rtol=1e-5, atol=0)


def test_a_stripped_score_config_has_its_class_s_sigmas():
    scheduler = diffusers.ScoreSdeVeScheduler()
    found = read_scheduler({"_class_name": "ScoreSdeVeScheduler"}, "stripped").schedule
    expected = scheduler.discrete_sigmas[[0, -1]].tolist()
    assert [found.sigma_min, found.sigma_max] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"])
def test_stripped_flow_configs_have_their_class_s_sigmas(kind):
    scheduler = getattr(diffusers, kind)()
    schedule = read_scheduler({"_class_name": kind}, "stripped").schedule
    level = schedule.level(schedule.half_logsnr(scheduler.timesteps.double()))
    torch.testing.assert_close(level.sigma, scheduler.sigmas[:1000].double(), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(level.alpha, 1 - scheduler.sigmas[:1000].double(), rtol=1e-5, atol=1e-6)


def test_shifted_signal_to_noise_ratios_are_read():
    """CogVideoX's, with its zero terminal ratio and without."""
    for zero in (False, True):
        kind = "CogVideoXDPMScheduler"
        scheduler = diffusers.CogVideoXDPMScheduler(snr_shift_scale=1.7, rescale_betas_zero_snr=zero)
        config = {"_class_name": kind, "snr_shift_scale": 1.7, "rescale_betas_zero_snr": zero}
        schedule = read_scheduler(config | {"prediction_type": "v_prediction"}, "cog").schedule
        expected = scheduler.alphas_cumprod.double()[:-1]
        level = schedule.level(schedule.half_logsnr(torch.arange(999)))
        torch.testing.assert_close(level.alpha**2, expected, rtol=1e-3, atol=1e-7)
        plain = read_scheduler({**config, "snr_shift_scale": 1.0, "rescale_betas_zero_snr": False}, "cog").schedule
        assert abs(plain.knots[500] - schedule.knots[500]) > 0.2


def test_settings_that_are_not_read_are_refused(monkeypatch):
    """A class that does more to its schedule, by a setting of its own."""

    class Bent(diffusers.DDIMScheduler):
        def __init__(self, beta_schedule: str = "linear", bend: float = 0.0):
            super().__init__(beta_schedule=beta_schedule)

    monkeypatch.setattr(diffusers, "DDIMScheduler", Bent)
    config = {"_class_name": "DDIMScheduler", "beta_schedule": "linear", "num_train_timesteps": 1000, "beta_end": 0.02}
    with pytest.raises(ValueError, match=r"with bend=0\.5, and what that does to its schedule is unknown"):
        read_scheduler({**config, "bend": 0.5}, "bent")


def test_edm_is_diffusers():
    """Sigmas, initial scale, timesteps, and inputs and outputs of the preconditioning, for both prediction types."""
    for kind in (PredictionType.EPSILON, PredictionType.V_PREDICTION):
        scheduler = diffusers.EDMEulerScheduler(prediction_type=kind.value, sigma_data=0.6)
        parameterization = read_scheduler(config_of(scheduler), "edm")
        schedule = parameterization.schedule
        scheduler.set_timesteps(5)
        sigmas = scheduler.sigmas[:-1].double()
        assert schedule.init_noise_sigma == pytest.approx(float(scheduler.init_noise_sigma))
        half_logsnr = schedule.half_logsnr_at(torch.linspace(1, 0, 5, dtype=torch.float64))
        torch.testing.assert_close(schedule.level(half_logsnr).sigma, sigmas, rtol=1e-5, atol=0)
        torch.testing.assert_close(schedule.timestep(half_logsnr), scheduler.timesteps.double(), rtol=0, atol=1e-5)
        x, output = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        level = schedule.level(half_logsnr)
        given = parameterization.preconditioning.inputs(x, level)
        read = parameterization.preconditioning.read(output, x, level, kind)
        for row, sigma in enumerate(sigmas):
            torch.testing.assert_close(given[row], scheduler.precondition_inputs(x[row], sigma), rtol=1e-6, atol=1e-9)
            expected = scheduler.precondition_outputs(x[row], output[row], sigma)
            torch.testing.assert_close(read.x0[row], expected, rtol=1e-5, atol=1e-6)


def test_continuous_timesteps_are_euler_s():
    """Stable Video Diffusion's EulerDiscreteScheduler is EDM for data of unit variance."""
    settings = {"timestep_type": "continuous", "sigma_min": 0.002, "sigma_max": 700.0, "use_karras_sigmas": True}
    scheduler = diffusers.EulerDiscreteScheduler(prediction_type="v_prediction", **settings)
    parameterization = read_scheduler(config_of(scheduler), "svd")
    scheduler.set_timesteps(4)
    x, output = torch.randn(2, 1, 3, generator=torch.Generator().manual_seed(0))
    half_logsnr = parameterization.schedule.half_logsnr(scheduler.timesteps[:1])
    level = parameterization.schedule.level(half_logsnr)
    given = parameterization.preconditioning.inputs(x, level)
    torch.testing.assert_close(given, scheduler.scale_model_input(x, scheduler.timesteps[0]), rtol=1e-4, atol=1e-6)
    expected = scheduler.step(output, scheduler.timesteps[0], x).pred_original_sample
    x0 = parameterization.preconditioning.read(output, x, level, parameterization.prediction_type).x0
    torch.testing.assert_close(x0, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_is_diffusers(shift):
    """All 1000 sigmas and timesteps of its training schedule, shifted or not."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    schedule = read_scheduler(config_of(scheduler), "flow").schedule
    time = torch.linspace(1, 0.001, 1000, dtype=torch.float64)
    level = schedule.level(schedule.half_logsnr_at(time))
    torch.testing.assert_close(level.sigma, scheduler.sigmas.double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(
        schedule.timestep(schedule.half_logsnr_at(time)), scheduler.timesteps.double(), rtol=0, atol=1e-3
    )
    noisiest = schedule.level(schedule.half_logsnr_at(torch.ones(1)))
    assert (noisiest.alpha.item(), noisiest.sigma.item()) == (0.0, 1.0)


def test_dynamic_shift_is_the_pipelines_own():
    from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import calculate_shift

    config = config_of(diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True))
    keys = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
    expected = torch.tensor(calculate_shift(1024, *(config[key] for key in keys))).exp().item()
    assert read_scheduler(config, "flow", tokens=1024).schedule.shift == pytest.approx(expected)


@each_parameterization
def test_levels_and_timesteps_are_inverse(parameterization):
    schedule = parameterization.schedule
    half_logsnr = levels_of(schedule)
    torch.testing.assert_close(schedule.half_logsnr(schedule.timestep(half_logsnr)), half_logsnr, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(schedule.half_logsnr_at(schedule.time(half_logsnr)), half_logsnr, rtol=1e-9, atol=1e-9)
    beyond = torch.tensor([torch.inf, -torch.inf], dtype=torch.float64)
    torch.testing.assert_close(schedule.time(beyond), torch.tensor([0.0, 1.0], dtype=torch.float64))
    level = schedule.level(half_logsnr)
    torch.testing.assert_close((level.alpha / level.sigma).log(), half_logsnr)
    clean = schedule.level(torch.tensor([torch.inf]))
    assert (clean.alpha.item(), clean.sigma.item()) == (1.0, 0.0)
    x = torch.randn(9, 3, dtype=torch.float64)
    size = (level.alpha**2 + level.sigma**2).sqrt()[:, None]
    torch.testing.assert_close(schedule.normalised(x, half_logsnr), x / size)


@each_parameterization
def test_predictions_are_read_as_they_are_written(parameterization):
    """x0 and eps go through every form that a network may answer in, and come back; inputs too."""
    half_logsnr = levels_of(parameterization.schedule)[:-1]
    level = parameterization.schedule.level(half_logsnr)
    x0, eps = torch.randn(2, 8, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = level.alpha[:, None, None] * x0 + level.sigma[:, None, None] * eps
    parts, kind = parameterization.preconditioning, parameterization.prediction_type
    read = parts.read(parts.write(Prediction(x0, eps), level, kind), x, level, kind)
    torch.testing.assert_close(read.x0, x0, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(read.eps, eps, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(parts.samples(parts.inputs(x, level), level), x)


def test_prediction_types_by_hand():
    """alpha 0.6, sigma 0.8, x0 2, eps -1: v = 0.6 * -1 - 0.8 * 2, flow = -1 - 2."""
    level = VP.level(torch.tensor([0.6 / 0.8], dtype=torch.float64).log())
    prediction = Prediction(torch.tensor([[2.0]]).double(), torch.tensor([[-1.0]]).double())
    found = {kind.value: PLAIN.write(prediction, level, kind).item() for kind in PredictionType}
    assert found == pytest.approx({"epsilon": -1, "sample": 2, "v_prediction": -2.2, "flow_prediction": -3})


def test_flow_is_read_at_pure_noise():
    """Where alpha is 0 the flow prediction alone says both: x0 = x - u, eps = x."""
    level = FlowSchedule().level(torch.tensor([-torch.inf]))
    x, output = torch.tensor([[1.5]]), torch.tensor([[0.5]])
    read = PLAIN.read(output, x, level, PredictionType.FLOW_PREDICTION)
    assert (read.x0.item(), read.eps.item()) == (1.0, 1.5)


@each_parameterization
def test_a_config_comes_back_bit_for_bit(parameterization):
    again = read_scheduler(scheduler_config(parameterization), "again")
    time = torch.linspace(0, 1, 50, dtype=torch.float64)
    assert torch.equal(again.schedule.half_logsnr_at(time), parameterization.schedule.half_logsnr_at(time))
    assert type(again.schedule) is type(parameterization.schedule)
    assert (again.prediction_type, again.preconditioning) == (
        parameterization.prediction_type,
        parameterization.preconditioning,
    )


@each_parameterization
def test_the_exact_teacher_is_exact_on_every_schedule(parameterization):
    """What it answers, read back, is the conditional mean: eps is -sigma times the score of the log density."""
    teacher = mixture(parameterization)
    half_logsnr = levels_of(parameterization.schedule)[:-1]
    level = parameterization.schedule.level(half_logsnr)
    x = torch.randn(8, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = (x * (level.alpha**2 + level.sigma**2).sqrt()[:, None]).requires_grad_()
    (score,) = torch.autograd.grad(teacher.network.log_prob(x, half_logsnr).sum(), x)
    x = x.detach()
    answer = teacher.predict(x, half_logsnr, parameterization.schedule.timestep(half_logsnr))
    sigma, alpha = level.sigma[:, None], level.alpha[:, None]
    torch.testing.assert_close(answer.eps, -sigma * score, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(alpha * answer.x0, x + sigma**2 * score, rtol=1e-5, atol=1e-6)


@dataclass(frozen=True)
class NodesGrid(Grid):
    """Given levels, one a step."""

    nodes: tuple[float, ...]

    def interior(self, position, schedule):
        index = (position * len(self.nodes)).round().long().clamp(max=len(self.nodes) - 1)
        return torch.tensor(self.nodes, dtype=torch.float64)[index]


def run_diffusers(scheduler, model, noise, num_steps):
    """The loop of diffusers' pipelines: what they make of standard normal ``noise``."""
    scheduler.set_timesteps(num_steps)
    flow = isinstance(model.mixture.schedule, FlowSchedule)
    x = noise if flow else noise * scheduler.init_noise_sigma
    for index, timestep in enumerate(scheduler.timesteps):
        # Some flow schedulers round what they tell the network to whole numbers.
        given = scheduler.sigmas[index].to(x.dtype) * 1000 if flow else timestep.to(x.dtype)
        output = model(x if flow else scheduler.scale_model_input(x, timestep), given).sample
        x = scheduler.step(output, timestep, x, return_dict=False)[0]
    return x


def ours_on(scheduler, teacher, solver, noise, num_steps):
    """Our solver at the levels at which a diffusers scheduler has just stepped."""
    sigmas = scheduler.sigmas[:num_steps].double()
    flow = isinstance(teacher.schedule, FlowSchedule)
    nodes = (1 - sigmas).log() - sigmas.log() if flow else -sigmas.log()
    if flow:  # diffusers takes noise as it is where its first level has a little signal; we give it that level's size
        noise = teacher.schedule.normalised(noise, nodes[:1].expand(len(noise)))
    return sample(teacher, solver, NodesGrid(tuple(nodes.tolist())), noise, num_steps)


RUNS = {
    "vp-dpm++2m": (
        READINGS["vp-v"],
        lambda: diffusers.DPMSolverMultistepScheduler(
            beta_schedule="linear", prediction_type="v_prediction", timestep_spacing="trailing"
        ),
        DPMSolverPP(2),
    ),
    "vp-euler": (
        READINGS["vp-sample"],
        lambda: diffusers.DPMSolverMultistepScheduler(prediction_type="sample", solver_order=1),
        SOLVERS["ddim"],
    ),
    "zero-snr-dpm++3m": (
        READINGS["zero-snr-v"],
        lambda: diffusers.DPMSolverMultistepScheduler(
            beta_schedule="scaled_linear",
            rescale_betas_zero_snr=True,
            prediction_type="v_prediction",
            timestep_spacing="trailing",
            solver_order=3,
        ),
        DPMSolverPP(3),
    ),
    "edm-euler": (
        READINGS["edm-epsilon"],
        lambda: diffusers.EDMEulerScheduler(sigma_min=0.01, sigma_max=50.0),
        SOLVERS["ddim"],
    ),
    "edm-dpm++2m": (
        READINGS["edm-v"],
        lambda: diffusers.EDMDPMSolverMultistepScheduler(
            sigma_min=0.01, sigma_max=50.0, sigma_data=0.7, prediction_type="v_prediction"
        ),
        DPMSolverPP(2),
    ),
    "flow-euler": (READINGS["flow"], lambda: diffusers.FlowMatchEulerDiscreteScheduler(), SOLVERS["ddim"]),
    "flow-shift-euler": (
        READINGS["flow-shift"],
        lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        SOLVERS["ddim"],
    ),
    "flow-dpm++2m": (
        READINGS["flow"],
        lambda: diffusers.DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"),
        DPMSolverPP(2),
    ),
}


@pytest.mark.parametrize(("parameterization", "make", "solver"), RUNS.values(), ids=RUNS)
def test_solvers_are_diffusers_on_the_exact_teacher(parameterization, make, solver, tmp_path):
    """The mixture saved as a diffusers model, sampled by diffusers' scheduler and by us: the same numbers.

    Its config says all that we need to know: the teacher is read from the folder.
    """
    exact, scheduler = mixture(parameterization), make()
    GaussianMixtureModel.of(exact.network).save_pretrained(tmp_path / "unet")
    scheduler.save_pretrained(tmp_path / "scheduler")
    teacher = Teacher.from_pretrained(tmp_path)
    noise = torch.randn(64, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = run_diffusers(scheduler, teacher.network, noise, 12)
    found = ours_on(scheduler, teacher, solver, noise, 12)
    torch.testing.assert_close(found, expected.to(found.dtype), rtol=0, atol=3e-4)


def test_flow_through_a_diffusers_pipeline(tmp_path):
    """DDPMPipeline with a flow scheduler, from the folder that save_pretrained writes, against our DDIM."""
    means = torch.tensor([0.5, -0.5]).reshape(2, 1, 1, 1).expand(2, 1, 4, 4).clone()
    teacher = GaussianMixtureTeacher(means, 0.2, schedule=FlowSchedule(2.0))
    teacher.save_pretrained(tmp_path)
    pipeline = diffusers.DDPMPipeline.from_pretrained(tmp_path, low_cpu_mem_usage=False)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(3, torch.Generator().manual_seed(0), num_inference_steps=8, output_type="np").images
    noise = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    found = ours_on(pipeline.scheduler, teacher, SOLVERS["ddim"], noise, 8)
    expected = torch.from_numpy(images).permute(0, 3, 1, 2) * 2 - 1
    torch.testing.assert_close(found.clamp(-1, 1), expected, rtol=0, atol=1e-4)


@cache
def converged(parameterization):
    """Noises, and where 400 steps from them end; shared by all solvers."""
    noise = torch.randn(64, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    # A step of order 1 lands on clean data, so runs differ by what the cleanest level leaves: compare like with like.
    return noise, sample(mixture(parameterization), DPMSolverPP(2), GRIDS["time^1.5"], noise, 400)


@each_parameterization
@pytest.mark.parametrize("solver", ["dpm++2m", "dpm++3m", "ipndm2", "ipndm4"])
def test_every_solver_converges_on_every_schedule(parameterization, solver):
    """More steps, nearer the 400-step endpoint; at 48 the error is small."""
    teacher, (noise, exact) = mixture(parameterization), converged(parameterization)
    errors = [
        (sample(teacher, SOLVERS[solver], GRIDS["time^1.5"], noise, count) - exact).square().mean().sqrt().item()
        for count in (6, 12, 48)
    ]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.03


@each_parameterization
@pytest.mark.parametrize("grid", GRIDS)
def test_every_grid_runs_on_every_schedule(parameterization, grid):
    """Steps only go towards clean data, and samples stay finite, from pure noise on."""
    teacher = mixture(parameterization)
    noise = torch.randn(16, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    states = list(trajectory(teacher, DPMSolverPP(3), GRIDS[grid], noise, 7))
    levels = torch.stack([state.half_logsnr for state in states])
    assert bool((levels.diff(dim=0) > 0).all())
    assert bool(torch.stack([state.x for state in states]).isfinite().all())
    assert bool(levels[-1].isposinf().all())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_class_name": "VQDiffusionScheduler"}, "discrete diffusion moves between tokens"),
        ({"_class_name": "AmusedScheduler"}, "discrete diffusion moves between tokens"),
        ({"_class_name": "LCMScheduler", "beta_schedule": "linear"}, "a few-step student already"),
        ({"_class_name": "MyScheduler"}, "'MyScheduler', whose alpha and sigma are unknown"),
        ({}, "without trained_betas"),
        ({"beta_schedule": "linear"}, "without trained_betas"),
        ({"_class_name": "DDIMScheduler", "prediction_type": "score"}, "prediction_type='score': only 'epsilon'"),
        ({"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True}, "predict v or the sample"),
        ({"_class_name": "DDIMScheduler", "beta_schedule": "wavy"}, "beta_schedule must be one of"),
        (
            {
                "_class_name": "EulerDiscreteScheduler",
                "timestep_type": "continuous",
                "prediction_type": "v_prediction",
            },
            "no sigma_min and sigma_max",
        ),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "invert_sigmas": True}, "runs the other way"),
        # Of the class these, which raises an error where it meets others, or takes them for something else.
        ({"_class_name": "EDMEulerScheduler", "prediction_type": "sample"}, "EDMEulerScheduler .*'sample': only 'eps"),
        ({"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True}, "'epsilon': only 'flow_prediction'"),
    ],
)
def test_what_cannot_be_read_is_refused_with_a_reason(config, message):
    with pytest.raises(ValueError, match=message):
        read_scheduler(config, "strange")


def test_bad_parameters_are_refused():
    with pytest.raises(ValueError, match="sigma_min and sigma_max must be above 0"):
        VarianceExplodingSchedule(1.0, 0.5)
    with pytest.raises(ValueError, match="rho must be above 0"):
        VarianceExplodingSchedule(rho=0.0)
    with pytest.raises(ValueError, match="shift must be above 0"):
        FlowSchedule(0.0)
    with pytest.raises(ValueError, match="num_train_timesteps must be at least 2"):
        FlowSchedule(1.0, 1)
    with pytest.raises(ValueError, match="sigma_data must be above 0"):
        EDMPreconditioning(0.0)
    with pytest.raises(TypeError, match="no diffusers scheduler has a FlowSchedule with epsilon"):
        scheduler_config(Parameterization(FlowSchedule(), PredictionType.EPSILON))
