"""Reading and writing checkpoints in the Hugging Face folder layout: ``config.json`` and ``model.safetensors``."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from typing_extensions import Self

from exporter.errors import CheckpointError, ConfigError
from exporter.files import new_file
from exporter.models.config import RobertaPreLayerNormConfig, RoFormerConfig, load_config

__all__ = ["PreTrainedModel", "read_state", "weights_file"]

ConfigT = TypeVar("ConfigT", RoFormerConfig, RobertaPreLayerNormConfig)
logger = logging.getLogger(__name__)
# Between a table computed in float64 (ours, and transformers') and its float16 copy: half a unit of the last place.
TABLE_TOLERANCE = 2.0**-12

SAFETENSORS, PICKLED = "model.safetensors", "pytorch_model.bin"
# Written by old releases, computed by us.
IGNORED_SUFFIXES = ("embeddings.position_ids", "embeddings.token_type_ids")


class PreTrainedModel(nn.Module, Generic[ConfigT]):
    """A model that can be read from and written to a checkpoint folder.

    Args:
        config: Sizes and variants.
    """

    config_class: ClassVar[type[RoFormerConfig] | type[RobertaPreLayerNormConfig]]
    base_model_prefix: ClassVar[str]
    tied_weights: ClassVar[dict[str, str]] = {}  # target -> source, where config.tie_word_embeddings
    aliases: ClassVar[dict[str, str]] = {}  # target -> second name of the same parameter

    def __init__(self, config: ConfigT) -> None:
        super().__init__()
        self.config: ConfigT = config

    @classmethod
    def from_pretrained(
        cls, folder: str | os.PathLike[str], *, max_position_embeddings: int | None = None, **options: Any
    ) -> Self:
        """Loads a checkpoint, in float32 and in evaluation mode.

        Args:
            folder: Holds ``config.json`` and ``model.safetensors`` (or ``pytorch_model.bin``, read without unpickling
                code).
            max_position_embeddings: Extends RoFormer's table of positions beyond the config's. The table is computed,
                so this is exact: shorter inputs keep their results to the bit.
            options: Passed to the constructor.

        Raises:
            CheckpointError: If a file is missing or truncated, or the tensors do not fit the config.
            ConfigError: If the config is of another architecture or wrong, or positions that were learnt would have to
                be extended.
        """
        path = Path(folder)
        config = load_config(path)
        if not isinstance(config, cls.config_class):
            raise ConfigError(
                f"{path} holds a {config.model_type} checkpoint; {cls.__name__} needs "
                f"{cls.config_class.model_fields['model_type'].default}."
            )
        extended = max_position_embeddings is not None
        if max_position_embeddings is not None:
            config = _extended(config, max_position_embeddings)
        state = read_state(path)
        with torch.device("meta"):
            model = cls(config, **(cls.options_for(state) | options))  # type: ignore[arg-type]  # narrowed above
        model.load_state_dict(model._fit(state, weights_file(path), extended=extended), assign=True)
        model.tie_weights()
        return model.eval()

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes ``config.json`` and ``model.safetensors``; tied tensors are written once.

        Raises:
            BundleError: If the folder cannot be written.
        """
        path = Path(folder)
        self.config.architectures = [type(self).__name__]
        skipped = {*self.tied_weights, *self.aliases} if self.config.tie_word_embeddings else set()
        state = {
            name: tensor.detach().cpu().clone() for name, tensor in self.state_dict().items() if name not in skipped
        }
        with new_file(path / SAFETENSORS) as temporary:
            save_file(state, temporary, metadata={"format": "pt"})
        with new_file(path / "config.json") as temporary:
            temporary.write_text(json.dumps(self.config.to_dict(), indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def initialize_weights(self) -> None:
        """Normal weights of ``config.initializer_range``, zero biases, norms at identity, padding rows at zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=self.config.initializer_range)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
            if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                nn.init.zeros_(module.weight[module.padding_idx])
        self.tie_weights()

    def tie_weights(self) -> None:
        """Makes every alias, and every tied weight where the config ties them, the one parameter that it stands for."""
        for target, source in self._ties().items():
            # The alias is the name that nothing computes with; a tied weight is the copy. Both follow the other name.
            kept, replaced = (target, source) if target in self.aliases else (source, target)
            owner, _, attribute = replaced.rpartition(".")
            setattr(self.get_submodule(owner), attribute, self.get_parameter(kept))

    def _ties(self) -> dict[str, str]:
        return self.aliases | (self.tied_weights if self.config.tie_word_embeddings else {})

    @classmethod
    def options_for(cls, _state: Mapping[str, Tensor], /) -> dict[str, Any]:
        """Constructor options that follow from which tensors a checkpoint has."""
        return {}

    def computed_tensors(self) -> dict[str, Tensor]:
        """Tensors that a checkpoint may leave out because they follow from the config."""
        return {}

    def _fit(self, state: dict[str, Tensor], source: Path, *, extended: bool = False) -> dict[str, Tensor]:
        """Maps a checkpoint's tensors onto this model's names and checks that they fit.

        Raises:
            CheckpointError: If a tensor is missing, has the wrong shape or dtype, is not finite, or if the checkpoint
                holds encoder tensors that this config has no place for.
        """
        expected = self.state_dict()
        prefix = f"{self.base_model_prefix}."
        is_base_model = not any(name.startswith(prefix) for name in expected)
        if is_base_model and any(name.startswith(prefix) for name in state):
            heads = [name for name in state if not name.startswith(prefix)]
            logger.info("%s: heads that %s does not use: %s", source, type(self).__name__, ", ".join(heads))
            state = {name.removeprefix(prefix): state[name] for name in state if name.startswith(prefix)}
        elif not is_base_model and not any(name.startswith(prefix) for name in state):
            heads = [name for name in expected if not name.startswith(prefix)]
            raise CheckpointError(
                f"{source} holds a model without a head, so {type(self).__name__} would get a random one "
                f"({', '.join(heads[:3])}, …). Export it as feature-extraction, or give the trained checkpoint."
            )
        for target, other in self._ties().items():
            if target not in state and other in state:
                state[target] = state[other]
            elif other not in state and target in state:
                state[other] = state[target]
            elif self.config.tie_word_embeddings and target in state and not torch.equal(state[target], state[other]):
                raise CheckpointError(
                    f"{source}: {target} and {other} differ, but config.json ties them. "
                    f"Set tie_word_embeddings to false to keep both."
                )
        for name, computed in self.computed_tensors().items():
            stored = state.setdefault(name, computed)
            if extended and stored.shape[1:] == computed.shape[1:] and len(stored) <= len(computed):
                rows = len(stored)
                if not torch.allclose(stored.to(torch.float32), computed[:rows], rtol=0, atol=TABLE_TOLERANCE):
                    raise CheckpointError(
                        f"{source}: {name} is not the table that follows from the config, so it cannot be extended."
                    )
                state[name] = torch.cat((stored.to(torch.float32), computed[rows:]))

        missing = [name for name in expected if name not in state]
        if missing:
            raise CheckpointError(
                f"{source} lacks {len(missing)} of the {len(expected)} tensors that {type(self).__name__} needs: "
                f"{', '.join(missing[:5])}{', …' if len(missing) > 5 else ''}. "
                f"Check num_hidden_layers and architectures in config.json, or copy the file again."
            )
        unused = [name for name in state if name not in expected and "pooler." not in name]
        strays = [name for name in unused if is_base_model or name.startswith(prefix)]
        if strays:
            raise CheckpointError(
                f"{source} holds {len(strays)} encoder tensors that config.json has no place for: "
                f"{', '.join(strays[:5])}{', …' if len(strays) > 5 else ''}. "
                f"Check num_hidden_layers and the other sizes in config.json."
            )
        if unused:
            logger.info("%s: tensors that %s does not use: %s", source, type(self).__name__, ", ".join(unused))

        fitted = {}
        for name, place in expected.items():
            tensor = state[name]
            if tensor.shape != place.shape:
                raise CheckpointError(
                    f"{source}: tensor {name} has shape {tuple(tensor.shape)}; config.json asks for "
                    f"{tuple(place.shape)}."
                )
            if not tensor.is_floating_point():
                raise CheckpointError(f"{source}: tensor {name} is {tensor.dtype}; expected a floating-point dtype.")
            fitted[name] = tensor.to(torch.float32)
            if not fitted[name].isfinite().all():
                raise CheckpointError(f"{source}: tensor {name} holds NaN or infinity; no engine can be right on it.")
        return fitted


def _extended(config: RoFormerConfig | RobertaPreLayerNormConfig, positions: int) -> RoFormerConfig:
    """The config with a larger max_position_embeddings.

    Raises:
        ConfigError: If the positions are learnt, or would become fewer.
    """
    if not isinstance(config, RoFormerConfig):
        raise ConfigError(
            f"max_position_embeddings={positions} was asked for, but the positions of a {config.model_type} model are "
            f"learnt: only computed ones (RoFormer's) can be extended."
        )
    if positions < config.max_position_embeddings:
        raise ConfigError(
            f"max_position_embeddings can be extended from {config.max_position_embeddings} upwards; got {positions}."
        )
    return RoFormerConfig(**(config.to_dict() | {"max_position_embeddings": positions}))


def weights_file(folder: Path) -> Path:
    """The file that holds a checkpoint's weights.

    Raises:
        CheckpointError: If there is none.
    """
    for name in (SAFETENSORS, PICKLED):
        if (folder / name).is_file():
            return folder / name
    if (folder / f"{SAFETENSORS}.index.json").is_file():
        raise CheckpointError(
            f"{folder} holds a checkpoint in several shards, which is not supported: both families fit one file. "
            f"Save it again with max_shard_size='10GB'."
        )
    raise CheckpointError(f"{folder} has no {SAFETENSORS} (nor {PICKLED}): copy the weights beside config.json.")


def read_state(folder: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint folder, by name, on the CPU, with the old spellings gamma and beta renamed.

    Raises:
        CheckpointError: If the file is missing, truncated, or holds anything but tensors.
    """
    path = weights_file(folder)
    try:
        is_safetensors = path.name == SAFETENSORS
        state = load_file(path) if is_safetensors else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to spell
        reason = next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
        raise CheckpointError(
            f"{path} ({path.stat().st_size} bytes) cannot be read: {reason}. "
            f"The file is truncated, damaged or holds more than tensors: copy it again from a source that you trust."
        ) from error
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in state.items()
    ):
        raise CheckpointError(f"{path} must hold tensors by name; it holds something else.")
    return {
        name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias"): tensor
        for name, tensor in state.items()
        if not name.endswith(IGNORED_SUFFIXES)
    }
