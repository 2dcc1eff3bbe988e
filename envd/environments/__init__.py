"""The ready environment of a model, for whoever asks: built at most once, by any process.

`environments` is the door: it finds what is ready, waits for whoever is building (`waiting`,
`tail`), or locks (`locking`) and installs (`installing`) what was `asked` for, as one `work`;
`verifying` sees whether what was built is still what it was.
"""
