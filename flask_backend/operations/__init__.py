"""Inspection and actions for people: queues, jobs, and the stories of failures."""
