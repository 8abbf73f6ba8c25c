"""What could not be kept is refused where it is said."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from firkin.law.errors import InvalidSpec
from firkin.law.processes import Argv, Command
from firkin.law.sandboxes import DeleteOptions, SandboxSpec
from firkin.law.snapshots import ForkOptions, PauseOptions, RestoreOptions, ResumeOptions, SnapshotOptions

LATIN = "caf\udce9"  # as os.environ has the byte 0xe9
HALF = "\ud800"  # not even that


@pytest.mark.parametrize("text", [LATIN, HALF])
@pytest.mark.parametrize(
    "make",
    [
        lambda text: SandboxSpec.from_template("t", env={"N": text}),
        lambda text: SandboxSpec.from_template("t", metadata={"N": text}),
        lambda text: SandboxSpec.from_template("t", metadata={text: "N"}),
        lambda text: SandboxSpec.from_template("t", labels={"N": text}),
        lambda text: SandboxSpec.from_template("t", owner=text),
        lambda text: SnapshotOptions(name=text),
        lambda text: SnapshotOptions(metadata={"N": text}),
        lambda text: SnapshotOptions(labels={"N": text}),
        lambda text: SnapshotOptions(owner=text),
        lambda text: RestoreOptions(env={"N": text}),
        lambda text: RestoreOptions(metadata={"N": text}),
        lambda text: ForkOptions(labels={"N": text}),
        lambda text: DeleteOptions(actor=text),
        lambda text: PauseOptions(actor=text),
        lambda text: ResumeOptions(actor=text),
    ],
)
def test_text_that_cannot_be_kept_is_refused_by_name(make: Callable[[str], object], text: str) -> None:
    with pytest.raises(InvalidSpec, match=r"N|name|owner|actor|caf|ud800"):
        make(text)


def test_a_command_may_have_bytes_that_are_no_text() -> None:
    command = Command(mode=Argv("echo", (LATIN,)), env={"N": LATIN})
    assert command.env["N"] == LATIN


def test_what_is_neither_text_nor_bytes_is_no_environment() -> None:
    with pytest.raises(InvalidSpec, match="neither"):
        Command(mode=Argv("true"), env={"N": HALF})


def test_unicode_of_any_kind_is_kept() -> None:
    assert SandboxSpec.from_template("t", env={"N": "ünï 🥃"}, owner="ада").env == {"N": "ünï 🥃"}
