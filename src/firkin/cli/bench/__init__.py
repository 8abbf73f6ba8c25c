"""The benchmark: real clients against a real server, and what was left behind afterwards."""
