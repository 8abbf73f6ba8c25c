"""The conversation between host and guest agent: bytes in, frames out. No I/O, no clock, lean imports."""
