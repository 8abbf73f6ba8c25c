"""What inspected sandboxes can send out, tried from inside against hosts of the tests' own."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from firkin import Runtime, Sandbox
from firkin.drivers.namespaces.driver import NamespacesDriver
from firkin.engine.backend import LocalBackend
from firkin.host.firewall import Doors, Firewall, led_group
from firkin.host.layer_store import LayerStore
from firkin.host.roots import HostRootPreparer
from firkin.law.errors import FirkinError, InvalidSpec, UnsupportedCapability
from firkin.law.ids import SecretName, TemplateId
from firkin.law.network import EVERYWHERE, EgressProxy, HeaderRule, NetworkPolicy
from firkin.law.policies import Policies
from firkin.law.processes import Argv, Command, CommandOutput
from firkin.law.sandboxes import SandboxSpec
from firkin.law.secrets import SecretSpec
from firkin.law.snapshots import ForkOptions
from firkin.law.templates import TemplateSpec
from tests.namespaces.internet import DNS, NAMES, Internet, internet

pytestmark = pytest.mark.asyncio(loop_scope="module")

VALUE = "sk-live-4711-moriarty"
RULE = HeaderRule(domain="api.rule.test", headers={"Authorization": "Bearer ${e2b.secrets.api}", "X-Team": "a"})


def policy(*allow: str, internet: bool = False, rules: tuple[HeaderRule, ...] = (), **more: object) -> NetworkPolicy:
    fields = {"deny_out": () if internet else (EVERYWHERE,), "dns_servers": (DNS,), **more}
    return NetworkPolicy(internet=internet, allow_out=allow, rules=rules, **fields)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Internet]:
    with internet(tmp_path_factory.mktemp("internet")) as up:
        yield up


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


def made_backend(state: Path, world: Internet) -> tuple[LocalBackend, NamespacesDriver]:
    driver = NamespacesDriver.from_settings(state, {"ready_slots": "3", "egress_trust": str(world.authority)})
    layers = LayerStore(state / "layers")
    backend = LocalBackend(
        driver=driver,
        preparer=HostRootPreparer(layers=layers),
        state_dir=state,
        layers=layers,
        server_secret=b"s" * 32,
    )
    return backend, driver


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def both(state: Path, world: Internet) -> AsyncIterator[tuple[Runtime, LocalBackend, NamespacesDriver]]:
    backend, driver = made_backend(state, world)
    async with Runtime.open(backend) as opened:
        await opened.templates.prepare(TemplateSpec.host(id=TemplateId("base")))
        assert backend.secrets is not None
        await backend.secrets.create(SecretSpec(name=SecretName("api"), value=VALUE))
        yield opened, backend, driver


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def runtime(both: tuple[Runtime, LocalBackend, NamespacesDriver]) -> Runtime:
    return both[0]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def boxed(runtime: Runtime) -> AsyncIterator[Sandbox]:
    """May reach two names: one untouched, one with a rule."""
    wanted = policy("allowed.test", "api.rule.test", "untrusted.test", "private.test", rules=(RULE,))
    async with await runtime.sandboxes.create(SandboxSpec.from_template("base", network=wanted)) as sandbox:
        yield sandbox


async def bash(sandbox: Sandbox, text: str, *, user: str | None = None, timeout_s: float = 40) -> CommandOutput:
    return await sandbox.exec(Command(mode=Argv("/bin/bash", ("-c", text)), user=user, timeout_s=timeout_s))


async def python(sandbox: Sandbox, text: str, *, user: str | None = None) -> str:
    done = await sandbox.exec(Command(mode=Argv("/usr/bin/python3", ("-c", text)), user=user, timeout_s=40))
    return (done.stdout + done.stderr).decode().strip()


async def test_an_allowed_name_is_reached_untouched(boxed: Sandbox, world: Internet) -> None:
    done = await bash(boxed, "curl -sS -k -m 10 https://allowed.test/x -w '%{ssl_verify_result}'")
    assert b'"path": "/x"' in done.stdout, done
    assert not done.stdout.endswith(b"0"), "its own certificate, which the sandbox does not trust"
    assert world.records(host="allowed.test")[-1]["headers"][0][0] == "Host"
    assert b'"secure": false' in (await bash(boxed, "curl -sS -m 10 http://allowed.test/")).stdout


async def test_a_rule_s_host_gets_the_secret_and_the_guest_never_sees_it(boxed: Sandbox, world: Internet) -> None:
    done = await bash(boxed, "curl -sS -m 10 -H 'Authorization: mine' -H 'x-team: mine' https://api.rule.test/y")
    assert done.status.code == 0, done
    [seen] = world.records(host="api.rule.test", path="/y")
    sent = [tuple(pair) for pair in seen["headers"] if pair[0].lower() in ("authorization", "x-team")]
    assert sent == [("Authorization", f"Bearer {VALUE}"), ("X-Team", "a")]
    inside = await bash(boxed, f"env; cat /proc/*/environ; grep -rs {VALUE} /etc /home /tmp /run /var/log", user="root")
    assert VALUE.encode() not in inside.stdout


async def refused_tls(sandbox: Sandbox, name: str | None, address: str, port: int = 443) -> str:
    """What becomes of a handshake with `address` that asks for `name`."""
    asked = "None" if name is None else f"'{name}'"
    return await python(
        sandbox,
        f"""
