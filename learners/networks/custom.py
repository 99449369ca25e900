"""A user's own encoder by import path: any ``nn.Module`` that turns the observation into a vector."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from onibi.platform.config import Settings
from onibi.platform.errors import ConfigError, SpecError
from onibi.platform.redaction import without_secrets
from onibi.platform.spec import ArraySpec
from onibi.platform.user_code import raised_at

_PROBE_ROWS = 2
_EXAMPLE = "my_package.networks:MyEncoder"


@dataclass(frozen=True, kw_only=True)
class CustomNetworkSettings(Settings):
    """``path`` names what is called as ``path(observation_specs, **arguments)`` and returns an ``nn.Module``.

    Its ``forward`` takes a dict of these leaves and no others (so no action mask), each [B, ...] in the stored dtype,
    and returns [B, features] float32.
    """

    kind: Literal["custom"] = "custom"
    path: str = ""  # module:name
    arguments: dict[str, bool | int | float | str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what cannot be an import path."""
        module, colon, name = self.path.partition(":")
        if not (module and colon and name.isidentifier()):
            raise ValueError(f"path is {self.path!r}; expected module:name, as in {_EXAMPLE}")


class CustomEncoder(nn.Module):
    """The user's module, tried once with zeros to learn how many features it gives.

    Args:
        settings: where it is and its arguments.
        observation: the leaves.
    Raises: ConfigError where it cannot be imported or made, SpecError where it does not take the observation or returns
        something else than [B, features] float32.
    """

    Settings = CustomNetworkSettings

    def __init__(self, settings: CustomNetworkSettings, observation: tuple[ArraySpec, ...]) -> None:
        super().__init__()
        self._names = tuple(spec.name for spec in observation)
        self.module = _make(settings, observation)
        self.features = _probe(self.module, settings.path, observation)

    @staticmethod
    def numpy_form(_settings: CustomNetworkSettings, _observation: tuple[ArraySpec, ...]) -> None:
        """None: actors need torch."""

    def learn_statistics(self, observation: Mapping[str, Tensor]) -> None:
        """Passed on where the module has a method of this name."""
        learn = getattr(self.module, "learn_statistics", None)
        if learn is not None:
            learn(self._own(observation))

    def forward(self, observation: Mapping[str, Tensor]) -> Tensor:
        """Each leaf [B, ...] → [B, features] float32."""
        return self.module(self._own(observation))  # type: ignore[no-any-return]

    def _own(self, observation: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The leaves that the module was made for: an action mask, noise or a core's state come beside them."""
        return {name: observation[name] for name in self._names}


def _make(settings: CustomNetworkSettings, observation: tuple[ArraySpec, ...]) -> nn.Module:
    where = f"learner.network.path={settings.path}"
    module_name, _, name = settings.path.partition(":")
    try:
        maker = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"{where}: {error}. Install the package, or put its folder on PYTHONPATH; expected as in {_EXAMPLE}."
        ) from error
    try:
        module = maker(observation, **settings.arguments)
    except Exception as error:  # what a user's code may raise is not ours to list
        raise ConfigError(
            f"{where} raised {type(error).__name__}: {error}{raised_at(error)}. It is called with the observation's "
            f"ArraySpecs and learner.network.arguments {without_secrets(settings.arguments)}."
        ) from error
    if not isinstance(module, nn.Module):
        raise ConfigError(f"{where} made a {type(module).__name__}; expected a torch.nn.Module.")
    return module


def _probe(module: nn.Module, path: str, observation: tuple[ArraySpec, ...]) -> int:
    zeros = {spec.name: torch.from_numpy(np.zeros((_PROBE_ROWS, *spec.shape), spec.dtype)) for spec in observation}
    training = module.training
    try:
        with torch.no_grad():
            features = module.eval()(zeros)
    except Exception as error:
        leaves = ", ".join(f"{spec.name} {spec.dtype} {list(spec.shape)}" for spec in observation)
        raise SpecError(
            f"learner.network.path={path}: forward raised {type(error).__name__}: {error}{raised_at(error)}. It got a "
            f"dict of {leaves}, each with {_PROBE_ROWS} rows in front."
        ) from error
    finally:
        module.train(training)
    if not isinstance(features, Tensor) or features.dtype != torch.float32 or features.shape[:-1] != (_PROBE_ROWS,):
        found = f"{features.dtype} {list(features.shape)}" if isinstance(features, Tensor) else type(features).__name__
        raise SpecError(
            f"learner.network.path={path}: forward returned {found} for {_PROBE_ROWS} rows; expected torch.float32 "
            f"[{_PROBE_ROWS}, features]."
        )
    return int(features.shape[1])
