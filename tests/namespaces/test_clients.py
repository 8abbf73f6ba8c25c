"""Programs that people use, against hosts that ask for a token: the rule brings it, and they trust what they are shown.

Each begins with the same host without its rule, where there is no token, so that it could fail.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import subprocess
import tarfile
import zipfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from firkin import Runtime, Sandbox
from firkin.law.ids import SecretName, TemplateId
from firkin.law.network import HeaderRule
from firkin.law.sandboxes import SandboxSpec
from firkin.law.secrets import SecretSpec
from firkin.law.templates import TemplateSpec
from tests.namespaces.internet import Internet, internet
from tests.namespaces.test_egress import VALUE, bash, made_backend, policy

pytestmark = pytest.mark.asyncio(loop_scope="module")

SITE = "https://api.rule.test/locked"
RULE = HeaderRule(domain="api.rule.test", headers={"Authorization": "Bearer ${e2b.secrets.api}"})
JAVA = """
import java.net.URI;
import java.net.http.*;
public class Fetch {
    public static void main(String[] words) throws Exception {
        var request = HttpRequest.newBuilder(URI.create(words[0])).build();
        var answer = HttpClient.newHttpClient().send(request, HttpResponse.BodyHandlers.ofString());
        System.out.println(answer.statusCode() + " " + answer.body());
    }
}
"""
# Debian's own has its settings in /etc, where a sandbox on the host's /usr has nothing of it.
FIND_JAVA = 'for j in /usr/lib/jvm/*; do [ -s "$j/conf/security/java.security" ] && break; done; '
TRUST = (
    "$j/bin/keytool -importcert -noprompt -keystore /tmp/cacerts -storepass changeit"
    " -alias firkin -file /etc/ssl/certs/firkin-egress.pem"
)

# What is run, and what it says when it got what is behind the token.
CLIENTS = {
    "curl": (f"curl -sS --fail -m 20 {SITE}/word", "opened"),
    "wget": (f"wget -q -T 20 -t 1 -O - {SITE}/word", "opened"),
    "git": (f"cd $(mktemp -d) && git clone -q {SITE}/repo.git here && cat here/word", "opened"),
    "pip": (
        f"cd $(mktemp -d) && python3 -m pip install -q --no-cache-dir --disable-pip-version-check --target here"
        f" --index-url {SITE}/simple tiny && PYTHONPATH=here python3 -c 'import tiny; print(tiny.word)'",
        "opened",
    ),
    "npm": (
        f"cd $(mktemp -d) && npm install --silent --no-audit --no-fund --no-update-notifier --cache $PWD/cache"
        f" --registry {SITE}/npm/ tiny && node -p \"require('tiny')\"",
        "opened",
    ),
    "node": (
        f"node -e \"fetch('{SITE}/word').then(r => r.ok ? r.text() : r.status).then(console.log,"
        ' e => console.log(e.cause))"',
        "opened",
    ),
    "python3": (
        f"python3 -c \"import urllib.request as u; print(u.urlopen('{SITE}/word', timeout=20).read().decode())\"",
        "opened",
    ),
    "openssl": (
        "printf 'GET /locked/word HTTP/1.1\\r\\nHost: api.rule.test\\r\\nConnection: close\\r\\n\\r\\n'"
        " | openssl s_client -quiet -verify_return_error -verify_quiet -connect api.rule.test:443"
        " -servername api.rule.test 2>/dev/null",
        "opened",
    ),
    "java": (
        f"{FIND_JAVA} cd $(mktemp -d) && {TRUST} >&2 && cat >Fetch.java <<'END'\n{JAVA}\nEND\n"
        "$j/bin/java -Djavax.net.ssl.trustStore=/tmp/cacerts -Djavax.net.ssl.trustStorePassword=changeit"
        f" Fetch.java {SITE}/word",
        "200 opened",
    ),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Internet]:
    folder = tmp_path_factory.mktemp("internet")
    files = folder / "files"
    for place in ("simple/tiny", "npm"):
        (files / place).mkdir(parents=True)
    (files / "word").write_text("opened")
    _wheel(files / "simple" / "tiny")
    _npm_package(files / "npm")
    _repository(files / "repo.git")
    with internet(folder) as up:
        yield up


def _wheel(index: Path) -> None:
    name = "tiny-1.0-py3-none-any.whl"
    about = "tiny-1.0.dist-info"
    with zipfile.ZipFile(index / name, "w") as wheel:
        wheel.writestr("tiny.py", "word = 'opened'\n")
        wheel.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", f"tiny.py,,\n{about}/METADATA,,\n{about}/WHEEL,,\n{about}/RECORD,,\n")
    (index / "index").write_text(f'<!DOCTYPE html><a href="/locked/simple/tiny/{name}">{name}</a>')


def _npm_package(registry: Path) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, text in (
            ("package.json", json.dumps({"name": "tiny", "version": "1.0.0", "main": "index.js"})),
            ("index.js", "module.exports = 'opened'"),
        ):
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    data = packed.getvalue()
    (registry / "tiny-1.0.0.tgz").write_bytes(data)
    digest = base64.b64encode(hashlib.sha512(data).digest()).decode()
    version = {
        "name": "tiny",
        "version": "1.0.0",
        "dist": {"tarball": f"{SITE}/npm/tiny-1.0.0.tgz", "integrity": f"sha512-{digest}"},
    }
    about = {"name": "tiny", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": version}}
    (registry / "tiny").write_text(json.dumps(about))


def _repository(bare: Path) -> None:
    work = bare.with_name("work")
    for words in (
        ("init", "-q", "-b", "main", str(work)),
        ("-C", str(work), "add", "word"),
        ("-C", str(work), "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", "one"),
        ("clone", "-q", "--bare", str(work), str(bare)),
        ("-C", str(bare), "update-server-info"),
    ):
        subprocess.run(["git", *words], check=True, capture_output=True)
        if work.is_dir() and not (work / "word").exists():
            (work / "word").write_text("opened\n")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def runtime(tmp_path_factory: pytest.TempPathFactory, world: Internet) -> AsyncIterator[Runtime]:
    backend, _ = made_backend(tmp_path_factory.mktemp("state"), world)
    async with Runtime.open(backend, kill_all=True) as opened:
        await opened.templates.prepare(TemplateSpec.host(id=TemplateId("base")))
        assert backend.secrets is not None
        await backend.secrets.create(SecretSpec(name=SecretName("api"), value=VALUE))
        yield opened


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def box(runtime: Runtime) -> AsyncIterator[Sandbox]:
    wanted = policy("api.rule.test", rules=(RULE,))
    async with await runtime.sandboxes.create(SandboxSpec.from_template("base", network=wanted)) as sandbox:
        yield sandbox


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def without_rule(runtime: Runtime) -> AsyncIterator[Sandbox]:
    wanted = policy("api.rule.test")
    async with await runtime.sandboxes.create(SandboxSpec.from_template("base", network=wanted)) as sandbox:
        yield sandbox


async def test_without_the_rule_the_host_is_locked(without_rule: Sandbox) -> None:
    done = await bash(without_rule, f"curl -sS -k -m 20 -o /dev/null -w '%{{http_code}}' {SITE}/word")
    assert done.stdout == b"401"


@pytest.mark.parametrize("program", CLIENTS)
async def test_a_client_gets_what_is_behind_the_token(box: Sandbox, program: str) -> None:
    command, wanted = CLIENTS[program]
    needed = {"pip": "python3 -m pip --version", "java": f"{FIND_JAVA} $j/bin/java --version"}
    found = await bash(box, needed.get(program, f"command -v {program}"))
    if found.status.code != 0:
        pytest.skip(f"this machine's {program} is missing, so the sandbox's is too")
    done = await bash(box, command, timeout_s=90)
    assert done.stdout.decode().strip().endswith(wanted), (done.stdout[-800:], done.stderr[-800:])
    assert VALUE.encode() not in done.stdout + done.stderr
