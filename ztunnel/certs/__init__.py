"""The certificates of the node's identities: CA client, rotation, dump, revocation lists, the built-in CA."""
