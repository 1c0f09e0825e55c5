"""The brokers that run without a server and without workers: ``memory://`` and ``sync://``."""
