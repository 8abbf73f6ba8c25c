"""Firkin as a library, without a server. Run it as root."""

import asyncio

import firkin
from firkin import SandboxSpec


async def main() -> None:
    async with firkin.open_runtime() as runtime:
        sandbox = await runtime.sandboxes.create(SandboxSpec.from_template("base"))
        output = await sandbox.exec("echo hello from $(hostname)")
        print(output.stdout.decode())


asyncio.run(main())
