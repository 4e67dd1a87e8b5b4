"""config.toml and ``DARKROOM_…`` variables, as one frozen ``Config``.

Every key has a default: a file with ``[folders] root`` alone, or none at all, is enough. A variable's name is the
key's path with double underscores: ``DARKROOM_FOLDERS__ROOT=/srv/darkroom``.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

from darkroom.errors import ConfigError

ENV_PREFIX = "DARKROOM_"
HUB = "hub:"
"""How a model's path begins that is an id on the hub, ``hub:owner/name``, and no path at all."""
ENV_CONFIG = "DARKROOM_CONFIG"

OutputFormat = Literal["png", "jpeg", "webp"]
OnOom = Literal["degrade", "fail"]
Safety = Literal["off", "blur", "fail"]
MissingLora = Literal["fail", "warn"]


def _device(name: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name):
        raise ValueError("must be auto, cpu, mps, cuda, or one GPU as cuda:1")
    return name


def _address(text: str) -> str:
    host, colon, port = text.rpartition(":")
    if not (host and colon and port.isdigit() and int(port) <= 65_535):
        raise ValueError("must be an address and a port, as 127.0.0.1:9108 or [::1]:9108")
    return text


def _web_address(text: str) -> str:
    if not re.fullmatch(r"https?://[^/\s]+\S*", text):
        raise ValueError("must begin with https:// (or http:// on a network that you trust)")
    return text


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), defer_build=True)


class Folders(_Section):
    """Where the spool is. All four folders must be on one file system."""

    root: Path = Path("spool")
    inbox: Path | None = None
    working: Path | None = None
    done: Path | None = None
    failed: Path | None = None

    def named(self, name: Literal["inbox", "working", "done", "failed"]) -> Path:
        """One of the four, ``<root>/<name>`` unless configured by itself."""
        chosen: Path | None = getattr(self, name)
        return chosen or self.root / name


class ModelDefaults(_Section):
    """What a job gets where it leaves these fields out."""

    num_inference_steps: int | None = Field(None, ge=1, le=150)
    guidance_scale: float | None = Field(None, ge=0, le=30)
    width: int | None = Field(None, ge=64, multiple_of=8)
    height: int | None = Field(None, ge=64, multiple_of=8)
    sampler: str | None = None
    schedule: str | None = None
    negative_prompt: str | None = None
    clip_skip: int | None = Field(None, ge=1, le=12)


def _path(path: Path) -> Path:
    text = str(path)
    if text.startswith(HUB) and not re.fullmatch(r"hub:[\w.-]+/[\w.-]+(@[\w./-]+)?", text):
        raise ValueError("an id on the hub is written hub:owner/name, or hub:owner/name@revision")
    return path


class ModelEntry(ModelDefaults):
    """``[models.NAME]``: where a model is, what belongs to it, and its defaults."""

    path: Annotated[Path, AfterValidator(_path)]
    """A diffusers folder, a checkpoint ``*.safetensors``, or ``hub:owner/name``."""
    base: str | None = None
    """For a checkpoint: a folder of the same family, by its model's name or, with a slash in it, by its path."""
    vae: Path | None = None
    """Another VAE than the model's own: a diffusers folder of one, or a ``*.safetensors`` file."""
    tiny_vae: Path | None = None
    """A small decoder beside it, for jobs that ask for one: a diffusers folder of an ``AutoencoderTiny``."""

    safety: Safety | None = None
    """What happens to pictures that the safety checker flags; None is as ``[models] safety`` says."""
    safety_checker: str | None = None
    """Another checker than the model's own: a diffusers folder of one, or ``fake``."""

    @property
    def hub(self) -> str | None:
        """``owner/name`` or ``owner/name@revision``, where the model comes from the hub."""
        text = str(self.path)
        return text.removeprefix(HUB) if text.startswith(HUB) else None


