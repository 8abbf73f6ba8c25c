"""Building templates through E2B's calls: what the SDKs do, and what is refused."""

from __future__ import annotations

import hashlib
import io
import tarfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime

import httpx
import pytest
from e2b.exceptions import TemplateException

from e2b import BuildException, Sandbox, Template
from firkin.e2b.operators import OPERATOR_HEADER, operator_token
from firkin.engine.build_shelf import BuildLimits
from firkin.engine.stored_forms import TemplateRecord
from firkin.law.ids import TemplateId
from firkin.law.templates import LocalSource, NoPlane, TemplateInfo, TemplateState

from .conftest import ALICE, BOB, SECRET, RunningServer
from .raw import RawClient

LOGIN = {"type": "registry", "username": "me", "password": "mine"}


@pytest.fixture
def to(server: RunningServer) -> dict[str, str]:
    return server.sdk()


@pytest.fixture
def client(server: RunningServer) -> Iterator[RawClient]:
    with httpx.Client(base_url=server.url, timeout=20) as http:
        yield RawClient(server, http)


def build(to: dict[str, str], name: str, *commands: str, **options: object) -> object:
    template = Template().from_template("base")
    for command in commands:
        template = template.run_cmd(command)
    return Template.build(template, name, **options, **to)  # type: ignore[arg-type]


def said(to: dict[str, str], template: str, command: str) -> str:
    sandbox = Sandbox.create(template, **to)  # type: ignore[arg-type]
    try:
        return sandbox.commands.run(command).stdout
    finally:
        sandbox.kill()


@pytest.mark.thorough
def test_a_template_is_built_and_sandboxes_are_made_from_it(to: dict[str, str]) -> None:
    heard: list[str] = []
    template = Template().from_template("base").set_envs({"FOO": "bar"}).run_cmd("echo $FOO; echo $FOO > ~/foo")
    info = Template.build(template, "built-one", on_build_logs=lambda entry: heard.append(entry.message), **to)  # type: ignore[arg-type]
    assert info.tags == ["default"]
    assert "bar" in heard
    assert any(line.endswith("RUN echo $FOO; echo $FOO > ~/foo") for line in heard)
    assert said(to, "built-one", "cat ~/foo; echo $FOO") == "bar\nbar\n"
    sandbox = Sandbox.create("built-one", **to)  # type: ignore[arg-type]
    seen = sandbox.get_info()
    assert (seen.template_id, seen.name) == (info.template_id, "built-one")
    sandbox.kill()


@pytest.mark.thorough
def test_names_tags_and_another_build(to: dict[str, str]) -> None:
    first = build(to, "named:v1", "echo 1 > ~/n")
    second = build(to, "named:v2", "echo 2 > ~/n", tags=["latest"])
    assert first.template_id == second.template_id  # type: ignore[attr-defined]
    assert said(to, "named:v1", "cat ~/n") == "1\n"
    assert said(to, "alice/named:latest", "cat ~/n") == "2\n"
    Template.assign_tags("named:v1", ["latest"], **to)  # type: ignore[arg-type]
    assert said(to, "named:latest", "cat ~/n") == "1\n"
    Template.remove_tags("named", ["latest"], **to)  # type: ignore[arg-type]
    assert {tag.tag for tag in Template.get_tags("named", **to)} == {"v1", "v2"}  # type: ignore[arg-type]
    with pytest.raises(Exception, match="tag 'default' does not exist"):
        Sandbox.create("named", **to)  # type: ignore[arg-type]


def test_tags_are_removed_by_their_own_names_alone(client: RawClient) -> None:
    _asked(client, "untagged")
    answer = client.api("DELETE", "/templates/tags", {"name": "untagged:zzz", "tags": ["v1"]})
    assert (answer.status_code, "without a tag" in answer.json()["message"]) == (400, True)


@pytest.mark.parametrize("target", [":v1", "named2:"])
def test_a_target_without_name_or_tag_is_refused(to: dict[str, str], target: str) -> None:
    with pytest.raises(TemplateException, match="400"):
        Template.assign_tags(target, ["x"], **to)  # type: ignore[arg-type]


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("commands", "user", "says"),
    [
        (("exit 3",), None, "failed to run command 'exit 3': exit status 3"),
        (
            ("whoami",),
            "root123",
            "failed to run command 'whoami': command failed: unauthenticated: invalid username: 'root123'",
        ),
    ],
)
def test_a_step_that_fails_is_told_as_e2b_tells_it(
    to: dict[str, str], commands: tuple[str, ...], user: str | None, says: str
) -> None:
    template = Template().from_template("base").run_cmd(list(commands), user=user)
    with pytest.raises(BuildException) as caught:
        Template.build(template, "failing", **to)  # type: ignore[arg-type]
    assert str(caught.value) == says


