"""`python -m sslcli` is `ssl` (what torchrun starts)."""

from sslcli.cli.main import main

if __name__ == "__main__":
    main()