import socket, ssl
context = ssl.create_default_context(); context.check_hostname = False; context.verify_mode = ssl.CERT_NONE
try:
    with socket.create_connection(('{address}', {port}), 5) as s:
        with context.wrap_socket(s, server_hostname={asked}) as t:
            print('in', t.version())
except (OSError, ssl.SSLError) as error:
    print('refused', error)
""",
    )


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("other.test", NAMES["other.test"]),  # not allowed
        (None, NAMES["allowed.test"]),  # no name at all
        ("allowed.test", NAMES["other.test"]),  # an allowed name, another host's address
        ("api.rule.test", NAMES["other.test"]),
        ("8.7.6.10", NAMES["allowed.test"]),  # an address for a name
        ("allowed.test.other.test", NAMES["other.test"]),
        ("private.test", "10.1.2.3"),  # allowed by name, but where it leads is private
        ("allowed.test", "169.254.169.254"),
        ("allowed.test", "198.18.0.1"),  # the host's own end
    ],
)
async def test_no_name_and_no_lie_about_one_opens_a_connection(boxed: Sandbox, name: str | None, address: str) -> None:
    before = await refused_tls(boxed, "allowed.test", NAMES["allowed.test"])
    assert before.startswith("in "), before
    assert (await refused_tls(boxed, name, address)).startswith("refused")


@pytest.mark.parametrize("port", [22, 25, 8080, 7000, 8443])
async def test_ports_without_names_are_closed(boxed: Sandbox, port: int) -> None:
    said = await python(
        boxed, f"import socket; s = socket.create_connection(('8.7.6.10', {port}), 3); print(repr(s.recv(9)))"
    )
    assert said.endswith(("Connection reset by peer", "Broken pipe"))


async def test_plain_http_is_judged_by_its_host(boxed: Sandbox, world: Internet) -> None:
    assert b'"path": "/plain"' in (await bash(boxed, "curl -sS -m 5 http://allowed.test/plain")).stdout
    for wanted in (
        "http://other.test/no",
        "-H 'Host: other.test' http://allowed.test/no",
        "-H 'Host: allowed.test' http://8.7.6.12/no",
        "http://8.7.6.10/no",
    ):
        done = await bash(boxed, f"curl -sS -m 5 {wanted}")
        assert b'"path"' not in done.stdout, wanted
    assert not world.records(path="/no")


async def test_udp_and_icmp_do_not_leave(boxed: Sandbox) -> None:
    text = """
import socket
for port in (443, 123, 7000):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(0.4)
    s.sendto(b'x', ('8.7.6.10', port))
    try: print(s.recv(10))
    except TimeoutError: print('nothing')
