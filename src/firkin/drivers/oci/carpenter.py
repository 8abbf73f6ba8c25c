"""The oci driver's helper: runs runc or crun in the mounts that `carpentry` made, and looks at what came of it.

The agent waits for its order, so nothing of the sandbox's runs before the
kernel itself has confirmed what holds its first process: the limits, the
ids, the filter, the capabilities, the network.
"""

from __future__ import annotations

import json
import os
import resource
import time

from firkin.drivers.boxes import places
from firkin.drivers.boxes.rights import CAPABILITIES, go_first, limits
from firkin.drivers.bundles import carpentry
from firkin.drivers.bundles.carpentry import RuntimeFailed, Site, Workshop, run
from firkin.host import oci_bundle, syscalls
from firkin.host.syscalls import CLONE_NEWNS

_FIRST = 3
_CONFIRMED_WITHIN_S = 5.0


def main(control: int, parent: int) -> None:
    """See `carpentry.main`."""
    carpentry.main(control, parent, _start)


def _start(workshop: Workshop, site: Site, step: list[str]) -> int:
    order = site.order
    step[0] = "bundle"
    enter, leave = workshop.trees.doors(order.sandbox_id)
    told, tell = os.pipe2(os.O_CLOEXEC)
    passed = [told, site.given["listener"], site.given["report"], *enter, *leave]
    site.write_config(_config(workshop, site))
    step[0] = "runtime"
    _run_container(workshop, site, passed)
    os.close(told)
    pid = site.read_pid()
    step[0] = "confirmation"
    _confirm(workshop, site, pid)
    step[0] = "boot id"
    _own_boot_id(order.slot, order.first_uid, pid)
    if order.weighed:
        go_first(pid)
    step[0] = "order"
    doors = _FIRST + 3
    os.write(tell, json.dumps({
        "listener": _FIRST + 1, "report": _FIRST + 2,
        "enter": list(range(doors, doors + len(enter))),
        "leave": list(range(doors + len(enter), doors + len(enter) + len(leave))),
        "hostname": order.hostname, "machine_id": order.machine_id, "restored": order.restored,
        "nofile": order.nofile, "hardened": order.hardened,
    }).encode())  # fmt: skip
    os.close(tell)
    return pid


def _run_container(workshop: Workshop, site: Site, passed: list[int]) -> None:
    """Limits of resources are inherited. The runtime could not set them: the user namespace is not of its making, and
    only CAP_SYS_RESOURCE, which a host may not have either, would do instead."""
    for limit, soft, hard in limits(site.order.nofile):
        resource.setrlimit(limit, (soft, hard))
    setup = workshop.setup
    argv = [setup["runtime"], "--root", setup["runtime_root"], "run", "--detach", "--bundle", site.folder]
    argv += ["--pid-file", f"{site.folder}/pid", "--preserve-fds", str(len(passed)), site.order.sandbox_id]
    run(argv, site, passed=passed, within_s=setup["within_s"])


def _config(workshop: Workshop, site: Site) -> dict[str, object]:
    order, given = site.order, site.given
    mine = f"/proc/{os.getpid()}/fd"
    joined = {"user": f"{mine}/{given['user_namespace']}", "network": f"{mine}/{given['network_namespace']}"}
    own = dict.fromkeys(("pid", "mount", "ipc", "uts", "cgroup"), "")
    return oci_bundle.config(
        oci_bundle.Bundle(
            root=places.ROOT,
            argv=workshop.setup["argv"],
            hostname=order.hostname,
            first_uid=order.first_uid,
            namespaces={**joined, **own},
            mapped=workshop.setup["mapped"],
            capabilities=CAPABILITIES,
            hardened=order.hardened,
            cgroup=f"/firkin/{workshop.trees.label}/{order.sandbox_id}/agent",
            seccomp=workshop.setup["seccomp"],
            masked=[f"/{path}" for path in places.HIDDEN],
            read_only=[f"/{path}" for path in places.READ_ONLY],
        )
    )


def _confirm(workshop: Workshop, site: Site, pid: int) -> None:
    """The last steps of a runtime come just after it has returned: asked again, for a while."""
    until = time.monotonic() + _CONFIRMED_WITHIN_S
    while wrong := _wrong(workshop, site, pid):
        if time.monotonic() > until:
            raise RuntimeFailed(f"what the runtime started is not held as it should be: {'; '.join(wrong)}")
        time.sleep(0.001)


def _wrong(workshop: Workshop, site: Site, pid: int) -> list[str]:
    trees, order = workshop.trees, site.order
    wrong = trees.unmet(order.sandbox_id, site.limits)
    if not trees.holds(order.sandbox_id, pid):
        wrong.append("it is not in its control groups")
    with open(f"/proc/{pid}/uid_map") as file:
        if file.read().split()[:2] != ["0", str(order.first_uid)]:
            wrong.append("its root is not the id that was chosen")
    with open(f"/proc/{pid}/status") as file:
        status = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    if status.get("Seccomp") != "2":
        wrong.append("it has no system-call filter")
    if int(status["CapBnd"], 16) & ~CAPABILITIES or int(status["CapEff"], 16) & ~CAPABILITIES:
        wrong.append("it has more capabilities than it should")
    if order.hardened and status.get("NoNewPrivs") != "1":
        wrong.append("it may gain privileges")
    if os.stat(f"/proc/{pid}/ns/net").st_ino != os.fstat(site.given["network_namespace"]).st_ino:
        wrong.append("its network is another")
    return wrong


def _own_boot_id(slot: int, owner: int, pid: int) -> None:
    """Runtimes mount nothing over a file of /proc/sys, so it is done from outside, and belongs to the outside."""
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    name = f".boot-id-{slot}"
    tree = places.boot_id(f"/{name}", owner)
    inside = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    syscalls.setns(inside, CLONE_NEWNS)
    syscalls.move_mount(tree, f"/{places.BOOT_ID}")
    os.unlink(name, dir_fd=root)
    for fd in (root, tree, inside):
        os.close(fd)
