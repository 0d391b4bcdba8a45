"""Films show what samplers make: their ends are the samplers' own samples of the same noises."""

import numpy as np
import pytest
import torch

from redif_env import Student
from redif_env.mdp.policies import Policy, PolicyConfig
from redif_env.mdp.settings import MDPSettings, build_mdp
from redif_env.measures.rendering import as_images, to_pixels
from redif_env.showing.films import FRAMES, PRICES, Starts, base_films, student_films, teacher_film


def student_of(**options):
    mdp = build_mdp(MDPSettings(num_steps=3, **options))
    torch.manual_seed(0)
    return Student(mdp, Policy(PolicyConfig((mdp.observation_size, 16, mdp.action_size))))


@pytest.fixture
def student():
    return student_of(teacher="digits")


def pixels(samples):
    return to_pixels(as_images(samples))


def test_seeds_have_the_same_noise_under_every_condition(student):
    starts = Starts.draw(student.mdp.teacher, [0, 5], [0, 0, 0])
    assert starts.noise.shape == (6, 1, 8, 8)
    assert starts.noise[:2].equal(starts.noise[4:])
    assert not starts.noise[0].equal(starts.noise[1])
    expected = torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(5))
    assert starts.noise[1].equal(expected)


def test_a_student_s_film_ends_with_its_samples(student):
    starts = Starts.draw(student.mdp.teacher, [0, 1], [0])
    (film,) = student_films("mine", student, starts)
    assert (film.name, film.calls, film.spent) == ("mine", 3, [0, 1, 2, 3])
    assert film.samples.shape == film.estimates.shape == (4, 2, 8, 8, 3)
    assert np.array_equal(film.samples[0], pixels(starts.noise.clamp(-1, 1)))
    assert np.array_equal(film.samples[-1], pixels(student(noise=starts.noise)))
    assert not np.array_equal(film.samples[-2], film.samples[-1]), "control"
    assert film.milliseconds > 0


def test_levels_are_those_of_the_steps(student):
    """Where all samples take the same steps, timesteps are those of the student's own list."""
    frozen = student.frozen()
    (film,) = student_films("mine", frozen, Starts.draw(student.mdp.teacher, [0], [0]))
    assert film.timesteps == pytest.approx([step.level_timestep for step in frozen.steps()])


def test_the_teacher_s_film_ends_with_its_endpoints(student):
    teacher = student.mdp.teacher
    starts = Starts.draw(teacher, [3], [0])
    film = teacher_film(teacher, starts, 30)
    assert np.array_equal(film.samples[-1], pixels(teacher.images(teacher.endpoint(starts.noise, 30))))
    assert (film.calls, len(film.timesteps), len(film.samples)) == (30, 30, FRAMES + 1)
    assert film.spent[:2] == [0, 1]
    assert film.spent[-1] == 30
    assert film.timesteps == sorted(film.timesteps, reverse=True)


def test_the_zero_action_is_the_solver_s_film():
    """The base solver in as many steps is what a student that does nothing makes."""
    student = student_of(teacher="digits")
    zeros = torch.zeros(3, student.mdp.action_size)
    nothing = Student(student.mdp, Policy.from_table(zeros, student.mdp.observation_size))
    starts = Starts.draw(student.mdp.teacher, [0, 1], [0])
    films = base_films(student.mdp.teacher, starts, range(1, 4))
    assert [film.calls for film in films] == [1, 2, 3]
    (film,) = student_films("nothing", nothing, starts)
    assert np.array_equal(films[-1].samples[-1], film.samples[-1])
    assert not np.array_equal(films[-2].samples[-1], film.samples[-1]), "control"


def test_prices_make_films_of_their_own():
    student = student_of(teacher="gaussian-ring", min_steps=1, prices=(0.01, 1.0))
    films = student_films("dial", student, Starts.draw(student.mdp.teacher, [0, 1], [0]))
    assert len(films) == PRICES
    assert all(1 <= film.calls <= 3 for film in films)
    assert films[0].samples.shape[2:] == (1, 2, 3), "two numbers are a row of two pixels"
