"""What an OCI runtime is told, and that nothing of it is left to the runtime's taste."""

from __future__ import annotations

import json
import resource
from typing import Any

from firkin.drivers.boxes.places import HIDDEN
from firkin.drivers.boxes.rights import CAPABILITIES, limits
from firkin.host import seccomp
from firkin.host.oci_bundle import Bundle, capability_names, config


def _config(**changes: Any) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "root": "/m", "argv": ["/bin/true"], "hostname": "box", "first_uid": 5_000_000,
        "namespaces": {"user": "/proc/1/fd/4", "pid": ""}, "capabilities": CAPABILITIES,
    }  # fmt: skip
    made: dict[str, Any] = json.loads(json.dumps(config(Bundle(**{**facts, **changes}))))
    return made


def test_capabilities_are_docker_s_fourteen_and_nothing_is_inherited() -> None:
    granted = _config()["process"]["capabilities"]
    assert granted["bounding"] == granted["effective"] == granted["permitted"]
    assert len(granted["bounding"]) == 14
    assert "CAP_SYS_ADMIN" not in granted["bounding"]
    assert granted["inheritable"] == granted["ambient"] == []


def test_a_capability_s_name_is_of_its_number() -> None:
    assert capability_names(1 << 0 | 1 << 7 | 1 << 21 | 1 << 31) == [
        "CAP_CHOWN",
        "CAP_SETUID",
        "CAP_SYS_ADMIN",
        "CAP_SETFCAP",
    ]


def test_no_limit_is_above_the_host_s_own() -> None:
    for each in _config(limits=limits(1 << 40))["process"]["rlimits"]:
        _, hard = resource.getrlimit(getattr(resource, each["type"]))
        most = (1 << 64) - 1 if hard == resource.RLIM_INFINITY else hard
        assert each["soft"] <= each["hard"] <= most


def test_a_namespace_without_a_path_is_a_new_one() -> None:
    assert _config()["linux"]["namespaces"] == [{"type": "user", "path": "/proc/1/fd/4"}, {"type": "pid"}]


def test_ids_are_mapped_only_where_the_runtime_wants_to_know() -> None:
    assert _config()["linux"]["uidMappings"] == [{"containerID": 0, "hostID": 5_000_000, "size": 65536}]
    assert "uidMappings" not in _config(mapped=False)["linux"]


def test_only_a_hardened_sandbox_gains_no_privileges() -> None:
    assert _config()["process"]["noNewPrivileges"] is False
    assert _config(hardened=True)["process"]["noNewPrivileges"] is True


def test_what_is_hidden_is_masked() -> None:
    masked = [f"/{path}" for path in HIDDEN]
    assert _config(masked=masked)["linux"]["maskedPaths"] == masked


def test_the_filter_is_the_launcher_s_own_list() -> None:
    profile: dict[str, Any] = json.loads(json.dumps(seccomp.oci_profile()))
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"
    assert profile["defaultErrnoRet"] == 1
    plain, *others = profile["syscalls"]
    assert plain["names"] == list(seccomp.ALLOWED)
    assert {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38} in others
    named = {name for each in others for name in each["names"]}
    assert named == {"clone", "clone3", "personality", "socket", "io_setup", *seccomp._ON_A_PROCESS}
    assert all("args" in each for each in others if each["action"] == "SCMP_ACT_ALLOW")


def test_the_filter_of_gvisors_kernel_refuses_the_agent_before_it_allows_the_call() -> None:
    calls = json.loads(json.dumps(seccomp.sentry_profile()))["syscalls"]
    for name in seccomp._ON_A_PROCESS:
        refused, allowed = (each for each in calls if name in each["names"])
        assert (refused["action"], allowed["action"]) == ("SCMP_ACT_ERRNO", "SCMP_ACT_ALLOW")
        assert refused["args"][-1]["value"] == 0xFFFFFFFF  # the low half, which is all that the kernel reads
        assert refused["args"][-1]["valueTwo"] == 1
        assert allowed.get("args", []) == refused["args"][:-1]
