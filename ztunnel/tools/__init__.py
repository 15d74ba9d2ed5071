"""Commands that ask a running ztunnel, or read a dump, and print the result."""