"""
    assert await python(boxed, text) == "nothing\nnothing\nnothing"


async def test_names_are_told_as_the_policy_allows(boxed: Sandbox, world: Internet) -> None:
    ask = "getent ahostsv4 {} | head -1 | cut -d' ' -f1"
    for name, found in (("allowed.test", NAMES["allowed.test"]), ("api.rule.test", NAMES["api.rule.test"])):
        assert (await bash(boxed, ask.format(name))).stdout.decode().strip() == found
    for name in ("other.test", "private.test", "secrets-of-mine.tunnel.other.test", "alias.test"):
        assert (await bash(boxed, ask.format(name))).stdout == b"", name
    assert not [line for line in world.records() if "tunnel" in str(line.get("asked", ""))]


async def test_dns_goes_where_the_policy_says_whatever_is_asked(boxed: Sandbox) -> None:
    text = """
import socket, struct
def ask(name, kind, tcp=False, to='8.8.4.4'):
    q = struct.pack('!6H', 7, 0x100, 1, 0, 0, 0) + b''.join(bytes([len(p)]) + p.encode() for p in name.split('.'))
    q += b'\\0' + struct.pack('!2H', kind, 1)
    s = socket.socket(socket.AF_INET, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM); s.settimeout(4)
    s.connect((to, 53))
    s.send((struct.pack('!H', len(q)) if tcp else b'') + q)
    a = s.recv(999)[2 if tcp else 0:]
    return a[3] & 15, struct.unpack('!H', a[6:8])[0]
print(ask('allowed.test', 1), ask('allowed.test', 1, True), ask('other.test', 1, True))
print(ask('allowed.test', 16), ask('allowed.test', 65), ask('allowed.test', 28), ask('other.test', 16))
"""
    assert await python(boxed, text) == "(0, 1) (0, 1) (5, 0)\n(0, 0) (0, 0) (0, 0) (5, 0)"


async def test_inside_an_intercepted_connection_no_other_host_is_served(boxed: Sandbox, world: Internet) -> None:
    for words in (
        "-H 'Host: other.test' https://api.rule.test/no",
        "-H 'Transfer-Encoding: chunked' -H 'Content-Length: 4' -d abcd https://api.rule.test/no",
        "--request-target http://other.test/no https://api.rule.test/no",
    ):
        done = await bash(boxed, f"curl -sS -m 5 {words}")
        assert b"firkin egress" in done.stdout, (words, done)
    assert not world.records(path="/no")


async def test_a_redirect_takes_no_secret_along(runtime: Runtime, world: Internet) -> None:
    wanted = policy("api.rule.test", "other.test", rules=(RULE,))
    async with await runtime.sandboxes.create(SandboxSpec.from_template("base", network=wanted)) as sandbox:
        done = await bash(sandbox, "curl -sS -k -L -m 10 https://api.rule.test/redirect")
        assert b'"path": "/after"' in done.stdout, done
    [after] = world.records(path="/after")
    assert VALUE not in json.dumps(after)


async def test_a_server_without_a_trusted_certificate_gets_nothing(runtime: Runtime, world: Internet) -> None:
    rule = HeaderRule(domain="untrusted.test", headers={"Authorization": "${e2b.secrets.api}"})
    wanted = policy("untrusted.test", rules=(rule,))
    async with await runtime.sandboxes.create(SandboxSpec.from_template("base", network=wanted)) as sandbox:
        done = await bash(sandbox, "curl -sS -m 10 -w '%{http_code}' https://untrusted.test/")
        assert b"certificate is not trusted" in done.stdout, done
        assert done.stdout.endswith(b"502")
    assert not world.records(host="untrusted.test")


async def test_answers_stream_and_upgrades_and_large_bodies_pass(boxed: Sandbox, world: Internet) -> None:
    text = """
