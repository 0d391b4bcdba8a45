import json
import shutil

import numpy as np
import pytest
import torch

from experiments.pretended_device import NAME, PretendedDevice
from redif_env import ReDiFVectorEnv, Student
from redif_env.mdp.policies import Policy, PolicyConfig
from redif_env.storage.files import CorruptFileError, write_sealed
from redif_env.students.export.folder import FORMAT, read_student

TINY = {"teacher": "gaussian-ring", "reference_size": 32, "teacher_steps": 20, "num_steps": 3}


def make_student(teacher="gaussian-ring", seed=0):
    torch.manual_seed(seed)
    mdp = ReDiFVectorEnv(1, **TINY | {"teacher": teacher}).mdp
    sizes = (mdp.observation_size, 16, mdp.action_size)
    return Student(mdp, Policy(PolicyConfig(sizes)))


def test_student_matches_the_policy_in_the_environment():
    """The environment with the policy's actions gives exactly the student's samples."""
    student = make_student()
    env = ReDiFVectorEnv(8, **TINY)
    observation, info = env.reset(seed=0)
    noise = env.reference.noise[info["pair"]]
    for _ in range(3):
        with torch.no_grad():
            actions = student.policy(torch.from_numpy(observation)).numpy()
        observation = env.step(actions)[0]
    assert torch.equal(student(noise=noise), env.last_transition.next_state.x)


def test_number_of_network_calls_is_num_steps(pipeline_folder):
    student = make_student(str(pipeline_folder))
    rows = []
    student.network.register_forward_hook(lambda module, inputs, output: rows.append(len(inputs[0])))
    images = student(num_samples=5, generator=torch.Generator().manual_seed(0))
    assert rows == [5, 5, 5]
    assert images.shape == (5, 3, 8, 8)
    assert images.abs().max() <= 1


