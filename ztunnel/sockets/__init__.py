"""Sockets of the data path: listening, accepting, dialling, and relaying plaintext by splice."""
