"""Run the command `longrec` as a module, for torchrun: `torchrun ... -m longrec train ...`."""

from longrec.cli.main import main

if __name__ == "__main__":
    main()
