"""Loading a model whole, freezing parts of it, and asking it for log-probabilities."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer, GenerationConfig

from visd.config import ConfigError, ModelSection
from visd.media.families import family_from_config
from visd.media.families.base import Family
from visd.policy import lora
from visd.policy.attention import share_prefixes
from visd.policy.batch import Row, Shown, VisionFeatures, build_inputs
from visd.policy.model import PolicyModel
from visd.policy.oom import memory_of
from visd.policy.prefix import build_shared_inputs
from visd.policy.quantize import is_quantized, numbers_of, plain_weight, quantize_language_model
from visd.policy.vision import Tower, encode_media, multiply_patches, take_tower, vision_modules
from visd.types import Prompt, Rollout, ScoreNeeds, TokenScores, VisdError, VisionInputs

Forward = Callable[..., dict[str, Tensor]]


@dataclass(frozen=True)
class ModuleCount:
    """Parameters of one part of the model."""

    part: str  # encoder, projector, language
    trained: int
    frozen: int


class Policy:
    """The policy: the trained module, its frozen vision tower if that stands outside, and the ids it may not sample."""

    def __init__(
        self,
        model: PolicyModel,
        tower: Tower | None,
        source: str,
        eos_ids: tuple[int, ...],
        adapter_scale: float | None = None,
        compute_dtype: torch.dtype = torch.float32,
    ):
        self.model = model
        self.tower = tower
        self.source = source  # folder or hub id the weights came from
        self.eos_ids = eos_ids
        self.compute_dtype = compute_dtype  # of activations
        self.adapter_scale = adapter_scale  # factor of the adapters' products; None without adapters
        self.family = model.family
        self.shares_prefixes = False
        self.sharing_confirmed = False  # rows with shared prefixes were compared with rows by themselves
        self.tower_calls = 0
        self._features: dict[str, VisionFeatures] = {}

    @classmethod
    def load(
        cls, section: ModelSection, device: torch.device, weight_dtype: torch.dtype | None = None, seed: int = 0
    ) -> Policy:
        """Load a checkpoint, freeze its parts, take a frozen tower out and put adapters in, if any are wanted.

        Args:
            weight_dtype: dtype of the trained module's weights; default: the dtype of its activations.
            seed: decides initial adapters.

        Raises:
            ConfigError: no such model, or a part to freeze or adapt that it does not have.
            VisdError: weights are missing or left over.
        """
        config = _hf_config(section.path)
        lora.check_section(section, config)
        family = family_from_config(config, AutoTokenizer.from_pretrained(section.path))
        compute = compute_dtype(section, device)
        hf = _load_whole(section, family, weight_dtype or compute)
        frozen = frozen_parts(section.freeze)
        freeze(hf, family, frozen)
        if section.gradient_checkpointing:
            hf.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        for module in vision_modules(hf, family):
            multiply_patches(module)
        adapters = section.lora
        outside = (
            family.has_media and {"encoder", "projector"} <= frozen and not (adapters.rank and adapters.vision_targets)
        )
        tower = take_tower(hf, family).to(compute) if outside else None
        if adapters.quantize != "none":
            quantize_language_model(hf, family, adapters.quantize, compute, device)
        if adapters.rank:
            lora.add_adapters(hf, family, adapters, seed)
        eos = _eos_ids(hf.generation_config, hf.config)
        model = PolicyModel(hf, family, tower_inside=family.has_media and tower is None)
        scale = adapters.alpha / adapters.rank if adapters.rank else None
        tower = tower.to(device) if tower is not None else None
        policy = cls(model.to(device), tower, section.path, eos, scale, compute)
        policy.set_training(False)
        return policy

    @classmethod
    def outline(cls, section: ModelSection, device: torch.device) -> Policy:
        """All that an engine with weights of its own asks of a policy. The weights themselves take no memory here.

        Raises:
            ConfigError: no such model.
        """
        config = _hf_config(section.path)
        family = family_from_config(config, AutoTokenizer.from_pretrained(section.path))
        with torch.device("meta"):
            hf = (AutoModelForImageTextToText if family.has_media else AutoModelForCausalLM).from_config(config)
        try:
            generation = GenerationConfig.from_pretrained(section.path)
        except OSError:  # the folder has none, and transformers derives it from the model's
            generation = hf.generation_config
        model = PolicyModel(hf, family, tower_inside=family.has_media)
        model.banned = model.banned.to(device)
        return cls(
            model, None, section.path, _eos_ids(generation, config), compute_dtype=compute_dtype(section, device)
        )

    @property
    def device(self) -> torch.device:
        return self.model.banned.device

    @property
    def max_positions(self) -> int:
        """Tokens of the longest sequence that the model is made for."""
        return int(self.model.hf.config.get_text_config().max_position_embeddings)

    def set_training(self, training: bool) -> None:
        """Dropout is never used; training mode only switches gradient checkpointing on."""
        self.model.train(training)

    def share_prefixes(self) -> None:
        """From now on `score` runs what a sample's rows begin with once, instead of once a row.

        Raises:
            VisdError: the model's attention cannot.
        """
        share_prefixes(self.model.text_model)
        self.shares_prefixes = True

    @torch.no_grad()
    def encode(self, prompts: Sequence[Prompt]) -> list[VisionFeatures | None]:
        """Features of each prompt from the tower outside; None for text and for a tower inside.

        The tower is called once a prompt until `forget_features`; a prompt with privileged text has the same media
        and finds the features of the plain one.
        """
        if self.tower is None:
            return [None] * len(prompts)
        features: list[VisionFeatures | None] = []
        for prompt in prompts:
            if not prompt.vision.empty and prompt.sample_id not in self._features:
                modules, types = list(self.tower), [prompt.mm_token_type_ids]
                with memory_of("encode", [prompt.sample_id]):
                    self._features[prompt.sample_id] = encode_media(self.family, modules, [prompt.vision], types)[0]
                self.tower_calls += 1
            features.append(self._features.get(prompt.sample_id))
        return features

    def keep_features(self, key: str, features: VisionFeatures) -> None:
        """Features that are known already, until `forget_features`; `encode` finds them by `Prompt.sample_id`."""
        self._features[key] = features

    @torch.no_grad()
    def encode_images(self, images: VisionInputs, token_types: Tensor) -> VisionFeatures:
        """Features of images from the tower outside; [T] types of the tokens that hold their placeholders."""
        assert self.tower is not None, "media in an answer are refused where the tower is trained"
        self.tower_calls += 1
        return encode_media(self.family, list(self.tower), [images], [token_types])[0]

    def shown(self, sample_id: str, rollout: Rollout) -> Shown | None:
        """What tools showed in a rollout, for its row; the tower is called once until `forget_features`."""
        media = rollout.media
        if media is None:
            return None
        key = answer_key(sample_id, rollout.seed)
        if key not in self._features:
            self._features[key] = self.encode_images(media.vision, media.token_types)
        return Shown(media, rollout.own, self._features[key])

    def row(self, prompt: Prompt, rollout: Rollout, features: VisionFeatures | None) -> Row:
        """A rollout after a prompt."""
        return Row(prompt, rollout.token_ids, features, self.shown(prompt.sample_id, rollout))

    def forget_features(self, keep: Collection[str] = ()) -> None:
        """Free the features at the end of a step, except of some samples."""
        self._features = {sample_id: found for sample_id, found in self._features.items() if sample_id in keep}

    def score(
        self,
        rows: Sequence[Row],
        *,
        temperature: float,
        needs: ScoreNeeds,
        support_ids: Tensor | None = None,
        forward: Forward | None = None,
        shared: bool | None = None,
    ) -> TokenScores:
        """Scores of the rows' response tokens.

        Args:
            forward: the parallel wrapper's; default: the module itself.
            shared: whether rows that begin alike do so once; default: as `share_prefixes` was called or not.
        """
        shared = self.shares_prefixes if shared is None else shared
        inputs = (build_shared_inputs if shared else build_inputs)(rows).to(self.device)
        scores = (forward or self.model)(inputs, temperature, needs, support_ids)
        return TokenScores(**scores)

    def parameter_table(self) -> list[ModuleCount]:
        """Trained and frozen parameters by part."""
        counts: dict[str, list[int]] = {}
        for part, parameter in self._parts():
            counts.setdefault(part, [0, 0])[0 if parameter.requires_grad else 1] += numbers_of(parameter)
        return [ModuleCount(part, *count) for part, count in counts.items()]

    def _parts(self) -> Iterable[tuple[str, nn.Parameter]]:
        for name, parameter in self.model.hf.named_parameters():
            yield part_of(name, self.family), parameter
        for path, module in self._outside():
            for name, parameter in module.named_parameters():
                yield part_of(f"{path}.{name}", self.family), parameter

    def _outside(self) -> Iterable[tuple[str, nn.Module]]:
        """The modules of the tower outside, by their paths in the Hugging Face model."""
        return zip(self.family.vision_modules, self.tower, strict=True) if self.tower is not None else ()

    def changing_names(self) -> set[str]:
        """Parameters of the trained module whose plain weights are not those of the folder: what is trained, what has an
        adapter, and what is quantised."""
        own = self.model.named_parameters()
        return {
            name
            for name, p in own
            if p.requires_grad or name.endswith((lora.A, lora.B)) or lora.is_adapted(name) or is_quantized(p)
        }

    def plain(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Tensors of the trained module by name, those of quantised weights as a forward computes with them."""
        packed = {name: p for name, p in self.model.named_parameters() if is_quantized(p)}
        for name, value in weights:
            yield name, plain_weight(packed[name]) if name in packed else value

    def tower_state(self) -> dict[str, Tensor]:
        """The outside tower's weights under their names in the Hugging Face model."""
        states = ((path, module.state_dict()) for path, module in self._outside())
        return {f"{path}.{name}": value for path, state in states for name, value in state.items()}


