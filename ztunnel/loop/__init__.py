"""Beside Trio's loop: waits for descriptors that Trio's own cannot express, or not as cheaply."""
