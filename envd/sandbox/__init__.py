"""What keeps models and builds to themselves, as envd sets it up from outside.

`tiers` says what this machine can do and what is in force, `bounds` what one process may see
and use, `cgroups` what it may take; `cores` sees that no memory of it is written to disk.
"""
