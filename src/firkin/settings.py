"""What the operator wants, as one frozen object.

Read once, from defaults, then the configuration file, then the environment,
then the command line; the later wins. A key that nobody knows is refused by
name: a misspelt limit must not look like a limit.
"""

from __future__ import annotations

import ipaddress
import os
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from firkin.host.tenant_registries import PUBLIC_REGISTRIES, may_be_known
from firkin.law.errors import InvalidReason, InvalidSpec
from firkin.law.policies import Capacity, DeadlinePolicy, HygienePolicy, Policies
from firkin.law.pressure import BackpressurePolicy, PressurePolicy
from firkin.law.reach import LINK_LOCAL, NEVER, PRIVATE
from firkin.law.resources import MIB, SandboxResources

ENV_PREFIX = "FIRKIN_"
CONFIG_VARIABLE = "FIRKIN_CONFIG"
CONFIG_NAME = "config.toml"
_USUAL_TIMEOUT_S, _LONGEST_TIMEOUT_S = 300.0, 86400.0
LOG_LEVELS = ("debug", "info", "warning", "error")

_KEY = re.compile(r"[A-Za-z0-9_.-]{8,256}")
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_DOMAIN = re.compile(r"(?=.{1,253}$)[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:[0-9]{1,5})?")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySetting:
    """One API key: whose it is, and how many sandboxes it may have alive (None: no quota)."""

    name: str
    key: str = field(repr=False)
    max_sandboxes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that can be configured. Sizes are in MiB, times in seconds, None is no limit."""

    state_dir: Path
    host: str = "127.0.0.1"
    port: int = 3000
    api_keys: tuple[KeySetting, ...] = ()
    driver: str = "namespaces"
    driver_options: Mapping[str, str] = field(default_factory=dict)
    domain: str = "firkin.localhost"
    tls: bool = False
    tls_cert: Path | None = None
    tls_key: Path | None = None
    kill_on_exit: bool = False
    log_level: str = "info"
    max_sandboxes: int | None = None
    max_vcpus: int | None = None
    max_memory_mb: int | None = None
    memory_floor_mb: int = 512
    disk_floor_mb: int = 1024
    refill_memory_floor_mb: int | None = None
    refill_disk_floor_mb: int | None = None
    cpu_stall_pct: int = 95
    io_stall_pct: int = 60
    hysteresis_hold_ms: int = 2000
    refill_cooldown_ms: int = 1000
    queue_max_pending: int = 256
    queue_max_wait_ms: int = 2000
    launches_at_once: int | None = None
    default_timeout_s: float | None = _USUAL_TIMEOUT_S
    max_timeout_s: float | None = _LONGEST_TIMEOUT_S
    sandbox_vcpus: int = 2
    sandbox_memory_mb: int = 1024
    sandbox_disk_mb: int = 10240
    sandbox_pids: int = 4096
    volume_disk_mb: int = 10240
    ended_kept_s: float = 7 * 86400.0
    unused_layers_kept_s: float = 7 * 86400.0
    image_mirrors: Mapping[str, str] = field(default_factory=dict)
    registry_auth_file: Path | None = None
    tenant_registries: tuple[str, ...] = PUBLIC_REGISTRIES
    tenants_use_registry_auth: bool = False
    tenant_private_networks: tuple[str, ...] = ()

    @property
    def is_shared(self) -> bool:
        """Whether there are tenants. Whoever holds the only key is taken for the operator."""
        return len(self.api_keys) > 1

    def policies(self) -> Policies:
        """The limits among the settings, as the backend takes them. Raises `InvalidSpec` for impossible sizes."""
        return Policies(
            capacity=Capacity(
                max_sandboxes=self.max_sandboxes,
                max_vcpus=self.max_vcpus,
                max_memory_bytes=_bytes(self.max_memory_mb),
                memory_floor_bytes=self.memory_floor_mb * MIB,
                disk_floor_bytes=self.disk_floor_mb * MIB,
            ),
            pressure=PressurePolicy(
                refill_memory_bytes=_bytes(self.refill_memory_floor_mb),
                refill_disk_bytes=_bytes(self.refill_disk_floor_mb),
                cpu_stall_pct=self.cpu_stall_pct,
                io_stall_pct=self.io_stall_pct,
                hold_s=self.hysteresis_hold_ms / 1000,
                cooldown_s=self.refill_cooldown_ms / 1000,
            ),
            backpressure=BackpressurePolicy(
                max_pending=self.queue_max_pending,
                max_wait_s=self.queue_max_wait_ms / 1000,
                launches_at_once=self.launches_at_once,
            ),
            deadlines=DeadlinePolicy(default_timeout_s=self.default_timeout_s, max_timeout_s=self.max_timeout_s),
            hygiene=HygienePolicy(
                kill_on_close=self.kill_on_exit,
                ended_kept_s=self.ended_kept_s,
                unused_layers_kept_s=self.unused_layers_kept_s,
            ),
            most_frozen={key.name: key.max_sandboxes for key in self.api_keys if key.max_sandboxes is not None},
            default_resources=SandboxResources(
                vcpus=self.sandbox_vcpus,
                memory_bytes=self.sandbox_memory_mb * MIB,
                disk_bytes=self.sandbox_disk_mb * MIB,
                pids=self.sandbox_pids,
            ),
            default_volume_bytes=self.volume_disk_mb * MIB,
        )


def _bytes(mib: int | None) -> int | None:
    return None if mib is None else mib * MIB


def read_settings(
    overrides: Mapping[str, Any] | None = None,
    *,
    environ: Mapping[str, str] = os.environ,
    config: Path | None = None,
) -> Settings:
    """The settings in force. `overrides` are the command line's; its None values mean "not given".

    Raises `InvalidSpec` (`INVALID_SETTINGS`) that names the key, where it came
    from and what is allowed.
    """
    given = _parsed(
        {key: value for key, value in (overrides or {}).items() if value is not None}, "the command line", _as_option
    )
    from_env = _parsed(_environment(environ), "the environment", _as_variable)
    named = config or (Path(environ[CONFIG_VARIABLE]) if environ.get(CONFIG_VARIABLE) else None)
    state_dir = given.get("state_dir") or from_env.get("state_dir") or default_state_dir(environ)
    from_file = _parsed(_config_file(named, state_dir / CONFIG_NAME), str(named or state_dir / CONFIG_NAME), _as_is)
    merged = _timed({"state_dir": state_dir, **from_file, **from_env, **given})
    settings = Settings(**merged)
    settings.policies()
    return settings


def _timed(merged: dict[str, Any]) -> dict[str, Any]:
    """With a default time that the longest allows: nobody could have a sandbox without naming a time otherwise."""
    most, usual = merged.get("max_timeout_s", _LONGEST_TIMEOUT_S), merged.get("default_timeout_s")
    if most is not None and usual is not None and usual > most:
        raise _invalid(f"default_timeout_s is {usual:g} and max_timeout_s {most:g}; it must not be more than that")
    if most is not None and "default_timeout_s" not in merged:
        return {**merged, "default_timeout_s": min(most, _USUAL_TIMEOUT_S)}
    return merged


def default_state_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """/var/lib/firkin for root, ~/.local/share/firkin for anyone else."""
    if os.geteuid() == 0:
        return Path("/var/lib/firkin")
    data = environ.get("XDG_DATA_HOME") or str(Path(environ.get("HOME", "~")).expanduser() / ".local/share")
    return Path(data) / "firkin"


def parse_api_key(text: str, *, position: int = 1) -> KeySetting:
    """``KEY``, ``NAME:KEY`` or ``NAME:KEY:MAX_SANDBOXES``. A bare key is called ``default``, the next ``key2``, …"""
    name, key, quota = _split_key(text, position)
    if _NAME.fullmatch(name) is None:
        raise _invalid(f"the API key's name {name[:64]!r} is not allowed; use letters, digits, '_', '-' and '.'")
    if _KEY.fullmatch(key) is None:
        raise _invalid(f"the key of {name!r} {_key_fault(key)}; use 8 to 256 letters, digits, '_', '-' and '.'")
    if quota is not None and not (quota.isdecimal() and int(quota) > 0):
        raise _invalid(f"the quota of API key {name!r} is {quota!r}; it must be a whole number above 0")
    return KeySetting(name=name, key=key, max_sandboxes=None if quota is None else int(quota))


def _key_fault(key: str) -> str:
    """What is wrong with it, without a word of it."""
    if not key:
        return "is empty"
    return "has other characters than are allowed" if 8 <= len(key) <= 256 else f"has {len(key)} characters"


def _split_key(text: str, position: int) -> tuple[str, str, str | None]:
    words = text.split(":")
    if len(words) == 1:
        return ("default" if position == 1 else f"key{position}"), words[0], None
    if len(words) > 3:
        raise _invalid("an API key is written KEY, NAME:KEY or NAME:KEY:MAX_SANDBOXES")
    return words[0], words[1], words[2] if len(words) == 3 else None


def _invalid(detail: str) -> InvalidSpec:
    return InvalidSpec("read settings", InvalidReason.INVALID_SETTINGS, detail)


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    return {
        name.removeprefix(ENV_PREFIX).lower(): value
        for name, value in environ.items()
        if name.startswith(ENV_PREFIX) and name != CONFIG_VARIABLE
    }


def _config_file(named: Path | None, default: Path) -> dict[str, Any]:
    path = named or default
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except FileNotFoundError:
        if named is None:
            return {}
        raise _invalid(f"the configuration file {path} does not exist") from None
    except (NotADirectoryError, PermissionError, IsADirectoryError) as error:
        raise _invalid(f"the configuration file {path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise _invalid(f"the configuration file {path} is not TOML: {error}") from None


_Prepare = Callable[[str, Any], Any]


def _as_is(key: str, value: Any) -> Any:
    return value


def _as_option(key: str, value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _as_variable(key: str, text: str) -> Any:
    if key == "api_keys":
        return text.replace(",", " ").split()
    if key in ("tenant_registries", "tenant_private_networks"):
        return text.replace(",", " ").split()
    if key in ("driver_options", "image_mirrors"):
        return dict(word.partition("=")[::2] for word in text.replace(",", " ").split())
    return text


def _parsed(raw: Mapping[str, Any], origin: str, prepare: _Prepare) -> dict[str, Any]:
    parsed: dict[str, Any] = {}
    for key, value in raw.items():
        if key not in _READERS:
            raise _invalid(f"{key!r} in {origin} is not a setting; known are {', '.join(sorted(_READERS))}")
        try:
            parsed[key] = _READERS[key](prepare(key, value))
        except (TypeError, ValueError) as error:
            raise _invalid(f"{key} in {origin}{_shown(key, value)}; {error}") from None
    return parsed


def _shown(key: str, value: Any) -> str:
    """What was given, but never a key."""
    return " cannot be used" if key == "api_keys" else f" is {repr(value)[:80]}"


def _path(value: Any) -> Path:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError("it must be a path")
    return Path(os.path.abspath(os.path.expanduser(value)))


def _whole(least: int, most: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        text = str(value)
        if isinstance(value, bool) or not re.fullmatch(r"[0-9]{1,15}", text) or not least <= int(text) <= most:
            raise ValueError(f"it must be a whole number from {least} to {most}")
        return int(text)

    return read


def _limit(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """As `read`, and the word ``none`` for no limit."""
    return lambda value: None if value == "none" else read(value)


def _seconds(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = -1.0
    if isinstance(value, bool) or not 0 < number <= 3.2e8:
        raise ValueError("it must be a number of seconds above 0")
    return number


def _flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    words = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    if str(value).lower() not in words:
        raise ValueError("it must be true or false")
    return words[str(value).lower()]


def _word(pattern: re.Pattern[str], what: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if not isinstance(value, str) or pattern.fullmatch(value) is None:
            raise ValueError(f"it must be {what}")
        return value

    return read


def _level(value: Any) -> str:
    if value not in LOG_LEVELS:
        raise ValueError(f"it must be one of {', '.join(LOG_LEVELS)}")
    return str(value)


def _keys(value: Any) -> tuple[KeySetting, ...]:
    if isinstance(value, str) or not all(isinstance(word, str) for word in value):
        raise ValueError("it must be a list of texts NAME:KEY[:MAX_SANDBOXES]")
    keys = tuple(parse_api_key(word, position=number) for number, word in enumerate(value, 1))
    if len({key.name for key in keys}) != len(keys) or len({key.key for key in keys}) != len(keys):
        raise ValueError("two API keys must not have the same name or the same key")
    return keys


def _options(value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise ValueError("it must be a table of texts")
    flat: dict[str, Any] = {}
    for name, option in value.items():
        if isinstance(option, Mapping):  # ``qemu.kernel = "…"`` is a table within the table
            flat.update({f"{name}.{inner}": each for inner, each in option.items()})
        else:
            flat[str(name)] = option
    return {name: str(option).lower() if isinstance(option, bool) else str(option) for name, option in flat.items()}


def _mirrors(value: Any) -> dict[str, str]:
    """Whether each is the beginning of a name and a place is for the preparer to say: it knows both."""
    if not isinstance(value, Mapping) or not all(isinstance(place, str) and place for place in value.values()):
        raise ValueError("it must be a table that gives, for the beginning of an image's name, another place")
    return {str(start): place for start, place in value.items()}


def _registries(value: Any) -> tuple[str, ...]:
    found = tuple(word.lower() for word in _words(value))
    if wrong := [word for word in found if not may_be_known(word)]:
        raise ValueError(
            f"{wrong[0][:64]!r} must be a name HOST[:PORT] or *.DOMAIN[:PORT], no address and no local name;"
            " image_mirrors may lead from a name to a registry nearby"
        )
    return found


def _networks(value: Any) -> tuple[str, ...]:
    """Private ones. What belongs to the machine itself is no tenant's, whoever says so."""
    found = tuple(ipaddress.IPv4Network(word) for word in _words(value))
    open_to_some = [ipaddress.IPv4Network(text) for text in PRIVATE if text not in (LINK_LOCAL, *NEVER)]
    if not all(any(network.subnet_of(block) for block in open_to_some) for network in found):
        raise ValueError("each must be a private network such as 10.20.0.0/16, and neither link-local nor this host's")
    return tuple(str(network) for network in found)


