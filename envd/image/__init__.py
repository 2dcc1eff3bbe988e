"""Models, the environments they ask for and envd as an image, built by docker, podman or buildah.

`dockerfile` is what the image is made by, `context` the directory with that and what it copies,
`builders` the programs that make an image of it.
"""
