"""Extensions of Trio's loop: waits for descriptors that Trio does not have, or that are cheaper."""