def _words(value: Any) -> Sequence[str]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not all(isinstance(word, str) for word in value):
        raise ValueError("it must be a list of texts")
    return value


_READERS: Mapping[str, Callable[[Any], Any]] = {
    "state_dir": _path,
    "host": _word(re.compile(r"[A-Za-z0-9.:_-]{1,253}"), "a host name or address"),
    "port": _whole(0, 65535),
    "api_keys": _keys,
    "driver": _word(re.compile(r"[a-z][a-z0-9_-]{0,63}"), "a driver's name"),
    "driver_options": _options,
    "domain": _word(_DOMAIN, "a domain name in lower case, with an optional port"),
    "tls": _flag,
    "tls_cert": _path,
    "tls_key": _path,
    "kill_on_exit": _flag,
    "log_level": _level,
    "max_sandboxes": _limit(_whole(0, 10**6)),
    "max_vcpus": _limit(_whole(0, 10**6)),
    "max_memory_mb": _limit(_whole(0, 10**9)),
    "memory_floor_mb": _whole(0, 10**9),
    "disk_floor_mb": _whole(0, 10**9),
    "refill_memory_floor_mb": _limit(_whole(0, 10**9)),
    "refill_disk_floor_mb": _limit(_whole(0, 10**9)),
    "cpu_stall_pct": _whole(1, 100),
    "io_stall_pct": _whole(1, 100),
    "hysteresis_hold_ms": _whole(0, 600_000),
    "refill_cooldown_ms": _whole(0, 600_000),
    "queue_max_pending": _whole(0, 10_000),
    "queue_max_wait_ms": _whole(0, 600_000),
    "launches_at_once": _limit(_whole(1, 10_000)),
    "default_timeout_s": _limit(_seconds),
    "max_timeout_s": _limit(_seconds),
    "sandbox_vcpus": _whole(1, 512),
    "sandbox_memory_mb": _whole(16, 2**24),
    "sandbox_disk_mb": _whole(16, 2**24),
    "sandbox_pids": _whole(16, 4_194_304),
    "volume_disk_mb": _whole(16, 2**24),
    "ended_kept_s": _seconds,
    "unused_layers_kept_s": _seconds,
    "image_mirrors": _mirrors,
    "registry_auth_file": _path,
    "tenant_registries": _registries,
    "tenants_use_registry_auth": _flag,
    "tenant_private_networks": _networks,
}
