"""What runs in a worker: the reserve loop, a job's run and its settlement, and the heartbeat."""