def test_samples_are_reproducible_with_a_generator():
    student = make_student()
    first, again = (student(num_samples=4, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    noise = torch.randn(4, 2, generator=torch.Generator().manual_seed(3))
    assert torch.equal(first, again)
    assert torch.equal(first, student(noise=noise))


@pytest.mark.parametrize("kind", ["mixture", "pipeline"])
def test_saved_student_is_the_same(kind, tmp_path, pipeline_folder):
    student = make_student("gaussian-ring" if kind == "mixture" else str(pipeline_folder))
    student.save_pretrained(tmp_path / "student")
    loaded = Student.from_pretrained(tmp_path / "student")
    noise = torch.randn(4, *student.sample_shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded(noise=noise), student(noise=noise))
    assert loaded.num_steps == 3
    assert loaded.mdp.teacher.name == student.mdp.teacher.name
    suffixes = {path.suffix for path in (tmp_path / "student").rglob("*") if path.is_file()}
    assert suffixes == {".json", ".md", ".py", ".safetensors"}
    loaded.save_pretrained(tmp_path / "student")
    assert torch.equal(Student.from_pretrained(tmp_path / "student")(noise=noise), student(noise=noise))


def test_changed_files_are_refused(tmp_path):
    """One changed bit in any file is an error that names the file."""
    make_student().save_pretrained(tmp_path / "student")
    every = (tmp_path / "student").rglob("*")
    files = [path for path in every if path.is_file() and path.name not in ("README.md", "redif_pipeline.py")]
    assert len(files) == 8
    for path in files:
        whole = path.read_bytes()
        for place in (*range(0, len(whole), max(1, len(whole) // 7)), len(whole) - 1):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            with pytest.raises(CorruptFileError, match=rf"{path.name} .*: export the student again"):
                Student.from_pretrained(tmp_path / "student")
        path.write_bytes(whole)
    Student.from_pretrained(tmp_path / "student")


def test_any_changed_byte_of_the_config_is_refused(tmp_path):
    """The file with the digests has a digest of its own."""
    make_student().save_pretrained(tmp_path / "student")
    path = tmp_path / "student" / "config.json"
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 2]) + whole[place + 1 :])
        with pytest.raises(ValueError, match="export the student again"):
            read_student(tmp_path / "student")


def test_model_card_can_be_edited(tmp_path):
    make_student().save_pretrained(tmp_path / "student")
    card = tmp_path / "student" / "README.md"
    card.write_text(card.read_text() + "\nA word more.\n")
    Student.from_pretrained(tmp_path / "student")


def test_incomplete_folders_are_refused(tmp_path):
    student = tmp_path / "student"
    make_student().save_pretrained(student)
    with pytest.raises(FileNotFoundError, match=r"no student in .*nowhere: it has no config.json"):
        Student.from_pretrained(tmp_path / "nowhere")

    shutil.copytree(student, tmp_path / "lacking")
    (tmp_path / "lacking" / "policy" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(CorruptFileError, match=r"lacks policy/diffusion_pytorch_model.safetensors"):
        Student.from_pretrained(tmp_path / "lacking")

    (student / "config.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(ValueError, match=f"has format 99, this version reads {FORMAT}"):
        Student.from_pretrained(student)
    for text in ("{", "[]", f'{{"format": {FORMAT}}}', "\x00"):
        (student / "config.json").write_text(text)
        with pytest.raises(CorruptFileError, match=r"config\.json"):
            Student.from_pretrained(student)


def test_inconsistent_parts_are_refused(tmp_path):
    """Valid files of different students with new digests."""
    student = tmp_path / "student"
    make_student().save_pretrained(student)
    config = json.loads((student / "scheduler" / "scheduler_config.json").read_text())
    for change, error, message in (
        ({"solver": "magic"}, ValueError, "solver='magic' is unknown"),
        ({"num_steps": 7}, ValueError, "policy maps"),
        ({"noise": {**config["process"]["noise"], "trained_betas": "linear"}}, ValueError, "does not fit together"),
    ):
        (student / "scheduler" / "scheduler_config.json").write_text(
            json.dumps(config | {"process": config["process"] | change})
        )
        content = json.loads((student / "config.json").read_text())
        write_sealed(student, "config.json", {k: v for k, v in content.items() if k not in ("sha256", "seal")})
        with pytest.raises(error, match=message):
            Student.from_pretrained(student)


def test_folder_with_other_files_is_not_overwritten(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"holds other things \(thesis.tex\): choose a new or empty folder"):
        make_student().save_pretrained(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_interrupted_export_keeps_the_old_student(tmp_path, monkeypatch):
    make_student(seed=0).save_pretrained(tmp_path / "student")
    noise = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    before = Student.from_pretrained(tmp_path / "student")(noise=noise)

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("redif_env.students.export.folder.model_card", interrupt)
    with pytest.raises(KeyboardInterrupt):
        make_student(seed=1).save_pretrained(tmp_path / "student")
    assert [path.name for path in tmp_path.iterdir()] == ["student"]
    assert torch.equal(Student.from_pretrained(tmp_path / "student")(noise=noise), before)


def test_invalid_arguments_are_refused():
    student = make_student()
    with pytest.raises(ValueError, match="give either num_samples or noise"):
        student()
    with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
        student(num_samples=0)
    with pytest.raises(ValueError, match=r"noise must have shape \(N, \(2,\)\), got \(4, 3\)"):
        student(noise=torch.zeros(4, 3))
    with pytest.raises(ValueError, match="policy maps"):
        Student(student.mdp, Policy(PolicyConfig((3, 5))))
    with pytest.raises(ValueError, match="activation='sine' is unknown"):
        PolicyConfig((3, 5), activation="sine")


def test_half_logsnr_increases_along_the_trajectory():
    levels = torch.stack([state.half_logsnr for state in make_student().trajectory(torch.randn(4, 2))])
    assert bool((levels[1:] > levels[:-1]).all())
    assert np.isinf(levels[-1].numpy()).all()


def test_a_seed_is_a_generator():
    student = make_student()
    samples = student(3, seed=5)
    assert torch.equal(samples, student(3, generator=torch.Generator().manual_seed(5)))
    assert not torch.equal(samples, student(3, seed=6))
    for wrong, message in (
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"seed": 5, "generator": torch.Generator()}, "seed=5 and generator cannot both be given"),
    ):
        with pytest.raises(ValueError, match=message):
            student(3, **wrong)


def test_a_student_moves_and_leaves_the_network_of_others_where_it_is():
    student = make_student()
    expected, teacher = student(3, seed=0), student.mdp.teacher
    with PretendedDevice(float64=False):
        assert student.to(NAME) is student
        assert (student.mdp.teacher.device.type, teacher.device.type) == (NAME, "cpu")
        torch.testing.assert_close(student(3, seed=0).cpu(), expected)
    with pytest.raises(ValueError, match="device='xyz' cannot be used here"):
        student.to("xyz")