@pytest.mark.thorough
def test_a_name_exists_once_it_is_asked_for(to: dict[str, str], server: RunningServer) -> None:
    build(to, "existing", "true")
    assert Template.exists("existing", **to)  # type: ignore[arg-type]
    assert not Template.exists("not-there", **to)  # type: ignore[arg-type]
    assert not Template.exists("existing", **server.sdk(BOB)), "another tenant's name says nothing"  # type: ignore[arg-type]


@pytest.mark.thorough
def test_a_build_goes_on_in_the_background(to: dict[str, str]) -> None:
    info = Template.build_in_background(Template().from_template("base").run_cmd("sleep 1"), "slow", **to)  # type: ignore[arg-type]
    seen = {Template.get_build_status(info, **to).status.value}  # type: ignore[arg-type]
    until = time.monotonic() + 20
    while (status := Template.get_build_status(info, **to).status.value) != "ready":  # type: ignore[arg-type]
        seen.add(status)
        assert time.monotonic() < until
    assert seen == {"building"}


@pytest.mark.thorough
def test_a_tenants_base_hides_the_servers_once_it_is_built_and_never_behind_e2bs_image(
    client: RawClient, to: dict[str, str]
) -> None:
    template_id, _ = _asked(client, "base")
    assert said(to, "base", "echo here") == "here\n"  # the name alone hides nothing
    Template.build(Template().from_base_image().run_cmd("echo first > /home/user/made"), "base", **to)  # type: ignore[arg-type]
    assert said(to, "base", "cat /home/user/made") == "first\n"
    Template.build(Template().from_base_image().run_cmd("test ! -e /home/user/made"), "other", **to)  # type: ignore[arg-type]
    assert client.api("DELETE", f"/templates/{template_id}").status_code == 204
    assert said(to, "base", "ls /home/user") == ""


def _asked(client: RawClient, name: str = "raw") -> tuple[str, str]:
    answer = client.api("POST", "/v3/templates", {"name": name})
    assert answer.status_code == 202
    return answer.json()["templateID"], answer.json()["buildID"]


