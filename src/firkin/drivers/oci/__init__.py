"""Isolation by an audited OCI runtime: runc or crun."""
