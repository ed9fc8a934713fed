"""Other ways to read a history, called like longrec.nn.stca.STCA: what its cost and quality are compared with."""
