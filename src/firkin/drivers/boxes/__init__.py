"""What drivers of this host's kernel have in common: a box of control groups, a disk, a slot and an agent's socket."""
