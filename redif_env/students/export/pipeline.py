"""A student as a diffusers pipeline."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput, ModelMixin
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor
from huggingface_hub import create_repo, snapshot_download, upload_folder
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from torch import Tensor

# diffusers opens components of those modules alone that were imported before: this one may be a network's.
import redif_env.teachers.mixture_model  # noqa: F401
from redif_env.diffusion.noise_schedulers import read_scheduler
from redif_env.diffusion.placement import HOST, full_precision, stock_defaults
from redif_env.fitted.linear_solver import LinearSolver
from redif_env.mdp.policies import Policy
from redif_env.mdp.process import DenoisingMDP
from redif_env.mdp.sampling import trajectory
from redif_env.mdp.settings import LINEAR, OWN, PARTS, part_of
from redif_env.storage.checks import check_argument, check_at_least
from redif_env.storage.files import CorruptFileError
from redif_env.students.export.folder import CARD_FILE, REMEDY, read_student, write_student
from redif_env.students.export.home import with_policy
from redif_env.students.export.initial_map import InitialMapModel
from redif_env.students.export.linear_solver import LinearSolverModel
from redif_env.students.export.policy import PolicyModel
from redif_env.students.export.redif_scheduler import ReDiFScheduler
from redif_env.students.export.saved_process import process_of, scheduler_of, teacher_of
from redif_env.students.record import Record
from redif_env.teachers.components import COMPONENTS, components_of, stock_pipeline
from redif_env.teachers.pipelines import as_model

CODE_MODULE = "redif_pipeline"
"""The file that tells ``DiffusionPipeline.from_pretrained`` which class the folder is of."""


class ReDiFPipeline(DiffusionPipeline):
    """A :class:`~redif_env.Student` as a diffusers pipeline: few-step sampling with a trained policy.

    Args:
        unet: the network that is called at each step, of any class.
        scheduler: the decision process and the mean steps.
        policy: maps observations to actions; without it, the scheduler's mean actions are taken.
        initial_map: the linear initial map, if the student was trained with one.
        linear: the linear steps of the base solver, if the student was trained with them.
        vae: the decoder, if the student generates latents.
        text_encoder, tokenizer, text_encoder_2, tokenizer_2, text_encoder_3, tokenizer_3: text encoders, if the student
            takes prompts.

    ``record`` holds metadata of training and evaluation.
    """

    model_cpu_offload_seq = "text_encoder->text_encoder_2->text_encoder_3->unet->vae"
    _optional_components = ["policy", "initial_map", "linear", *COMPONENTS]
    _callback_tensor_inputs = ["latents"]

    def __init__(
        self,
        unet: ModelMixin,
        scheduler: ReDiFScheduler,
        policy: PolicyModel | None = None,
        initial_map: InitialMapModel | None = None,
        linear: LinearSolverModel | None = None,
        vae: ModelMixin | None = None,
        text_encoder: Any = None,
        tokenizer: Any = None,
        text_encoder_2: Any = None,
        tokenizer_2: Any = None,
        text_encoder_3: Any = None,
        tokenizer_3: Any = None,
    ) -> None:
        super().__init__()
        if policy is None and scheduler.config.process["actions"] is None:
            raise ValueError("policy is missing, and the scheduler has no mean actions: give one of them")
        self.register_modules(
            unet=unet,
            scheduler=scheduler,
            policy=policy,
            initial_map=initial_map,
            linear=linear,
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            text_encoder_2=text_encoder_2,
            tokenizer_2=tokenizer_2,
            text_encoder_3=text_encoder_3,
            tokenizer_3=tokenizer_3,
        )
        self.image_processor = VaeImageProcessor(vae_scale_factor=1)
        self.record, self.allow_imports = Record(), False
        self._built: tuple[tuple[Any, ...], DenoisingMDP, Policy] | None = None

    @staticmethod
    def of(pipe: DiffusionPipeline, student: str | Path, allow_imports: bool = False) -> Any:
        """A copy of ``pipe`` in which a student's policy decides each step.

        It shares the weights of ``pipe`` and is called like it, but without ``num_inference_steps``. The arguments of
        training (``height``, ``guidance_scale``, ...) are passed automatically. The first call examines the pipeline,
        like :meth:`redif_env.Teacher.from_pipeline`.

        Args:
            pipe: the pipeline that the student was trained in; differences give a warning.
            student: the student's folder.
            allow_imports: whether user-defined parts may be imported from the modules that the file names.

        Raises:
            ValueError: if the student was not trained in a pipeline, or ``pipe`` cannot be driven.
        """
        return with_policy(pipe, student, allow_imports)

    @classmethod
    def of_process(
        cls, mdp: DenoisingMDP, policy: Policy | None, actions: Tensor | None, record: Record
    ) -> ReDiFPipeline:
        """The pipeline of a decision process and a policy.

        Args:
            mdp: of the student.
            policy: what decides; None where the steps are fixed.
            actions: mean action of each step ``(num_steps, A)``; None where the number of steps is decided.
            record: how it was made.

        Raises:
            ValueError, TypeError: if a part of the process cannot be written to a file.
        """
        pipeline = cls(
            as_model(mdp.teacher.network),
            scheduler_of(mdp, actions),
            None if policy is None else PolicyModel.of(policy),
            None if mdp.initial_map is None else InitialMapModel.of(mdp.initial_map),
            LinearSolverModel.of(mdp.solver) if isinstance(mdp.solver, LinearSolver) else None,
            **components_of(mdp.teacher.source),
        )
        pipeline.record, pipeline.allow_imports = record, True  # what it would import is here already
        return pipeline

    @property
    def mdp(self) -> DenoisingMDP:
        """The decision process that the pipeline runs, with ``unet`` as its network."""
        return self._parts(self._execution_device)[0]

    @property
    def actor(self) -> Policy:
        """What decides each step."""
        return self._parts(self._execution_device)[1]

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        num_inference_steps: int | None = None,
        latents: Tensor | None = None,
        price: float | None = None,
        class_labels: int | Sequence[int] | None = None,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        guidance_scale: float | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[ReDiFPipeline, int, Tensor, dict[str, Tensor]], dict[str, Tensor]]
        | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> ImagePipelineOutput | tuple[Any]:
        """Generate samples.

        Args:
            batch_size: number of samples, unless ``latents`` or a list of prompts is given.
            generator: generator of the initial noise, or a list with one per sample.
            num_inference_steps: number of steps; only the student's own number is accepted.
            latents: standard normal ``(N, *S)`` to start from.
            price: price of a network call, for students trained with prices; the lowest one if not given.
            class_labels: one label for all, or one per sample; drawn as in training if not given.
            prompt: one prompt for all, or one per sample. It can be any text, not only prompts of training. Drawn as in
                training if not given.
            negative_prompt, guidance_scale: accepted for compatibility; only the values of training are allowed.
            output_type: ``"pil"``, ``"np"`` (``(N, H, W, C)`` in [0, 1]), ``"pt"`` (``(N, C, H, W)`` in [0, 1]) or
                ``"latent"``: the samples themselves, of any shape, clipped to the data's bounds if they have any;
                latents are not decoded.
            return_dict: whether to return an object with ``images``, or a tuple.
            callback_on_step_end: called as ``(pipeline, step, timesteps, {"latents": x})`` after each step. The next
                step starts from the ``"latents"`` that it returns.
            callback_on_step_end_tensor_inputs: names of the tensors for the callback; only ``"latents"``.

        Raises:
            ValueError: if an argument is invalid.
        """
        check_argument("batch_size", batch_size, int)
        check_argument("latents", latents, Tensor | None)
        check_argument("price", price, float | None)
        check_at_least(1, batch_size=batch_size)
        generator = list(generator) if isinstance(generator, tuple) else generator
        for one in generator if isinstance(generator, list) else [generator]:
            check_argument("generator", one, torch.Generator | None)
        check_argument("num_inference_steps", num_inference_steps, int | None)
        check_argument("guidance_scale", guidance_scale, float | None)
        check_argument("output_type", output_type, str)
        check_argument("callback_on_step_end", callback_on_step_end, Callable[..., Any] | None)
        check_argument("callback_on_step_end_tensor_inputs", callback_on_step_end_tensor_inputs, Sequence[str])
        device = self._execution_device
        mdp, actor = self._parts(device)
        self._check(mdp, num_inference_steps, output_type, callback_on_step_end_tensor_inputs)
        own_scale = mdp.teacher.guidance_scale or 1.0
        negated = negative_prompt is not None and not (isinstance(negative_prompt, str) and not negative_prompt)
        if negated or guidance_scale not in (None, own_scale):
            raise ValueError(
                f"negative_prompt={negative_prompt!r} and guidance_scale={guidance_scale!r} cannot be given: this "
                f"student has learned guidance_scale={own_scale:g} without a negative prompt, leave them out"
            )
        if isinstance(prompt, Sequence) and not isinstance(prompt, str):
            batch_size = len(prompt)
        noise = latents
        if noise is not None and noise.shape[1:] != mdp.teacher.sample_shape:
            raise ValueError(f"latents must have shape (N, {mdp.teacher.sample_shape}), got {tuple(noise.shape)}")
        count = batch_size if noise is None else len(noise)
        if isinstance(generator, list) and len(generator) != count:
            raise ValueError(f"generator must be one or {count}, one a sample, got {len(generator)}")
        if noise is None:
            shape = (batch_size, *mdp.teacher.sample_shape)
            noise = randn_tensor(shape, generator=generator, device=_device_of(generator), dtype=torch.float32)
        # Levels and samples are float32 at least, whatever the network is.
        noise = noise.to(device, torch.promote_types(noise.dtype, torch.float32))
        mdp, condition = self._with_conditions(mdp, len(noise), generator, class_labels, prompt)
        run = trajectory(mdp, actor, noise, mdp.constant_price(len(noise), price), condition)
        x, changed = noise, None
        # Cheaper than no_grad, but what it makes may not enter a graph: a callback is given ordinary tensors.
        mode = torch.inference_mode() if callback_on_step_end is None else nullcontext()
        with mode, full_precision(device), self.progress_bar(total=mdp.num_steps) as bar:
            for step in range(mdp.num_steps):
                try:
                    state = run.send(changed)
                except StopIteration:  # every sample was finished early
                    break
                x, changed = state.x, None
                bar.update()
                if callback_on_step_end is not None:
                    given = dict.fromkeys(callback_on_step_end_tensor_inputs, x)
                    returned = callback_on_step_end(self, step, state.timestep, given)
                    x = returned.get("latents", x)
                    changed = replace(state, x=x)
        images = mdp.teacher.clip(x).clone()
        if output_type != "latent":
            images = self.image_processor.postprocess(mdp.teacher.images(images), output_type=output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def save_pretrained(
        self, save_directory: str | Path, safe_serialization: bool = True, variant: str | None = None
    ) -> None:
        """Write a folder that this class, :class:`~redif_env.Student` and diffusers read, atomically.

        In addition to diffusers' files it holds ``config.json`` (metadata and the digest of every file), ``README.md``
        (the model card), ``redif_pipeline.py`` (with which ``DiffusionPipeline`` finds this class, if
        ``trust_remote_code=True``) and ``steps.json`` (the mean steps as plain numbers; not for an adaptive number of
        steps or linear steps).

        Raises:
            ValueError: if ``safe_serialization`` is false, because pickles are neither written nor read; or if the
                folder holds files that are not a student's.
        """
        if not safe_serialization:
            raise ValueError("safe_serialization=False writes pickles, which are never read again: leave it True")
        with write_student(save_directory, self.scheduler, self.mdp, self.record) as fresh:
            super().save_pretrained(fresh, variant=variant)
            _name_class(fresh)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        torch_dtype: torch.dtype | None = None,
        variant: str | None = None,
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        allow_imports: bool = False,
    ) -> ReDiFPipeline:
        """Load a student that :meth:`save_pretrained` saved, from a folder or the hub. Pickles are never loaded.

        Args:
            pretrained_model_name_or_path: a folder, or a hub id.
            torch_dtype: type of the network and the policy; as saved if not given.
            variant, revision, token, cache_dir, local_files_only: as in diffusers.
            allow_imports: whether user-defined parts may be imported from the modules that the file names.

        Raises:
            FileNotFoundError: if there is no student.
            ValueError: if it has user-defined parts, and ``allow_imports`` is false.
            CorruptFileError: if a file is missing or was changed.
        """
        folder = Path(pretrained_model_name_or_path).expanduser()
        if not folder.is_dir() and len(folder.parts) == 2 and not folder.is_absolute():
            folder = _fetch(str(pretrained_model_name_or_path), revision, token, cache_dir, local_files_only)
        content = read_student(folder)
        if not (folder / "model_index.json").is_file():
            raise ValueError(
                f"{folder} is a student of a {content['teacher']}, whose networks it does not hold: give "
                "ReDiFPipeline.of(pipe, folder) the pipeline"
            )
        try:
            with stock_defaults():
                pipeline = super().from_pretrained(
                    folder, variant=variant, use_safetensors=True, low_cpu_mem_usage=False
                )
            read_scheduler(pipeline.scheduler.config, content["teacher"])
        except (KeyError, TypeError, RuntimeError, OSError) as error:
            raise CorruptFileError(f"student folder {folder} does not fit together ({error}): {REMEDY}") from error
        # Afterwards, since releases of diffusers disagree on the name of the argument.
        if torch_dtype is not None:
            pipeline.to(torch_dtype)
        pipeline.allow_imports = allow_imports
        for argument in PARTS:
            entry = pipeline.scheduler.config.process[argument]
            if entry not in (LINEAR, OWN):
                part_of(argument, entry, allow_imports)
        pipeline.record = Record(**{field.name: content[field.name] for field in fields(Record)})
        return pipeline

    @classmethod
    def load_config(cls, *args: Any, **kwargs: Any) -> Any:
        """As in diffusers, but that this class never runs a folder's code to find out which class it is."""
        found = super().load_config(*args, **kwargs)
        config = found[0] if isinstance(found, tuple) else found
        config["_class_name"] = cls.__name__
        return found

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str = "Upload ReDiFPipeline",
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
    ) -> str:
        """Upload the folder that :meth:`save_pretrained` writes, model card included.

        Returns:
            The address of the commit.
        """
        target = create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
        with TemporaryDirectory() as temporary:
            folder = Path(temporary) / "student"
            self.save_pretrained(folder)
            return str(
                upload_folder(
                    repo_id=target,
                    folder_path=folder,
                    token=token,
                    commit_message=commit_message,
                    create_pr=create_pr,
                )
            )

    def _parts(self, device: torch.device) -> tuple[DenoisingMDP, Policy]:
        """The process and the policy, built once for each set of components, device and type."""
        parts = (self.unet, self.scheduler, self.policy, self.initial_map, self.linear)
        key = (*map(id, parts), device, None if self.policy is None else self.policy.dtype)
        if self._built is None or self._built[0] != key:
            initial_map = None if self.initial_map is None else self.initial_map.initial_map
            linear = None if self.linear is None else self.linear.solver
            teacher = teacher_of(self.scheduler, self.unet, self._source())
            mdp = process_of(self.scheduler, teacher, initial_map, linear, self.allow_imports)
            if self.policy is not None:
                # A copy: observations are on the host, and so is what decides by them.
                policy = deepcopy(self.policy.policy).to(HOST)
            else:
                table = torch.tensor(self.scheduler.config.process["actions"], dtype=torch.float32, device=HOST)
                policy = Policy.from_table(table, mdp.observation_size)
            self._built = (key, mdp, policy)
        return self._built[1], self._built[2]

    def _source(self) -> DiffusionPipeline | None:
        """The stock pipeline that decodes latents and encodes prompts, of this one's own parts."""
        return stock_pipeline(self.unet, {name: getattr(self, name) for name in COMPONENTS})

    def _with_conditions(
        self,
        mdp: DenoisingMDP,
        count: int,
        generator: torch.Generator | list[torch.Generator] | None,
        class_labels: int | Sequence[int] | None,
        prompt: str | Sequence[str] | None,
    ) -> tuple[DenoisingMDP, Tensor]:
        """The process, and the rows ``(count,)`` of its conditions that the samples are to show."""
        conditions = mdp.teacher.conditions
        if prompt is not None:
            if mdp.teacher.source is None or not isinstance(conditions.values[0], str) or not conditions.inputs:
                raise ValueError(f"prompt={prompt!r} cannot be given to this student, which takes no text")
            requested = [prompt] if isinstance(prompt, str) else list(prompt)
            # The empty prompt too, so that what shows conditions always has a choice of them.
            known = list(dict.fromkeys([*requested, ""]))
            teacher = teacher_of(self.scheduler, self.unet, mdp.teacher.source, known)
            rows = teacher.conditions.rows_of(prompt, count, "prompt")
            return replace(mdp, teacher=teacher), rows
        if class_labels is not None:
            return mdp, conditions.rows_of(class_labels, count, "class_labels")
        if isinstance(generator, list):  # row i depends on generator i alone
            return mdp, torch.cat([conditions.draw(1, own) for own in generator])
        return mdp, conditions.draw(count, torch.default_generator if generator is None else generator)

    def _check(
        self, mdp: DenoisingMDP, num_inference_steps: int | None, output_type: str, tensor_inputs: Sequence[str]
    ) -> None:
        if num_inference_steps not in (None, mdp.num_steps):
            raise ValueError(
                f"num_inference_steps={num_inference_steps}, but this student has learned {mdp.num_steps} steps: "
                "leave it out"
            )
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(f"output_type={output_type!r} is unknown: choose 'pil', 'np', 'pt' or 'latent'")
        if output_type != "latent" and len(mdp.teacher.image_shape) != 3:
            raise ValueError(
                f"output_type={output_type!r} needs images, and samples have shape {mdp.teacher.sample_shape}: "
                "choose 'latent'"
            )
        unknown = sorted(set(tensor_inputs) - set(self._callback_tensor_inputs))
        if unknown:
            raise ValueError(f"callback_on_step_end_tensor_inputs={unknown} are unknown: only 'latents' can be given")


