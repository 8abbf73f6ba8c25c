"""Specs that could never be honoured cannot be made."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime

import pytest

from firkin.law import (
    events,
    files,
    logs,
    metrics,
    network,
    policies,
    processes,
    resources,
    sandboxes,
    snapshots,
    templates,
    warm_pool,
)
from firkin.law.errors import FirkinError, InvalidReason, InvalidSpec, RetryClass
from firkin.law.events import Event, EventFilter, LifecycleChanged, WarmPoolChanged
from firkin.law.files import CopyOptions, ReadOptions, WriteOptions
from firkin.law.ids import SandboxId, SnapshotId, TemplateId, WarmPoolKey
from firkin.law.policies import DeadlinePolicy
from firkin.law.ports import DomainProxySpec
from firkin.law.processes import (
    MAX_ARGUMENTS,
    Argv,
    ById,
    ByTag,
    Command,
    CommandOutput,
    Exited,
    ProcessId,
    ProcessTag,
    PtySize,
    Shell,
    Signal,
    Signaled,
    describe_selector,
    signal_number,
)
from firkin.law.resources import GIB, MIB, SandboxResources
from firkin.law.sandboxes import (
    MAX_METADATA_BYTES,
    At,
    FromSnapshot,
    FromTemplate,
    SandboxFilter,
    SandboxInfo,
    SandboxSpec,
    Timeout,
)
from firkin.law.states import SandboxState
from firkin.law.templates import (
    EnvdOrigin,
    EnvdPlane,
    EnvdSource,
    GitSource,
    HostSource,
    LocalSource,
    OciSource,
    RecipeSource,
    TemplateSource,
    TemplateSpec,
    describe_source,
    parse_source,
)
from firkin.law.warm_pool import WarmPoolSpec

NOW = datetime(2030, 1, 1, tzinfo=UTC)


def _reason(caught: pytest.ExceptionInfo[InvalidSpec]) -> InvalidReason:
    return caught.value.reason


@pytest.mark.parametrize(
    "fields",
    [
        {"vcpus": 0},
        {"vcpus": 513},
        {"memory_bytes": 0},
        {"memory_bytes": MIB},
        {"disk_bytes": 1},
        {"disk_bytes": 17 * 1024 * GIB},
        {"pids": 1},
    ],
)
def test_resources_outside_any_machine_are_refused_by_name(fields: dict[str, int]) -> None:
    with pytest.raises(InvalidSpec, match=next(iter(fields))) as caught:
        SandboxResources(**fields)
    assert _reason(caught) is InvalidReason.INVALID_RESOURCES


@pytest.mark.parametrize(
    "build", [lambda: Command.argv(""), lambda: Command.shell("a\0b"), lambda: Command.argv("x", "\0")]
)
def test_commands_no_kernel_takes_are_refused(build: object) -> None:
    with pytest.raises(InvalidSpec) as caught:
        build()  # type: ignore[operator]
    assert _reason(caught) is InvalidReason.INVALID_COMMAND


def test_too_many_arguments_are_refused() -> None:
    with pytest.raises(InvalidSpec):
        Command(mode=Argv("x", ("a",) * MAX_ARGUMENTS))


def test_a_working_directory_and_a_timeout_are_checked() -> None:
    with pytest.raises(InvalidSpec) as caught:
        Command(mode=Shell("x"), cwd="/a\0")
    assert _reason(caught) is InvalidReason.INVALID_COMMAND
    for never in (0, -1, float("inf"), float("nan"), 1e300):
        with pytest.raises(InvalidSpec, match="above 0 and at most 320000000") as caught:
            Command(mode=Shell("x"), timeout_s=never)
        assert _reason(caught) is InvalidReason.INVALID_TIMEOUT


@pytest.mark.parametrize(
    "build",
    [
        lambda: Command(mode=Shell("x"), user=""),
        lambda: WriteOptions(user=""),
        lambda: CopyOptions(user=""),
    ],
)
def test_an_empty_user_is_refused_and_is_not_root(build: object) -> None:
    with pytest.raises(InvalidSpec, match="name an account, or leave it out") as caught:
        build()  # type: ignore[operator]
    assert _reason(caught) is InvalidReason.INVALID_USER


def test_the_usual_lifetime_is_bounded_by_the_longest_and_another_above_it_is_refused() -> None:
    assert DeadlinePolicy(max_timeout_s=60).default_timeout_s == 60
    assert DeadlinePolicy(max_timeout_s=600).default_timeout_s == 300
    assert DeadlinePolicy(default_timeout_s=None, max_timeout_s=60).default_timeout_s is None
    with pytest.raises(InvalidSpec, match="default_timeout_s is 90 and max_timeout_s 60") as caught:
        DeadlinePolicy(default_timeout_s=90, max_timeout_s=60)
    assert _reason(caught) is InvalidReason.INVALID_SETTINGS


@pytest.mark.parametrize("seconds", [0, -5, float("nan"), float("inf"), 1e300])
@pytest.mark.parametrize("name", ["default_timeout_s", "max_timeout_s"])
def test_a_lifetime_of_a_policy_is_a_time(name: str, seconds: float) -> None:
    with pytest.raises(InvalidSpec, match=f"{name} is .* above 0 and at most") as caught:
        DeadlinePolicy(**{name: seconds})
    assert _reason(caught) is InvalidReason.INVALID_SETTINGS


@pytest.mark.parametrize("mode", [-1, 0o10000, 2**70])
def test_what_is_no_mode_of_a_file_is_refused(mode: int) -> None:
    with pytest.raises(InvalidSpec, match="between 0 and 0o7777") as caught:
        WriteOptions(mode=mode)
    assert _reason(caught) is InvalidReason.INVALID_MODE


@pytest.mark.parametrize("options", [{"offset": -2}, {"length": -1}])
def test_a_range_below_zero_is_refused(options: dict[str, int]) -> None:
    with pytest.raises(InvalidSpec, match="must not be below 0") as caught:
        ReadOptions(**options)
    assert _reason(caught) is InvalidReason.INVALID_RANGE


@pytest.mark.parametrize(
    "env",
    [
        {"": "x"},
        {"A=B": "x"},
        {"A\0": "x"},
        {"A": "x\0"},
        {"A": "x" * 131_072},
        {str(n): "x" * 99_000 for n in range(11)},
    ],
)
def test_an_environment_no_process_can_have_is_refused(env: dict[str, str]) -> None:
    with pytest.raises(InvalidSpec) as caught:
        Command(mode=Shell("x"), env=env)
    assert _reason(caught) is InvalidReason.INVALID_ENVIRONMENT
    with pytest.raises(InvalidSpec):
        SandboxSpec.from_template("t", env=env)


def test_whatever_the_kernel_takes_may_be_a_variable() -> None:
    env = {"A B": "x", "1": "", "-": "x", "A\n": "\x1b", "ä": "ö"}
    assert Command(mode=Shell("x"), env=env).env == env


@pytest.mark.parametrize(("rows", "cols"), [(65536, 1), (1, 65536), (-1, 5)])
def test_a_terminal_of_impossible_size_is_refused(rows: int, cols: int) -> None:
    with pytest.raises(InvalidSpec):
        PtySize(rows, cols)


def test_signals_are_names_or_numbers_of_the_kernel() -> None:
    assert [signal_number(signal) for signal in (Signal.TERM, Signal.KILL, Signal.INTERRUPT, 10)] == [15, 9, 2, 10]
    for number in (0, 65, -1):
        with pytest.raises(InvalidSpec):
            signal_number(number)
    assert signal_number("TERM") == 15  # type: ignore[arg-type]  # a plain word is as good
    with pytest.raises(InvalidSpec, match="BOGUS is not a signal; use 1…64, TERM, KILL, INT"):
        signal_number("BOGUS")  # type: ignore[arg-type]  # said by its type as well


def test_an_end_is_a_value() -> None:
    assert CommandOutput(status=Exited(0)).ok
    assert not CommandOutput(status=Exited(1)).ok
    assert not CommandOutput(status=Signaled(9)).ok


def test_selectors_describe_themselves() -> None:
    assert describe_selector(ById(ProcessId("7"))) == "7"
    assert describe_selector(ByTag(ProcessTag("web"))) == "web"


@pytest.mark.parametrize("seconds", [-0.1, float("inf"), float("nan"), 1e12])
def test_an_impossible_lifetime_is_refused(seconds: float) -> None:
    with pytest.raises(InvalidSpec) as caught:
        Timeout(seconds)
    assert _reason(caught) is InvalidReason.INVALID_TIMEOUT


def test_an_instant_needs_a_time_zone() -> None:
    assert At(NOW).when == NOW
    with pytest.raises(InvalidSpec):
        At(datetime(2030, 1, 1))


def test_metadata_is_bounded() -> None:
    SandboxSpec.from_template("t", metadata={"k": "v" * (MAX_METADATA_BYTES - 1)})
    with pytest.raises(InvalidSpec) as caught:
        SandboxSpec.from_template("t", metadata={"k": "v" * MAX_METADATA_BYTES})
    assert _reason(caught) is InvalidReason.INVALID_METADATA


def test_a_spec_names_its_source() -> None:
    assert SandboxSpec.from_template("t").source == FromTemplate(TemplateId("t"))
    assert SandboxSpec.from_snapshot("s").source == FromSnapshot(SnapshotId("s"))


def _info(**fields: object) -> SandboxInfo:
    values = {"id": SandboxId("a"), "state": SandboxState.RUNNING, "created_at": NOW, "resources": SandboxResources()}
    return SandboxInfo(**{**values, **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wanted", "matches"),
    [
        (SandboxFilter(), True),
        (SandboxFilter(states=frozenset({SandboxState.RUNNING})), True),
        (SandboxFilter(states=frozenset()), False),
        (SandboxFilter(owner="ann"), True),
        (SandboxFilter(owner=""), False),
        (SandboxFilter(metadata={"k": "v"}), True),
        (SandboxFilter(metadata={"k": "v", "x": "y"}), False),
        (SandboxFilter(labels={"l": "m"}), True),
        (SandboxFilter(labels={"l": "other"}), False),
        (SandboxFilter(template_id=TemplateId("t")), True),
        (SandboxFilter(template_id=TemplateId("u")), False),
    ],
)
def test_all_fields_of_a_filter_must_match(wanted: SandboxFilter, matches: bool) -> None:
    info = _info(owner="ann", metadata={"k": "v", "more": "1"}, labels={"l": "m"}, template_id=TemplateId("t"))
    assert wanted.matches(info) is matches


def test_an_event_filter_takes_what_is_about_its_sandbox() -> None:
    mine = Event(LifecycleChanged(SandboxId("a"), SandboxState.RUNNING, "its agent answered"), NOW)
    nobodys = Event(WarmPoolChanged(WarmPoolKey("k")), NOW)
    assert EventFilter().matches(nobodys)
    wanted = EventFilter(sandbox_id=SandboxId("a"))
    assert wanted.matches(mine)
    assert not wanted.matches(nobodys)
    assert not EventFilter(sandbox_id=SandboxId("b")).matches(mine)


SOURCES: list[TemplateSource] = [
    HostSource(),
    OciSource("debian:12"),
    OciSource("registry.example:5000/a/b@sha256:00"),
    OciSource("oci-archive:/x.tar"),
    OciSource("oci:layout:tag"),
    OciSource("docker-archive:./x.tar:thing:1"),
    OciSource("host"),
    OciSource("git:2"),
    OciSource("recipe:latest"),
    LocalSource("/srv/root"),
    RecipeSource("debian"),
    GitSource("https://example.invalid/x.git", "main"),
    GitSource("https://example.invalid/x.git"),
]


@pytest.mark.parametrize("source", SOURCES, ids=describe_source)
def test_a_described_source_parses_back(source: TemplateSource) -> None:
    assert parse_source(describe_source(source)) == source


def test_bare_words_are_images_and_paths_are_local() -> None:
    assert parse_source("debian") == OciSource("debian")
    assert parse_source("./root") == LocalSource("./root")
    assert parse_source("oci:/layout:tag") == OciSource("oci:/layout:tag")
    assert parse_source("oci:debian:12").path == "debian:12"  # type: ignore[union-attr]  # a folder, never a registry
    assert parse_source("docker://debian:12") == OciSource("debian:12")
    assert OciSource("debian:12").path is None
    assert describe_source(OciSource("oci-archive:/x.tar")) == "oci-archive:/x.tar"
    assert describe_source(OciSource("debian:12")) == "debian:12"
    assert parse_source("git:https://example.invalid/x") == GitSource("https://example.invalid/x")
    for nothing in ("  ", "oci:", "docker-archive:", "docker://"):
        with pytest.raises(InvalidSpec) as caught:
            parse_source(nothing)
        assert _reason(caught) is InvalidReason.MISSING_TEMPLATE


def test_template_shortcuts_take_the_default_data_plane() -> None:
    for spec in (TemplateSpec.oci("a"), TemplateSpec.git("b"), TemplateSpec.local("/c"), TemplateSpec.host()):
        assert spec.data_plane == EnvdPlane()


def test_a_data_plane_needs_a_port_and_an_absolute_path() -> None:
    with pytest.raises(InvalidSpec) as caught:
        EnvdPlane(port=0)
    assert _reason(caught) is InvalidReason.INVALID_PORT
    with pytest.raises(InvalidSpec) as caught:
        EnvdPlane(health_path="health")
    assert _reason(caught) is InvalidReason.INVALID_DATA_PLANE


@pytest.mark.parametrize("digest", ["", "0" * 63, "A" * 64, "g" * 64])
def test_a_pinned_data_plane_needs_a_digest(digest: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        EnvdSource(origin=EnvdOrigin.VENDORED_BUILD, reference="0123", sha256=digest)
    assert _reason(caught) is InvalidReason.INVALID_DATA_PLANE


@pytest.mark.parametrize("name", ["", "a..b", "-a.example", "a b", "a" * 64, "a." * 127 + "aa"])
def test_what_is_no_domain_name_is_refused(name: str) -> None:
    assert DomainProxySpec("a-1.Example.").domain == "a-1.Example."
    with pytest.raises(InvalidSpec):
        DomainProxySpec(name)


@pytest.mark.parametrize(("depth", "min_ready"), [(-1, 0), (1, 2), (1, -1)])
def test_a_warm_pool_must_be_possible(depth: int, min_ready: int) -> None:
    assert WarmPoolSpec.of_depth(2) == WarmPoolSpec(depth=2, min_ready=2)
    with pytest.raises(InvalidSpec):
        WarmPoolSpec(depth=depth, min_ready=min_ready)


@pytest.mark.parametrize("number", [1.5, 2.0, True, "3", None])
def test_a_number_of_things_is_a_whole_number(number: object) -> None:
    for make in (
        lambda: WarmPoolSpec(depth=number, min_ready=0),  # type: ignore[arg-type]
        lambda: WarmPoolSpec(depth=5, min_ready=number),  # type: ignore[arg-type]
        lambda: WarmPoolSpec.of_depth(number),  # type: ignore[arg-type]
        lambda: SandboxResources(vcpus=number),  # type: ignore[arg-type]
        lambda: SandboxResources(pids=number),  # type: ignore[arg-type]
        lambda: EnvdPlane(port=number),  # type: ignore[arg-type]
    ):
        with pytest.raises(InvalidSpec):
            make()


MODULES = (
    events, files, logs, metrics, network, policies, processes, resources, sandboxes, snapshots, templates, warm_pool,
)  # fmt: skip


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_values_are_frozen_and_slotted(module: object) -> None:
    for value in vars(module).values():
        if dataclasses.is_dataclass(value) and isinstance(value, type):
            assert value.__dataclass_params__.frozen, value  # type: ignore[attr-defined]
            assert "__slots__" in vars(value), value


def test_every_error_carries_a_retry_class_and_a_sentence() -> None:
    error = FirkinError("try it", "it did not work")
    assert (str(error), error.operation, error.retry) == ("it did not work", "try it", RetryClass.NOT_RETRYABLE)
