"""HTTP, as MLflow's scoring server speaks it, in the daemon's own loop.

`server` listens, `connection` bounds what a client may do before there is a request, `edge`
turns a request into a call and every failure into an answer, `scoring` has MLflow's paths.
Nothing of it is imported unless HTTP is served. A body is bytes here: only workers read it.
"""