def test_the_answers_of_the_flow_have_every_field(client: RawClient) -> None:
    answer = client.api("POST", "/v3/templates", {"name": "fields:x", "cpuCount": 1, "memoryMB": 256}).json()
    assert set(answer) == {"templateID", "buildID", "public", "names", "tags", "aliases"}
    assert (answer["names"], answer["aliases"], answer["tags"]) == (["alice/fields"], ["fields"], ["x"])
    path = f"/templates/{answer['templateID']}/builds/{answer['buildID']}"
    assert client.api("GET", f"{path}/status").json() == {
        "templateID": answer["templateID"],
        "buildID": answer["buildID"],
        "status": "waiting",
        "logs": [],
        "logEntries": [],
    }
    assert client.api("POST", f"/v2{path}", {"fromTemplate": "base", "steps": []}).status_code == 202
    while (status := client.api("GET", f"{path}/status").json())["status"] in ("waiting", "building"):
        pass
    assert status["status"] == "ready"
    assert set(status["logEntries"][0]) == {"timestamp", "level", "message", "step"}
    one = client.api("GET", f"{path}/status?logsOffset=1&limit=1").json()["logEntries"]
    assert one == status["logEntries"][1:2]
    again = client.api("POST", f"/v2{path}", {"fromTemplate": "base"})
    assert (again.status_code, again.json()["message"]) == (400, "build is not in waiting state")
    detail = client.api("GET", f"/templates/{answer['templateID']}").json()
    assert [one["status"] for one in detail["builds"]] == ["ready"]
    assert (detail["cpuCount"], detail["memoryMB"], detail["buildStatus"]) == (1, 256, "ready")


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "fromImage or fromTemplate"),
        ({"fromImage": "a", "fromTemplate": "base"}, "exclude each other"),
        ({"fromImage": "a b"}, "is no image"),
        ({"fromImage": "oci:/srv/images/x"}, "is no image"),
        ({"fromImage": "127.0.0.1:22/x"}, "names the registry 127.0.0.1:22, and this server asks only those of"),
        ({"fromImage": "docker-archive:/root/x.tar"}, "is no image"),
        ({"fromTemplate": "base", "steps": [{"type": "CMD", "args": ["x"]}]}, "there is no step 'CMD'"),
        ({"fromTemplate": "base", "steps": [{"type": "RUN", "args": []}]}, "cannot have these 0 arguments"),
        ({"fromTemplate": "base", "steps": [{"type": "ENV", "args": ["A"]}]}, "cannot have these 1 arguments"),
        ({"fromTemplate": "base", "steps": [{"type": "ENV", "args": ["A=B", "x"]}]}, "is not a variable name"),
        ({"fromTemplate": "base", "steps": [{"type": "USER", "args": ["-r"]}]}, "is no user name"),
        ({"fromTemplate": "base", "steps": [{"type": "COPY", "args": ["a", "b"]}]}, "COPY needs filesHash"),
        (
            {"fromTemplate": "base", "steps": [{"type": "COPY", "args": ["a", "b"], "filesHash": "0" * 64}]},
            "were not uploaded",
        ),
        ({"fromTemplate": "base", "odd": 1}, "unknown field `odd`"),
        ({"fromImage": "x", "fromImageRegistry": {"type": "aws"}}, "aws ecr get-login-password"),
        ({"fromImage": "x", "fromImageRegistry": {"type": "odd"}}, "must have a type"),
        ({"fromImage": "x", "fromImageRegistry": {**LOGIN, "token": "t"}}, "and nothing else"),
        ({"fromTemplate": "base", "fromImageRegistry": LOGIN}, "is a login for fromImage"),
        ({"fromImage": "e2bdev/base", "fromImageRegistry": LOGIN}, "is a login for fromImage"),
        (
            {"fromTemplate": "base", "steps": [{"type": "RUN", "args": ["true"], "filesHash": "zzz"}]},
            "filesHash is for COPY",
        ),
    ],
)
def test_a_build_that_cannot_be_is_refused_and_may_be_started_still(client: RawClient, body: object, says: str) -> None:
    template_id, build_id = _asked(client)
    answer = client.api("POST", f"/v2/templates/{template_id}/builds/{build_id}", body)
    assert (answer.status_code, says in answer.json()["message"]) == (400, True), answer.text
    status = client.api("GET", f"/templates/{template_id}/builds/{build_id}/status").json()["status"]
    assert status == "waiting"


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "needs one name"),
        ({"name": "Not A Name!"}, "Invalid name"),
        ({"name": "x" * 129}, "Invalid name"),
        ({"name": "bob/x"}, "the namespace is 'alice'"),
        ({"name": "x", "tags": ["a b"]}, "a tag has"),
        ({"name": "x", "cpuCount": 0}, "vcpus is 0"),
        ({"name": "x", "memoryMB": 1}, "memory_bytes"),
        ({"name": "x", "minFreeDiskMb": -7}, "minFreeDiskMb is -7"),
        ({"name": "x", "teamID": "others"}, "not that of the team"),
    ],
)
def test_a_template_that_cannot_be_is_refused(client: RawClient, body: object, says: str) -> None:
    answer = client.api("POST", "/v3/templates", body)
    assert (answer.status_code, says in answer.json()["message"]) == (400, True), answer.text


def test_another_tenant_sees_nothing_until_it_is_published(client: RawClient) -> None:
    template_id, build_id = _asked(client, "shared")
    client.api("POST", f"/v2/templates/{template_id}/builds/{build_id}", {"fromTemplate": "base"})
    path = f"/templates/{template_id}"
    while client.api("GET", f"{path}/builds/{build_id}/status").json()["status"] in ("waiting", "building"):
        pass
    for method, hidden in (
        ("GET", path),
        ("DELETE", path),
        ("PATCH", path),
        ("GET", f"{path}/builds/{build_id}/status"),
    ):
        assert client.api(method, hidden, {} if method == "PATCH" else None, key=BOB).status_code == 404
    assert client.api("POST", "/v2/sandboxes", {"templateID": "alice/shared"}, key=BOB).status_code == 404
    assert client.api("PATCH", f"/v2{path}", {"public": True}).json() == {"names": ["alice/shared"]}
    assert client.api("GET", path, key=BOB).json()["builds"] == []
    made = client.api("POST", "/v2/sandboxes", {"templateID": "alice/shared"}, key=BOB)
    assert made.status_code == 201
    assert client.api("DELETE", path, key=BOB).status_code == 403
    own = client.api("POST", "/v2/sandboxes", {"templateID": "shared"}).json()["sandboxID"]
    in_use = client.api("DELETE", path)
    assert (in_use.status_code, "use it" in in_use.json()["message"]) == (400, True)
    client.api("DELETE", f"/sandboxes/{own}")
    assert client.api("DELETE", path).status_code == 204, "another tenant's sandbox does not keep it"
    assert client.api("DELETE", path).status_code == 404
    client.api("DELETE", f"/sandboxes/{made.json()['sandboxID']}", key=BOB)