def _name_class(folder: Path) -> None:
    """Say in ``model_index.json`` where diffusers, which knows its own classes alone, finds this one."""
    path = folder / "model_index.json"
    index = json.loads(path.read_text(encoding="utf-8"))
    index["_class_name"] = [CODE_MODULE, ReDiFPipeline.__name__]
    path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    (folder / f"{CODE_MODULE}.py").write_text("from redif_env import ReDiFPipeline  # noqa: F401\n", encoding="utf-8")


def _device_of(generator: torch.Generator | list[torch.Generator] | None) -> torch.device:
    """Where noise is drawn: on the host, so that a seed means the same on every device, unless a generator is not."""
    first = generator[0] if isinstance(generator, list) else generator
    return HOST if first is None else first.device


def _fetch(
    repo_id: str, revision: str | None, token: str | None, cache_dir: str | Path | None, local_files_only: bool
) -> Path:
    """The local copy of a student on the hub; neither pickles nor code are fetched.

    Raises:
        FileNotFoundError: if it is not there, or the hub cannot be reached.
    """
    try:
        return Path(
            snapshot_download(
                repo_id,
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                allow_patterns=["*.json", "*.safetensors", CARD_FILE],
            )
        )
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise FileNotFoundError(f"no student in {repo_id}: no folder of that name, and no hub id ({error})") from error
