"""The server that E2B's SDKs talk to. It knows the law and nothing below it."""
