"""Names that vulture finds unused in ztunnel/ and that stay, each with the reason. `make lint` runs it.

A name here is an exception to the rule that code which only tests use has no place in the program. Take it
out when its reason has gone.
"""

# Fields that are read all at once: the admin dump's (their names are the existing implementation's), the
# configuration's (`config_view` shows every field), and those of tuples that are compared as a whole.
expirationTime
serialNumber
duration_seconds
idle_seconds
received_bytes
sent_bytes
waits_for
held_bytes
validFrom
certChain
rootCerts
proxy_args
ztunnel_identity
num_worker_threads
inode
device

# Overrides: h2 reads these attributes of its connection and streams.
MAX_CLOSED_STREAMS
local_settings
max_inbound_frame_size
_inbound_flow_control_window_manager
incoming_buffer
stream_closed_by

# Overrides: trio calls these methods of an instrument, and demands this one of a stream.
task_spawned
task_exited
wait_send_all_might_not_block

# The state of an object that has no other face, for its tests.
alpn
under_way
stream_ids
is_open
can_send
can_receive
remote

# The existing implementation has this metric, and dashboards may ask for it. Here every connection is in a
# table, so that a revocation reaches it and there is nothing to count.
crl_untracked

# tests/e2e builds its networks with `ztunnel demo`'s machine.
on_close

# The data plane in a process of its own: made, tested, and waiting for its switch (docs/architecture.md).
control_end
restarted
drop_unreported
sources

# Explanations: which clause of a policy decided; the chart of docs/routing.md, which a test holds to be true.
explain_policy
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
