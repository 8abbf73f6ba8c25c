"""The agent: PID 1 of a sandbox. Lean imports only, all of them done before it is forked."""
