"""The host's kernel and tools, one module a subject. No policy, no records."""
