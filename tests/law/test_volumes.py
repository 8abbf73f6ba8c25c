"""What may be asked of volumes, checked where it is said."""

from __future__ import annotations

import pytest

from firkin.law.errors import InvalidReason, InvalidSpec
from firkin.law.ids import VolumeName
from firkin.law.sandboxes import SandboxSpec
from firkin.law.volumes import MAX_MOUNTS, VolumeAttributes, VolumeMount, VolumePath


@pytest.mark.parametrize("path", ["/data", "/home/user/work", "/a.b/c d", "/…", "/devices", "/process/x", "/etc/ssl"])
def test_a_clean_absolute_path_is_a_place_for_a_volume(path: str) -> None:
    assert VolumeMount(name="x", path=path).path == path


@pytest.mark.parametrize(
    "path",
    ["", "/", "a", "./a", "/a/", "/a//b", "//a", "/a/../b", "/..", "/.", "/a/.", "/a\0", "/proc", "/proc/1", "/sys",
     "/dev/shm", "/etc", "/.firkin", "/.firkin/bin", "/" + "x" * 1024],
)  # fmt: skip
def test_any_other_path_is_not(path: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        VolumeMount(name="x", path=path)
    assert caught.value.reason is InvalidReason.INVALID_PATH


@pytest.mark.parametrize("name", ["", "a.b", "a/b", "..", "a b", "ä", "x" * 129])
def test_an_impossible_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidSpec):
        VolumeName(name)
    with pytest.raises(InvalidSpec):
        VolumeMount(name=name, path="/data")


@pytest.mark.parametrize(
    ("mounts", "why"),
    [
        ([("a", "/x"), ("b", "/x")], "a path of its own"),
        ([("a", "/x"), ("a", "/y")], "mount it once"),
        ([("a", "/x"), ("b", "/x/y")], "beside each other"),
        ([("a", "/x/y/z"), ("b", "/x")], "beside each other"),
        ([(f"v{number}", f"/{number}") for number in range(MAX_MOUNTS + 1)], "at most 16"),
    ],
)
def test_volumes_that_cannot_be_together_are_refused(mounts: list[tuple[str, str]], why: str) -> None:
    with pytest.raises(InvalidSpec, match=why) as caught:
        SandboxSpec.from_template("t", volumes=tuple(VolumeMount(name=name, path=path) for name, path in mounts))
    assert caught.value.reason is InvalidReason.INVALID_VOLUME


def test_volumes_beside_each_other_are_fine() -> None:
    mounts = (VolumeMount(name="a", path="/x/a"), VolumeMount(name="b", path="/x/ab", read_only=True))
    assert SandboxSpec.from_template("t", volumes=mounts).volumes == mounts


@pytest.mark.parametrize(
    ("text", "path"),
    [("", "/"), ("/", "/"), ("a", "/a"), ("//a//b/", "/a/b"), ("/../../a", "/a"), ("a/../..", "/"), ("./a", "/a")],
)
def test_a_path_on_a_volume_stops_at_its_root(text: str, path: str) -> None:
    assert VolumePath(text) == path


def test_names_of_paths_are_their_last_part() -> None:
    assert (VolumePath("/a/b").name, VolumePath("/").name, VolumePath("/").below("x")) == ("b", "/", "/x")


@pytest.mark.parametrize("text", ["a\0b", "x" * 4096])
def test_an_impossible_path_is_refused(text: str) -> None:
    with pytest.raises(InvalidSpec):
        VolumePath(text)


@pytest.mark.parametrize("wish", [{"uid": -1}, {"uid": 65536}, {"gid": 65536}, {"mode": 0o10000}, {"mode": -1}])
def test_an_impossible_owner_or_mode_is_refused(wish: dict[str, int]) -> None:
    with pytest.raises(InvalidSpec, match="must be from 0 to"):
        VolumeAttributes(**wish)
