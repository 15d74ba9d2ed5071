"""What the operating system offers beside sockets: memory, and notice of changed files."""
