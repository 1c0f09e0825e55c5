"""What a person can see and do: queues, jobs, and the stories of failures."""
