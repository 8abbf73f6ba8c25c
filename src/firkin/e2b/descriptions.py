"""Law values as the control plane's JSON shows them."""

from __future__ import annotations

from datetime import UTC, datetime

from msgspec import UNSET

from firkin.e2b.directory import LABEL_ALIAS, LABEL_INTERNET, LABEL_TEMPLATE, is_public, is_secure
from firkin.e2b.models import ListedSandbox, Sandbox, SandboxDetail, SandboxMetric, SandboxVolume, Template
from firkin.e2b.networks import shown
from firkin.e2b.settings import ServerSettings
from firkin.e2b.signatures import TokenMint
from firkin.law.metrics import SandboxUsage
from firkin.law.resources import MIB, SandboxResources
from firkin.law.sandboxes import SandboxInfo
from firkin.law.states import SandboxState
from firkin.law.templates import TemplateInfo, TemplateState

_NEVER = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
_BUILD_STATUS = {
    TemplateState.PREPARING: "building",
    TemplateState.READY: "ready",
    TemplateState.FAILED: "error",
    TemplateState.DELETED: "error",
}


def timestamp(when: datetime) -> str:
    """RFC 3339 in UTC, with microseconds."""
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def started_at(info: SandboxInfo) -> datetime:
    return info.started_at or info.created_at


class Describer:
    """Describes sandboxes with the server's own parts: tokens, domain, version."""

    def __init__(self, settings: ServerSettings, mint: TokenMint) -> None:
        self._settings = settings
        self._mint = mint

    def created(self, info: SandboxInfo) -> Sandbox:
        return Sandbox(
            templateID=template_of(info),
            sandboxID=info.id,
            clientID=self._settings.client_id,
            envdVersion=self._settings.envd_version,
            envdAccessToken=self._mint.data_plane(info.id) if is_secure(info) else UNSET,
            trafficAccessToken=None if is_public(info) else self._mint.traffic(info.id),
            domain=self._settings.domain,
            alias=alias_of(info),
        )

    def listed(self, info: SandboxInfo) -> ListedSandbox:
        return ListedSandbox(**self._shared(info))  # type: ignore[arg-type]  # one set of fields for both shapes

    def detail(self, info: SandboxInfo) -> SandboxDetail:
        return SandboxDetail(
            **self._shared(info),  # type: ignore[arg-type]  # one set of fields for both shapes
            allowInternetAccess=_internet(info),
            domain=self._settings.domain,
            network=shown(info),
            pauseMode=UNSET
            if info.pause_mode is None or info.state is not SandboxState.PAUSED
            else info.pause_mode.value,
            lifecycle={"autoResume": info.lifecycle.auto_resume, "onTimeout": info.lifecycle.on_timeout.value},
            envdAccessToken=self._mint.data_plane(info.id) if is_secure(info) else UNSET,
        )

    def _shared(self, info: SandboxInfo) -> dict[str, object]:
        return {
            "templateID": template_of(info),
            "sandboxID": info.id,
            "clientID": self._settings.client_id,
            "startedAt": timestamp(started_at(info)),
            "endAt": timestamp(info.ended_at or info.paused_at or info.deadline_at or _NEVER),
            "envdVersion": self._settings.envd_version,
            "cpuCount": info.resources.vcpus,
            "memoryMB": info.resources.memory_bytes // MIB,
            "diskSizeMB": info.resources.disk_bytes // MIB,
            "state": "paused" if info.state is SandboxState.PAUSED else "running",
            "alias": alias_of(info),
            "metadata": dict(info.metadata),
            "volumeMounts": [SandboxVolume(mount.name, mount.path, mount.read_only) for mount in info.volumes],
            "envdUnresponsiveAtPause": True if info.unresponsive_at_pause else UNSET,
        }

    def template(self, info: TemplateInfo) -> Template:
        resources = info.resources or SandboxResources()
        made = info.prepared_at or info.created_at
        name = str(info.id)
        return Template(
            templateID=name,
            buildID=info.digest or name,
            cpuCount=resources.vcpus,
            memoryMB=resources.memory_bytes // MIB,
            diskSizeMB=resources.disk_bytes // MIB,
            public=True,
            aliases=[name],
            names=[name],
            createdAt=timestamp(info.created_at),
            updatedAt=timestamp(made),
            createdBy=None,
            lastSpawnedAt=None,
            spawnCount=0,
            buildCount=1,
            envdVersion=self._settings.envd_version,
            buildStatus=_BUILD_STATUS[info.state],
        )


def metric(usage: SandboxUsage) -> SandboxMetric:
    return SandboxMetric(
        timestamp=timestamp(usage.observed_at),
        timestampUnix=int(usage.observed_at.timestamp()),
        cpuCount=usage.cpu_count,
        cpuUsedPct=round(usage.cpu_used_pct, 2),
        memUsed=used_without_cache(usage),
        memTotal=usage.memory_total_bytes,
        memCache=usage.memory_cache_bytes,
        diskUsed=usage.disk_used_bytes,
        diskTotal=usage.disk_total_bytes,
    )


def used_without_cache(usage: SandboxUsage) -> int:
    """What programs have in memory, in bytes: the file cache is told apart, and the agent has room beside the limit."""
    return min(usage.memory_total_bytes, max(0, usage.memory_used_bytes - usage.memory_cache_bytes))


def template_of(info: SandboxInfo) -> str:
    """The id that clients know the template or snapshot by."""
    return info.labels.get(LABEL_TEMPLATE) or str(info.snapshot_id or info.template_id or "")


def alias_of(info: SandboxInfo) -> str:
    return info.labels.get(LABEL_ALIAS) or template_of(info)


def _internet(info: SandboxInfo) -> bool | None:
    """As it was asked for at creation, unless the policy in force says otherwise."""
    if not info.network.internet:
        return False
    return True if info.labels.get(LABEL_INTERNET) is not None else None
