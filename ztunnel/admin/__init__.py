"""The node's own HTTP servers: readiness, metrics, and the admin pages."""
