# For development: a key that is published signs nothing. In production it comes from outside of the code.
SECRET_KEY = "development"
