"""The facade: clients and live handles over any `SandboxBackend`."""