import http.client, ssl, time
c = http.client.HTTPSConnection('api.rule.test', timeout=10)
c.request('GET', '/chunks'); r = c.getresponse(); began = time.monotonic(); times = []
while part := r.read1(100): times.append(time.monotonic() - began)
print(len(times), times[-1] - times[0] > 0.4)
c.request('POST', '/up', body=iter([b'x' * 100000] * 30)); print(c.getresponse().read()[-16:])
c.request('POST', '/up', body=b'y' * 3000000); print(c.getresponse().read()[-16:])
c.request('GET', '/bytes/5000000'); r = c.getresponse(); print(len(r.read()), r.getheader('Alt-Svc'))
c.request('HEAD', '/'); r = c.getresponse(); print(r.status, r.read())
c.request('GET', '/upgrade', headers={'Connection': 'Upgrade', 'Upgrade': 'websocket'})
r = c.getresponse(); c.sock.send(b'hi there'); print(r.status, c.sock.recv(100))
"""
    said = await python(boxed, text)
    assert said == "3 True\nb'\"size\": 3000000}'\nb'\"size\": 3000000}'\n5000000 None\n200 b''\n101 b'HI THERE'", said


async def test_git_node_and_pip_trust_what_they_are_shown(boxed: Sandbox, world: Internet) -> None:
    await bash(boxed, "git ls-remote https://api.rule.test/repo.git; true")
    seen = ["/repo.git/info/refs?service=git-upload-pack"]
    if (await bash(boxed, "python3 -m pip --version || true")).stdout:
        await bash(boxed, "python3 -m pip download --no-deps --index-url https://api.rule.test/simple nothing; true")
        seen.append("/simple/nothing/")
    fetch = "fetch('https://api.rule.test/node').then(r => r.text()).then(console.log, e => console.log(e.cause))"
    if (await bash(boxed, "command -v node")).stdout:
        await bash(boxed, f'node -e "{fetch}"')
        seen.append("/node")
    for path in seen:
        assert VALUE in json.dumps(world.records(path=path))


async def test_half_closed_connections_stay_so(runtime: Runtime) -> None:
    wanted = policy(internet=True)
    async with await runtime.sandboxes.create(SandboxSpec.from_template("base", network=wanted)) as sandbox:
        text = """
