"""What this server offers: tiers, limits, features. Read from one TOML file, checked, frozen.

    [limits]
    speech_seconds = 120
    jobs_per_owner = 2

    [features]
    custom_tier = true

    [tiers.fast]
    size = "384*256"
    num_clip = 10

A file says only what differs from the defaults; a key that is not known is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import tomlkit
from tomlkit.exceptions import TOMLKitError

from liveavatar.config import SamplingConfig
from liveavatar.errors import ConfigError, RequestError
from liveavatar.jobs.queue_limits import QueueLimits
from liveavatar.media.portrait import PortraitLimits
from liveavatar.media.sound_reader import SpeechLimits
from liveavatar.plan.tiers import TIERS, Tier
from liveavatar.request import parse_size

_TIER_KEYS = {
    "size": str,
    "num_clip": int,
    "infer_frames": int,
    "sample_steps": int,
    "online_decode": bool,
    "offered": bool,
}

_MAY_BE_ZERO = (
    "keep_days",
    "drain_seconds",
    "free_disk_bytes",
    "spool_bytes",
    "memory_threshold_mb",
)

_Settings = TypeVar("_Settings", "Limits", "Features")


@dataclass(frozen=True)
class Limits:
    """What one user, and all together, may take.

    Attributes:
        portrait_bytes, portrait_pixels: largest portrait.
        speech_bytes, speech_seconds: longest speech.
        jobs_per_owner, jobs_in_all: videos that wait or run.
        prompt_characters: longest prompt.
        keep_days: ended jobs older than this are removed; 0 keeps them.
        drain_seconds: how long running videos may take to end when the server is stopped.
        free_disk_bytes: with less room on the disk of the data folder, no jobs are taken or begun.
        spool_bytes: ended jobs are removed, the oldest first, while all files together take more;
            0 for no limit.
        memory_threshold_mb: when a card, or a rank on the CPU, holds more MiB, the next video is
            made at a smaller tier; 0 for 21000 on cards of 24 GB, the same share of others, and no
            limit on the CPU.
        uploads_bytes: files in forms that are not sent yet.
        requests_per_second, requests_in_all: of one address and of all; what changes something
            counts for 40 of them, and a quiet sender may use those of 20 s at once.
        open_requests, open_requests_in_all: answers that are still being given, such as growing
            videos, to one address and to all.
    """

    portrait_bytes: int = 30_000_000
    portrait_pixels: int = 50_000_000
    speech_bytes: int = 200_000_000
    speech_seconds: int = 1800
    jobs_per_owner: int = 3
    jobs_in_all: int = 50
    prompt_characters: int = 2000
    keep_days: int = 30
    drain_seconds: int = 30
    free_disk_bytes: int = 500_000_000
    spool_bytes: int = 0
    memory_threshold_mb: int = 0
    uploads_bytes: int = 4_000_000_000
    requests_per_second: int = 200
    requests_in_all: int = 1000
    open_requests: int = 100
    open_requests_in_all: int = 600

    def __post_init__(self) -> None:
        """Raise ConfigError for a limit that is no positive whole number."""
        for limit in fields(self):
            value = getattr(self, limit.name)
            least = 0 if limit.name in _MAY_BE_ZERO else 1
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(
                    f"limits.{limit.name}: expected a whole number of at least {least}, "
                    f"got {value!r}"
                )
        if self.prompt_characters > 2000:
            raise ConfigError("limits.prompt_characters: expected at most 2000")

    @property
    def portrait(self) -> PortraitLimits:
        """For reading portraits."""
        return PortraitLimits(max_bytes=self.portrait_bytes, max_pixels=self.portrait_pixels)

    @property
    def speech(self) -> SpeechLimits:
        """For reading speech."""
        return SpeechLimits(max_bytes=self.speech_bytes, max_seconds=float(self.speech_seconds))

    @property
    def queue(self) -> QueueLimits:
        """For submitting."""
        return QueueLimits(self.jobs_per_owner, self.jobs_in_all)

    @property
    def body_bytes(self) -> int:
        """Largest request body: both files and some text."""
        return self.portrait_bytes + self.speech_bytes + 1_000_000


@dataclass(frozen=True)
class Features:
    """What may be done here.

    Attributes:
        share: videos have a view-only link.
        download: who has that link may download the video.
        open_share_links: these links work without logging in, where logging in is asked for.
        custom_tier: any size and sampling may be asked for, under the tier "custom".
    """

    share: bool = True
    download: bool = True
    open_share_links: bool = False
    custom_tier: bool = False

    def __post_init__(self) -> None:
        """Raise ConfigError for what is neither true nor false."""
        for feature in fields(self):
            if not isinstance(getattr(self, feature.name), bool):
                raise ConfigError(f"features.{feature.name}: expected true or false")


@dataclass(frozen=True)
class ServerSettings:
    """Everything a server is set to."""

    tiers: tuple[Tier, ...] = TIERS
    limits: Limits = field(default_factory=Limits)
    features: Features = field(default_factory=Features)

    def __post_init__(self) -> None:
        """Raise ConfigError when nothing is offered."""
        if not self.tiers:
            raise ConfigError("tiers: expected at least one that is offered")


def read_settings(path: Path, defaults: ServerSettings) -> ServerSettings:
    """Read a TOML file on top of the defaults.

    Raises:
        ConfigError: it cannot be read, or a key or a value is not known.
    """
    try:
        content = tomlkit.parse(path.read_text(encoding="utf-8")).unwrap()
    except (OSError, UnicodeDecodeError, TOMLKitError) as error:
        raise ConfigError(f"config '{path}': expected a readable TOML file: {error}") from None
    try:
        _check_keys("", content, ("limits", "features", "tiers"))
        return ServerSettings(
            tiers=_tiers(content.get("tiers", {}), defaults.tiers),
            limits=_changed("limits", content.get("limits", {}), defaults.limits),
            features=_changed("features", content.get("features", {}), defaults.features),
        )
    except (ConfigError, RequestError) as error:
        raise ConfigError(f"config '{path}': {error}") from None


def _changed(name: str, table: object, defaults: _Settings) -> _Settings:
    values = _table(name, table)
    _check_keys(f"{name}.", values, [setting.name for setting in fields(defaults)])
    return replace(defaults, **values)


def _tiers(table: object, defaults: tuple[Tier, ...]) -> tuple[Tier, ...]:
    tables = _table("tiers", table)
    known = {tier.name: tier for tier in defaults}
    for name in tables:
        if name == "custom" or not (name.isidentifier() and name.isascii() and len(name) <= 20):
            raise ConfigError(f"tiers: expected a short plain name, got {name[:40]!r}")
    names = [*known, *(name for name in tables if name not in known)]
    made = [_tier(name, tables.get(name, {}), known.get(name)) for name in names]
    return tuple(tier for tier in made if tier is not None)


def _tier(name: str, table: object, default: Tier | None) -> Tier | None:
    where = f"tiers.{name}"
    values = _table(where, table)
    _check_keys(f"{where}.", values, list(_TIER_KEYS))
    for key, value in values.items():
        if type(value) is not _TIER_KEYS[key]:
            raise ConfigError(f"{where}.{key}: expected a {_TIER_KEYS[key].__name__}")
    if not values.get("offered", True):
        return None
    if default is None and "size" not in values:
        raise ConfigError(f"{where}: expected a size for a tier of your own")
    size = parse_size(values["size"]) if "size" in values else default.size  # type: ignore[union-attr]
    sampling = asdict(default.sampling) if default else {}
    for key in ("num_clip", "infer_frames", "online_decode"):
        if key in values:
            sampling[key] = values[key]
    if "sample_steps" in values:
        sampling["num_steps"] = values["sample_steps"]
    try:
        return Tier(name, size, SamplingConfig(**sampling))
    except ConfigError as error:
        raise ConfigError(f"{where}.{error}") from None


def _table(name: str, value: object) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{name}: expected a table, got {value!r:.40}")
    return value


def _check_keys(prefix: str, table: Mapping[str, Any], known: list[str] | tuple[str, ...]) -> None:
    for key in table:
        if key not in known:
            raise ConfigError(f"{prefix}{key}: is not known; there are {', '.join(known)}")
