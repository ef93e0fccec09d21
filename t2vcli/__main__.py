"""`python -m t2vcli` is `t2v`."""

from t2vcli.cli.main import main

if __name__ == "__main__":
    main()
