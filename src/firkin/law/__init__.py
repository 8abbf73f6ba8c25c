"""The law: values and promises. Standard library only, no I/O, no clock."""
