"""A small root file system and an OCI bundle, made of this machine's own programs, for the peers to run.

Every peer gets the same few megabytes, so none is slowed down or helped by its image.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from firkin.cli.tool_checks import find_program

_PROGRAMS = ("sh", "echo", "sleep")
_CAPABILITIES = ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_SETGID", "CAP_SETUID", "CAP_KILL", "CAP_NET_BIND_SERVICE"]
_NAMESPACES = ("pid", "network", "ipc", "uts", "mount")


def make_root(folder: Path) -> None:
    """Fill `folder` with sh, echo and sleep and the libraries they need."""
    for name in ("bin", "etc", "proc", "sys", "dev", "tmp", "run"):
        (folder / name).mkdir(parents=True)
    (folder / "etc/passwd").write_text("root:x:0:0:root:/:/bin/sh\n")
    for program in _PROGRAMS:
        found = find_program(program)
        if found is None:
            raise FileNotFoundError(f"this machine has no {program}")
        shutil.copy(os.path.realpath(found), folder / "bin" / program)
        for library in _libraries(found):
            target = folder / library.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(os.path.realpath(library), target)


def _libraries(program: str) -> list[str]:
    listed = subprocess.run(["ldd", program], capture_output=True, text=True, timeout=10, check=False).stdout
    return re.findall(r"(/\S+)(?= \(0x)", listed)


def write_bundle(bundle: Path, root: Path, argv: list[str]) -> None:
    """An OCI bundle over `root` that runs `argv` with the usual namespaces and without a terminal."""
    bundle.mkdir(exist_ok=True)
    (bundle / "config.json").write_text(json.dumps(_config(root, argv)))


def _config(root: Path, argv: list[str]) -> dict[str, Any]:
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": argv,
            "env": ["PATH=/bin"],
            "cwd": "/",
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), _CAPABILITIES),
            "noNewPrivileges": True,
        },
        "root": {"path": str(root), "readonly": True},
        "hostname": "bench",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
        ],
        "linux": {"namespaces": [{"type": name} for name in _NAMESPACES]},
    }
