"""Who may do what, and how they are known: roles, tokens, certificates, groups of sockets.

`exposure` says whom the settings let in, `credentials` reads what callers are known by, `openings`
opens sockets to a group; `roles`, `tokens` and `certificates` are what they go by, `owners` and
`private_file` see that nobody else could have written it.
"""
