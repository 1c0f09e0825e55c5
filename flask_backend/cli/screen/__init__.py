"""The screen of `flask-backend top`: its lines as a function of data and keys, and apart from that the terminal."""
