"""Tests of what only the oci driver has."""
