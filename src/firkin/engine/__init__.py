"""One node's sandboxes: what should exist, kept true against what does."""