def answer_key(sample_id: str, seed: int) -> str:
    """By which features of an answer's media are kept; no sample's id."""
    return f"{sample_id}\n{seed}"


def compute_dtype(section: ModelSection, device: torch.device) -> torch.dtype:
    """The dtype of activations: bfloat16 on a GPU and float32 on a CPU unless the config says otherwise."""
    if section.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return torch.bfloat16 if section.dtype == "bfloat16" else torch.float32


def part_of(name: str, family: Family) -> str:
    """encoder, projector or language, by a parameter's name in the Hugging Face model."""
    if _below(name, family.projector_modules):
        return "projector"
    return "encoder" if _below(name, family.vision_modules) else "language"


def _below(name: str, paths: Iterable[str]) -> bool:
    return any(name.startswith(f"{path}.") for path in paths)


def frozen_parts(names: Sequence[str]) -> set[str]:
    """`model.freeze` in terms of parts: `vision` is the whole tower, encoder and projector."""
    parts = set(names)
    return (parts - {"vision"}) | ({"encoder", "projector"} if "vision" in parts else set())


def freeze(hf: nn.Module, family: Family, frozen: set[str]) -> None:
    """Stop gradients into the named parts."""
    for name, parameter in hf.named_parameters():
        parameter.requires_grad_(part_of(name, family) not in frozen)


