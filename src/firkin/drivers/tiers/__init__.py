"""Several tiers of isolation behind the law's one `Driver`."""
