"""The microVM driver: each sandbox has a kernel and a (virtual) machine of its own."""
