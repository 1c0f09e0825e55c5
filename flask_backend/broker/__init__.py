"""The only package that uses Beanstalkd's protocol: connections, and the producer that puts jobs."""
