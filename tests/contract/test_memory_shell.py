"""The shell in memory reads text as sh does, as far as tests need it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from firkin.drivers.memory import MemoryDriver
from firkin.law.driver import BootPlan, RootFilesystem
from firkin.law.ids import SandboxId
from firkin.law.resources import SandboxResources
from firkin.testing.conversation import Conversation

CASES = [
    ("echo one; echo two", "one\ntwo\n", 0),
    ("true && echo yes || echo no", "yes\n", 0),
    ("false && echo yes || echo no", "no\n", 0),
    ("exit 7", "", 7),
    ("no-such-program", "", 127),
    ("echo 'a  b' \"c  d\" e\\ f", "a  b c  d e f\n", 0),
    ("A='x  y'; echo $A \"$A\" '$A'", "x y x  y $A\n", 0),
    ("A=1 env | grep-less 2>/dev/null; echo $?", "127\n", 0),
    ("export A=b; sh -c 'echo $A'", "b\n", 0),
    ("A=b sh -c 'echo $A'; echo -$A-", "b\n--\n", 0),
    ("echo ${X:-fallback} ${#HOME} ${Y-}", "fallback 5\n", 0),
    ("echo $(echo inner) `echo ticks`", "inner ticks\n", 0),
    ('echo "$(printf "a\\nb\\n")"', "a\nb\n", 0),
    ("echo $((2 + 3 * 4)) $(( (7 - 1) / 2 ))", "14 3\n", 0),
    ("cd /tmp && pwd", "/tmp\n", 0),
    ("(cd /tmp; pwd); pwd", "/tmp\n/root\n", 0),
    ("echo hi > /tmp/f; echo ho >> /tmp/f; cat /tmp/f", "hi\nho\n", 0),
    ("cat < /etc/group | wc -l", "2\n", 0),
    ("echo err >&2", "", 0),
    ("echo err 1>&2 2>&1", "", 0),
    ("{ echo a; echo b >&2; } 2>&1", "a\nb\n", 0),
    ("yes | head -n 2", "y\ny\n", 0),
    ("yes | head -c 3", "y\ny", 0),
    ("if [ -d /tmp ]; then echo dir; else echo none; fi", "dir\n", 0),
    ("if false; then :; elif true; then echo second; fi", "second\n", 0),
    ("for x in 1 2 3; do echo $x; done", "1\n2\n3\n", 0),
    ("i=0; while [ $i -lt 3 ]; do i=$((i+1)); [ $i = 2 ] && continue; echo $i; done", "1\n3\n", 0),
    ("f() { echo $1-$#; return 3; }; f a b; echo $?", "a-2\n3\n", 0),
    ("printf '%s|%d\\n' a 1 b 2", "a|1\nb|2\n", 0),
    ("printf '\\001\\x02%b' 'q\\n'", "\x01\x02q\n", 0),
    ("cat <<END\nhome is $HOME\nEND\necho after", "home is /root\nafter\n", 0),
    ("cat <<'END'\n$HOME\nEND", "$HOME\n", 0),
    ("read a b <<< 'one two three'; echo $b", "two three\n", 0),
    ("echo a b | { read x y; echo $y; }", "b\n", 0),
    ("touch /tmp/a.x /tmp/b.x; cd /tmp; echo *.x 'n*' no*", "a.x b.x n* no*\n", 0),
    ("sleep 0.01 & wait $!; echo $?", "0\n", 0),
    ("sleep 100 & kill $!; wait $!; echo $?", "143\n", 0),
    ("set -e; false; echo not reached", "", 1),
    ("eval 'echo \"quoted $((1+1))\"'", "quoted 2\n", 0),
    ("! true; echo $?", "1\n", 0),
    ('set -- a \'b c\'; for x in "$@"; do echo "<$x>"; done', "<a>\n<b c>\n", 0),
    ("echo a#b # comment", "a#b\n", 0),
    ("trap 'echo caught; exit 4' TERM; kill -TERM $$; echo after", "caught\n", 4),
    ("x=abc.tar; echo ${x%.tar} ${x#a}", "abc bc.tar\n", 0),
    ("command -v true", "/usr/bin/true\n", 0),
    ("", "", 0),
]


@pytest.fixture
async def talk() -> AsyncIterator[Conversation]:
    driver = MemoryDriver()
    root = RootFilesystem(base="/nonexistent")
    instance = await driver.boot(BootPlan(sandbox_id=SandboxId("shell"), root=root, resources=SandboxResources()))
    async with await Conversation.open(await instance.dial()) as conversation:
        yield conversation
    await instance.destroy()


@pytest.mark.thorough
@pytest.mark.parametrize(("text", "stdout", "code"), CASES)
async def test_shell_text_does_what_sh_does(talk: Conversation, text: str, stdout: str, code: int) -> None:
    answer = await talk.run("sh", "-c", text)
    assert bytes(answer.stdout).decode() == stdout, bytes(answer.stderr)
    assert answer.result == {"exit": code}


@pytest.mark.parametrize("text", ["echo 'open", "if true", "( echo", "echo )", "echo $((1 +", "; ;", "case x in esac"])
async def test_text_that_is_no_command_is_status_2_and_a_reason(talk: Conversation, text: str) -> None:
    answer = await talk.run("bash", "-c", text)
    assert answer.result == {"exit": 2}
    assert answer.stderr


async def test_a_shell_without_text_reads_commands_from_its_input(talk: Conversation) -> None:
    stream = await talk.request("start", argv=["sh"], env={}, cwd="", user="", stdin=True, pty=None, input=True)
    await talk.send(stream, b"cd /tmp\nX=kept\n")
    await talk.send(stream, b"for i in 1 2\ndo echo $i $X\ndone\npwd\nexit 5\n")
    answer = await talk.finished(stream)
    assert bytes(answer.stdout) == b"1 kept\n2 kept\n/tmp\n"
    assert answer.result == {"exit": 5}


async def test_a_terminal_echoes_and_knows_its_size(talk: Conversation) -> None:
    stream = await talk.request("start", argv=["bash", "-i"], env={}, cwd="", user="user", stdin=True, pty=[30, 90])
    [event] = await talk.event(stream)
    for data in (b"stty size\n", b"sleep 100\n", b"\x03", b"echo done\n", b"\x04"):
        sent = await talk.request("input", pid=event["pid"])
        await talk.send(sent, data)
        await talk.end(sent)
        assert (await talk.finished(sent)).result == {}
    answer = await talk.finished(stream)
    screen = bytes(answer.stdout)
    assert b"stty size\r\n" in screen
    assert b"\r\n30 90\r\n" in screen or b"$ 30 90\r\n" in screen
    assert b"^C" in screen
    assert b"done\r\n" in screen
    assert answer.result is not None
    assert "exit" in answer.result


async def test_scripts_with_an_interpreter_line_are_executed(talk: Conversation) -> None:
    text = "printf '#!/bin/sh\\necho ran $1\\n' > /tmp/s; chmod +x /tmp/s; /tmp/s here"
    answer = await talk.run("sh", "-c", text)
    assert bytes(answer.stdout) == b"ran here\n"


async def test_another_users_files_are_not_written(talk: Conversation) -> None:
    answer = await talk.call(
        "start", argv=["sh", "-c", "echo x > /etc/passwd"], env={}, cwd="", user="user", stdin=False, pty=None
    )
    assert answer.result == {"exit": 1}
    assert b"Permission denied" in answer.stderr
