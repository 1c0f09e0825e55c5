"""Metrics for Prometheus: a helper child of the supervisor serves them, from the status page and the broker."""
