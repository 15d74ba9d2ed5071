"""Certificates of the node's identities: asked for, renewed, dumped; revocation files; the built-in CA."""
