"""The process and its host: /proc, limits, titles, standard streams, exit codes, logging."""
