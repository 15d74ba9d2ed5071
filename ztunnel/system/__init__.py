"""Services of the operating system other than sockets: memory, and notification of changed files."""