def _hf_config(path: str) -> Any:
    try:
        return AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"model.path: {path!r} is no Hugging Face model folder or hub id ({error}).") from error


def _load_whole(section: ModelSection, family: Family, dtype: torch.dtype) -> Any:
    auto = AutoModelForImageTextToText if family.has_media else AutoModelForCausalLM
    hf, info = auto.from_pretrained(
        section.path, dtype=dtype, attn_implementation=section.attention, output_loading_info=True
    )
    problems = {k: sorted(map(str, v)) for k, v in info.items() if v}
    if problems:
        first = "; ".join(f"{kind}: {', '.join(names[:3])} ({len(names)})" for kind, names in problems.items())
        raise VisdError(
            f"model.path: the weights in {section.path!r} do not fit the model {type(hf).__name__} ({first}). "
            "Take a complete checkpoint of this architecture."
        )
    return hf


def _eos_ids(generation: GenerationConfig, config: Any) -> tuple[int, ...]:
    eos = generation.eos_token_id if generation.eos_token_id is not None else config.get_text_config().eos_token_id
    if eos is None:
        raise VisdError("the model's generation_config.json names no eos_token_id: add the end-of-turn id there.")
    return tuple(eos) if isinstance(eos, (list, tuple)) else (int(eos),)


def export(policy: Policy, state: dict[str, Tensor], folder: Path) -> None:
    """Write weights, adapters merged into them, config and generation config as a plain Hugging Face folder.

    Args:
        state: whole weights of the trained module, by its own names (`hf.` first).
    """
    if policy.adapter_scale is not None:
        plain = {name: value.cpu() for name, value in policy.plain(state.items())}
        state = lora.merged(plain, policy.adapter_scale)
    weights = {name.removeprefix("hf."): value for name, value in state.items()} | policy.tower_state()
    hf = policy.model.hf
    hf.save_pretrained(folder, state_dict=weights)
