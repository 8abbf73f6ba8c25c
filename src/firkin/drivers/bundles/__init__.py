"""Boxes whose first process is started by an OCI runtime: what the drivers `oci` and `gvisor` have in common."""