class Models(_Section):
    """``[models]``: the default model, a folder of models, and models one by one as ``[models.NAME]``."""

    default: str = "seedling"
    models_dir: Path | None = None
    loras_dir: Path | None = None
    missing_lora: MissingLora = "fail"
    hub_dir: Path | None = None
    allow_download: bool = False
    keep_bytes: int | None = Field(None, ge=0)
    safety: Safety = "off"
    named: dict[str, ModelEntry] = Field(default_factory=dict)

    def hub_folder(self, hub: str) -> Path:
        """Where ``darkroom pull`` puts a model from the hub."""
        return (self.hub_dir or user_cache() / "hub") / hub.replace("/", "--")

    @model_validator(mode="before")
    @classmethod
    def _gather_named(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        named = {key: value for key, value in data.items() if isinstance(value, dict) and key != "named"}
        rest = {key: value for key, value in data.items() if key not in named}
        return {**rest, "named": {**rest.get("named", {}), **named}}


class ExecutorSettings(_Section):
    """``[executor]``: where jobs run."""

    kind: Literal["local", "fake"] = "local"
    max_attempts: int = Field(3, ge=1, le=100)


class EngineSettings(_Section):
    """``[engine]``: how pictures are made."""

    device: Annotated[str, AfterValidator(_device)] = "auto"
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    backend: Literal["torch", "openvino"] = "torch"
    openvino_precision: Literal["auto", "int8"] = "auto"
    cuda_graphs: bool = False
    threads: int = Field(0, ge=0, le=1024)
    max_batch: int = Field(8, ge=1, le=64)
    batch_across_jobs: bool = False
    on_oom: OnOom = "degrade"
    stall_s: float = Field(600, gt=0)
    stop_s: float = Field(5, gt=0, le=600)
    preload: bool = False
    idle_unload_s: float = Field(600, ge=0)
    recycle_after_jobs: int = Field(1000, ge=0)
    recycle_above_bytes: int = Field(0, ge=0)
    recycle_on_model_change: bool = False
    cache_dir: Path | None = None


class Limits(_Section):
    """``[limits]``: what a job may ask for, and what the spool may use."""

    max_width: int = Field(2048, ge=64)
    max_height: int = Field(2048, ge=64)
    max_pixels: int = Field(2048 * 2048, ge=64 * 64)
    max_count: int = Field(1000, ge=1, le=1000)
    max_steps: int = Field(150, ge=1, le=150)
    max_jobs_per_file: int = Field(10_000, ge=1, le=1_000_000)
    max_job_bytes: int = Field(1 << 20, ge=64, le=1 << 30)
    max_picture_bytes: int = Field(64 << 20, ge=64, le=1 << 30)
    max_picture_pixels: int = Field(64 << 20, ge=1)
    image_roots: tuple[Path, ...] = ()
    min_free_bytes: int = Field(256 << 20, ge=0)


class Prompts(_Section):
    """``[prompts]``: what may stand in prompts besides words."""

    dynamic: bool = False
    wildcards_dir: Path | None = None


class IntakeSettings(_Section):
    """``[intake]``: when a dropped file counts as whole, how often the inbox is looked through, and who is next."""

    settle_s: float = Field(10, ge=0.1)
    network_settle_s: float = Field(60, ge=0.1)
    rescan_s: float = Field(5, ge=0.05)
    network_rescan_s: float = Field(2, ge=0.05)
    fair: bool = False
    affinity_max_wait_s: float = Field(0, ge=0)


class Output(_Section):
    """``[output]``: how pictures are saved where the job does not say, and what people are shown besides them."""

    format: OutputFormat = "png"
    quality: int = Field(92, ge=1, le=100)
    previews: bool = True
    contact_sheet: bool = True
    page: bool = True


class Log(_Section):
    """``[log]``: what is written to the log, and how."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "console"] = "auto"
    prompts: bool = True


class Retention(_Section):
    """``[retention]``: what of the results is kept; without a rule, all of it."""

    done_days: float | None = Field(None, gt=0)
    done_count: int | None = Field(None, ge=0)
    done_bytes: int | None = Field(None, ge=0)
    failed_days: float | None = Field(None, gt=0)
    failed_count: int | None = Field(None, ge=0)
    failed_bytes: int | None = Field(None, ge=0)


class MetricsSettings(_Section):
    """``[metrics]``: where Prometheus finds the daemon's figures."""

    listen: Annotated[str, AfterValidator(_address)] | None = None
    textfile: Path | None = None


class Notify(_Section):
    """``[notify]``: who is told of each verdict."""

    command: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    command_timeout_s: float = Field(30, gt=0, le=600)
    webhook: Annotated[str, AfterValidator(_web_address)] | None = None
    webhook_timeout_s: float = Field(10, gt=0, le=600)
    secret: SecretStr | None = None


class Config(_Section):
    """The whole configuration, frozen. Made by ``load``."""

    folders: Folders = Folders.model_construct()
    models: Models = Models.model_construct()
    executor: ExecutorSettings = ExecutorSettings.model_construct()
    engine: EngineSettings = EngineSettings.model_construct()
    limits: Limits = Limits.model_construct()
    prompts: Prompts = Prompts.model_construct()
    presets: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """``[presets.NAME]``: fields of a job. See ``job.read_presets``."""
    intake: IntakeSettings = IntakeSettings.model_construct()
    output: Output = Output.model_construct()
    log: Log = Log.model_construct()
    retention: Retention = Retention.model_construct()
    metrics: MetricsSettings = MetricsSettings.model_construct()
    notify: Notify = Notify.model_construct()

    @model_validator(mode="before")
    @classmethod
    def _outranked(cls, data: Any) -> Any:
        """The environment outranks the file, whose content is what ``Config`` is called with."""
        return _merged(data, _environment())


def _environment() -> dict[str, Any]:
    """What the variables set, by section and key. Lists and tables are written as JSON."""
    found: dict[str, Any] = {}
    for variable, value in os.environ.items():
        *path, key = variable.removeprefix(ENV_PREFIX).lower().split("__")
        if not variable.startswith(ENV_PREFIX) or not path:
            continue
        section = found
        for name in path:
            if not isinstance(section.get(name), dict):
                section[name] = {}
            section = section[name]
        section[key] = _decoded(value)
    return found


def _decoded(value: str) -> Any:
    if value.startswith(("[", "{")):
        try:
            return json.loads(value)
        except ValueError:
            pass  # a text that begins like this
    return value


def _merged(below: Any, above: dict[str, Any]) -> dict[str, Any]:
    """Sections and keys of both, those of ``above`` where both have one."""
    merged = below.model_dump(exclude_unset=True) if isinstance(below, BaseModel) else dict(below)
    for key, value in above.items():
        deeper = isinstance(value, dict) and isinstance(merged.get(key), dict | BaseModel)
        merged[key] = _merged(merged[key], value) if deeper else value
    return merged


def user_cache() -> Path:
    """The user's folder for what can be made or fetched again."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "darkroom"


def load(file: Path | None = None, *, root: Path | None = None) -> Config:
    """Read the configuration.

    ``file`` defaults to ``$DARKROOM_CONFIG``, then ``./config.toml`` if there is one, then to nothing but defaults.
    Relative paths in it are relative to the file's folder. ``root`` (from the command line) outranks both file and
    environment. Raises ConfigError: one line for each fault, naming the file or variable, the key and the remedy.
    """
    if file is None and os.environ.get(ENV_CONFIG):
        file = Path(os.environ[ENV_CONFIG])
    if file is None and Path("config.toml").is_file():
        file = Path("config.toml")
    data = {} if file is None else _read(file)
    _refuse_unknown_variables()
    try:
        config = Config(**data)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(fault, file) for fault in error.errors())) from None
    config = _absolute(config, file.resolve().parent if file else Path.cwd())
    if root is not None:
        folders = Folders(root=root.absolute())
        config = config.model_copy(update={"folders": folders})
    return config


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{file}: there is no such file; name another with --config") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file}: not TOML: {error}") from None


def _refuse_unknown_variables() -> None:
    """A misspelled variable would otherwise be ignored in silence."""
    for variable in os.environ:
        if not variable.startswith(ENV_PREFIX) or variable == ENV_CONFIG:
            continue
        path = variable.removeprefix(ENV_PREFIX).lower().split("__")
        known = _keys_at(path[:-1])
        if len(path) == 1 or (known is not None and path[-1] not in known):
            near = difflib.get_close_matches(variable, _variables(), n=1, cutoff=0.6)
            hint = f"did you mean {near[0]}?" if near else "unset it"
            raise ConfigError(f"environment: {variable}: no such setting; {hint}")


def _variables() -> list[str]:
    """Every variable that sets something."""
    paths = [f"{section}__{key}" for section in Config.model_fields for key in _keys_at([section]) or ()]
    return [ENV_CONFIG, *(ENV_PREFIX + path.upper() for path in paths)]


def _keys_at(path: list[str]) -> list[str] | None:
    """The keys that the section at ``path`` knows, or None where any key is fine (a model's name)."""
    section: type[BaseModel] = Config
    for key in path:
        field = section.model_fields.get(key)
        if field is None:
            if section is Models:
                section = ModelEntry
                continue
            return []
        if not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return None
        section = field.annotation
    return [key for key in section.model_fields if key != "named"]


def _nearest(key: str, known: list[str]) -> str | None:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if near:
        return f"did you mean {near[0]}?"
    return f"known here: {', '.join(known)}" if known else None


def _explain(fault: Any, file: Path | None) -> str:
    """One pydantic error as one line: where, which key, what to do."""
    path = [str(part) for part in fault["loc"] if part != "named"]
    variable = ENV_PREFIX + "__".join(path).upper()
    where = f"environment: {variable}" if variable in os.environ else f"{file or 'configuration'}: {_toml_name(path)}"
    if fault["type"] == "extra_forbidden":
        hint = _nearest(path[-1], _keys_at(path[:-1]) or [])
        if path[:-1] == ["models"]:
            hint = f"{hint}; a model of your own is a table, [models.{path[-1]}] with a path"
        if isinstance(fault["input"], dict):
            return f"{file}: [{'.'.join(path)}]: no such section; {hint or 'remove it'}"
        return f"{where}: no such key; {hint or 'remove it'}"
    if fault["type"] == "missing":
        return f"{where}: missing; add it"
    if fault["type"] in ("model_type", "model_attributes_type", "dict_type"):
        return f"{where}: must be a table of keys; got {fault['input']!r}"
    message = fault["msg"].removeprefix("Value error, ")
    return f"{where}: {message[0].lower()}{message[1:]}; got {fault['input']!r}"


def _toml_name(path: list[str]) -> str:
    if len(path) == 1:
        return path[0] if path[0] not in Config.model_fields else f"[{path[0]}]"
    return f"[{'.'.join(path[:-1])}] {path[-1]}"


def _absolute(config: Config, base: Path) -> Config:
    """Every path made absolute, so that nothing depends on where the daemon was started."""

    def fixed(section: BaseModel) -> BaseModel:
        update: dict[str, Any] = {}
        for key, value in section:
            if isinstance(value, Path) and not str(value).startswith(HUB):
                update[key] = base / value.expanduser()
            elif key in ("base", "safety_checker") and isinstance(value, str) and "/" in value:
                update[key] = str(base / Path(value).expanduser())
            elif isinstance(value, BaseModel):
                update[key] = fixed(value)
            elif isinstance(value, tuple):
                update[key] = tuple(base / entry.expanduser() if isinstance(entry, Path) else entry for entry in value)
            elif isinstance(value, dict):
                update[key] = {name: fixed(entry) for name, entry in value.items()}
        return section.model_copy(update=update)

    return config.model_copy(update={key: fixed(value) for key, value in config if isinstance(value, BaseModel)})
