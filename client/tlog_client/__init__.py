"""The client of a Treehead log: every answer it returns has been verified."""
