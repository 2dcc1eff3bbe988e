"""The Open Inference Protocol: what its clients ask, as envd answers it."""