def _tar(**files: str) -> bytes:
    into = io.BytesIO()
    with tarfile.open(fileobj=into, mode="w:gz") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(text), 0o644
            archive.addfile(entry, io.BytesIO(text.encode()))
    return into.getvalue()


def test_uploads_need_a_valid_link_and_no_key(client: RawClient) -> None:
    template_id, _ = _asked(client, "uploads")
    digest = hashlib.sha256(b"x").hexdigest()
    link = client.api("GET", f"/templates/{template_id}/files/{digest}")
    assert (link.status_code, link.json()["present"]) == (201, False)
    url = link.json()["url"]
    for broken in (
        url.replace("signature=", "signature=0"),
        url.replace("owner=alice", "owner=bob"),
        url.split("?")[0],
    ):
        assert client.http.put(broken, content=_tar(a="x")).status_code == 403
    assert client.http.put(url, content=_tar(a="x")).status_code == 200
    assert client.http.put(url, content=_tar(a="x")).status_code == 200, "a client may send it again"
    assert client.api("GET", f"/templates/{template_id}/files/{digest}").json()["present"] is True
    assert client.api("GET", f"/templates/{template_id}/files/XY").status_code == 400


def test_files_that_do_not_match_their_hash_fail_the_build(client: RawClient) -> None:
    template_id, build_id = _asked(client, "mismatch")
    digest = hashlib.sha256(b"something else").hexdigest()
    client.http.put(client.api("GET", f"/templates/{template_id}/files/{digest}").json()["url"], content=_tar(a="x"))
    step = {"type": "COPY", "args": ["a", "/a", "", ""], "filesHash": digest}
    client.api("POST", f"/v2/templates/{template_id}/builds/{build_id}", {"fromTemplate": "base", "steps": [step]})
    path = f"/templates/{template_id}/builds/{build_id}/status"
    while (status := client.api("GET", path).json())["status"] in ("waiting", "building"):
        pass
    assert status["reason"]["step"] == "1"
    assert "do not match their hash" in status["reason"]["message"]


def test_a_build_is_listed_and_stopped_by_its_owner_alone(client: RawClient) -> None:
    template_id, build_id = _asked(client, "stopped")
    step = {"type": "RUN", "args": ["sleep 1000"]}
    client.api("POST", f"/v2/templates/{template_id}/builds/{build_id}", {"fromTemplate": "base", "steps": [step]})
    listed = client.api("GET", "/firkin/v1/builds").json()[0]
    assert (listed["id"], listed["name"], listed["status"]) == (build_id, "stopped", "building")
    assert client.api("DELETE", f"/firkin/v1/builds/{build_id}", key=BOB).status_code == 404
    assert client.api("DELETE", f"/firkin/v1/builds/{build_id}").status_code == 204
    status = client.api("GET", f"/templates/{template_id}/builds/{build_id}/status").json()
    assert (status["status"], status["reason"]["message"]) == ("error", "it was cancelled")
    assert client.api("DELETE", f"/firkin/v1/builds/{build_id}").status_code == 204, "as often as one likes"


@pytest.mark.thorough
def test_tags_are_listed_in_every_form(client: RawClient, to: dict[str, str]) -> None:
    build(to, "tagged", "true", tags=["one", "two"])
    assert client.api("GET", "/templates/tagged/tags/exists?tag=one").json() == {"exists": True, "normalizedTag": "one"}
    assert client.api("GET", "/templates/tagged/tags/count").json() == {"total": 2}
    groups = client.api("GET", "/templates/tagged/tags/groups?tagsLimit=1").json()
    assert (len(groups["tags"]), groups["nextCursor"]) == (1, "1")
    assigned = client.api("GET", "/templates/tagged/tags/one/assignments").json()["data"][0]
    assert set(assigned) == {"assignmentId", "buildId", "assignedAt", "buildCreatedAt", "buildFinishedAt"}
    removed = client.api("DELETE", "/templates/tags", {"name": "tagged", "tags": ["default"]})
    assert removed.status_code == 400


