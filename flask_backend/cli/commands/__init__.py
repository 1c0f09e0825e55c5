"""One module for each command, under its name.

``--help`` imports the module: what only the command itself needs and takes long to import, such as Flask or the
protocol of Beanstalkd, is imported in its functions.
"""
