"""The builds of one daemon, each in a process of its own.

`builds` keeps them, one per spec, and lets any number follow one (`following`); `builders` hands
their tasks to processes that run `builder`; `elsewhere` sees those of other processes.
"""
