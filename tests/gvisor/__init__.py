"""Tests of what only the gvisor driver has."""
