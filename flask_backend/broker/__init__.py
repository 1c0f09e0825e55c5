"""The only speaker of Beanstalkd's protocol: connections, and the producer that puts jobs."""
