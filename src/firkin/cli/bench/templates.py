"""Templates and volumes: an image cold and again, a build whose last step changed, a volume beside the disk."""

from __future__ import annotations

import json
import os
import subprocess
import tarfile
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from firkin.cli.bench.official_sdk import load_sdk
from firkin.cli.bench.samples import Lifecycle, Series
from firkin.cli.bench.stage import Stage
from firkin.cli.discovery import operator_of
from firkin.cli.failures import CommandFailure
from firkin.e2b.operators import OPERATOR_HEADER

_SOURCES = ("/usr/bin", "/usr/lib")
_WITHOUT_VOLUMES = ("memory",)  # drivers that keep none
_WITHIN_S = 600
_VOLUME_MB = 512
_DD = "dd if=/dev/zero of={path} bs=1M count={count} conv=fsync"
_SLOW = 10


def templates(stage: Stage) -> Iterator[Series]:
    """Only where the server is this machine's and its state folder ours: an image is a file there."""
    if stage.state_dir is not None:
        yield from _images(stage, stage.state_dir)
    yield _builds(stage)
    if stage.state_dir is not None and stage.system not in _WITHOUT_VOLUMES:
        yield from _volumes(stage, stage.state_dir)


def _images(stage: Stage, state_dir: Path) -> Iterator[Series]:
    cold, cached = [], []
    for _ in range(max(1, stage.amounts.n // 30)):
        with tempfile.TemporaryDirectory(prefix="firkin-bench-", dir=state_dir.parent) as folder:
            image = _image(Path(folder) / "image.tar", stage.amounts.image)
            cold.append(_prepared(stage, state_dir, image))
            cached += [_prepared(stage, state_dir, image) for _ in range(3)]
    what = f"a tarball of {stage.amounts.image} MB of this machine's files"
    yield stage.series("template.image_cold_ms", cold, Lifecycle.COLD_UNPREPARED, f"preparing {what}")
    yield stage.series(
        "template.image_cached_ms", cached, Lifecycle.COLD_PREPARED, f"preparing {what} again under another id"
    )


def _image(path: Path, megabytes: int) -> Path:
    left = megabytes * 1_000_000
    mark = path.with_name("mark")
    mark.write_text(uuid.uuid4().hex)  # no earlier round has seen it
    with tarfile.open(path, "w") as archive:
        archive.add(mark, arcname="mark")
        for file in (file for source in _SOURCES for file in sorted(Path(source).rglob("*"))):
            if left <= 0:
                break
            if file.is_file() and not file.is_symlink() and os.access(file, os.R_OK):
                archive.add(file, arcname=str(file).lstrip("/"))
                left -= file.stat().st_size
    return path


def _prepared(stage: Stage, state_dir: Path, image: Path) -> float:
    """How long the server took, in milliseconds. The template is deleted again."""
    began = time.perf_counter()
    with prepared(stage, state_dir, image):
        return (time.perf_counter() - began) * 1000


@contextmanager
def prepared(stage: Stage, state_dir: Path, source: Path) -> Iterator[str]:
    """A template of that folder or tarball, for the length of a block."""
    name = f"bench-{uuid.uuid4().hex[:12]}"
    lines = _call(stage, state_dir, "POST", "/firkin/v1/templates", {"id": name, "source": f"local:{source}"})
    answer = json.loads(lines.splitlines()[-1])
    if "template" not in answer:
        raise CommandFailure(f"the template was not prepared: {answer['error']['message']}")
    try:
        yield name
    finally:
        _call(stage, state_dir, "DELETE", f"/firkin/v1/templates/{name}", None)


def _call(stage: Stage, state_dir: Path, method: str, path: str, body: object) -> bytes:
    request = urllib.request.Request(
        stage.address.url + path,
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"X-API-Key": stage.address.api_key, OPERATOR_HEADER: operator_of(state_dir) or ""},
    )
    with urllib.request.urlopen(request, timeout=_WITHIN_S) as answer:
        content: bytes = answer.read()
    return content


def _builds(stage: Stage) -> Series:
    sdk = load_sdk()
    name = f"bench-{uuid.uuid4().hex[:12]}"
    values = []
    for number in range(max(2, stage.amounts.n // _SLOW) + 1):
        template = sdk.Template().from_template(stage.template)
        for step in range(4):
            template = template.run_cmd(f"echo {step} > ~/step{step}")
        template = template.run_cmd(f"echo {number} > ~/last")
        began = time.perf_counter()
        sdk.Template.build(template, name)
        values.append((time.perf_counter() - began) * 1000)
    sdk.Sandbox.delete_snapshot(name)  # DELETE /templates/NAME
    what = "Template.build() of five steps, the last one changed; the SDK asks every 200 ms"
    return stage.series("build.changed_last_step_ms", values[1:], Lifecycle.COLD_PREPARED, what)


def _volumes(stage: Stage, state_dir: Path) -> Iterator[Series]:
    sdk = load_sdk()
    volume = sdk.Volume.create(f"bench-{uuid.uuid4().hex[:12]}")
    sandbox = sdk.Sandbox.create(**stage.sdk, volume_mounts={"/mnt/volume": volume})
    inside, outside = [], []
    try:
        for _ in range(3):
            outside.append(_host_speed(state_dir))
            inside.append(_volume_speed(sandbox))
    finally:
        sandbox.kill()
        sdk.Volume.destroy(volume.volume_id)
    what = f"dd of {_VOLUME_MB} MB of zeros with fsync"
    yield stage.series("volume.write_mb_per_s", inside, Lifecycle.HOT, f"{what}, to a volume inside", unit="MB/s")
    what = f"{what}, to the disk that the volume is on"
    yield stage.series("volume.host_disk_write_mb_per_s", outside, Lifecycle.HOT, what, unit="MB/s")


def _volume_speed(sandbox: Any) -> float:
    command = _DD.format(path="/mnt/volume/file", count=_VOLUME_MB)
    began = time.perf_counter()
    sandbox.commands.run(command)
    took = time.perf_counter() - began
    sandbox.commands.run("rm /mnt/volume/file")
    return _VOLUME_MB * 1.048576 / took


def _host_speed(state_dir: Path) -> float:
    path = state_dir.parent / "bench-disk"
    began = time.perf_counter()
    subprocess.run(_DD.format(path=path, count=_VOLUME_MB).split(), check=True, capture_output=True, timeout=_WITHIN_S)
    took = time.perf_counter() - began
    path.unlink()
    return _VOLUME_MB * 1.048576 / took
