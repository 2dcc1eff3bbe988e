"""What is wrong with what models say they depend on, and putting it right."""
