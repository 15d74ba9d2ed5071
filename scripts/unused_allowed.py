"""Names that vulture finds unused in ztunnel/ and that stay, each with the reason. `make lint` runs it.

A name here is an exception to the rule that code which only tests use has no place in the program. Take it
out when its reason has gone.
"""

# Fields that are read all at once: the admin dump's (their names are the existing implementation's), the
# configuration's (`config_view` shows every field), and those of tuples that are compared as a whole.
expirationTime
serialNumber
duration_seconds
received_bytes
sent_bytes
held_bytes
validFrom
certChain
rootCerts
proxy_args
ztunnel_identity
inode
device

# Overrides: trio calls these methods of an instrument, and demands this one of a stream.
task_spawned
task_exited
wait_send_all_might_not_block

# The state of an object that has no other face, for its tests.
alpn
under_way
stream_ids
can_send
can_receive

# The existing implementation has this metric, and dashboards may ask for it. Here every connection is in a
# table, so that a revocation reaches it and there is nothing to count.
crl_untracked

# tests/e2e builds its networks with `ztunnel demo`'s machine.
on_close

# The chart of docs/routing.md: a test holds it to be true.
mermaid

# Fields of explanations, changes and connections: ``--json`` shows each of them.
resolves

# Overrides: textual reads these attributes of an application and calls these methods.
BINDINGS
DEFAULT_CSS
TITLE
compose
on_mount
on_data_table_row_selected
action_part
action_sort
action_pause

# h2 reads these attributes of its connection.
local_settings
max_inbound_frame_size
incoming_buffer
