"""The code of a worker process: the reserve loop, running and settling jobs, and the heartbeat."""
