"""The command line: thin, in the same words as the library and the server."""
