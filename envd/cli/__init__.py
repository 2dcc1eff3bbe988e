"""envctl: one module per verb, each loaded when it is called."""
