"""The official E2B SDK against a running `firkin serve`. First: eval "$(firkin env)"."""

from e2b import Sandbox

sandbox = Sandbox.create()
try:
    sandbox.files.write("/home/user/hello.py", "print('hello from', __file__)")
    result = sandbox.commands.run("python3 hello.py", on_stdout=print)
    print("exit code", result.exit_code)
finally:
    sandbox.kill()
