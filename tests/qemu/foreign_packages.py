"""Debian packages for another type of machine, from this machine's sources, unpacked and never installed.

apt gets a configuration of its own in a folder of its own: this machine's stays as it is.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

_WITHIN_S = 300
_CONFIGURATION = """
APT::Architecture "{architecture}";
#clear APT::Architectures;
APT::Architectures {{ "{architecture}"; }};
APT::Sandbox::User "root";
Dir::State "{folder}";
Dir::State::lists "{folder}/lists";
Dir::State::status "{folder}/status";
Dir::Cache "{folder}/cache";
"""


class NotFetched(Exception):
    """In apt's own words."""


def configure(folder: Path, architecture: str) -> Path:
    """Make apt's configuration in `folder`, with its lists up to date; it is used by naming it in APT_CONFIG."""
    for name in ("lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True)
    (folder / "status").touch()
    configuration = folder / "apt.conf"
    configuration.write_text(_CONFIGURATION.format(architecture=architecture, folder=folder))
    run(["apt-get", "-qq", "update"], configuration, folder)
    return configuration


def unpack(packages: list[str], configuration: Path, into: Path) -> None:
    """All of `packages` become the tree `into`, or nothing does."""
    with tempfile.TemporaryDirectory(dir=into.parent, prefix=".packages-") as scratch:
        run(["apt-get", "-qq", "download", *packages], configuration, Path(scratch))
        tree = Path(scratch) / "tree"
        for package in Path(scratch).glob("*.deb"):
            run(["dpkg-deb", "--extract", str(package), str(tree)], configuration, Path(scratch))
        shutil.move(tree, into)


def run(argv: list[str], configuration: Path, inside: Path) -> None:
    environment = {**os.environ, "APT_CONFIG": str(configuration), "LANG": "C.UTF-8"}
    done = subprocess.run(argv, cwd=inside, env=environment, capture_output=True, text=True, timeout=_WITHIN_S)
    if done.returncode != 0:
        raise NotFetched(f"{argv[0]}: {done.stderr.strip().rpartition(chr(10))[2][:200]}")
