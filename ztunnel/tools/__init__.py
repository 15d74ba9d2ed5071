"""Commands that ask a ztunnel, or a dump of one, and print what it says."""
