"""Periodic tasks: when they are due, the token that remembers what has been scheduled, and the scheduler."""
