# For development only: a published key protects no session. In production set it outside the code.
SECRET_KEY = "development"