def test_the_operators_templates_are_listed_and_not_the_tenants_to_delete(client: RawClient) -> None:
    assert "base" in [template["templateID"] for template in client.api("GET", "/templates").json()]
    assert client.api("DELETE", "/templates/base").status_code == 403


@pytest.mark.thorough
def test_nothing_of_a_build_shows_as_a_template_of_the_operators(client: RawClient, to: dict[str, str]) -> None:
    build(to, "hidden-parts", "true")
    listed = [template["templateID"] for template in client.api("GET", "/templates").json()]
    assert not any("." in template_id for template_id in listed)


@pytest.mark.parametrize("call", ["sandbox", "build"])
def test_why_a_template_of_the_operators_failed_is_the_operators_alone(
    client: RawClient, server: RunningServer, call: str
) -> None:
    assert server.backend is not None
    registry = server.backend._started().templates
    failed = TemplateInfo(
        id=TemplateId("private"),
        state=TemplateState.FAILED,
        source=LocalSource("/srv/private"),
        data_plane=NoPlane(),
        created_at=datetime.now(UTC),
        failure="it was at [base] FROM local:/srv/private",
    )
    registry._known[failed.id] = TemplateRecord(info=failed, key="")
    if call == "sandbox":
        answer = client.api("POST", "/v2/sandboxes", {"templateID": "private"})
    else:
        template_id, build_id = _asked(client, "on-private")
        path = f"/v2/templates/{template_id}/builds/{build_id}"
        answer = client.api("POST", path, {"fromTemplate": "private"})
    told = "template 'private' is failed; ask the operator of this server"
    assert (answer.status_code, answer.json()["message"]) == (409, told)
    del registry._known[failed.id]


def test_a_name_too_many_is_refused_in_a_sentence(
    client: RawClient, server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert server.backend is not None
    monkeypatch.setattr(server.backend.builds, "_limits", BuildLimits(names=0))
    answer = client.api("POST", "/v3/templates", {"name": "one-too-many"})
    told = "you have 0 templates, the most that one has; delete some"
    assert (answer.status_code, answer.json()["message"]) == (400, told)


def test_the_operators_template_is_described(client: RawClient) -> None:
    described = client.api("GET", "/templates/base").json()
    assert (described["templateID"], described["names"], described["public"]) == ("base", ["base"], True)


@pytest.mark.thorough
def test_what_a_failed_build_left_is_nobodys_to_see(client: RawClient, to: dict[str, str]) -> None:
    build(to, "turned-bad", "true")
    for name in ("never-good", "turned-bad"):
        with pytest.raises(BuildException):
            build(to, name, "echo hunter2; exit 7")
    for name in ("never-good", "turned-bad"):
        assert client.api("DELETE", f"/templates/{name}").status_code == 204
    seen = client.api("GET", "/templates", key=BOB).text + client.api("GET", "/firkin/v1/templates", key=BOB).text
    assert "hunter2" not in seen
    assert [one["templateID"] for one in client.api("GET", "/templates", key=BOB).json()] == ["base"]


@pytest.mark.thorough
def test_a_tenants_prepared_templates_are_listed_for_it_and_the_operator_alone(
    client: RawClient, to: dict[str, str]
) -> None:
    info = build(to, "listed-one", "true")
    prefix = f"{info.template_id}."  # type: ignore[attr-defined]

    def listed(key: str, **headers: str) -> dict[str, dict[str, object]]:
        rows = client.api("GET", "/firkin/v1/templates", key=key, headers=headers).json()
        return {row["id"]: row for row in rows if row["id"] == "base" or row["id"].startswith(prefix)}

    assert len(listed(ALICE)) == 2
    assert len(listed(BOB, **{OPERATOR_HEADER: operator_token(SECRET)})) == 2
    assert list(listed(BOB)) == ["base"]
    assert {"source", "start", "failure"}.isdisjoint(listed(BOB)["base"])


def test_a_name_in_capitals_is_the_same_name(client: RawClient) -> None:
    made = client.api("POST", "/v2/sandboxes", {"templateID": "BASE"})
    assert (made.status_code, made.json()["templateID"]) == (201, "base")
    client.api("DELETE", f"/sandboxes/{made.json()['sandboxID']}")
