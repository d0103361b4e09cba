"""Typed configuration: the YAML files under configs/ and the options a server or command is started with."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from medsa.errors import ConfigurationError

Model = TypeVar("Model", bound=BaseModel)

CONFIGS = Path(os.environ.get("MEDSA_CONFIGS", Path(__file__).resolve().parents[2] / "configs"))


def cache_dir() -> Path:
    """Folder for what can be made again (weights, compiled models); 0700, `MEDSA_CACHE` moves it."""
    path = Path(os.environ.get("MEDSA_CACHE", Path.home() / ".cache" / "medsa"))
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def data_dir() -> Path:
    """Folder for what cannot be made again (versions, who trains and who validates); 0700.

    `MEDSA_DATA` moves it; else it is `medsa` in XDG_DATA_HOME or ~/.local/share.
    """
    shared = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    path = Path(os.environ.get("MEDSA_DATA") or Path(shared) / "medsa")
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def config_names(kind: str) -> list[str]:
    """Names of the files in configs/<kind>, sorted."""
    return sorted(path.stem for path in (CONFIGS / kind).glob("*.yaml"))


def load_config(kind: str, name: str, model: type[Model]) -> Model:
    """Read configs/<kind>/<name>.yaml into `model`; raises `ConfigurationError` naming file and field."""
    if name not in config_names(kind):
        raise ConfigurationError(
            f"unknown {kind.rstrip('s')} '{name}'; choose one of: {', '.join(config_names(kind))}"
        )
    path = CONFIGS / kind / f"{name}.yaml"
    try:
        return model.model_validate({"name": name, **yaml.safe_load(path.read_text("utf-8"))})
    except ValidationError as error:
        raise ConfigurationError(f"{path.name}: {explain(error)}") from None


def explain(error: ValidationError) -> str:
    """One sentence of what pydantic found wrong, field by field."""
    return "; ".join(f"{'.'.join(map(str, e['loc'])) or 'value'}: {e['msg']}" for e in error.errors())


class Options(BaseModel):
    """What `--conf name value` may set."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    backbone: str = Field("lite_medsam", description="a name from configs/backbones")
    method: str = Field("", description="a method from configs/methods: what adapters are made by")
    adapters: str = Field("", description="a folder of adapter versions, or one version")
    adapter: str = Field(
        "", description="the version to serve, by name; 'starter', or 'none' for the backbone alone"
    )
    labels: str = Field("default", description="a label set from configs/labels")
    window: str = Field(
        "auto", description="intensity window: auto, a CT window's name, mr, full, rgb or LOW,HIGH"
    )
    retrain: str = Field("", description='when to retrain: "cron: MINUTE HOUR DAY MONTH WEEKDAY"')
    retrain_after: int = Field(0, ge=0, description="retrain after so many newly labelled images; 0: never")
    retrain_minutes: float = Field(20, gt=0, le=1440, description="minutes that a round trains")
    cache_mb: int = Field(512, ge=16, description="embedding cache in MiB")
    ahead: int = Field(
        2, ge=0, le=32, description="slices on each side of a click that are encoded ahead; 0: none"
    )
    lease_minutes: float = Field(
        30, gt=0, le=1440, description="minutes that the next study stays with whom it was offered to"
    )
    score_minutes: float = Field(
        0, ge=0, le=1440, description="minutes that scoring new studies may take, now and then; 0: when asked"
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")

    @field_validator("backbone")
    @classmethod
    def _backbone(cls, name: str) -> str:
        if name not in config_names("backbones"):
            raise ValueError(
                f"unknown backbone '{name}'; choose one of: {', '.join(config_names('backbones'))}"
            )
        return name

    @field_validator("method")
    @classmethod
    def _method(cls, name: str) -> str:
        if name and name not in config_names("methods"):
            raise ValueError(f"unknown method '{name}'; choose one of: {', '.join(config_names('methods'))}")
        return name

    @field_validator("adapters")
    @classmethod
    def _adapters(cls, folder: str) -> str:
        if folder and not Path(folder).is_dir():
            raise ValueError(f"there is no folder '{folder}'; make it, or name one with adapter versions")
        return folder

    @field_validator("labels")
    @classmethod
    def _labels(cls, name: str) -> str:
        if name not in config_names("labels"):
            raise ValueError(
                f"unknown label set '{name}'; choose one of: {', '.join(config_names('labels'))}"
            )
        return name

    @field_validator("device")
    @classmethod
    def _device(cls, name: str) -> str:
        import torch  # slow to import: `medsa --help` does without

        if name == "auto":
            return "cuda" if torch.cuda.is_available() else "cpu"
        try:
            device = torch.device(name)
        except RuntimeError:
            raise ValueError(f"unknown device '{name}'") from None
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise ValueError(f"device '{name}' is not there: {torch.cuda.device_count()} CUDA devices found")
        return name

    def shown(self) -> dict[str, str | int | float]:
        """What clients may see of them: no paths of this machine."""
        return {**self.model_dump(), "adapters": Path(self.adapters).name if self.adapters else ""}

    @classmethod
    def from_conf(cls, conf: Mapping[str, str]) -> Options:
        """Options from MONAI Label's `--conf` pairs; unknown or bad ones raise `ConfigurationError`."""
        unknown = sorted(set(conf) - set(cls.model_fields))
        if unknown:
            raise ConfigurationError(
                f"unknown option {', '.join(unknown)}; medsa knows: {', '.join(sorted(cls.model_fields))}"
            )
        try:
            return cls.model_validate(dict(conf))
        except ValidationError as error:
            raise ConfigurationError(f"--conf {explain(error)}") from None
