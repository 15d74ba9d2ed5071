"""The node's own HTTP endpoints: is it ready, what has it counted, what does it know, what does it do."""
