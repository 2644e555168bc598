"""The command line: one file a command, ``main.py`` for what they share in errors and exit codes."""
