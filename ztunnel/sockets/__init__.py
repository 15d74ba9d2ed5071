"""Sockets of the data path: listening, accepting, dialling, and plaintext from one socket to another."""
