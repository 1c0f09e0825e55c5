"""Without a server and without workers: ``memory://`` and ``sync://``."""
