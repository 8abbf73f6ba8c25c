"""The namespaces driver: a warm single-threaded process forks each sandbox."""
