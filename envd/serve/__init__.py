"""The edges of the daemon: sockets, roles, messages, statuses."""