import socket
s = socket.create_connection(('8.7.6.10', 7000), 5); s.send(b'hello'); s.shutdown(socket.SHUT_WR)
got = b''
while data := s.recv(100): got += data
print(got)
"""
        assert await python(sandbox, text) == "b'hellobye'"


async def test_other_ports_are_looked_into_when_the_policy_says_so(runtime: Runtime) -> None:
    wanted = policy("allowed.test", https_ports=(8443,))
    async with await runtime.sandboxes.create(SandboxSpec.from_template("base", network=wanted)) as sandbox:
        assert (await refused_tls(sandbox, "allowed.test", NAMES["allowed.test"], 8443)).startswith("in ")
        assert (await refused_tls(sandbox, "other.test", NAMES["other.test"], 8443)).startswith("refused")
        assert (await refused_tls(sandbox, None, NAMES["allowed.test"], 8443)).startswith("refused")


async def test_everything_goes_by_the_proxy_and_names_go_as_names(runtime: Runtime, world: Internet) -> None:
    proxy = EgressProxy(address="proxy.test:1080", username="u", password="p")
    wanted = policy("allowed.test", "api.rule.test", "8.7.6.12", rules=(RULE,), egress_proxy=proxy)
    async with await runtime.sandboxes.create(SandboxSpec.from_template("base", network=wanted)) as sandbox:
        assert b'"path"' in (await bash(sandbox, "curl -sS -k -m 10 https://allowed.test/proxied")).stdout
        assert b'"path"' in (await bash(sandbox, "curl -sS -m 10 https://api.rule.test/proxied")).stdout
        assert b'"path"' in (await bash(sandbox, "curl -sS -m 10 http://8.7.6.12/proxied")).stdout
        assert b'"path"' not in (await bash(sandbox, "curl -sS -k -m 10 https://other.test/proxied")).stdout
    proxied = [line["proxied"] for line in world.records() if "proxied" in line]
    assert proxied == ["allowed.test", "api.rule.test", "8.7.6.12"]
    broken = policy("allowed.test", egress_proxy=EgressProxy(address="proxy.test:1080", username="u", password="x"))
    async with await runtime.sandboxes.create(SandboxSpec.from_template("base", network=broken)) as sandbox:
        assert (await refused_tls(sandbox, "allowed.test", NAMES["allowed.test"])).startswith("refused")


async def test_a_new_value_counts_from_the_next_request(
    both: tuple[Runtime, LocalBackend, NamespacesDriver], boxed: Sandbox, world: Internet
) -> None:
    secrets = both[1].secrets
    assert secrets is not None
    await secrets.update("", "api", "sk-second")
    await bash(boxed, "curl -sS -m 10 https://api.rule.test/second")
    assert "Bearer sk-second" in json.dumps(world.records(path="/second"))
    await secrets.update("", "api", VALUE)


async def test_the_next_tenant_of_a_slot_is_led_nowhere(runtime: Runtime) -> None:
    led, plain = (
        SandboxSpec.from_template("base", network=network) for network in (policy("allowed.test"), NetworkPolicy())
    )
    for _ in range(4):
        async with await runtime.sandboxes.create(led) as sandbox:
            assert (await refused_tls(sandbox, "allowed.test", NAMES["allowed.test"])).startswith("in ")
        async with await runtime.sandboxes.create(plain) as sandbox:
            assert (await refused_tls(sandbox, "allowed.test", NAMES["allowed.test"])).startswith("refused")


async def test_a_fork_has_the_policy_and_an_authority_of_its_own(
    both: tuple[Runtime, LocalBackend, NamespacesDriver], boxed: Sandbox
) -> None:
    first = (await bash(boxed, "cat /etc/ssl/certs/firkin-egress.pem")).stdout
    [made] = await both[1].snapshots.fork(boxed.id, ForkOptions(count=1))
    assert not isinstance(made, FirkinError)
    async with await both[0].sandboxes.attach(made.id) as fork:
        assert b'"path"' in (await bash(fork, "curl -sS -m 10 https://api.rule.test/fork")).stdout
        assert (await refused_tls(fork, "other.test", NAMES["other.test"])).startswith("refused")
        second = (await bash(fork, "cat /etc/ssl/certs/firkin-egress.pem")).stdout
        bundle = (await bash(fork, "cat /etc/ssl/certs/ca-certificates.crt")).stdout
        await fork.delete(force=True)
    assert first != second
    assert (first in bundle, second in bundle) == (False, True)


async def test_a_paused_sandbox_goes_on_where_it_was(runtime: Runtime, boxed: Sandbox) -> None:
    for keep_memory in (True, False):
        await boxed.pause(keep_memory=keep_memory)
        await boxed.resume()
        done = await bash(boxed, "curl -sS -m 10 https://api.rule.test/resumed")
        assert b'"path"' in done.stdout, (keep_memory, done)
        assert (await refused_tls(boxed, "other.test", NAMES["other.test"])).startswith("refused")


async def test_a_secret_that_does_not_exist_is_refused_before_anything_is_made(runtime: Runtime) -> None:
    for value in ("${e2b.secrets.none}", "${e2b.identity.tokens.aws}"):
        rule = HeaderRule(domain="api.rule.test", headers={"Authorization": value})
        policy(internet=True, rules=(rule,))
        with pytest.raises(InvalidSpec, match=r"none|identity"):
            await runtime.sandboxes.create(
                SandboxSpec.from_template("base", network=policy(internet=True, rules=(rule,)))
            )


async def test_what_nothing_enforces_is_refused(runtime: Runtime) -> None:
    for wanted in (
        policy("allowed.test", "10.0.0.0/8", dns_servers=("192.168.1.1",)),
        policy("allowed.test", dns_servers=("192.168.1.1",)),
        policy("allowed.test", peers=("a",)),
        NetworkPolicy(internet=True, https_ports=(8443,)),
    ):
        with pytest.raises(UnsupportedCapability):
            await runtime.sandboxes.create(SandboxSpec.from_template("base", network=wanted))


async def test_a_restarted_server_leads_what_it_left_running(tmp_path: Path, world: Internet) -> None:
    backend, _ = made_backend(tmp_path, world)
    await backend.start(Policies())
    await backend.templates.prepare(TemplateSpec.host(id=TemplateId("base")))
    assert backend.secrets is not None
    await backend.secrets.create(SecretSpec(name=SecretName("api"), value=VALUE))
    wanted = policy("allowed.test", "api.rule.test", rules=(RULE,))
    made = await backend.sandboxes.create(SandboxSpec.from_template("base", network=wanted))
    await backend.aclose()
    second, _ = made_backend(tmp_path, world)
    await second.start(Policies())
    try:
        sandbox = Sandbox(second, made)
        async with asyncio.timeout(10):
            while not (await bash(sandbox, "curl -sS -m 5 https://api.rule.test/restarted")).stdout:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        assert VALUE in json.dumps(world.records(path="/restarted"))
        assert (await refused_tls(sandbox, "other.test", NAMES["other.test"])).startswith("refused")
    finally:
        await second.aclose(kill_all=True)


async def test_between_servers_nothing_goes_out(tmp_path: Path, world: Internet) -> None:
    backend, _ = made_backend(tmp_path, world)
    await backend.start(Policies())
    await backend.templates.prepare(TemplateSpec.host(id=TemplateId("base")))
    made = await backend.sandboxes.create(SandboxSpec.from_template("base", network=policy("allowed.test")))
    sandbox = Sandbox(backend, made)
    text = f"sleep 3; curl -sS -k -m 3 --resolve allowed.test:443:{NAMES['allowed.test']} https://allowed.test/between"
    await sandbox.process.start(Command(mode=Argv("/bin/bash", ("-c", text))))
    await backend.aclose()
    await asyncio.sleep(6.5)
    assert not world.records(path="/between")
    second, _ = made_backend(tmp_path, world)
    await second.start(Policies())
    await second.aclose(kill_all=True)


async def test_a_guest_that_holds_on_to_everything_harms_nobody_else(boxed: Sandbox, runtime: Runtime) -> None:
    text = """
