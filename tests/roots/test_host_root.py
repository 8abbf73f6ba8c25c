"""The template of the machine itself: complete, and nothing of the host's own in it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from .conftest import LastRoot, Prepare

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(os.geteuid() != 0, reason="owners and mounts need root"),
]

# Enter the template as a sandbox would see it, but for isolation: /usr shared, /proc and /dev in place.
_ENTER = """
set -e
hostname sandbox
mount --bind /usr "$ROOT/usr"
mount --bind "$NOTHING" "$ROOT/usr/local/etc" 2>/dev/null || true
mount -t proc proc "$ROOT/proc"
mount --bind /dev "$ROOT/dev"
exec chroot "$ROOT" /usr/bin/env -i PATH=/usr/local/bin:/usr/bin:/bin "$@"
"""


def _inside(root: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "ROOT": str(root)}
    enter = ["unshare", "--mount", "--uts", "--propagation", "private", "bash", "-c", _ENTER, "enter", *argv]
    return subprocess.run(enter, env=env, capture_output=True, text=True, timeout=30)


async def test_the_hosts_usr_is_shared_and_the_rest_is_clean(last: LastRoot, prepare: Prepare) -> None:
    made = await prepare("host")
    assert made.root.shared["/usr"] == "/usr"
    assert made.digest.startswith("host:")
    assert (made.config.user, made.config.workdir) == ("user", "/home/user")
    root = last.path
    assert sorted(os.listdir(root / "home")) == ["user"]
    assert sorted(os.listdir(root / "root")) == [".bashrc", ".profile"]
    for name in ("opt", "srv", "mnt", "var/lib", "var/log", "var/cache", "usr", "proc", "sys", "dev"):
        assert os.listdir(root / name) == [], name


async def test_no_file_of_the_hosts_etc_is_copied(last: LastRoot, prepare: Prepare) -> None:
    await prepare("host")
    private = [Path("/etc") / name for name in ("passwd", "shadow", "group", "hosts", "machine-id", "sudoers")]
    for path in private:
        copy = last.path / path.relative_to("/")
        if path.exists() and path.read_bytes():
            assert copy.read_bytes() != path.read_bytes(), path
    assert not (last.path / "etc/ssh").exists()
    assert not (last.path / "etc/apt").exists()


async def test_local_settings_of_the_host_are_covered(last: LastRoot, prepare: Prepare) -> None:
    made = await prepare("host")
    if os.path.isdir("/usr/local/etc") and not os.path.islink("/usr/local/etc"):
        assert made.root.hidden == ("/usr/local/etc",)


async def test_repeated_alternatives_lead_into_usr_only(last: LastRoot, prepare: Prepare) -> None:
    await prepare("host")
    links = list((last.path / "etc/alternatives").iterdir())
    assert all(os.readlink(link).startswith(("/usr/", "/bin/", "/sbin/", "/lib")) for link in links)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["su", "user", "-c", "sudo -n id -un"], "root"),
        (["su", "user", "-c", "su -c 'id -un'"], "root"),
        (["su", "user", "-l", "-c", "id -un; pwd"], "user\n/home/user"),
        (["/usr/bin/python3", "-c", "print(6 * 7)"], "42"),
        (
            ["/usr/bin/python3", "-c", "import ssl; print(len(ssl.create_default_context().get_ca_certs()) > 50)"],
            "True",
        ),
        (["date", "+%Z"], "UTC"),
        (["getent", "passwd", "1000"], "user:x:1000:1000:user:/home/user:/bin/bash"),
    ],
    ids=["sudo", "su to root", "login", "python", "certificates", "time zone", "accounts"],
)
async def test_the_host_root_works(last: LastRoot, prepare: Prepare, argv: list[str], said: str) -> None:
    await prepare("host")
    done = _inside(last.path, *argv)
    assert (done.stdout.strip(), done.stderr, done.returncode) == (said, "", 0)


async def test_only_user_may_become_root_without_a_password(last: LastRoot, prepare: Prepare) -> None:
    await prepare("host")
    done = _inside(last.path, "su", "www-data", "-s", "/bin/sh", "-c", "sudo -n id -un </dev/null")
    assert done.returncode != 0
    assert "root" not in done.stdout
