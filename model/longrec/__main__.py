"""`python -m longrec ...` is the command `longrec`, so that torchrun can start it: `torchrun ... -m
longrec train ...`.
"""

from longrec.cli.main import main

if __name__ == "__main__":
    main()