import socket, time
held = []
for n in range(700):
    try:
        s = socket.create_connection(('8.7.6.10', 443), 2); s.send(b'\\x16\\x03\\x01'); held.append(s)
    except OSError: pass
print(len(held) > 100)
time.sleep(4)
"""
    async with await runtime.sandboxes.create(SandboxSpec.from_template("base", network=policy("*"))) as greedy:
        await greedy.process.start(Command(mode=Argv("/usr/bin/python3", ("-c", text))))
        await asyncio.sleep(1.5)
        assert (await refused_tls(boxed, "allowed.test", NAMES["allowed.test"])).startswith("in ")


async def test_the_gateway_s_process_has_no_rights_and_no_files(
    both: tuple[Runtime, LocalBackend, NamespacesDriver], boxed: Sandbox
) -> None:
    pid = both[2].gateway_pids[""]
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
    )
    assert set(status["CapEff"] + status["CapPrm"] + status["CapBnd"] + status["CapInh"]) == {"0"}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert min(map(int, status["Uid"].split())) >= 0x70000000
    assert status["Groups"].strip() == ""
    assert list(Path(f"/proc/{pid}/root/").iterdir()) == []
    assert Path(f"/proc/{pid}/environ").read_bytes().strip(b"\0") == b""
    assert Path(f"/proc/{pid}/cmdline").read_bytes().strip(b"\0") == b"firkin-egress"
    assert os.readlink(f"/proc/{pid}/ns/net") != os.readlink("/proc/self/ns/net")


async def test_doors_that_a_killed_server_left_open_are_closed(runtime: Runtime) -> None:
    group, firewall = led_group(4030), Firewall("test")
    firewall.install()
    try:
        for port in (4000, 5000):  # the second time as by another server, which does not know the first one's ports
            firewall.open_doors(group, "198.18.0.1", Doors(tcp=port, dns_tcp=port + 1, dns_udp=port + 2))
        found = firewall._listed("list set inet firkin doors")
        left = [port for port in (4000, 4001, 5000, 5001, 5002) if f"{group} . 198.18.0.1 . {port}" in found]
        assert left == [5000, 5001, 5002]
        firewall.close_doors(group)
        assert str(group) not in firewall._listed("list table inet firkin")
    finally:
        firewall.close()
