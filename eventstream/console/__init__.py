"""What `manage.py eventstream …` does: one function for each subcommand."""
