"""An agent's work in one sandbox, through the official E2B SDK, told step by step with timings.

Needs E2B_API_URL, E2B_SANDBOX_URL and E2B_API_KEY, as ``firkin env`` prints them.
Exits 1 when a step does not do what it should.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from e2b import CommandExitException, CommandHandle, Sandbox

PROGRAM = """
import platform, sys
for number in range(1, 4):
    print("line", number, flush=True)
print("python", platform.python_version(), "as", __import__("getpass").getuser(), file=sys.stderr)
open("/home/user/squares.txt", "w").write(" ".join(str(n * n) for n in range(10)))
"""
SERVICE = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (print("told to stop", flush=True), sys.exit(7)))
print("service up", flush=True)
while True:
    time.sleep(0.05)
"""


@contextmanager
def step(title: str) -> Iterator[None]:
    """Tell what was done, and how long it took."""
    begun = time.perf_counter()
    yield
    print(f"  {(time.perf_counter() - begun) * 1000:7.1f} ms  {title}", flush=True)


def expect(what: str, found: object, wanted: object) -> None:
    if found != wanted:
        sys.exit(f"main job: {what} is {found!r}, not {wanted!r}")


def shown(stream: str) -> Callable[[str], None]:
    def show(text: str) -> None:
        for line in text.splitlines():
            print(f"      {stream} | {line}", flush=True)

    return show


def run_code(sandbox: Sandbox) -> None:
    with step("write a program"):
        sandbox.files.write("/home/user/work.py", PROGRAM)
    with step("run it, output streamed"):
        done = sandbox.commands.run("python3 work.py", on_stdout=shown("out"), on_stderr=shown("err"))
    expect("its exit code", done.exit_code, 0)
    expect("its output", done.stdout, "line 1\nline 2\nline 3\n")


def use_files(sandbox: Sandbox) -> None:
    with step("read what it wrote"):
        squares = sandbox.files.read("/home/user/squares.txt")
    expect("the file", squares, "0 1 4 9 16 25 36 49 64 81")
    with step("list the folder"):
        names = {entry.name for entry in sandbox.files.list("/home/user")}
    expect("both files there", {"work.py", "squares.txt"} <= names, True)


def exit_code_of(command: CommandHandle, show: Callable[[str], None]) -> int:
    """Wait for it; the SDK makes an exception of an exit code other than 0."""
    try:
        return command.wait(on_stdout=show).exit_code
    except CommandExitException as ended:
        return ended.exit_code


def signal_service(sandbox: Sandbox) -> None:
    sandbox.files.write("/home/user/service.py", SERVICE)
    with step("start a service in the background"):
        service = sandbox.commands.run("exec python3 service.py", background=True)
        for out, _, _ in service:
            if out:
                shown("out")(out)
                break
    with step("find it, and tell it to stop"):
        expect("it is listed", service.pid in {process.pid for process in sandbox.commands.list()}, True)
        sandbox.commands.run(f"kill -TERM {service.pid}")
        expect("its exit code", exit_code_of(service, shown("out")), 7)
    with step("start another, and kill it"):
        other = sandbox.commands.run("sleep 1000", background=True)
        expect("killed", other.kill(), True)
        expect("it ended well", exit_code_of(other, shown("out")) == 0, False)
    expect("its entry", other.pid in {process.pid for process in sandbox.commands.list()}, False)


def main() -> None:
    begun = time.perf_counter()
    with step("create a sandbox"):
        sandbox = Sandbox.create(timeout=120)
    try:
        run_code(sandbox)
        use_files(sandbox)
        signal_service(sandbox)
    finally:
        with step("kill the sandbox"):
            killed = sandbox.kill()
    expect("killed", killed, True)
    expect("still running", sandbox.is_running(), False)
    print(f"  {(time.perf_counter() - begun) * 1000:7.1f} ms  in all", flush=True)


if __name__ == "__main__":
    main()
